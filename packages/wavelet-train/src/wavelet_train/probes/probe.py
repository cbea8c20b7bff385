"""What probes have in common: examples that are drawn anew from a seed, none of them in two splits."""

from __future__ import annotations

import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_train.datasets import SPLITS, Split

# Of the remainders of an example's checksum by 4, those of each split's examples.
REMAINDERS: dict[Split, tuple[int, ...]] = {"train": (0, 1), "validation": (2,), "test": (3,)}
# Draws in a row that another split's examples may take.
MOST_DRAWS = 1000
FILLER, MARKER = 0, 1


@dataclass(frozen=True)
class Example:
    """tokens: (L,) ids. distances: (L,), of a token that is an answer, how many positions before it what it repeats
    stands; 0 for all others, which are not scored."""

    tokens: np.ndarray
    distances: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """(L,) bool, which tokens are scored."""
        return self.distances > 0

    @classmethod
    def repeating(cls, tokens: np.ndarray, answers: np.ndarray, sources: np.ndarray) -> Example:
        """Answers that repeat what stands before them: tokens at `sources` come again at `answers`, (N,) positions
        each, and are scored there."""
        tokens[answers] = tokens[sources]
        distances = np.zeros_like(tokens)
        distances[answers] = answers - sources
        return cls(tokens, distances)


class ProbeConfig(ComponentConfig):
    """What every probe has."""

    vocabulary_size: int = Field(512, ge=8, le=1 << 24, description="token ids; 0 fills, 1 asks")
    length: int = Field(256, ge=4, le=1 << 20, description="tokens of an example")
    examples: int = Field(20_000, ge=1, le=1 << 24, description="examples of the train split")
    held_out: int = Field(500, ge=1, le=1 << 24, description="examples of the validation and of the test split each")
    seed: int = Field(0, ge=0, lt=1 << 63, description="decides all examples")


class Probe(ABC):
    """A data set of token ids: `examples` are what is trained on and scored, `documents` the same as text.

    Data of it need `data.tokenizer: {kind: token_ids, vocabulary_size: N}`, and windows that hold an example.
    """

    Config: type[ProbeConfig]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> Example:
        """One more example, of `length` tokens."""

    @property
    def vocabulary_size(self) -> int:
        """Ids are 0 .. vocabulary_size - 1."""
        size: int = self.config.vocabulary_size
        return size

    def examples(self, split: Split) -> Iterator[Example]:
        """The examples of a split, the same ones every time.

        Raises ConfigurationError where there are too few different examples for three splits.
        """
        generator = np.random.default_rng([self.config.seed, SPLITS.index(split)])
        for _ in range(self.config.examples if split == "train" else self.config.held_out):
            for _ in range(MOST_DRAWS):
                example = self.draw(generator)
                if zlib.crc32(example.tokens.astype("<i8").tobytes()) % 4 in REMAINDERS[split]:
                    break
            else:
                raise ConfigurationError(
                    f"data.dataset: {self.config.kind} has too few different examples of this size; choose a larger "
                    "vocabulary_size"
                )
            yield example

    def documents(self, split: Split) -> Iterator[str]:
        return (" ".join(map(str, example.tokens.tolist())) for example in self.examples(split))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.config.model_dump_json().encode()).hexdigest()
