from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from wavelet_core import ComponentConfig, ConfigurationError, hookimpl
from wavelet_core.atomic_files import write_atomically
from wavelet_core.cache_directory import default_cache_directory
from wavelet_core.config import parse
from wavelet_core.registry import RegistryError, registry
from wavelet_core.tokenizers import BytesTokenizer, Tokenizer, TokenizerError
from wavelet_train import text_pieces, token_cache, tokenizing
from wavelet_train.data import DataConfig, PreparedData
from wavelet_train.token_split import token_byte_lengths

TEXTS = {
    "train": ["the first document, of some length\n" * 20, "a second one: é 漢\n" * 30],
    "validation": ["the third document\n" * 10],
    "test": ["the fourth document\n" * 10],
}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return config_in(tmp_path)


def config_in(folder: Path) -> dict[str, Any]:
    """Write TEXTS into a folder; the configuration of that data."""
    for split, texts in TEXTS.items():
        (folder / split).mkdir()
        for number, text in enumerate(texts):
            (folder / split / f"{number}.txt").write_text(text, encoding="utf-8")
    return {
        "dataset": {"kind": "text", **{split: str(folder / split) for split in TEXTS}},
        "tokenizer": {"kind": "byte_pair", "vocabulary_size": 300},
        "cache_directory": str(folder / "cache"),
    }


def prepared(config: dict[str, Any], **changes: Any) -> PreparedData:
    return PreparedData(parse(DataConfig, config | changes))


def cached(config: dict[str, Any], name: str) -> Path:
    (path,) = Path(config["cache_directory"]).rglob(name)
    return path


def test_tokens_are_the_documents_with_end_of_text_between(config: dict[str, Any]) -> None:
    data = prepared(config)
    tokenizer = data.tokenizer
    assert tokenizer.vocabulary_size <= 300
    expected = [*tokenizer.encode(TEXTS["train"][0]), tokenizer.end_of_text, *tokenizer.encode(TEXTS["train"][1])]
    assert data.split("train").tokens.tolist() == expected
    assert data.split("train").document_starts.tolist() == [0, expected.index(tokenizer.end_of_text) + 1]
    assert data.split("validation").tokens.tolist() == tokenizer.encode(TEXTS["validation"][0])
    assert data.split("train").tokens.dtype == np.uint16
    assert isinstance(data.split("train").tokens, np.memmap)


def test_counts_describe_the_text(config: dict[str, Any]) -> None:
    data = prepared(config)
    train = data.split("train")
    assert train.byte_count == sum(len(text.encode()) for text in TEXTS["train"])
    assert train.word_count == sum(len(text.split()) for text in TEXTS["train"])
    assert len(train.document_starts) == 2
    assert token_byte_lengths(data.tokenizer)[train.tokens].sum() == train.byte_count


def test_canonical_words_replace_the_count(config: dict[str, Any]) -> None:
    data = prepared(config, canonical_words={"test": 12345})
    assert data.split("test").word_count == 12345
    assert data.split("validation").word_count == len(TEXTS["validation"][0].split())


def test_tokenizers_without_end_of_text_put_documents_next_to_each_other(config: dict[str, Any]) -> None:
    data = prepared(config, tokenizer="bytes")
    assert data.split("train").tokens.tobytes() == b"".join(
        np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16).tobytes() for text in TEXTS["train"]
    )
    assert data.split("train").document_starts.tolist() == [0, len(TEXTS["train"][0].encode())]


@pytest.mark.parametrize("tokenizer", ["byte_pair", "bytes"])
def test_pieces_and_batches_leave_no_trace(
    tokenizer: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config["tokenizer"] = tokenizer
    whole = prepared(config).split("train")
    monkeypatch.setattr(text_pieces, "PIECE_SIZE", 16)
    monkeypatch.setattr(tokenizing, "TASK_SIZE", 50)
    monkeypatch.setattr(tokenizing, "SHARD_SIZE", 200)
    pieces = prepared(config, cache_directory=config["cache_directory"] + "2").split("train")
    assert np.array_equal(whole.tokens, pieces.tokens)
    assert np.array_equal(whole.document_starts, pieces.document_starts)
    assert (whole.byte_count, whole.word_count) == (pieces.byte_count, pieces.word_count)


def test_a_second_run_reads_the_cache(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(config).split("train")
    for work in ("write_split", "train_byte_pair"):
        monkeypatch.setattr(token_cache, work, lambda *_: pytest.fail("the cache was not used"))
    again = prepared(config)
    assert np.array_equal(again.split("train").tokens, first.tokens)
    assert (again.split("train").byte_count, again.split("train").word_count) == (first.byte_count, first.word_count)


def test_a_split_is_tokenized_when_it_is_asked_for(config: dict[str, Any]) -> None:
    data = prepared(config)
    assert not list(Path(config["cache_directory"]).rglob("*.tokens"))
    assert data.split("validation") is data.split("validation")
    assert [path.name for path in Path(config["cache_directory"]).rglob("*.tokens")] == ["validation.tokens"]


def test_other_data_or_another_tokenizer_have_other_tokens(config: dict[str, Any], tmp_path: Path) -> None:
    counts = [len(prepared(config, **other).split("train").tokens) for other in ({}, {"tokenizer": "bytes"})]
    (tmp_path / "train" / "0.txt").write_text("something else")
    counts.append(len(prepared(config).split("train").tokens))
    assert len(set(counts)) == 3


def test_a_given_tokenizer_is_used(config: dict[str, Any]) -> None:
    tokenizer = BytesTokenizer()
    data = PreparedData(parse(DataConfig, config), tokenizer)
    assert data.tokenizer is tokenizer
    assert len(data.split("test").tokens) == len(TEXTS["test"][0].encode())


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-3],
    "extended": lambda content: content + content[-2:],
    "empty": lambda content: b"",
    "all ones": lambda content: b"\xff" * len(content),
    "first bit": lambda content: flipped(content, 0, 0),
    "middle bit": lambda content: flipped(content, len(content) // 2, 4),
    "deeply nested": lambda content: b"[" * 100_000,
    "list as a count": lambda content: json.dumps({"bytes": [1], "words": -1, "dtype": "float1"}).encode(),
}
FILES = {
    "validation.tokens": "validation.tokens",
    "validation.documents": "validation.documents",
    "validation.json": "validation.json",
    "tokenizer.json": "tokenizer.json",
    "the tokenizer's digests": "tokenizers/*.json",
}


@pytest.fixture(scope="module")
def whole_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of TEXTS, which is keyed by what they say and not by where they are."""
    folder = tmp_path_factory.mktemp("whole")
    data = prepared(config_in(folder))
    data.split("train"), data.split("validation")
    return folder / "cache"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", [*DAMAGES, "a directory", "a pipe", "a link to itself", "another split's", "missing"]
)
def test_what_is_damaged_in_the_cache_is_made_again_and_said_to_be(
    config: dict[str, Any], whole_cache: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole_cache, config["cache_directory"])
    expected = prepared(config).split("validation").tokens.tolist()
    path = cached(config, FILES[name])
    content = path.read_bytes()
    path.unlink()  # the old file may still be mapped
    if damage in DAMAGES:
        path.write_bytes(DAMAGES[damage](content))
    elif damage == "a directory":
        path.mkdir()
    elif damage == "a pipe":
        if sys.platform == "win32":
            pytest.skip("there are no pipes in folders")
        os.mkfifo(path)
    elif damage == "a link to itself":
        path.symlink_to(path.name)
    elif damage == "another split's":
        path.write_bytes(cached(config, f"train{path.suffix}").read_bytes())
    capsys.readouterr()
    again = prepared(config).split("validation")
    assert again.tokens.tolist() == expected
    assert (again.byte_count, again.word_count) == (len(TEXTS["validation"][0]), 30)
    assert path.read_bytes() == content
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("token cache: ")]
    # Without its digests an entry is as one whose making was interrupted.
    silent = damage == "missing" and path.suffix == ".json" and name != "tokenizer.json"
    assert len(said) == (0 if silent else 1)
    assert all(str(path) in line and line.endswith("it is made again") for line in said)


@pytest.mark.parametrize("whole", [True, False])
def test_a_cache_that_cannot_be_written_is_read_if_it_is_whole(
    config: dict[str, Any], whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepared(config).split("validation").tokens.tolist()
    path = cached(config, "validation.tokens")
    if not whole:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(flipped(content, 5, 1))

    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(tokenizing, "append_whole", refuse)
    if whole:
        assert prepared(config).split("validation").tokens.tolist() == expected
        return
    remedy = r"validation\.tokens: Permission denied; .* data\.cache_directory or \$WAVELET_CACHE"
    with pytest.raises(ConfigurationError, match=remedy):
        prepared(config).split("validation")


def test_an_interrupted_run_leaves_no_tokens_that_count(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = prepared(config)

    def stop(text: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(data.tokenizer, "encode_buffer", stop)
    with pytest.raises(KeyboardInterrupt):
        data.split("train")
    assert not list((tmp_path / "cache" / "tokens").rglob("*.json"))
    assert len(prepared(config).split("train").tokens) > 0


def test_two_runs_at_once_prepare_the_same_data(config: dict[str, Any]) -> None:
    expected = prepared(config, cache_directory=config["cache_directory"] + "2").split("train")
    with ThreadPoolExecutor(8) as threads:
        for train in threads.map(lambda _: prepared(config).split("train"), range(8)):
            assert np.array_equal(train.tokens, expected.tokens)
            assert np.array_equal(train.document_starts, expected.document_starts)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WAVELET_CACHE", str(tmp_path))
    assert default_cache_directory() == tmp_path
    monkeypatch.delenv("WAVELET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert default_cache_directory() == tmp_path / ".cache" / "wavelet"


def test_progress_is_plain_lines_without_a_terminal(config: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert len(prepared(config).split("train").tokens)
    output = capfd.readouterr()
    assert output.out == ""
    assert [line.split(":")[0] for line in output.err.splitlines()] == [
        "training a byte_pair tokenizer",
        "tokenizing the train split",
    ]
    assert "\r" not in output.err


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a POSIX thing")
def test_progress_is_a_bar_on_a_terminal(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import termios

    terminal, other_end = os.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(other_end, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert len(prepared(config).split("train").tokens)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert "\rtokenizing the train split: 100%" in shown


class Alphabet:
    """A third party's data set: no more than the contract."""

    class Config(ComponentConfig):
        kind: Literal["alphabet"] = "alphabet"
        letters: str = "abc"

    def __init__(self, config: Config) -> None:
        self.config = config

    def documents(self, split: str) -> Iterator[str]:
        if split != "test":
            yield from self.config.letters * 50

    def fingerprint(self) -> str:
        return self.config.letters


class LetterTokenizer(Tokenizer):
    """A third party's tokenizer that is learnt: one token a letter."""

    class Config(ComponentConfig):
        kind: Literal["letters"] = "letters"

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self.vocabulary_size = len(letters)

    @classmethod
    def train(cls, config: Config, documents: Iterator[str]) -> LetterTokenizer:
        return cls("".join(sorted({letter for document in documents for letter in document})))

    def encode(self, text: str) -> list[int]:
        return [self.letters.index(letter) for letter in text]

    def decode_bytes(self, ids: Any) -> bytes:
        return "".join(self.letters[token] for token in ids).encode()

    def save(self, directory: str | Path) -> None:
        write_atomically(
            Path(directory) / "tokenizer.json",
            lambda file: file.write_text(json.dumps({"kind": "letters", "letters": self.letters})),
        )

    @classmethod
    def load(cls, directory: Path, saved: dict[str, Any]) -> LetterTokenizer:
        return cls(saved["letters"])


class ThirdParty:
    @hookimpl
    def register_components(self, register: Any) -> None:
        register("dataset", Alphabet)
        register("tokenizer", LetterTokenizer)


def test_third_party_data_sets_and_tokenizers_are_prepared(tmp_path: Path) -> None:
    try:
        registry.get("dataset", "alphabet")
    except RegistryError:
        registry.add_plugin(ThirdParty(), "third_party_data")
    config = {"dataset": {"kind": "alphabet", "letters": "xyz"}, "tokenizer": "letters"}
    data = prepared(config | {"cache_directory": str(tmp_path)})
    assert data.tokenizer.vocabulary_size == 3
    assert data.split("train").tokens.tolist() == [0, 1, 2] * 50
    assert len(data.split("train").document_starts) == 150
    again = prepared(config | {"cache_directory": str(tmp_path)})
    assert isinstance(again.tokenizer, LetterTokenizer)
    with pytest.raises(ConfigurationError, match=r"data\.dataset: the test split has no text"):
        data.split("test")


def test_ids_outside_the_tokenizers_vocabulary_are_no_tokens(config: dict[str, Any]) -> None:
    class Wrong(BytesTokenizer):
        def encode(self, text: str) -> list[int]:
            return [*super().encode(text), 256]

    with pytest.raises(TokenizerError, match="'bytes' gave 256, which is no id from 0 to 255"):
        PreparedData(parse(DataConfig, config), Wrong()).split("train")


def test_unknown_fields_and_kinds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown dataset 'python_stdlb'; did you mean 'python_stdlib'"):
        parse(DataConfig, {"dataset": "python_stdlb"}, "data")
    with pytest.raises(ConfigurationError, match="did you mean 'vocabulary_size'"):
        parse(DataConfig, {"tokenizer": {"kind": "byte_pair", "vocabulary": 300}})
    with pytest.raises(ConfigurationError, match="canonical_words"):
        parse(DataConfig, {"canonical_words": {"tset": 3}})
