"""Selective copying."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from wavelet_train.probes.probe import FILLER, MARKER, Example, Probe, ProbeConfig


class SelectiveCopying(Probe):
    """Selective copying (Gu and Dao 2023, Mamba, arXiv 2312.00752): some tokens at random places among filler, id 0,
    then a mark, id 1, and after it the tokens in their order, which have to be predicted."""

    class Config(ProbeConfig):
        kind: Literal["selective_copying"] = "selective_copying"
        tokens: int = Field(16, ge=1, description="tokens to copy")

        @model_validator(mode="after")
        def _check_room(self) -> SelectiveCopying.Config:
            if 2 * self.tokens + 1 > self.length:
                raise ValueError(f"tokens={self.tokens} need a length of {2 * self.tokens + 1}, not {self.length}")
            return self

    config: Config

    def draw(self, generator: np.random.Generator) -> Example:
        config = self.config
        mark = config.length - config.tokens - 1
        places = np.sort(generator.choice(mark, size=config.tokens, replace=False))
        copied = generator.integers(MARKER + 1, config.vocabulary_size, size=config.tokens)
        tokens = np.full(config.length, FILLER)
        tokens[places], tokens[mark] = copied, MARKER
        return Example.repeating(tokens, np.arange(mark + 1, config.length), places)
