"""A key found at a distance."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from wavelet_train.probes.probe import MARKER, Example, Probe, ProbeConfig


class KeyAtDistance(Probe):
    """A key in a long random text, asked for at its end, like a passkey (Mohtashami and Jaggi 2023, arXiv 2305.16300).

    The key stands behind a mark, id 1, which comes a second time at the end; the key's tokens after it have to be
    predicted. The text is made of the lower half of the vocabulary, keys of the upper one.
    """

    class Config(ProbeConfig):
        kind: Literal["key_at_distance"] = "key_at_distance"
        key: int = Field(4, ge=1, description="tokens of the key")
        distance: int | None = Field(
            None, ge=2, description="positions between the two marks, more than `key`; null: any that there is room for"
        )

        @model_validator(mode="after")
        def _check_room(self) -> KeyAtDistance.Config:
            room = self.length - self.key - 1
            if room <= self.key:
                raise ValueError(f"key={self.key} twice needs a length of {2 * self.key + 2}, not {self.length}")
            if self.distance is not None and not self.key < self.distance <= room:
                raise ValueError(
                    f"distance={self.distance} must be from {self.key + 1} (key + 1) to {room} (length - key - 1)"
                )
            return self

    config: Config

    def draw(self, generator: np.random.Generator) -> Example:
        config = self.config
        asked = config.length - config.key - 1
        half = config.vocabulary_size // 2
        distance = config.distance or int(generator.integers(config.key + 1, asked + 1))
        tokens = generator.integers(MARKER + 1, half, size=config.length)
        key = generator.integers(half, config.vocabulary_size, size=config.key)
        mark = asked - distance
        tokens[mark], tokens[mark + 1 : mark + 1 + config.key], tokens[asked] = MARKER, key, MARKER
        answers = np.arange(asked + 1, config.length)
        return Example.repeating(tokens, answers, answers - distance)
