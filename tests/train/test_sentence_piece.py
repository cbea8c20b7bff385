from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavelet_core import CheckpointError, ConfigurationError
from wavelet_core.tokenizers import TokenizerError, load_tokenizer
from wavelet_train.sentence_piece import SentencePieceTokenizer, save_sentence_piece

sentencepiece = pytest.importorskip("sentencepiece", reason="needs the extra wavelet-train[sentencepiece]")

TEXT = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")
LEARNT = SentencePieceTokenizer.train(SentencePieceTokenizer.Config(vocabulary_size=500), [TEXT])


@pytest.fixture(scope="module")
def usual_model() -> bytes:
    """A model as others train it: normalizing, with a space before the first word."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_writer=model, vocab_size=300, minloglevel=2
    )
    return model.getvalue()


@given(st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
def test_learnt_pieces_read_every_text_back(text: str) -> None:
    ids = LEARNT.encode(text)
    assert LEARNT.decode(ids) == LEARNT.decode_bytes(ids).decode() == text


def test_learnt_pieces_shorten_text() -> None:
    assert LEARNT.vocabulary_size == 500
    assert LEARNT.end_of_text is not None
    assert len(LEARNT.encode(TEXT)) < 0.7 * len(TEXT)
    assert list(LEARNT.encode_buffer(TEXT)) == LEARNT.encode(TEXT)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_line_too_long_for_sentencepiece_is_learnt_from(algorithm: str) -> None:
    config = SentencePieceTokenizer.Config(vocabulary_size=300, algorithm=algorithm)
    tokenizer = SentencePieceTokenizer.train(config, ["ab" * 100_000])
    assert len(tokenizer.encode("ab" * 1000)) < 1000


def test_an_embedded_model_becomes_a_tokenizer_directory(usual_model: bytes, tmp_path: Path) -> None:
    save_sentence_piece(tmp_path / "tokenizer", usual_model)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    processor = sentencepiece.SentencePieceProcessor(model_proto=usual_model)
    ids = tokenizer.encode("return the string")
    assert ids == processor.encode("return the string")
    assert tokenizer.decode(ids) == "return the string"
    assert tokenizer.vocabulary_size == 300
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").encode("return") == tokenizer.encode("return")


def test_a_continuation_keeps_its_space(usual_model: bytes) -> None:
    tokenizer = SentencePieceTokenizer(model=usual_model)
    stream = tokenizer.stream()
    assert "".join(stream.decode([token]) for token in tokenizer.encode("the string")) == " the string"


def test_a_model_file_can_be_named(usual_model: bytes, tmp_path: Path) -> None:
    file = tmp_path / "some.model"
    file.write_bytes(usual_model)
    config = SentencePieceTokenizer.Config(model_file=str(file))
    assert SentencePieceTokenizer.train(config, iter([])).model == usual_model
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"tokenizer\.model_file: cannot read .*some\.model"):
        SentencePieceTokenizer(config)
    with pytest.raises(ConfigurationError, match=r"tokenizer\.model_file: name a SentencePiece model"):
        SentencePieceTokenizer()


def test_a_vocabulary_that_cannot_be_learnt_is_refused() -> None:
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 400)))
    with pytest.raises(ConfigurationError, match=r"tokenizer\.vocabulary_size=300: SentencePiece cannot learn"):
        SentencePieceTokenizer.train(SentencePieceTokenizer.Config(vocabulary_size=300), [characters])


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        SentencePieceTokenizer(model=b"something else")
    save_sentence_piece(tmp_path, LEARNT.model)
    (tmp_path / "sentencepiece.model").unlink()
    with pytest.raises(CheckpointError, match=r"there is no sentencepiece\.model"):
        load_tokenizer(tmp_path)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    for decode in (LEARNT.decode, LEARNT.decode_bytes):
        for piece in (5000, 500, -1):
            with pytest.raises(TokenizerError, match="vocabulary of 500"):
                decode([0, piece])
        assert not decode([])


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_sentence_piece(tmp_path, LEARNT.model)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match=r"pip install 'wavelet-train\[sentencepiece\]'"):
        load_tokenizer(tmp_path)
