from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_core import CheckpointError, ComponentConfig, ConfigurationError
from wavelet_core.generation.request import encode_prompt
from wavelet_core.registry import RegistryError, build, registry
from wavelet_core.tokenizers import (
    GPT2_PATTERN,
    BytePairTokenizer,
    BytesTokenizer,
    IncrementalDecoder,
    TiktokenTokenizer,
    Tokenizer,
    TokenizerError,
    load_tokenizer,
    read_description,
)
from wavelet_core.tokenizers import _EncodingTokenizer as EncodingTokenizer

MERGES = [b" t", b"he", b" the", b"  ", b"    ", b"\xc3\xa9", b"in", b"ing", b"wavelet"]


def byte_pair(merges: list[bytes] = MERGES) -> BytePairTokenizer:
    return BytePairTokenizer(BytePairTokenizer.Config(), [bytes([byte]) for byte in range(256)] + merges)


@pytest.fixture(scope="module")
def gpt2() -> TiktokenTokenizer:
    shared = Path(__file__).parents[3] / "shared" / "data" / "tiktoken"
    if shared.exists():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(shared))
    try:
        return TiktokenTokenizer(TiktokenTokenizer.Config(encoding="gpt2"))
    except TokenizerError as error:
        pytest.skip(f"the GPT-2 encoding is neither on this machine nor to be downloaded: {error}")


any_tokenizer = st.sampled_from([byte_pair(), BytesTokenizer()])


@given(any_tokenizer, st.text())
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocabulary_size for token in ids)


@given(any_tokenizer, st.lists(st.integers(0, 255)), st.lists(st.integers(0, 255)))
def test_bytes_of_tokens_are_concatenated(tokenizer: Tokenizer, first: list[int], second: list[int]) -> None:
    assert tokenizer.decode_bytes(first + second) == tokenizer.decode_bytes(first) + tokenizer.decode_bytes(second)


@given(any_tokenizer, st.lists(st.integers(0, 255)))
def test_incremental_decoding_equals_decoding_at_once(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = tokenizer.stream()
    text = "".join(stream.decode([token]) for token in ids) + stream.finish()
    assert text == tokenizer.decode(ids)


def test_incremental_decoding_holds_back_half_a_character() -> None:
    stream = IncrementalDecoder(BytesTokenizer())
    assert [stream.decode([byte]) for byte in "aé".encode()] == ["a", "", "é"]
    assert stream.decode([0xC3]) == ""
    assert stream.finish() == "\ufffd"


def test_merges_are_applied_in_order() -> None:
    tokenizer = byte_pair()
    ids = tokenizer.encode("in the string")
    assert [tokenizer.decode_bytes([token]) for token in ids] == [b"in", b" the", b" ", b"s", b"t", b"r", b"ing"]


def merged(word: bytes, tokens: list[bytes]) -> list[bytes]:
    """Byte-pair encoding by its definition: of all pairs that are tokens, the earliest token is merged first."""
    rank = {token: number for number, token in enumerate(tokens)}
    parts = [bytes([byte]) for byte in word]
    while True:
        pairs = [(rank.get(first + second, len(rank)), at) for at, (first, second) in enumerate(pairwise(parts))]
        lowest, at = min(pairs, default=(len(rank), 0))
        if lowest == len(rank):
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@given(st.text(st.sampled_from("thengi"), min_size=1, max_size=40), st.integers(20, 40))
@settings(max_examples=20)
def test_long_words_are_merged_in_order(text: str, times: int) -> None:
    tokenizer = byte_pair([b"th", b"he", b"the", b"in", b"ng", b"ing", b"nn", b"nnn", b"hi", b"tt", b"tttt"])
    word = text * times
    expected = merged(word.encode(), tokenizer.tokens)
    assert [tokenizer.decode_bytes([token]) for token in tokenizer.encode(word)] == expected


@given(st.lists(st.tuples(st.sampled_from(" \n\t"), st.sampled_from([1, 2, 255, 256, 257, 513]), st.text(max_size=2))))
@settings(max_examples=50)
def test_long_white_space_is_split_as_the_pattern_says(runs: list[tuple[str, int, str]]) -> None:
    text = "".join(space * times + word for space, times, word in runs)
    tokenizer = byte_pair()
    ranks = {token: rank for rank, token in enumerate(tokenizer.tokens)}
    plain = tiktoken.Encoding("plain", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert tokenizer.encode(text) == plain.encode_ordinary(text)


@pytest.mark.parametrize("run", ["x", "\t", "\t\n", "=", "7", "漢"])
@pytest.mark.parametrize("end", ["", "x"])
def test_more_than_a_million_signs_without_a_boundary_are_encoded(run: str, end: str) -> None:
    text = run * (1_100_000 // len(run)) + end
    tokenizer = byte_pair()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gpt2_encodes_a_million_spaces(gpt2: TiktokenTokenizer) -> None:
    ids = gpt2.encode("\t" * 1_100_000 + "x")
    assert gpt2.decode(ids) == "\t" * 1_100_000 + "x"


def test_end_of_text_is_the_last_token_and_its_name_is_ordinary_text() -> None:
    tokenizer = byte_pair()
    assert tokenizer.vocabulary_size == 256 + len(MERGES) + 1
    assert tokenizer.end_of_text == tokenizer.vocabulary_size - 1
    assert tokenizer.end_of_text not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([tokenizer.end_of_text]) == "<|endoftext|>"


# What split patterns tell apart: letters with and without case, digits, white space, signs, apostrophes, marks.
TRICKY_LETTERS = " \n\r\tasSlLtvreé09½.,/'_-\"\u3000\x85\x1c\u0301漢のア。\uff01\u200b"
TRICKY = st.text(st.sampled_from(TRICKY_LETTERS), min_size=10, max_size=60)


@given(any_tokenizer, TRICKY, st.integers(1, 10))
def test_pieces_encode_like_the_whole_text(tokenizer: Tokenizer, text: str, size: int) -> None:
    pieces = list(tokenizer.pieces(text, size))
    assert "".join(pieces) == text
    assert [token for piece in pieces for token in tokenizer.encode_buffer(piece)] == tokenizer.encode(text)


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT_PATTERNS = {
    "byte_pair": GPT2_PATTERN,
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k_base": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"""
    r"""\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    "o200k_base": "|".join(
        [
            rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{CONTRACTIONS}",
            rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{CONTRACTIONS}",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]
    ),
}


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
def test_no_split_pattern_goes_on_over_a_cut(pattern: str) -> None:
    """With a token for every two neighbours, whatever the pattern does not part is merged."""
    letters = [letter.encode() for letter in TRICKY_LETTERS]
    parts = [letter[:size] for letter in letters for size in range(2, len(letter) + 1)]
    tokens = dict.fromkeys(
        [bytes([byte]) for byte in range(256)] + parts + [first + second for first in letters for second in letters]
    )
    ranks = {token: rank for rank, token in enumerate(tokens)}
    tokenizer = EncodingTokenizer(BytePairTokenizer.Config(), pattern, SPLIT_PATTERNS[pattern], ranks, {})
    cuts = 0

    @given(TRICKY, st.integers(1, 10))
    @settings(max_examples=300)
    def check(text: str, size: int) -> None:
        nonlocal cuts
        pieces = list(tokenizer.pieces(text, size))
        cuts += len(pieces) - 1
        assert [token for piece in pieces for token in tokenizer.encode(piece)] == tokenizer.encode(text)

    check()
    assert cuts > 50


def test_text_without_spaces_is_cut_at_signs_and_lines() -> None:
    for text in ("名前、場所。" * 50, "1,2.5\n" * 50, "x=f(y)[0];" * 50):
        assert max(map(len, byte_pair().pieces(text, size=16))) < 24


def test_a_long_text_is_cut_into_pieces() -> None:
    text = "word after  word\n" * 100
    pieces = list(byte_pair().pieces(text, size=64))
    assert sum(len(piece.split()) for piece in pieces) == len(text.split())
    assert len(pieces) > 20
    assert max(map(len, pieces)) < 100


@pytest.mark.parametrize("tokenizer", [byte_pair(), BytesTokenizer()], ids=lambda t: t.config.kind)
def test_saved_tokenizers_load_alike(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    text = "in the end, 100 wavelets: é"
    for directory in (tmp_path / "tokenizer", tmp_path):  # itself, and the checkpoint around it
        loaded = load_tokenizer(directory)
        assert type(loaded) is type(tokenizer)
        assert loaded.encode(text) == tokenizer.encode(text)
        assert (loaded.vocabulary_size, loaded.end_of_text) == (tokenizer.vocabulary_size, tokenizer.end_of_text)


def test_gpt2_tokens(gpt2: TiktokenTokenizer, tmp_path: Path) -> None:
    assert (gpt2.vocabulary_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    gpt2.save(tmp_path)
    assert load_tokenizer(tmp_path).encode("Hello world") == [15496, 995]


@given(TRICKY, st.integers(1, 10))
def test_gpt2_pieces_encode_like_the_whole_text(gpt2: TiktokenTokenizer, text: str, size: int) -> None:
    assert [token for piece in gpt2.pieces(text, size) for token in gpt2.encode(piece)] == gpt2.encode(text)


def test_a_token_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(TokenizerError, match="token 5000 is not in the tokenizer's vocabulary of 266"):
        byte_pair().decode([65, 5000])
    with pytest.raises(TokenizerError, match="token -1 is not"):
        byte_pair().decode([-1])
    with pytest.raises(TokenizerError, match="ids from 0 to 255"):
        BytesTokenizer().decode([256])


@pytest.mark.parametrize("wrong", [256, -1, 2**70, "a", 1.5])
def test_an_id_that_a_tokenizer_should_not_give_is_named(wrong: object) -> None:
    class Wrong(BytesTokenizer):
        def encode(self, text: str) -> list:
            return [65, wrong]

    with pytest.raises(TokenizerError, match=f"'bytes' gave {wrong!r}, which is no id from 0 to 255"):
        encode_prompt("text", 1000, Wrong())


def test_a_vocabulary_without_all_bytes_is_refused() -> None:
    with pytest.raises(TokenizerError, match="256 single bytes first"):
        BytePairTokenizer(BytePairTokenizer.Config(), [b"a", b"b"])
    with pytest.raises(TokenizerError, match="no token twice"):
        byte_pair([b"ab", b"ab"])


def test_an_unknown_encoding_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'gpt3' is unknown; did you mean 'gpt2'\? tiktoken has: .*gpt2"):
        build("tokenizer", TiktokenTokenizer.Config(encoding="gpt3"))


@pytest.mark.parametrize("kind", ["byte_pair", "tiktoken"])
def test_a_missing_tiktoken_is_named_with_the_remedy(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(TokenizerError, match=r"needs tiktoken: pip install 'wavelet-core\[text\]'"):
        byte_pair() if kind == "byte_pair" else TiktokenTokenizer(TiktokenTokenizer.Config())


def test_an_encoding_that_cannot_be_downloaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ConnectionError("no route")

    fake = SimpleNamespace(get_encoding=fail, list_encoding_names=lambda: ["gpt2"])
    monkeypatch.setitem(sys.modules, "tiktoken", fake)
    with pytest.raises(TokenizerError, match="set TIKTOKEN_CACHE_DIR"):
        TiktokenTokenizer(TiktokenTokenizer.Config())


def test_a_directory_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no tokenizer: there is no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"kind": "byte_pair"}', '{"kind": "byte_pair", "tokens": ["?"]}', "\ufffd"]
)
def test_a_damaged_tokenizer_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_a_missing_plugin_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "morse"}))
    with pytest.raises(RegistryError, match="unknown tokenizer 'morse'"):
        load_tokenizer(tmp_path)


def test_tokenizers_are_components() -> None:
    assert {"byte_pair", "bytes", "tiktoken"} <= set(registry.names("tokenizer"))
    assert isinstance(build("tokenizer", BytesTokenizer.Config()), BytesTokenizer)
    assert issubclass(BytePairTokenizer.Config, ComponentConfig)


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", '{"kind": 3}', "[" * 100_000])
def test_a_description_that_names_no_kind_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        read_description(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path)
