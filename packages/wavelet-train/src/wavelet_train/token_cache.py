"""The token cache: trained tokenizers, and every split's tokens in a memory-mapped file.

    <directory>/tokenizers/<key>/tokenizer.json     key: data and tokenizer configuration
    <directory>/tokens/<key>/<split>.tokens         key: data and tokenizer; uint16, or uint32 above 65536 tokens
                             <split>.documents      int64 positions of the first token of every document
                             <split>.json           counts; written last, so an entry without it is not complete

Files are written to temporary siblings and renamed, and equal keys mean equal content: two processes that prepare the
same data do the work twice and get the same files.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wavelet_core.atomic_files import write_atomically
from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_core.registry import registry
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import BytePairTokenizer, Tokenizer, TokenizerError, load_tokenizer
from wavelet_train.byte_pair import train_byte_pair
from wavelet_train.datasets import Dataset, Split
from wavelet_train.progress import Progress

FORMAT_VERSION = 1
# Characters: long documents are cut into pieces of this size, and pieces are encoded in batches of the other.
PIECE_SIZE = 1 << 17
BATCH_SIZE = 1 << 22
# A vocabulary hardly changes beyond this much text.
TRAINING_BYTES = 1 << 28


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of a split and what is known about its text.

    tokens: (N,) uint16 or uint32, memory-mapped; an end-of-text token stands between two documents where the tokenizer
    has one. document_starts: (documents,) int64, position of the first token of each. byte_count: UTF-8 bytes of the
    documents. word_count: whitespace-separated words, or the canonical number from the configuration.
    """

    name: Split
    tokens: np.ndarray
    document_starts: np.ndarray
    byte_count: int
    word_count: int


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) int64: bytes of text behind each token; the end of text is no text and has 0."""
    lengths = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
    for token in range(tokenizer.vocabulary_size):
        # Some published encodings have ids that nothing is encoded to.
        with suppress(TokenizerError):
            lengths[token] = len(tokenizer.decode_bytes([token]))
    if tokenizer.end_of_text is not None:
        lengths[tokenizer.end_of_text] = 0
    return lengths


def default_cache_directory() -> Path:
    """$WAVELET_CACHE, or else ~/.cache/wavelet."""
    return Path(os.environ.get("WAVELET_CACHE") or Path.home() / ".cache" / "wavelet")


class TokenCache:
    """Makes the tokenizer and the tokens of a data set in a directory, or finds them made."""

    def __init__(self, dataset: Dataset, directory: Path) -> None:
        self.dataset = dataset
        self.directory = directory
        self._data_fingerprint = dataset.fingerprint()

    def tokenizer(self, config: ComponentConfig) -> Tokenizer:
        """The tokenizer of a configuration, trained on the train split of the data if its kind is learnt."""
        tokenizer_class: Any = registry.get("tokenizer", config.kind)
        train: Any = getattr(tokenizer_class, "train", None)
        if tokenizer_class is BytePairTokenizer:  # whose package cannot depend on the library that learns it
            train = train_byte_pair
        if train is None:
            tokenizer: Tokenizer = tokenizer_class(config)
            return tokenizer
        key = hash_of("tokenizer", self._data_fingerprint, config.model_dump_json())
        directory = self.directory / "tokenizers" / key
        with suppress(CheckpointError):  # there is none, or it is damaged and made again
            return load_tokenizer(directory)
        with Progress(f"training a {config.kind} tokenizer", size_of(self.dataset, "train")) as progress:
            trained: Tokenizer = train(config, first_bytes(self.dataset.documents("train"), TRAINING_BYTES, progress))
        trained.save(directory)
        return trained

    def split(self, tokenizer: Tokenizer, name: Split) -> TokenSplit:
        """The tokens of a split of the data."""
        key = hash_of("tokens", self._data_fingerprint, fingerprint(tokenizer))
        directory = self.directory / "tokens" / key
        try:
            return read_split(directory, name)
        except (OSError, ValueError, KeyError, TypeError):
            write_split(directory, name, self.dataset, tokenizer)
        return read_split(directory, name)


def read_split(directory: Path, name: Split) -> TokenSplit:
    """A split's files. Raises OSError, ValueError, KeyError or TypeError when they are missing or damaged."""
    counts = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    tokens = np.memmap(directory / f"{name}.tokens", np.dtype(counts["dtype"]), "r")
    document_starts = np.memmap(directory / f"{name}.documents", np.int64, "r")
    if (len(tokens), len(document_starts)) != (counts["tokens"], counts["documents"]):
        raise ValueError(f"the files of {directory / name} do not hold as many numbers as {name}.json says")
    return TokenSplit(name, tokens, document_starts, counts["bytes"], counts["words"])


def write_split(directory: Path, name: Split, dataset: Dataset, tokenizer: Tokenizer) -> None:
    """Tokenize a split into its three files. Nothing is held in memory but one batch of text and its tokens."""
    dtype = np.dtype("uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32")
    counts = {"tokens": 0, "documents": 0, "bytes": 0, "words": 0}
    starts: list[int] = []

    def write_tokens(path: Path) -> None:
        with path.open("wb") as file, Progress(f"tokenizing the {name} split", size_of(dataset, name)) as progress:
            for batch in batches(dataset.documents(name), tokenizer):
                texts = [text for text, _ in batch]
                for (text, begins), ids in zip(
                    batch, map(tokenizer.checked, tokenizer.encode_batch(texts)), strict=True
                ):
                    if begins:
                        separator = [tokenizer.end_of_text] if starts and tokenizer.end_of_text is not None else []
                        starts.append(counts["tokens"] + len(separator))
                        ids = separator + ids
                    np.asarray(ids, dtype=dtype).tofile(file)
                    size = len(text.encode("utf-8", "replace"))
                    counts["tokens"] += len(ids)
                    counts["bytes"] += size
                    counts["words"] += len(text.split())
                    progress.advance(size)

    write_atomically(directory / f"{name}.tokens", write_tokens)
    if not counts["tokens"]:
        raise ConfigurationError(f"data.dataset: the {name} split has no text")
    write_atomically(directory / f"{name}.documents", np.array(starts, dtype=np.int64).tofile)
    counts["documents"] = len(starts)
    sidecar = json.dumps({"dtype": dtype.name, **counts}) + "\n"
    write_atomically(directory / f"{name}.json", lambda file: file.write_text(sidecar, encoding="utf-8"))


def batches(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents, and whether a document begins there, in lists of about BATCH_SIZE characters.

    The tokenizer can use all processors for a list.
    """
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in filter(None, documents):
        for number, text in enumerate(tokenizer.pieces(document, PIECE_SIZE)):
            batch.append((text, number == 0))
            size += len(text)
            if size >= BATCH_SIZE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def first_bytes(documents: Iterable[str], limit: int, progress: Progress) -> Iterator[str]:
    """Documents until they have `limit` bytes together, reporting progress."""
    for document in documents:
        yield document
        progress.advance(len(document.encode("utf-8", "replace")))
        if progress.done >= limit:
            return


def size_of(dataset: Dataset, split: Split) -> int | None:
    """Roughly the bytes of a split, where the data set can tell."""
    size = getattr(dataset, "size", None)
    return size(split) if size else None


def fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of all that the tokenizer saves."""
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save(name)
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return hash_of("tokenizer", *(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files))


def hash_of(*parts: str) -> str:
    """The cache key of some parts."""
    return hashlib.sha256(json.dumps([FORMAT_VERSION, *parts]).encode()).hexdigest()[:32]
