"""A checkpoint's config.json as a configuration of transformers."""

from __future__ import annotations

from typing import Any

from transformers import __version__
from transformers.configuration_utils import PreTrainedConfig

if tuple(map(int, __version__.split(".")[:2])) < (5, 24):
    raise ImportError("transformers 5.24 or newer is needed")


class WaveletConfig(PreTrainedConfig):
    """The content of config.json, its sections as attributes.

    model: the model section, whose `kind` names the family. format_version, components: as the checkpoint has them.
    """

    model_type = "wavelet_lm"

    model: dict[str, Any] | None = None
    format_version: int | None = None
    components: dict[str, str] | None = None

    @property
    def vocab_size(self) -> int:
        """V, entries in the vocabulary."""
        size: int = (self.model or {})["vocabulary_size"]
        return size
