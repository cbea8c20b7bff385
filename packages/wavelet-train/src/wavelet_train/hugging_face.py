"""The data set `hugging_face`: what the `datasets` library opens, from the hub or from this machine."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_core.registry import nearest
from wavelet_train.datasets import SPLITS, Split, part_of, split_of

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


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
            "with this string between them, held in memory whole",
        )

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
        texts = self._texts(split)
        if self.config.join is not None:
            whole = self.config.join.join(texts)
            texts = iter([part_of(whole, split) if self._dealt else whole])
        elif self._dealt:
            texts = (text for text in texts if split_of(text) == split)
        found = False
        for text in filter(None, texts):
            found = True
            yield text
        if not found:
            raise ConfigurationError(
                f"data.dataset: {self.config.path} leaves the {split} split without text"
                + ("; it has one split, which is dealt 90/5/5, and too little in it" if self._dealt else "")
            )

    def _texts(self, split: Split) -> Iterator[str]:
        rows = self._rows[split]
        if rows is None:
            field = f"{split}_split"
            raise ConfigurationError(
                f"data.dataset.{field}: {self.config.path} has no split {getattr(self.config, field)!r}; "
                f"it has: {', '.join(self._available)}"
            )
        column = self.config.text_column
        for batch in rows.select_columns([column]).iter(batch_size=1000):
            yield from (text or "" for text in batch[column])

    def fingerprint(self) -> str:
        # The library's own fingerprint covers the content of local files and the commit of a hub data set.
        parts = [self.config.text_column, repr(self.config.join), str(self._dealt)]
        parts += [f"{split} {rows._fingerprint if rows else None}" for split, rows in self._rows.items()]
        return hashlib.sha256("\n".join(["hugging_face", *parts]).encode()).hexdigest()

    def size(self, split: Split) -> int:
        rows = self._rows[split]
        return rows.data.column(self.config.text_column).nbytes if rows else 0


def open_splits(config: HuggingFace.Config) -> dict[str, Any]:
    """The splits by name. Raises ConfigurationError with the library's reason when it cannot open them."""
    import datasets  # takes a second or two, which only its users should pay

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = Path(config.path).expanduser()
    check_local(config, path)
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            opened = datasets.load_from_disk(str(path))
        elif path.is_file():
            opened = datasets.load_dataset(READERS[path.suffix], data_files=str(path))
        else:
            source = str(path) if path.exists() else config.path
            opened = datasets.load_dataset(source, config.name, revision=config.revision)
    except Exception as error:
        # The library and the ones below it raise too many unrelated types to name them.
        reason = str(error).strip().splitlines()
        raise ConfigurationError(
            f"data.dataset.path: could not open {config.path!r}: {reason[0] if reason else type(error).__name__}"
        ) from error
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
    if column not in rows.column_names:
        raise ConfigurationError(
            f"data.dataset.text_column: {config.path} has no column {column!r}{nearest(column, rows.column_names)} "
            f"Columns: {', '.join(rows.column_names)}"
        )
    if getattr(rows.features[column], "dtype", None) not in ("string", "large_string"):
        raise ConfigurationError(
            f"data.dataset.text_column: column {column!r} of {config.path} holds {rows.features[column]}, not text"
        )
