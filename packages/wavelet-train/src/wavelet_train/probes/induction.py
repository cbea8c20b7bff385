"""Induction: a passage that comes again."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from wavelet_train.probes.probe import Example, Probe, ProbeConfig


class Induction(Probe):
    """A passage of random tokens that comes again at the end, as induction heads are found (Olsson et al. 2022).

    Nothing else is there twice. All of the second time but its first token has to be predicted.
    """

    class Config(ProbeConfig):
        kind: Literal["induction"] = "induction"
        passage: int = Field(16, ge=2, description="tokens that come again")
        distance: int | None = Field(
            None,
            ge=2,
            description="positions between the two times, at least `passage`; null: any that there is room for",
        )

        @model_validator(mode="after")
        def _check_room(self) -> Induction.Config:
            room = self.length - self.passage
            if room < self.passage:
                raise ValueError(
                    f"passage={self.passage} twice needs a length of {2 * self.passage}, not {self.length}"
                )
            if self.distance is not None and not self.passage <= self.distance <= room:
                raise ValueError(
                    f"distance={self.distance} must be from {self.passage} (passage) to {room} (length - passage)"
                )
            if self.vocabulary_size < room:
                raise ValueError(
                    f"a length of {self.length} needs a vocabulary_size of {room}, not {self.vocabulary_size}: all "
                    "tokens differ"
                )
            return self

    config: Config

    def draw(self, generator: np.random.Generator) -> Example:
        config = self.config
        end = config.length - config.passage
        distance = config.distance or int(generator.integers(config.passage, end + 1))
        first = generator.permutation(config.vocabulary_size)[:end]
        tokens = np.append(first, np.full(config.passage, first[end - distance]))
        answers = np.arange(end + 1, config.length)
        return Example.repeating(tokens, answers, answers - distance)
