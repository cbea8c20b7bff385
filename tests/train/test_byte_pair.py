from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, trainers

from wavelet_core.tokenizer_file import byte_characters
from wavelet_core.tokenizers import BytePairTokenizer, load_tokenizer
from wavelet_train.byte_pair import LONGEST_PART, byte_level_tokenizer, train_byte_pair

SOURCES = [Path(json.__file__).with_name(name).read_text(encoding="utf-8") for name in ("decoder.py", "encoder.py")]
# Long runs are where equal pieces can come out of different merges.
RUNS = [
    " " * spaces + "x" * letters + "\n" * lines for spaces in range(30) for letters in range(12) for lines in (1, 3)
]
VOCABULARY_SIZE = 700


def reference(documents: list[str]) -> tuple[object, dict[int, bytes]]:
    """The same training in the `tokenizers` library, and the bytes of its tokens."""
    tokenizer = byte_level_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    characters = byte_characters()
    return tokenizer, {number: bytes(map(characters.index, token)) for token, number in tokenizer.get_vocab().items()}


def train(documents: list[str]) -> BytePairTokenizer:
    return train_byte_pair(BytePairTokenizer.Config(vocabulary_size=VOCABULARY_SIZE), documents)


PAIRS = [(train(documents), *reference(documents)) for documents in (SOURCES, RUNS)]

code_like = st.text(st.sampled_from("  \n\tselfin()_.:'\"xé0漢\u3000"), max_size=80)


@given(st.sampled_from(PAIRS), st.one_of(code_like, st.text(), st.text(st.sampled_from(" x\n"), max_size=200)))
def test_tokens_equal_those_of_the_tokenizers_library(pair: tuple, text: str) -> None:
    ours, theirs, bytes_of = pair
    expected = [bytes_of[number] for number in theirs.encode(text).ids]
    assert [ours.decode_bytes([token]) for token in ours.encode(text)] == expected


def test_tokens_of_whole_files_equal_those_of_the_tokenizers_library() -> None:
    ours, theirs, bytes_of = PAIRS[0]
    for module in ("tool.py", "scanner.py", "__init__.py"):
        text = Path(json.__file__).with_name(module).read_text(encoding="utf-8")
        expected = [bytes_of[number] for number in theirs.encode(text).ids]
        assert [ours.decode_bytes([token]) for token in ours.encode(text)] == expected
        assert len(expected) < 0.6 * len(text)


@pytest.mark.parametrize("run", ["x", " ", "=", "ab"])
def test_a_megabyte_without_a_boundary_is_learnt_from(run: str) -> None:
    tokenizer = train([run * (1_000_000 // len(run))])
    assert max(map(len, tokenizer.tokens)) == LONGEST_PART
    assert tokenizer.decode(tokenizer.encode(run * 5000)) == run * 5000


def test_the_vocabulary_has_the_size_that_was_asked_for() -> None:
    tokenizer = train(SOURCES)
    assert tokenizer.vocabulary_size == VOCABULARY_SIZE
    assert tokenizer.end_of_text == VOCABULARY_SIZE - 1
    assert tokenizer.tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert b"self" in tokenizer.tokens


def test_a_text_with_few_pairs_gives_a_smaller_vocabulary() -> None:
    tokenizer = train(["ababab"])
    assert tokenizer.vocabulary_size < VOCABULARY_SIZE
    assert tokenizer.decode(tokenizer.encode("other text é")) == "other text é"


def test_training_is_repeatable_and_survives_saving(tmp_path: Path) -> None:
    tokenizer = train(SOURCES)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, BytePairTokenizer)
    assert tokenizer.tokens == loaded.tokens == train(SOURCES).tokens


def test_every_byte_has_a_character() -> None:
    assert len(byte_characters()) == 256
    assert set(byte_characters()) == set(pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize("size", [256, 0])
def test_a_vocabulary_without_room_for_the_bytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 257"):
        BytePairTokenizer.Config(vocabulary_size=size)
