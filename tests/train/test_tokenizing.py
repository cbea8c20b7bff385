"""Tokenizing in pieces and shards, on several threads, resumed after kills: the same tokens every time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavelet_core import ConfigurationError
from wavelet_core.config import parse
from wavelet_core.tokenizers import BytesTokenizer, Tokenizer, cut_before_spaces
from wavelet_train import text_pieces, tokenizing
from wavelet_train.data import DataConfig, PreparedData
from wavelet_train.datasets import Part, whole_documents
from wavelet_train.text_pieces import pieces_of
from wavelet_train.token_split import TokenSplit, read_split
from wavelet_train.tokenizing import write_split


class Documents:
    """A data set that gives its documents in parts."""

    def __init__(self, documents: list[list[str]]) -> None:
        self.texts = documents
        self.read = 0

    def documents(self, split: str) -> Iterator[str]:
        return whole_documents(self.parts(split))

    def parts(self, split: str) -> Iterator[Part]:
        for document in self.texts:
            for number, text in enumerate(document):
                self.read += 1
                yield Part(text, number == 0)

    def fingerprint(self) -> str:
        return "fixed"


class Counting(BytesTokenizer):
    """Counts the characters that it encodes, and stops after some."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.encoded, self.limit = 0, limit

    end_of_text = 0

    def encode(self, text: str) -> list[int]:
        self.encoded += len(text)
        if self.encoded > self.limit:
            raise KeyboardInterrupt
        return super().encode(text)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, tasks and shards."""
    monkeypatch.setattr(text_pieces, "PIECE_SIZE", 10)
    monkeypatch.setattr(text_pieces, "LONGEST", 40)
    monkeypatch.setattr(tokenizing, "TASK_SIZE", 25)
    monkeypatch.setattr(tokenizing, "SHARD_SIZE", 100)


DOCUMENTS = [[f"document {number} has ", "words and it", " goes on " * (number % 7)] for number in range(60)]
LENGTH = sum(map(len, (text for document in DOCUMENTS for text in document)))


def written(directory: Path, dataset: Any, tokenizer: Tokenizer, threads: int = 2) -> TokenSplit:
    write_split(directory, "train", dataset, tokenizer, threads)
    return read_split(directory, "train")


@given(
    st.lists(st.text(st.sampled_from("ab, .\n漢"), min_size=1, max_size=150), min_size=1, max_size=4),
    st.lists(st.integers(1, 60), min_size=1),
)
def test_pieces_follow_from_the_text_and_not_from_its_parts(texts: list[str], lengths: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_pieces, "PIECE_SIZE", 10)
        patch.setattr(text_pieces, "LONGEST", 40)
        whole = list(pieces_of((Part(text, True) for text in texts), cut_before_spaces))
        parts, place = [], 0
        for text in texts:
            begins = True
            while text:
                length = lengths[place % len(lengths)]
                parts.append(Part(text[:length], begins))
                text, begins, place = text[length:], False, place + 1
        pieces = list(pieces_of(parts, cut_before_spaces))
    assert pieces == whole
    assert list(whole_documents(Part(piece.text, piece.begins) for piece in pieces)) == texts
    assert sum(piece.words for piece in pieces) == sum(len(text.split()) for text in texts)
    assert max(len(piece.text) for piece in pieces) <= 40


@pytest.mark.usefixtures("small")
def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    files = []
    for threads in (1, 2, 5):
        directory = tmp_path / str(threads)
        written(directory, Documents(DOCUMENTS), Counting(), threads)
        files.append({file.name: file.read_bytes() for file in directory.iterdir() if file.suffix != ".json"})
        assert not (directory / "train.journal").exists()
    assert files[0] == files[1] == files[2]
    texts = ["".join(document).encode() for document in DOCUMENTS]
    assert files[0]["train.tokens"] == np.frombuffer(b"\0".join(texts), np.uint8).astype(np.uint16).tobytes()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("limit", [1, 150, 500, LENGTH - 1])
def test_what_is_tokenized_already_is_not_tokenized_again(
    limit: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = written(tmp_path / "whole", Documents(DOCUMENTS), Counting())
    directory = tmp_path / "resumed"
    stopped = Counting(limit)
    with pytest.raises(KeyboardInterrupt):
        written(directory, Documents(DOCUMENTS), stopped)
    with (directory / "train.tokens").open("ab") as file:
        file.write(b"half a shard that the journal does not know")
    kept = sum(json.loads(line)["byte_count"] for line in (directory / "train.journal").read_text().splitlines())
    assert stopped.encoded - kept <= 4 * 100  # what was on the way
    capsys.readouterr()
    again = Counting()
    found = written(directory, Documents(DOCUMENTS), again)
    assert again.encoded == LENGTH - kept
    assert found.tokens.tobytes() == expected.tokens.tobytes()
    assert found.document_starts.tolist() == expected.document_starts.tolist()
    assert (found.byte_count, found.word_count) == (expected.byte_count, expected.word_count)
    assert ("are tokenized already" in capsys.readouterr().err) == (kept > 0)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", ["tokens", "documents", "journal", "no tokens", "other text", "less text"])
def test_only_what_is_whole_and_of_the_same_text_is_kept(damage: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, Documents(DOCUMENTS), Counting(900))
    documents = DOCUMENTS
    if damage == "no tokens":
        (tmp_path / "train.tokens").unlink()
    elif damage == "other text":
        documents = [[*DOCUMENTS[0][:1], "other"], *DOCUMENTS[1:]]
    elif damage == "less text":
        documents = DOCUMENTS[:10]
    else:
        path = tmp_path / f"train.{damage}"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    again = Counting()
    found = written(tmp_path, Documents(documents), again)
    expected = written(tmp_path / "expected", Documents(documents), Counting())
    assert found.tokens.tobytes() == expected.tokens.tobytes()
    assert found.document_starts.tolist() == expected.document_starts.tolist()
    assert (found.byte_count, found.word_count) == (expected.byte_count, expected.word_count)


def test_others_wait_for_the_one_that_tokenizes(tmp_path: Path) -> None:
    tokenizers = [Counting(), Counting(), Counting()]
    with ThreadPoolExecutor(3) as threads:
        splits = list(threads.map(lambda each: written(tmp_path, Documents(DOCUMENTS), each), tokenizers))
    assert sum(tokenizer.encoded for tokenizer in tokenizers) == LENGTH
    assert len({split.tokens.tobytes() for split in splits}) == 1


SCRIPT = """
import sys
from pathlib import Path
from wavelet_core.tokenizers import BytesTokenizer
from wavelet_train import text_pieces, tokenizing
from wavelet_train.text_files import TextFiles
text_pieces.PIECE_SIZE, tokenizing.TASK_SIZE, tokenizing.SHARD_SIZE = 1 << 12, 1 << 13, 1 << 16
dataset = TextFiles(TextFiles.Config(train=sys.argv[1]))
tokenizing.write_split(Path(sys.argv[2]), "train", dataset, BytesTokenizer(), None)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there are no such signals here")
@pytest.mark.parametrize("kills", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_a_killed_process_is_gone_on_with(kills: int, tmp_path: Path) -> None:
    text = "".join(f"line {number}: some words to tokenize\n" for number in range(150_000))
    (tmp_path / "text.txt").write_text(text)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "text.txt"), str(tmp_path / "cache")]
    journal = tmp_path / "cache" / "train.journal"
    kept = 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > kept + 3:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.002)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        before, kept = kept, journal.read_bytes().count(b"\n")
        assert kept > before
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "of the train split are tokenized already" in run.stderr
    found = np.fromfile(tmp_path / "cache" / "train.tokens", np.uint16)
    assert found.astype(np.uint8).tobytes() == text.encode()
    assert not journal.exists()


def test_a_long_document_is_never_in_memory_whole(tmp_path: Path) -> None:
    class Endless(Documents):
        """Gives a document of 100 times the pieces that may be held; counts how far it was read."""

        def parts(self, split: str) -> Iterator[Part]:
            for number in range(100):
                self.read += 1
                yield Part("some words " * 1000, number == 0)

    dataset = Endless([])
    ahead = []

    class Watching(BytesTokenizer):
        done = 0

        def encode(self, text: str) -> list[int]:
            self.done += len(text)
            ahead.append(dataset.read * 11_000 - self.done)
            return super().encode(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_pieces, "PIECE_SIZE", 1000)
        patch.setattr(tokenizing, "TASK_SIZE", 2000)
        patch.setattr(tokenizing, "SHARD_SIZE", 10_000)
        split = written(tmp_path, dataset, Watching())
    assert len(split.tokens) == 100 * 11_000
    assert max(ahead) < 100_000


def test_a_file_of_another_tokenizers_cache_is_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.txt").write_text("the owl found nothing\n" * 200)
    config = {"dataset": {"kind": "text", "train": str(tmp_path / "train.txt")}, "cache_directory": str(tmp_path / "c")}
    kinds = ["bytes", {"kind": "byte_pair", "vocabulary_size": 300}]
    expected = {}
    for number, kind in enumerate(kinds):
        data = PreparedData(parse(DataConfig, config | {"tokenizer": kind}))
        expected[number] = data.split("train").tokens.tolist()
    first, second = (tmp_path / "c" / "tokens").iterdir()
    contents = {file.name: file.read_bytes() for file in first.iterdir()}
    for file in second.iterdir():
        file.unlink()
    for name, content in contents.items():
        (second / name).write_bytes(content)
    capsys.readouterr()
    for number, kind in enumerate(kinds):
        data = PreparedData(parse(DataConfig, config | {"tokenizer": kind}))
        assert data.split("train").tokens.tolist() == expected[number]
    assert capsys.readouterr().err.count("is damaged; it is made again") == 1


def test_a_split_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the train split has no text"):
        written(tmp_path, Documents([]), Counting())


def test_only_what_is_no_file_is_in_the_way(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("missing", "file", "link", "dangling", "itself", "folder")}
    places["file"].touch()
    places["folder"].mkdir()
    for name, target in {"link": "file", "dangling": "missing", "itself": "itself"}.items():
        places[name].symlink_to(tmp_path / target)
    assert [name for name, place in places.items() if tokenizing.is_no_file(place)] == ["dangling", "itself", "folder"]
