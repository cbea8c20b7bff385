"""Where a model computes: devices by name."""

from __future__ import annotations

import torch

from wavelet_core.config import ConfigurationError


def resolve_device(name: str, field: str) -> torch.device:
    """`auto` is the accelerator that torch finds, or else the processor. Errors name the field that the name is from.

    Raises ConfigurationError for a device that torch does not know or that this machine does not have.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(
            f"{field}={name!r} is not a device that torch knows; use auto, cpu, cuda or mps"
        ) from error
    if device.type != "cpu" and (accelerator is None or device.type != accelerator.type):
        raise ConfigurationError(f"{field}={name!r} is not available on this machine; use auto or cpu")
    return device
