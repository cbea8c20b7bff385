"""Tokenizing a split: on all processors, in bounded memory, and so that a kill loses little of it.

The text is worked on in shards of SHARD_SIZE characters. A shard's tokens and document starts are appended to the
split's two files, and then a line to the split's journal, which says what text they are the tokens of. Whoever goes on
reads the text from its beginning, and encodes it from where the journal ends. The journal is locked as long as somebody
works on the split, and removed when the split has its seal.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from wavelet_core.atomic_files import append_whole
from wavelet_core.config import ConfigurationError
from wavelet_core.file_lock import is_open_file, try_lock
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.threads import available_processors
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.datasets import Dataset, Split, parts_of, size_of
from wavelet_train.progress import Progress
from wavelet_train.quantities import byte_size
from wavelet_train.seals import read_seal, write_seal
from wavelet_train.text_pieces import Piece, pieces_of

# Characters. While one shard is encoded the next is read and the last is written.
SHARD_SIZE = 1 << 23
# Characters that a thread encodes at a time.
TASK_SIZE = 1 << 19
SECONDS_BETWEEN_LOOKS = 0.2


def write_split(directory: Path, name: Split, dataset: Dataset, tokenizer: Tokenizer, threads: int | None) -> None:
    """Tokenize a split into its files and seal them, or wait until another process has; see token_cache.py.

    threads: None for one on each processor. The files are the same whatever their number.
    """
    seal = directory / f"{name}.json"
    dtype = token_dtype(tokenizer)
    tokens, documents, journal = (directory / f"{name}.{suffix}" for suffix in ("tokens", "documents", "journal"))
    directory.mkdir(parents=True, exist_ok=True)
    for path in (seal, tokens, documents, journal):
        if is_no_file(path):  # a pipe would be waited for
            remove(path)
    with locked(journal):
        if not is_sealed(seal):  # by another process, by now
            remove(seal)
            files = ShardFiles(tokens, documents, journal, dtype)
            done = files.total("byte_count")
            with Progress(f"tokenizing the {name} split", size_of(dataset, name), done=done) as progress:
                if done:
                    progress.message(f"token cache: {byte_size(done)} of the {name} split are tokenized already")
                tokenize(shards_of(dataset, name, tokenizer), files, tokenizer, threads, progress)
            if not files.total("tokens"):
                raise ConfigurationError(f"data.dataset: the {name} split has no text")
            files.flush()
            facts = {"dtype": dtype.name, "bytes": files.total("byte_count"), "words": files.total("word_count")}
            write_seal(seal, [files.tokens, files.documents], facts)
        journal.unlink()


def is_no_file(path: Path) -> bool:
    """Whether something else than a file lies there. Looked at once: another process may be writing a file there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not (stat.S_ISLNK(mode) and path.is_file())


def remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """What tokens are kept as."""
    return np.dtype("uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32")


def is_sealed(seal: Path) -> bool:
    """Whether an entry is complete and undamaged."""
    try:
        read_seal(seal)
    except (FileNotFoundError, CheckpointError):
        return False
    return True


class TextShard(NamedTuple):
    """Pieces of text. digest: of the text and of where documents begin."""

    pieces: list[Piece]
    digest: str
    byte_count: int
    word_count: int


def shards_of(dataset: Dataset, name: Split, tokenizer: Tokenizer) -> Iterator[TextShard]:
    """The text of a split in shards that follow from the text alone."""
    pieces: list[Piece] = []
    size = 0
    for piece in pieces_of(parts_of(dataset, name), tokenizer.pieces):
        pieces.append(piece)
        size += len(piece.text)
        if size >= SHARD_SIZE:
            yield text_shard(pieces)
            pieces, size = [], 0
    if pieces:
        yield text_shard(pieces)


def text_shard(pieces: list[Piece]) -> TextShard:
    digest, size = xxhash.xxh3_128(), 0
    for piece in pieces:
        content = piece.text.encode("utf-8", "replace")
        digest.update(b"%d %d " % (piece.begins, len(content)))
        digest.update(content)
        size += len(content)
    return TextShard(pieces, digest.hexdigest(), size, sum(piece.words for piece in pieces))


def tokenize(
    texts: Iterable[TextShard], files: ShardFiles, tokenizer: Tokenizer, threads: int | None, progress: Progress
) -> None:
    """Append the tokens of all shards of text that the files do not have yet."""
    executor = ThreadPoolExecutor(threads or available_processors())
    before: tuple[TextShard, list[Future[Encoded]]] | None = None
    number = -1
    try:
        for number, text in enumerate(texts):
            if number < len(files.shards):
                if files.shards[number].text == text.digest:
                    continue
                files.keep(number)  # the data set gives another text than before
            tasks = [
                executor.submit(encode, tokenizer, files.dtype, pieces, first=number == task == 0)
                for task, pieces in enumerate(tasks_of(text.pieces))
            ]
            if before is not None:
                append(*before, files, progress)
            before = text, tasks
        if before is not None:
            append(*before, files, progress)
        elif number + 1 < len(files.shards):
            files.keep(number + 1)
    finally:
        executor.shutdown(cancel_futures=True)


def tasks_of(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces of a shard in lists of about TASK_SIZE characters."""
    task: list[Piece] = []
    size = 0
    for piece in pieces:
        task.append(piece)
        size += len(piece.text)
        if size >= TASK_SIZE:
            yield task
            task, size = [], 0
    if task:
        yield task


class Encoded(NamedTuple):
    """tokens: of some pieces, with an end of text before each document. starts: int64, where documents begin there."""

    tokens: np.ndarray
    starts: np.ndarray


def encode(tokenizer: Tokenizer, dtype: np.dtype, pieces: Iterable[Piece], first: bool) -> Encoded:
    """first: whether the first piece is the first of the split."""
    found: list[np.ndarray] = []
    starts: list[int] = []
    position = 0
    for piece in pieces:
        ids = np.frombuffer(tokenizer.encode_buffer(piece.text), np.uint32)
        if len(ids) and ids.max() >= tokenizer.vocabulary_size:
            tokenizer.checked(ids.tolist())
        if piece.begins:
            if tokenizer.end_of_text is not None and not first:
                found.append(np.array([tokenizer.end_of_text], np.uint32))
                position += 1
            starts.append(position)
        found.append(ids)
        position += len(ids)
        first = False
    return Encoded(np.concatenate(found).astype(dtype), np.array(starts, np.int64))


def append(text: TextShard, tasks: Iterable[Future[Encoded]], files: ShardFiles, progress: Progress) -> None:
    """Write a shard once its tasks are done."""
    tokens, starts, position = [], [], files.total("tokens")
    for task in tasks:
        encoded = task.result()
        tokens.append(encoded.tokens)
        starts.append(encoded.starts + position)
        position += len(encoded.tokens)
    files.append(text, np.concatenate(tokens), np.concatenate(starts))
    progress.advance(text.byte_count)


@dataclass(frozen=True)
class Shard:
    """A line of the journal. text: the digest of its text. content: of all else that is known of the shard."""

    text: str
    tokens: int
    documents: int
    byte_count: int
    word_count: int
    content: str = ""

    def digest(self, tokens: bytes, starts: bytes) -> str:
        facts = json.dumps([self.text, self.tokens, self.documents, self.byte_count, self.word_count])
        return xxhash.xxh3_128_hexdigest(b"".join([facts.encode(), b"\n", tokens, starts]))


class ShardFiles:
    """The two files of a split and its journal, with those shards in `shards` that are there as they were written."""

    def __init__(self, tokens: Path, documents: Path, journal: Path, dtype: np.dtype) -> None:
        self.tokens, self.documents, self.journal, self.dtype = tokens, documents, journal, dtype
        self.shards: list[Shard] = []
        with suppress(FileNotFoundError):
            self.shards += self._read()
        if self.shards:
            self.keep(len(self.shards))
        else:
            for file in (tokens, documents):
                remove(file)  # so that another process goes on reading what was there
                file.touch()
            os.truncate(journal, 0)

    def _read(self) -> Iterator[Shard]:
        with self.journal.open("rb") as lines, self.tokens.open("rb") as tokens, self.documents.open("rb") as documents:
            left = os.fstat(tokens.fileno()).st_size, os.fstat(documents.fileno()).st_size
            for line in lines:
                try:
                    shard = Shard(**json.loads(line))
                    sizes = shard.tokens * self.dtype.itemsize, shard.documents * 8
                    left = left[0] - sizes[0], left[1] - sizes[1]
                    if min(*sizes, *left) < 0:
                        return
                    if shard.digest(tokens.read(sizes[0]), documents.read(sizes[1])) != shard.content:
                        return
                except (ValueError, TypeError, RecursionError):
                    return
                yield shard

    def total(self, what: str) -> int:
        """The sum of a count over the shards."""
        return sum(getattr(shard, what) for shard in self.shards)

    def keep(self, count: int) -> None:
        """Remove all but the first shards."""
        del self.shards[count:]
        os.truncate(self.tokens, self.total("tokens") * self.dtype.itemsize)
        os.truncate(self.documents, self.total("documents") * 8)
        os.truncate(self.journal, sum(len(journal_line(shard)) for shard in self.shards))

    def append(self, text: TextShard, tokens: np.ndarray, starts: np.ndarray) -> None:
        shard = Shard(text.digest, len(tokens), len(starts), text.byte_count, text.word_count)
        content = tokens.tobytes(), starts.tobytes()
        shard = Shard(**asdict(shard) | {"content": shard.digest(*content)})
        append_whole(self.tokens, content[0])
        append_whole(self.documents, content[1])
        append_whole(self.journal, journal_line(shard))
        self.shards.append(shard)

    def flush(self) -> None:
        """Bring the two files to disk."""
        for path in (self.tokens, self.documents):
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def journal_line(shard: Shard) -> bytes:
    return json.dumps(asdict(shard)).encode() + b"\n"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from a file that is made if there is none, and wait for the one that has it."""
    waiting = False
    while True:
        with path.open("ab") as file:
            # Who had the lock may have removed the file before it was locked here.
            if try_lock(file) is not False and is_open_file(path, file):
                yield
                return
        if not waiting:
            print(f"token cache: another process works on {path.with_suffix('')}; waiting for it", file=sys.stderr)
        waiting = True
        time.sleep(SECONDS_BETWEEN_LOOKS)
