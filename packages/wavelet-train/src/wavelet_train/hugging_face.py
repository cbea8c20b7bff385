"""The data set `hugging_face`: what the `datasets` library opens, from the hub or from this machine."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_core.registry import nearest
from wavelet_train.datasets import SPLITS, Part, Split, one_document, part_of, split_of, whole_documents
from wavelet_train.text_files import file_hash

T = TypeVar("T")

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
# Rows that are read at a time. A row may be a book.
ROWS = 64


class HuggingFace:
    """Rows of a text column, each one document.

    Data with the train split alone are dealt to train, validation and test 90/5/5: rows by a hash of their text, or
    with `join` the lines of the one text by their place.
    """

    class Config(ComponentConfig):
        kind: Literal["hugging_face"] = "hugging_face"
        path: str = Field(
            min_length=1,
            description="owner/name on the hub, or here: a folder written by save_to_disk, a folder of parquet, "
            "JSON-lines or CSV files with their splits in their names, or one such file",
        )
        name: str | None = Field(None, description="which configuration of it, such as wikitext-103-raw-v1")
        revision: str | None = Field(None, description="branch, tag or commit on the hub; null: the newest")
        text_column: str = Field("text", description="the column that holds the text")
        train_split: str = Field("train", description="what the train split is called there")
        validation_split: str = Field("validation", description="what the validation split is called there")
        test_split: str = Field("test", description="what the test split is called there")
        join: str | None = Field(
            None,
            description="null: every row is a document, empty ones left out; a string: a split is one text, its rows "
            "with this string between them",
        )
        streaming: bool = Field(
            False,
            description="read the files as they come instead of downloading and converting all of them first; they are "
            "read again for a vocabulary that is learnt, and after a kill",
        )
        max_documents: dict[Split, Annotated[int, Field(ge=1)]] = Field(
            {}, description="read this many documents of a split at most, the first ones; others are read whole"
        )

        @model_validator(mode="after")
        def _limits(self) -> HuggingFace.Config:
            if self.join is not None and self.max_documents:
                raise ValueError("with join a split is one document, which max_documents cannot shorten; leave one out")
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        opened = open_splits(config)
        self._available = list(opened)
        self._dealt = self._available == [config.train_split]
        names = {split: "train_split" if self._dealt else f"{split}_split" for split in SPLITS}
        self._rows = {split: opened.get(getattr(config, name)) for split, name in names.items()}
        for rows in filter(None, self._rows.values()):
            check_text_column(config, rows)

    def documents(self, split: Split) -> Iterator[str]:
        return whole_documents(self.parts(split))

    def parts(self, split: Split) -> Iterator[Part]:
        found = False
        for part in self._parts(split):
            found = True
            yield part
        if not found:
            raise ConfigurationError(
                f"data.dataset: {self.config.path} leaves the {split} split without text"
                + ("; it has one split, which is dealt 90/5/5, and too little in it" if self._dealt else "")
            )

    def _parts(self, split: Split) -> Iterator[Part]:
        if self.config.join is not None:
            return one_document(part_of(lambda: self._joined(split), split) if self._dealt else self._joined(split))
        texts = (text for text in self._texts(split) if text and (not self._dealt or split_of(text) == split))
        return (Part(text, True) for text in islice(texts, self.config.max_documents.get(split)))

    def _joined(self, split: Split) -> Iterator[str]:
        pairs = ((self.config.join or "", text) for text in self._texts(split))
        return islice(chain.from_iterable(pairs), 1, None)

    def _texts(self, split: Split) -> Iterator[str]:
        rows = self._rows[split]
        if rows is None:
            field = f"{split}_split"
            raise ConfigurationError(
                f"data.dataset.{field}: {self.config.path} has no split {getattr(self.config, field)!r}; "
                f"it has: {', '.join(self._available)}"
            )
        column = self.config.text_column
        batches = rows.select_columns([column]).iter(batch_size=ROWS)
        while batch := reading(self.config, "read", lambda: next(batches, None)):
            yield from (text or "" for text in batch[column])

    def fingerprint(self) -> str:
        # Where the library keeps a copy, its own fingerprint covers the content of local files and the commit of a hub
        # data set.
        config = self.config
        parts = [config.text_column, repr(config.join), str(self._dealt)]
        if config.streaming:
            parts += ["streaming", source_identity(config), repr(config.name)]
            parts += [f"{split} {getattr(config, f'{split}_split')}" for split in SPLITS]
        else:
            parts += [f"{split} {rows._fingerprint if rows else None}" for split, rows in self._rows.items()]
        if config.max_documents:
            parts.append(repr(sorted(config.max_documents.items())))
        return hashlib.sha256("\n".join(["hugging_face", *parts]).encode()).hexdigest()

    def size(self, split: Split) -> int | None:
        rows = self._rows[split]
        if self.config.streaming or split in self.config.max_documents:
            return None
        return rows.data.column(self.config.text_column).nbytes if rows else 0


def source_identity(config: HuggingFace.Config) -> str:
    """What decides the text of a data set that is streamed: the content of its files, or its commit on the hub."""
    path = Path(config.path).expanduser()
    if path.exists():
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        return " ".join(f"{file.relative_to(path).as_posix()} {file_hash(file)}" for file in files)
    from huggingface_hub import HfApi

    commit = reading(config, "look up", lambda: HfApi().dataset_info(config.path, revision=config.revision).sha)
    return f"{config.path} {commit}"


def reading(config: HuggingFace.Config, doing: str, read: Callable[[], T]) -> T:
    """What `read` gives. Raises ConfigurationError with the library's reason when it cannot."""
    try:
        return read()
    except Exception as error:
        # The library and the ones below it raise too many unrelated types to name them.
        reason = str(error).strip().splitlines()
        raise ConfigurationError(
            f"data.dataset.path: could not {doing} {config.path!r}: {reason[0] if reason else type(error).__name__}"
        ) from error


def open_splits(config: HuggingFace.Config) -> dict[str, Any]:
    """The splits by name. Raises ConfigurationError when they cannot be opened."""
    import datasets  # takes a second or two, which only its users should pay

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = Path(config.path).expanduser()
    check_local(config, path)
    saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    if saved and config.streaming:
        raise ConfigurationError(
            f"data.dataset.streaming: {path} was written by save_to_disk and is read from there as it is; leave it out"
        )

    def load() -> Any:
        if saved:
            return datasets.load_from_disk(str(path))
        if path.is_file():
            return datasets.load_dataset(READERS[path.suffix], data_files=str(path), streaming=config.streaming)
        source = str(path) if path.exists() else config.path
        return datasets.load_dataset(source, config.name, revision=config.revision, streaming=config.streaming)

    opened = reading(config, "open", load)
    return {config.train_split: opened} if isinstance(opened, datasets.Dataset) else dict(opened)


def check_local(config: HuggingFace.Config, path: Path) -> None:
    """Raise ConfigurationError for a path on this machine that cannot be opened; hub names pass."""
    looks_local = path.is_absolute() or path.suffix in READERS or config.path.startswith((".", "~"))
    if looks_local and not path.exists():
        raise ConfigurationError(f"data.dataset.path: there is no file or folder {path}")
    if path.is_file() and path.suffix not in READERS:
        raise ConfigurationError(
            f"data.dataset.path: cannot read {path}; one file must end in {', '.join(READERS)} (for plain text there "
            "is the data set `text`)"
        )
    for field in ("name", "revision"):
        if path.exists() and getattr(config, field) is not None:
            raise ConfigurationError(
                f"data.dataset.{field}: applies to data sets on the hub, but {path} is on this machine; leave it out"
            )


def check_text_column(config: HuggingFace.Config, rows: Any) -> None:
    """Raise ConfigurationError unless the rows have the text column and it holds strings."""
    column = config.text_column
    if rows.features is None:  # of a stream that does not know them before its first rows
        rows = reading(config, "read", rows._resolve_features)
    if column not in rows.column_names:
        raise ConfigurationError(
            f"data.dataset.text_column: {config.path} has no column {column!r}{nearest(column, rows.column_names)} "
            f"Columns: {', '.join(rows.column_names)}"
        )
    if getattr(rows.features[column], "dtype", None) not in ("string", "large_string"):
        raise ConfigurationError(
            f"data.dataset.text_column: column {column!r} of {config.path} holds {rows.features[column]}, not text"
        )
