from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from wavelet_core import ConfigurationError
from wavelet_core.config import parse
from wavelet_train import text_reading
from wavelet_train.datasets import SPLITS, split_of
from wavelet_train.text_files import TextFiles

TEXTS = [f"stone {number}: café 漢\n" for number in range(60)]
LINES = "".join(json.dumps({"number": number, "text": text}) + "\n" for number, text in enumerate(TEXTS))


def text_files(**fields: object) -> TextFiles:
    return TextFiles(parse(TextFiles.Config, fields))


def documents(file: Path, **fields: object) -> list[str]:
    return list(text_files(train=str(file), **fields).documents("train"))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.xz"])
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_text_is_read_in_blocks_as_it_was_written(
    name: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_reading, "BLOCK", block)
    text = "".join(TEXTS)
    write: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    with write.get(Path(name).suffix, open)(tmp_path / name, "wb") as file:
        file.write(b"\xef\xbb\xbf" + text.encode())
    assert documents(tmp_path / name) == [text]
    dataset = text_files(path=str(tmp_path / name))
    parts = ["".join(dataset.documents(split)) for split in SPLITS]
    assert "".join(parts) == text
    assert [part.count("\n") for part in parts] == pytest.approx([54, 3, 3], abs=1)


def test_undecodable_bytes_are_named_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_reading, "BLOCK", 4)
    for content, place, byte in (
        (b"abcdef\xe9\n", 6, "e9"),
        (b"\xef\xbb\xbfab\xff", 5, "ff"),
        (b"abc\xe6\xbc", 3, "e6"),  # a character that is cut off
        (b"ab\xe6\xbc\xbcabc\xc3(", 8, "c3"),
    ):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(ConfigurationError, match=rf"a\.txt is not UTF-8 text \(byte {place} is 0x{byte}\)"):
            documents(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz", "a.parquet"])
def test_rows_are_documents(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "a.parquet":
        parquet.write_table(pyarrow.table({"text": [*TEXTS, "", None]}), file)
    else:
        write: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
        with write.get(file.suffix, open)(file, "wb") as opened:
            opened.write(LINES.encode() + b'\n{"text": ""}\n{"text": null}\n')
    assert documents(file, text_column="text") == TEXTS
    dataset = text_files(path=str(file), text_column="text")
    for split in SPLITS:
        assert list(dataset.documents(split)) == [text for text in TEXTS if split_of(text) == split]


def test_files_of_several_kinds_make_one_data_set(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "2.txt").write_text("three")
    parquet.write_table(pyarrow.table({"text": ["four"]}), tmp_path / "3.parquet")
    (tmp_path / "4.md.gz").write_bytes(gzip.compress(b"five"))
    rows = text_files(train=str(tmp_path), text_column="text")
    assert list(rows.documents("train")) == ["one", "two", "three", "four", "five"]
    (tmp_path / "3.parquet").unlink()
    plain = text_files(train=str(tmp_path))
    assert next(plain.documents("train")) == '{"text": "one"}\n{"text": "two"}\n'
    assert plain.fingerprint() != text_files(train=str(tmp_path), text_column="text").fingerprint()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"line 3 of .*a\.jsonl is not JSON \(Expecting ',' delimiter\); repair or remove the line"),
        (b'{"text": "caf\xe9"}', r"line 3 of .*a\.jsonl is not UTF-8 text \(its byte 13 is 0xe9\)"),
        (
            b'{"content": "x", "n": 1}',
            r"line 3 of .* has no column 'text'.* data\.dataset\.text_column is one of",
        ),
        (b'["x"]', r"line 3 of .* is \['x'\], no object with the field 'text'"),
        (b'{"text": 7}', r"line 3 of .* has 7 in 'text', which is no text"),
        (b'{"text": "\\ud800"}', r"line 3 of .* has half a character in 'text'"),
        (b"[" * 100_000, r"line 3 of .* is not JSON"),
        (b"1" * 10_000, r"line 3 of .* is not JSON"),
    ],
)
def test_a_line_that_is_no_row_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n\n' + line + b"\n")
    with pytest.raises(ConfigurationError, match=message) as error:
        documents(tmp_path / "a.jsonl", text_column="text")
    assert len(str(error.value)) < 600


def test_a_column_that_is_not_there_or_holds_no_text_is_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"content": ["x"], "number": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigurationError, match=r"a\.parquet has no column 'text'.* 'content', 'number'"):
        documents(tmp_path / "a.parquet", text_column="text")
    with pytest.raises(ConfigurationError, match=r"column 'number' of .* is int64, not text"):
        documents(tmp_path / "a.parquet", text_column="number")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("damage", ["cut short", "not compressed"])
def test_damaged_files_are_named(name: str, damage: str, tmp_path: Path) -> None:
    file = tmp_path / name
    content = LINES.encode() * 20
    if damage == "not compressed":
        file.write_bytes(content)
    elif name == "a.parquet":
        parquet.write_table(pyarrow.table({"text": TEXTS}), file)
        file.write_bytes(file.read_bytes()[:-9])
    else:
        file.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}[file.suffix](content)[:-30])
    with pytest.raises(ConfigurationError, match=rf"{name} is damaged or cut short \(.*\); fetch or make"):
        documents(file, text_column="text")


def test_compressed_files_that_are_not_utf8_are_skipped_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"caf\xe9"))
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    (tmp_path / "c.txt").write_text("stone")
    assert documents(tmp_path, text_column="text", skip_undecodable=True) == ["stone"]
