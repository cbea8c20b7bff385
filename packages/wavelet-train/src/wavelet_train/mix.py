"""The data set `mix`: several data sets, each with its share of the training tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from wavelet_core.config import ComponentConfig, ComponentOf, ConfigurationError, Section
from wavelet_core.registry import build
from wavelet_train.datasets import Dataset, Part, Split, describe, parts_of, size_of, whole_documents

# Characters that `documents` gives of one source at a time.
TURN = 1 << 16


@dataclass(frozen=True)
class WeightedSource:
    """A data set with its weight, what it is called, and the path of its configuration."""

    dataset: Dataset
    weight: float
    name: str
    place: str

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let errors name this source."""
        try:
            yield
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace("data.dataset", self.place, 1)) from error


class Mix:
    """Text of several data sets. Their weights are shares of tokens; the token cache counts them (token_mix.py).

    As a data set alone, it gives the text of its sources in equal shares until each has been given once: a vocabulary
    that is learnt from it does not depend on the weights, so that other weights need no text tokenized again.
    """

    class Config(ComponentConfig):
        class Source(Section):
            """A data set and its weight."""

            dataset: Annotated[Any, ComponentOf("dataset")] = Field(description="the data set, with all three splits")
            weight: float = Field(
                1.0,
                gt=0,
                allow_inf_nan=False,
                description="its share of the tokens, relative to the other weights",
            )

        kind: Literal["mix"] = "mix"
        sources: list[Source] = Field(min_length=1, description="the data sets, each with its weight")
        until: Literal["all_exhausted", "first_exhausted"] = Field(
            "all_exhausted",
            description="how long the train split is: all_exhausted gives every source whole at least once and repeats "
            "those that end sooner, first_exhausted stops where the first one ends",
        )

    def __init__(self, config: Config) -> None:
        self.until = config.until
        self.sources: list[WeightedSource] = []
        for number, source in enumerate(config.sources):
            place = f"data.dataset.sources.{number}.dataset"
            try:
                dataset: Dataset = build("dataset", source.dataset)
            except ConfigurationError as error:
                raise ConfigurationError(str(error).replace("data.dataset", place, 1)) from error
            if hasattr(dataset, "examples"):
                raise ConfigurationError(f"{place}: {source.dataset.kind} is made of token ids; a mix is of texts")
            self.sources.append(WeightedSource(dataset, source.weight, describe(dataset, source.dataset), place))

    def documents(self, split: Split) -> Iterator[str]:
        return whole_documents(self.parts(split))

    def parts(self, split: Split) -> Iterator[Part]:
        given = [0] * len(self.sources)
        texts = [self._turns(source, split) for source in self.sources]
        left = set(range(len(self.sources)))
        while left:
            behind = min(left, key=lambda number: (given[number], number))
            turn = next(texts[behind], None)
            if turn is None:
                left.remove(behind)
                continue
            given[behind] += len(turn)
            yield Part(turn, True)

    @staticmethod
    def _turns(source: WeightedSource, split: Split) -> Iterator[str]:
        with source.named():
            for text, _ in parts_of(source.dataset, split):
                yield from (text[start : start + TURN] for start in range(0, len(text), TURN))

    def fingerprint(self) -> str:
        weights = [repr(source.weight) for source in self.sources]
        return _hash("mix", self.until, *weights, self.text_fingerprint())

    def text_fingerprint(self) -> str:
        """A string that changes when the text of a source does."""
        return _hash("sources", *(source.dataset.fingerprint() for source in self.sources))

    def describe(self) -> str:
        total = sum(source.weight for source in self.sources)
        return "mix of " + "; ".join(f"{source.weight / total:.1%} {source.name}" for source in self.sources)

    def size(self, split: Split) -> int | None:
        sizes = [size_of(source.dataset, split) for source in self.sources]
        return None if None in sizes else sum(filter(None, sizes))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
