"""The token cache: trained tokenizers, and every split's tokens in a memory-mapped file.

    <directory>/tokenizers/<key>/tokenizer.json     key: data and tokenizer configuration
                           <key>.json               its digests
    <directory>/tokens/<key>/<split>.tokens         key: data and tokenizer; uint16, or uint32 above 65536 tokens
                             <split>.documents      int64 positions of the first token of every document
                             <split>.json           counts, and the digests of the two files

The file with the digests is an entry's seal. It is written last, so that an entry without it is not complete, and
everything is checked against it when the entry is opened: what is damaged is made again, and said to be.

Files are written to temporary siblings and renamed, and equal keys mean equal content: two processes that prepare the
same data do the work twice and get the same files.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wavelet_core.atomic_files import write_atomically
from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_core.digests import file_digest
from wavelet_core.registry import registry
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import BytePairTokenizer, Tokenizer, load_tokenizer
from wavelet_core.verified_files import check_once
from wavelet_train.byte_pair import train_byte_pair
from wavelet_train.datasets import Dataset, Split
from wavelet_train.progress import Progress

T = TypeVar("T")

FORMAT_VERSION = 2
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
    return np.array([len(text) for text in tokenizer.token_bytes], dtype=np.int64)


class TokenCache:
    """Makes the tokenizer and the tokens of a data set in a directory, or finds them made."""

    def __init__(self, dataset: Dataset, directory: Path) -> None:
        self.dataset = dataset
        self.directory = directory
        self.data_fingerprint = dataset.fingerprint()

    def tokenizer(self, config: ComponentConfig) -> Tokenizer:
        """The tokenizer of a configuration, trained on the train split of the data if its kind is learnt."""
        tokenizer_class: Any = registry.get("tokenizer", config.kind)
        train: Any = getattr(tokenizer_class, "train", None)
        if tokenizer_class is BytePairTokenizer:  # whose package cannot depend on the library that learns it
            train = train_byte_pair
        if train is None:
            tokenizer: Tokenizer = tokenizer_class(config)
            return tokenizer
        key = hash_of("tokenizer", self.data_fingerprint, config.model_dump_json())
        directory = self.directory / "tokenizers" / key
        seal = directory.with_suffix(".json")

        def make() -> None:
            with Progress(f"training a {config.kind} tokenizer", size_of(self.dataset, "train")) as progress:
                documents = first_bytes(self.dataset.documents("train"), TRAINING_BYTES, progress)
                trained: Tokenizer = train(config, documents)
            trained.save(directory)
            write_seal(seal, [path for path in directory.iterdir() if not path.name.startswith(".")])

        def read() -> Tokenizer:
            read_seal(seal)
            return load_tokenizer(directory)

        return self._found_or_made(read, make)

    def split(self, tokenizer: Tokenizer, name: Split) -> TokenSplit:
        """The tokens of a split of the data."""
        directory = self.directory / "tokens" / hash_of("tokens", self.data_fingerprint, fingerprint(tokenizer))
        return self._found_or_made(
            lambda: read_split(directory, name),
            lambda: write_split(directory, name, self.dataset, tokenizer),
        )

    def _found_or_made(self, read: Callable[[], T], make: Callable[[], None]) -> T:
        """What `read` finds; before that, `make` puts it there if it is missing or damaged."""
        try:
            return read()
        except FileNotFoundError:
            pass
        except CheckpointError as error:
            print(f"token cache: {error}; it is made again", file=sys.stderr)
        try:
            make()
        except OSError as error:
            place = Path(error.filename or self.directory)
            if not place.is_relative_to(self.directory):
                raise  # a file of the data
            raise ConfigurationError(
                f"data.cache_directory: cannot write the token cache {place}: {error.strerror or error}; "
                "make room or name another directory, with data.cache_directory or $WAVELET_CACHE"
            ) from error
        return read()


def read_split(directory: Path, name: Split) -> TokenSplit:
    """A split's files. Raises FileNotFoundError when there are none, CheckpointError when they are damaged."""
    counts = read_seal(directory / f"{name}.json")
    tokens = np.memmap(directory / f"{name}.tokens", np.dtype(counts["dtype"]), "r")
    document_starts = np.memmap(directory / f"{name}.documents", np.int64, "r")
    return TokenSplit(name, tokens, document_starts, counts["bytes"], counts["words"])


def write_split(directory: Path, name: Split, dataset: Dataset, tokenizer: Tokenizer) -> None:
    """Tokenize a split into its three files. Nothing is held in memory but one batch of text and its tokens."""
    dtype = np.dtype("uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32")
    counts = {"tokens": 0, "bytes": 0, "words": 0}
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
                    file.write(np.asarray(ids, dtype=dtype).tobytes())
                    size = len(text.encode("utf-8", "replace"))
                    counts["tokens"] += len(ids)
                    counts["bytes"] += size
                    counts["words"] += len(text.split())
                    progress.advance(size)

    tokens, document_starts = directory / f"{name}.tokens", directory / f"{name}.documents"
    write_atomically(tokens, write_tokens)
    if not counts["tokens"]:
        raise ConfigurationError(f"data.dataset: the {name} split has no text")
    write_atomically(document_starts, lambda file: file.write_bytes(np.array(starts, dtype=np.int64).tobytes()))
    facts = {"dtype": dtype.name, "bytes": counts["bytes"], "words": counts["words"]}
    write_seal(directory / f"{name}.json", [tokens, document_starts], facts)


def write_seal(path: Path, files: Iterable[Path], facts: Mapping[str, Any] | None = None) -> None:
    """Write the digests of an entry's files, and facts about it, in a line of JSON; a second line has its digest."""
    digests = {file.relative_to(path.parent).as_posix(): file_digest(file) for file in files}
    line = json.dumps({**(facts or {}), "digests": digests})
    text = f"{line}\n{_digest_of_seal(path, line)}\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def read_seal(path: Path) -> dict[str, Any]:
    """What `write_seal` wrote, with every file as it was then.

    Raises FileNotFoundError when there is none, CheckpointError that names the file that is damaged.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path} is damaged, it is no file")
    try:
        line, _, digest = path.read_text(encoding="utf-8", errors="replace").partition("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise CheckpointError(f"{path} is damaged: {error.strerror}") from error
    if digest != f"{_digest_of_seal(path, line)}\n":
        raise CheckpointError(f"{path} is damaged")
    content: dict[str, Any] = json.loads(line)
    digests = {path.parent / name: digest for name, digest in content["digests"].items()}
    try:
        check_once(digests, lambda: check_files(digests))
    except OSError as error:
        raise CheckpointError(f"{error.filename} is damaged: {error.strerror}") from error
    return content


def check_files(digests: Mapping[Path, str]) -> None:
    """Raise CheckpointError that names the first file with another digest."""
    for file, digest in digests.items():
        if not file.is_file() or file_digest(file) != digest:
            raise CheckpointError(f"{file} is damaged")


def _digest_of_seal(path: Path, line: str) -> str:
    """Of the line and of where it lies, so that another entry's is no right one."""
    return hash_of("seal", path.parent.name, path.name, line)


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
