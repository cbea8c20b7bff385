"""The data set `text`: files of text or of rows with a text, and folders of them."""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_train.datasets import SPLITS, Part, Split, one_document, part_of, split_of, whole_documents
from wavelet_train.text_reading import BLOCK, COMPRESSED, UndecodableError, read_rows, read_text, row_format

# How many times larger than its file a text is, roughly.
COMPRESSION = 3


class TextFiles:
    """UTF-8 files, each one document, or with `text_column` also files of rows, each row one document.

    Files whose names end in .gz or .xz are decompressed. Folders are searched to any depth, without hidden files and
    folders. Either `path` names one folder, whose files go to train, validation and test (90/5/5) by a hash of their
    path below it, or one file, whose lines are cut into three documents of 90%, 5% and 5%, and whose rows are dealt by
    a hash of their text. Or `train`, `validation` and `test` each name files and folders of their own.
    """

    class Config(ComponentConfig):
        kind: Literal["text"] = "text"
        path: str | None = Field(
            None, description="one folder, its files dealt to the splits 90/5/5 by a hash, or one file, cut 90/5/5"
        )
        train: str | list[str] = Field([], description="files and folders to train on, instead of path")
        validation: str | list[str] = Field([], description="files and folders to validate on, instead of path")
        test: str | list[str] = Field([], description="files and folders to test on, instead of path")
        text_column: str | None = Field(
            None,
            min_length=1,
            description="read .jsonl and .parquet files, also .jsonl.gz and .jsonl.xz, as rows with this column; null: "
            "every file is one text",
        )
        pattern: str = Field("*", min_length=1, description="names of the files to read in folders, such as *.txt")
        skip_undecodable: bool = Field(
            False,
            description="leave out what is not UTF-8 in folders, and say how many files, instead of refusing",
        )

        @model_validator(mode="after")
        def _one_way(self) -> TextFiles.Config:
            named = bool(self.train or self.validation or self.test)
            if (self.path is not None) == named:
                raise ValueError("give either path (one folder or file for all splits), or train, validation and test")
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        self._files: dict[Split, list[Path]] = {split: [] for split in SPLITS}
        self._cut = False
        if config.path is None:
            for split in SPLITS:
                named = getattr(config, split)
                for path in [named] if isinstance(named, str) and named else named:
                    self._files[split] += self._files_in(split, path)
            return
        root = Path(config.path).expanduser()
        files = self._files_in("path", config.path)
        self._cut = files == [root]
        for file in files:
            for split in SPLITS if self._cut else [split_of(file.relative_to(root).as_posix())]:
                self._files[split].append(file)

    def _files_in(self, field: str, name: str) -> list[Path]:
        """As `files_in`; without what is not UTF-8 in a folder, where that is wanted."""
        files = files_in(field, name, self.config.pattern)
        if not self.config.skip_undecodable or files == [Path(name).expanduser()]:
            return files
        decodable = [file for file in files if self._is_utf8(file)]
        if not decodable:
            raise ConfigurationError(f"data.dataset.{field}: none of the {len(files)} files in {name} is UTF-8 text")
        if skipped := sorted({*files} - {*decodable}):
            print(
                f"data.dataset.{field}: skipped {len(skipped)} of the {len(files)} files in {name} that are not UTF-8 "
                f"text ({skipped[0]}{', ...' if len(skipped) > 1 else ''})",
                file=sys.stderr,
            )
        return decodable

    def documents(self, split: Split) -> Iterator[str]:
        return whole_documents(self.parts(split))

    def parts(self, split: Split) -> Iterator[Part]:
        found = False
        for file in self._files[split]:
            for part in self._parts_of(file, split):
                found = True
                yield part
        if not found:
            raise ConfigurationError(self._no_documents(split))

    def _parts_of(self, file: Path, split: Split) -> Iterator[Part]:
        column = self._column(file)
        if column is None:
            return one_document(part_of(lambda: read_text(file), split) if self._cut else read_text(file))
        texts = read_rows(file, column)
        return (Part(text, True) for text in texts if not self._cut or split_of(text) == split)

    def _column(self, file: Path) -> str | None:
        return self.config.text_column if row_format(file) else None

    def _is_utf8(self, file: Path) -> bool:
        column = self._column(file)
        try:
            deque(read_text(file) if column is None else read_rows(file, column), maxlen=0)
        except UndecodableError:
            return False
        return True

    def _no_documents(self, split: Split) -> str:
        place = f"data.dataset.{'path' if self.config.path is not None else split}"
        if self._cut and self._column(self._files[split][0]) is None:
            return f"{place}: {self.config.path} is too short to cut a {split} split from it; use a longer text"
        if self._files[split]:
            return f"{place}: the {split} split has no text: all of its files are empty ({self._files[split][0]}, ...)"
        if self.config.path is None:
            return f"{place}: names no text, but the {split} split is needed; name files or folders"
        if self._cut:
            return f"{place}: none of the rows of {self.config.path} goes to the {split} split (90/5/5); use more rows"
        return (
            f"{place}: none of the {sum(map(len, self._files.values()))} files in {self.config.path} goes to the "
            f"{split} split (90/5/5, by a hash of their paths); add files, or use data.dataset.train, "
            "data.dataset.validation and data.dataset.test to name the files of each"
        )

    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"text, cut" if self._cut else b"text")
        for split, files in self._files.items():
            for file in files:
                digest.update(f"\n{split} {file_hash(file)}{self._reading(file)}".encode())
        return digest.hexdigest()

    def _reading(self, file: Path) -> str:
        """How the content of a file becomes text, where its name decides that."""
        column = self._column(file)
        compressed = file.suffix if file.suffix in COMPRESSED else ""
        return compressed if column is None else f"{compressed} {row_format(file)} {column!r}"

    def size(self, split: Split) -> int:
        sizes = [file.stat().st_size * (COMPRESSION if file.suffix in COMPRESSED else 1) for file in self._files[split]]
        share = {"train": 0.9, "validation": 0.05, "test": 0.05}[split] if self._cut else 1
        return int(sum(sizes) * share)


def file_hash(file: Path) -> str:
    """The SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def files_in(field: str, name: str, pattern: str) -> list[Path]:
    """The file itself, or the files of a folder, sorted by path. Raises ConfigurationError when there are none."""
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigurationError(f"data.dataset.{field}: there is no file or folder {path}")
    files = sorted(file for file in path.rglob("*") if fnmatch(file.name, pattern) and file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        hint = "" if pattern == "*" else f" that match data.dataset.pattern={pattern!r}"
        raise ConfigurationError(f"data.dataset.{field}: the folder {path} holds no files{hint}; put text files there")
    return files
