"""Multi-query associative recall."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from wavelet_train.probes.probe import FILLER, Example, Probe, ProbeConfig

Pairs = Annotated[int, Field(ge=1)]


class AssociativeRecall(Probe):
    """Multi-query associative recall, MQAR (Arora et al. 2023, Zoology, arXiv 2312.04927).

    An example lists pairs of a key and a value, and later asks for every key once; what has to be predicted is the
    value, which then follows it. Keys come from the lower half of the vocabulary, values from the upper one, none of
    them twice in an example. Questions stand at even distances behind the list, the i-th place with a probability
    proportional to i^(power - 1); id 0 fills the others. (Zoology's inputs do not show the answers.)
    """

    class Config(ProbeConfig):
        kind: Literal["associative_recall"] = "associative_recall"
        pairs: Pairs | list[Pairs] = Field(
            64, description="pairs of a key and a value; of a list, each example has one of the numbers"
        )
        power: float = Field(
            0.01, gt=0, le=1e3, description="of where questions stand: 1 is anywhere, less is sooner after the list"
        )

        @property
        def numbers(self) -> list[int]:
            """What the number of pairs is drawn from."""
            return self.pairs if isinstance(self.pairs, list) else [self.pairs]

        @model_validator(mode="after")
        def _check_room(self) -> AssociativeRecall.Config:
            if not self.numbers:
                raise ValueError("pairs is an empty list; name a number of pairs")
            pairs = max(self.numbers)
            if 4 * pairs > self.length:
                raise ValueError(
                    f"pairs={pairs} need a length of {4 * pairs}, not {self.length}: two tokens for each pair, and two "
                    "for each question"
                )
            if pairs >= self.vocabulary_size // 2:
                raise ValueError(
                    f"pairs={pairs} need a vocabulary_size of {2 * pairs + 2}, not {self.vocabulary_size}: every key "
                    "and every value is another token"
                )
            return self

    config: Config

    def draw(self, generator: np.random.Generator) -> Example:
        config = self.config
        pairs = config.numbers[generator.integers(len(config.numbers))]
        half = config.vocabulary_size // 2
        keys = 1 + generator.permutation(half - 1)[:pairs]
        values = half + generator.permutation(config.vocabulary_size - half)[:pairs]
        # The largest of log-probabilities with Gumbel noise are a draw without replacement.
        places = np.arange(1, (config.length - 2 * pairs) // 2 + 1)
        noisy = (config.power - 1) * np.log(places) + generator.gumbel(size=len(places))
        slots = np.argsort(-noisy)[:pairs]
        tokens = np.full(config.length, FILLER)
        tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2] = keys, values
        questions = 2 * pairs + 2 * slots
        tokens[questions] = keys
        return Example.repeating(tokens, questions + 1, 2 * np.arange(pairs) + 1)
