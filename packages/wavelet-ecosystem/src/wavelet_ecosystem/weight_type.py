"""The type of the weights that somebody asks for."""

from __future__ import annotations

import torch

from wavelet_core.config import ConfigurationError
from wavelet_core.messages import shown


def weight_type(given: torch.dtype | str | None) -> torch.dtype | None:
    """A floating type by its name; None, for weights as they are stored, where it is None or "auto".

    Raises ConfigurationError for what is none.
    """
    if given is None or given == "auto":
        return None
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigurationError(f"dtype={shown(given)} is no floating type of torch; use float32, bfloat16 or float16")
    return dtype
