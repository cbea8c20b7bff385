"""The tokens of a split, in memory-mapped files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wavelet_core.tokenizers import Tokenizer
from wavelet_train.datasets import Split
from wavelet_train.seals import read_seal

# What a source of a mix is kept as.
SOURCE_TYPE = np.uint16


@dataclass(frozen=True)
class MixedSource:
    """What a mix took from one data set. tokens: how many, without those between documents. epochs: how often the data
    set's tokens are in them."""

    name: str
    tokens: int
    epochs: float

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens of {self.name} ({self.epochs:.2f} epochs)"


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of a split and what is known about its text.

    tokens: (N,) uint16 or uint32, memory-mapped; an end-of-text token stands between two documents where the tokenizer
    has one. document_starts: (documents,) int64, position of the first token of each. byte_count: UTF-8 bytes of the
    documents. word_count: whitespace-separated words, or the canonical number from the configuration. sources: what a
    mix took from each of its data sets. document_sources: (documents,), which of them each document is of. counts:
    (N,) bool, which tokens are to be predicted; None for all.
    """

    name: Split
    tokens: np.ndarray
    document_starts: np.ndarray
    byte_count: int
    word_count: int
    sources: tuple[MixedSource, ...] = ()
    document_sources: np.ndarray | None = None
    counts: np.ndarray | None = None


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) int64: bytes of text behind each token; the end of text is no text and has 0."""
    return np.array([len(text) for text in tokenizer.token_bytes], dtype=np.int64)


def read_split(directory: Path, name: Split) -> TokenSplit:
    """A split's files. Raises FileNotFoundError when there are none, CheckpointError when they are damaged."""
    counts = read_seal(directory / f"{name}.json")
    tokens = np.memmap(directory / f"{name}.tokens", np.dtype(counts["dtype"]), "r")
    document_starts = np.memmap(directory / f"{name}.documents", np.int64, "r")
    sources = tuple(MixedSource(**source) for source in counts.get("sources", ()))
    document_sources = np.memmap(directory / f"{name}.sources", SOURCE_TYPE, "r") if sources else None
    return TokenSplit(name, tokens, document_starts, counts["bytes"], counts["words"], sources, document_sources)
