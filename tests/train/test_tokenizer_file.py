"""The `tokenizer.json` for the library `tokenizers` encodes every text to our ids and decodes them to its text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wavelet_core.tokenizers import END_OF_TEXT, BytePairTokenizer, BytesTokenizer, TokenIds, Tokenizer, TokenizerError
from wavelet_train.byte_pair import train_byte_pair

SOURCE = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")
RUNS = [" " * spaces + "x" * letters + "\n" * 3 for spaces in range(30) for letters in range(12)]


def trained(documents: list[str]) -> BytePairTokenizer:
    return train_byte_pair(BytePairTokenizer.Config(vocabulary_size=600), documents)


def read(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer.tokenizers_file()))


PAIRS = [(ours, read(ours)) for ours in (trained([SOURCE]), trained(RUNS), BytesTokenizer())]
texts = st.one_of(
    st.text(),
    st.text(st.sampled_from("  \n\tselfin()_.:'\"xé0漢\u3000"), max_size=80),
    st.text(st.sampled_from(" x\n"), max_size=200),
    st.just(f"a {END_OF_TEXT}{END_OF_TEXT} b"),
)


@given(st.sampled_from(PAIRS), texts)
def test_ids_and_texts_are_the_same(pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str) -> None:
    ours, theirs = pair
    assert theirs.encode(text).ids == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text


@given(st.lists(st.text("ab ", min_size=2, max_size=5), unique=True, max_size=12), st.text("ab ", max_size=30))
@example(["aaa", "aa"], "aaaa")  # a token before those that it is merged from
@settings(deadline=None)
def test_ids_are_the_same_with_tokens_that_nobody_has_learnt(tokens: list[str], text: str) -> None:
    vocabulary = [bytes([byte]) for byte in range(256)] + [token.encode() for token in tokens]
    ours = BytePairTokenizer(BytePairTokenizer.Config(), vocabulary)
    assert read(ours).encode(text).ids == ours.encode(text)


@pytest.mark.parametrize("text", [SOURCE, " " * 5000 + SOURCE * 3, "x" * 20000])
def test_long_texts_have_the_same_ids(text: str) -> None:
    for ours, theirs in PAIRS:
        assert theirs.encode(text).ids == ours.encode(text)


def test_the_end_of_text_is_an_entry_that_no_text_has() -> None:
    ours, theirs = PAIRS[0]
    assert theirs.token_to_id(END_OF_TEXT) == ours.end_of_text
    assert ours.end_of_text not in theirs.encode(END_OF_TEXT).ids
    assert theirs.get_vocab_size() == ours.vocabulary_size


def test_a_tokenizer_without_such_a_file_says_so() -> None:
    with pytest.raises(TokenizerError, match="'token_ids' has no form"):
        TokenIds(TokenIds.Config(vocabulary_size=3)).tokenizers_file()
