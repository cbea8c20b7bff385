"""Reading text files in pieces: plain, `.gz` or `.xz`; as one text, as JSON lines, or as the rows of a parquet file."""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from wavelet_core.config import ConfigurationError
from wavelet_core.messages import shown
from wavelet_core.registry import nearest

BLOCK = 1 << 20  # bytes that are read at a time
PARQUET_ROWS = 64  # likewise, rows
COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}


class UndecodableError(ConfigurationError):
    """A file that is not UTF-8 text."""


def row_format(file: Path) -> str | None:
    """`.jsonl`, compressed or not, or `.parquet` for files of rows; None for others."""
    if file.suffix in COMPRESSED:
        return ".jsonl" if file.with_suffix("").suffix == ".jsonl" else None
    return file.suffix if file.suffix in (".jsonl", ".parquet") else None


def read_text(file: Path) -> Iterator[str]:
    """A file's text without its byte-order mark, in pieces of about BLOCK bytes.

    Raises UndecodableError when it is not UTF-8, and ConfigurationError when its compressed content is damaged.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, begins = 0, True
    with _opened(file) as opened:
        while True:
            block = opened.read(BLOCK)
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                wrong = error.object[error.start]
                raise UndecodableError(
                    f"data.dataset: {file} is not UTF-8 text (byte {position - held + error.start} is 0x{wrong:02x}); "
                    "convert it to UTF-8, choose other files with data.dataset.pattern, or leave what is not UTF-8 in "
                    "a folder out with data.dataset.skip_undecodable=true"
                ) from None
            if text and begins:
                text, begins = text.removeprefix("\ufeff"), False
            if text:
                yield text
            if not block:
                return
            position += len(block)


def read_rows(file: Path, column: str) -> Iterator[str]:
    """The texts of a file of rows, empty ones left out.

    Raises ConfigurationError, naming the line, for what is no such file or lacks the column.
    """
    texts = _parquet_texts(file, column) if row_format(file) == ".parquet" else _json_texts(file, column)
    return (text for text in texts if text)


def _json_texts(file: Path, column: str) -> Iterator[str]:
    with _opened(file) as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            where = f"data.dataset: line {number} of {file}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise UndecodableError(
                    f"{where} is not UTF-8 text (its byte {error.start} is 0x{error.object[error.start]:02x}); convert "
                    "the file to UTF-8"
                ) from None
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", str(error))
                raise ConfigurationError(f"{where} is not JSON ({reason}); repair or remove the line") from None
            if not isinstance(row, dict):
                raise ConfigurationError(f"{where} is {shown(row)}, no object with the field {column!r}")
            if column not in row:
                raise _no_column(where, column, row)
            text = row[column]
            if text is not None and not isinstance(text, str):
                raise ConfigurationError(f"{where} has {shown(text)} in {column!r}, which is no text")
            if text and not is_unicode(text):
                raise ConfigurationError(
                    f"{where} has half a character in {column!r}, a \\ud800 without its other half"
                )
            yield text or ""


def _parquet_texts(file: Path, column: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            if column not in names:
                raise _no_column(f"data.dataset: {file}", column, names)
            kind = opened.schema_arrow.field(column).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise ConfigurationError(f"data.dataset.text_column: column {column!r} of {file} is {kind}, not text")
            for batch in opened.iter_batches(PARQUET_ROWS, columns=[column]):
                yield from (text or "" for text in batch.column(0).to_pylist())
    except UnicodeDecodeError:
        raise UndecodableError(f"data.dataset: {file} has text in {column!r} that is not UTF-8") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def _no_column(where: str, column: str, names: Iterable[str]) -> ConfigurationError:
    names = list(names)
    return ConfigurationError(
        f"{where} has no column {column!r}{nearest(column, names)} data.dataset.text_column is one of: "
        f"{', '.join(map(shown, names))}"
    )


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """The file's content, decompressed where its name says that it is compressed."""
    try:
        with COMPRESSED.get(file.suffix, open)(file, "rb") as opened:
            yield opened
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> ConfigurationError:
    lines = str(error).splitlines()
    return ConfigurationError(
        f"data.dataset: {file} is damaged or cut short ({lines[0] if lines else type(error).__name__}); fetch or make "
        "the file again"
    )
