"""The tokens of a mix: documents of several sources in turn, so that each source keeps its share of the tokens.

A turn is the next document of the source that is furthest behind its share, or TURN tokens of one that is longer; in
its next turn the source goes on with that document. Where a source ends it begins again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wavelet_core.atomic_files import write_atomically
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.datasets import Split
from wavelet_train.mix import Mix
from wavelet_train.progress import Progress
from wavelet_train.seals import write_seal
from wavelet_train.token_split import SOURCE_TYPE, TokenSplit, token_byte_lengths
from wavelet_train.tokenizing import token_dtype

# Tokens.
TURN = 1 << 16


class Turn(NamedTuple):
    """Tokens of one source. goes_on: whether they follow in their document on the turn before."""

    source: int
    tokens: np.ndarray
    goes_on: bool


def turns(splits: Sequence[TokenSplit], weights: Sequence[float], separated: bool, repeated: bool) -> Iterator[Turn]:
    """separated: whether a token stands between documents. repeated: whether to go on after the first source ended,
    until each has been given once."""
    readers = [read_turns(split, separated) for split in splits]
    given = [0] * len(splits)
    unfinished = set(range(len(splits)))
    last = -1
    while unfinished:
        source = min(range(len(splits)), key=lambda number: (given[number] / weights[number], number))
        tokens, begins, ends = next(readers[source])
        yield Turn(source, tokens, not begins and source == last)
        given[source] += len(tokens)
        last = source
        if ends:
            unfinished.discard(source)
            if not repeated:
                return


def write_mixture(directory: Path, name: Split, mix: Mix, splits: Sequence[TokenSplit], tokenizer: Tokenizer) -> None:
    """Write the tokens of a mix from those of its sources, and seal them.

    The train split is as long as `mix.until` says; the others end with the first source, and so repeat nothing.
    """
    weights = [source.weight for source in mix.sources]
    separator = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    repeated = name == "train" and mix.until == "all_exhausted"
    sizes = [len(split.tokens) - len(separator) * (len(split.document_starts) - 1) for split in splits]
    lengths = token_byte_lengths(tokenizer)
    dtype = token_dtype(tokenizer)
    given = [0] * len(splits)
    starts: list[int] = []
    document_sources: list[int] = []
    byte_count = 0

    def write_tokens(path: Path) -> None:
        nonlocal byte_count
        position = 0
        total = (max if repeated else min)(size / weight for size, weight in zip(sizes, weights, strict=True))
        progress = Progress(f"mixing the {name} split", int(total * sum(weights)), " tokens")
        with path.open("wb", buffering=1 << 20) as file, progress:
            for turn in turns(splits, weights, bool(separator), repeated):
                if not turn.goes_on:
                    if separator and starts:
                        file.write(np.array(separator, dtype).tobytes())
                        position += 1
                    starts.append(position)
                    document_sources.append(turn.source)
                file.write(turn.tokens.astype(dtype).tobytes())
                position += len(turn.tokens)
                given[turn.source] += len(turn.tokens)
                byte_count += int(lengths[turn.tokens].sum())
                progress.advance(len(turn.tokens))

    tokens, documents, sources = (directory / f"{name}.{suffix}" for suffix in ("tokens", "documents", "sources"))
    write_atomically(tokens, write_tokens)
    write_atomically(documents, lambda file: file.write_bytes(np.array(starts, np.int64).tobytes()))
    write_atomically(sources, lambda file: file.write_bytes(np.array(document_sources, SOURCE_TYPE).tobytes()))
    epochs = [count / size for count, size in zip(given, sizes, strict=True)]
    facts = {
        "dtype": dtype.name,
        "bytes": byte_count,
        "words": round(sum(split.word_count * part for split, part in zip(splits, epochs, strict=True))),
        "sources": [
            {"name": source.name, "tokens": count, "epochs": part}
            for source, count, part in zip(mix.sources, given, epochs, strict=True)
        ],
    }
    write_seal(directory / f"{name}.json", [tokens, documents, sources], facts)


def read_turns(split: TokenSplit, separated: bool) -> Iterator[tuple[np.ndarray, bool, bool]]:
    """A split's documents again and again, in turns: tokens, whether a document begins, whether the split ends."""
    starts = split.document_starts
    while True:
        for number, start in enumerate(map(int, starts)):
            final = number + 1 == len(starts)
            end = len(split.tokens) if final else int(starts[number + 1]) - separated
            for place in range(start, max(end, start + 1), TURN):
                stop = min(place + TURN, end)
                yield split.tokens[place:stop], place == start, final and stop == end
