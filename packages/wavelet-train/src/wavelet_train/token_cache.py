"""The token cache: trained tokenizers, and every split's tokens in a memory-mapped file.

    <directory>/tokenizers/<key>/tokenizer.json     key: data and tokenizer configuration
                           <key>.json               its digests
    <directory>/tokens/<key>/<split>.tokens         key: data and tokenizer; uint16, or uint32 above 65536 tokens
                             <split>.documents      int64 positions of the first token of every document
                             <split>.sources        of a mix: uint16, the source of every document
                             <split>.json           counts, and the digests of these files
                             <split>.journal        while it is made: what is done (tokenizing.py)

The file with the digests is an entry's seal. It is written last, so that an entry without it is not complete, and
everything is checked against it when the entry is opened: what is damaged is made again, and said to be.

Equal keys mean equal content. Of two processes that tokenize the same split one does the work and the other waits.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_core.registry import registry
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import BytePairTokenizer, Tokenizer, cut_before_spaces, load_tokenizer
from wavelet_train.byte_pair import train_byte_pair
from wavelet_train.datasets import Dataset, Split, parts_of, size_of
from wavelet_train.mix import Mix, WeightedSource
from wavelet_train.progress import Progress
from wavelet_train.seals import hash_of, read_seal, write_seal
from wavelet_train.text_pieces import pieces_of
from wavelet_train.token_mix import write_mixture
from wavelet_train.token_split import TokenSplit, read_split
from wavelet_train.tokenizing import write_split

T = TypeVar("T")

# A vocabulary hardly changes beyond this much text.
TRAINING_BYTES = 1 << 28


class TokenCache:
    """Makes the tokenizer and the tokens of a data set in a directory, or finds them made.

    threads: how many tokenize; None for one on each processor.
    """

    def __init__(self, dataset: Dataset, directory: Path, threads: int | None = None) -> None:
        self.dataset = dataset
        self.directory = directory
        self.threads = threads
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
        text = self.dataset.text_fingerprint() if isinstance(self.dataset, Mix) else self.data_fingerprint
        key = hash_of("tokenizer", text, config.model_dump_json())
        directory = self.directory / "tokenizers" / key
        seal = directory.with_suffix(".json")

        def make() -> None:
            with Progress(f"training a {config.kind} tokenizer", size_of(self.dataset, "train")) as progress:
                trained: Tokenizer = train(config, learning_text(self.dataset, progress))
            trained.save(directory)
            write_seal(seal, [path for path in directory.iterdir() if not path.name.startswith(".")])

        def read() -> Tokenizer:
            read_seal(seal)
            return load_tokenizer(directory)

        return self._found_or_made(read, make)

    def split(self, tokenizer: Tokenizer, name: Split) -> TokenSplit:
        """The tokens of a split of the data."""
        directory = self.directory / "tokens" / hash_of("tokens", self.data_fingerprint, fingerprint(tokenizer))

        def make() -> None:
            if isinstance(self.dataset, Mix):
                mix = self.dataset
                splits = [self._source_split(source, tokenizer, name) for source in mix.sources]
                write_mixture(directory, name, mix, splits, tokenizer)
            else:
                write_split(directory, name, self.dataset, tokenizer, self.threads)

        return self._found_or_made(lambda: read_split(directory, name), make)

    def _source_split(self, source: WeightedSource, tokenizer: Tokenizer, name: Split) -> TokenSplit:
        with source.named():
            return TokenCache(source.dataset, self.directory, self.threads).split(tokenizer, name)

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


def learning_text(dataset: Dataset, progress: Progress) -> Iterator[str]:
    """The beginning of the train split, TRAINING_BYTES of it: documents, long ones in pieces."""
    for piece in pieces_of(parts_of(dataset, "train"), cut_before_spaces):
        yield piece.text
        progress.advance(len(piece.text.encode("utf-8", "replace")))
        if progress.done >= TRAINING_BYTES:
            return


def fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of all that the tokenizer saves."""
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save(name)
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return hash_of("tokenizer", *(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files))
