"""SentencePiece tokenizers, kind `sentencepiece`: an existing model file, or one learnt from the train split."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from wavelet_core.atomic_files import write_atomically
from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import Tokenizer, TokenizerError, cut_before_spaces, save_description

MODEL_FILE = "sentencepiece.model"
WORD_START = "\u2581"
# Bytes: SentencePiece learns nothing from a longer line. Such a line is cut into parts of PART_LENGTH characters.
LONGEST_LINE = 4192
PART_LENGTH = 1024
# Texts whose halves show whether a model treats the beginning of a text otherwise.
PARTED = [("a", " b"), ("a", "  b"), (".", " -1"), ("a", " \n"), ("a", " ")]


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo & Richardson 2018), run by the sentencepiece package.

    model: the content of a `.model` file; read from `config.model_file` when not given.
    Models that normalize text give the normalized text back. Those that `train` learns do not normalize.
    """

    class Config(ComponentConfig):
        kind: Literal["sentencepiece"] = "sentencepiece"
        model_file: str | None = Field(None, description="an existing SentencePiece model; null learns one")
        vocabulary_size: int = Field(
            32768, ge=300, description="pieces to learn when model_file is null; fewer if the text has no more"
        )
        algorithm: Literal["bpe", "unigram"] = Field("bpe", description="how they are learnt when model_file is null")

    def __init__(self, config: Config | None = None, model: bytes | None = None) -> None:
        self.config = config or self.Config()
        self.model = read_model_file(self.config.model_file) if model is None else model
        self._processor = _import_sentencepiece().SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.model)
        except RuntimeError as error:
            raise TokenizerError(f"this is not a SentencePiece model: {error}") from None
        self.vocabulary_size = self._processor.get_piece_size()
        self.end_of_text = self._processor.eos_id() if self._processor.eos_id() >= 0 else None
        self._bytes = [self._bytes_of(piece) for piece in range(self.vocabulary_size)]

    def _bytes_of(self, piece: int) -> bytes:
        if self._processor.is_control(piece):
            return b""
        name: str = self._processor.id_to_piece(piece)
        if self._processor.is_byte(piece):
            return bytes([int(name[3:-1], 16)])  # <0x0A>
        return "\ufffd".encode() if self._processor.is_unknown(piece) else name.replace(WORD_START, " ").encode()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        return ids

    def pieces(self, text: str, size: int) -> Iterator[str]:
        return cut_before_spaces(text, size) if self._parts_words else iter([text])

    @cached_property
    def _parts_words(self) -> bool:
        """Whether no piece goes on over a space, and text after one is encoded as it is at the beginning."""
        names = (self._processor.id_to_piece(piece) for piece in range(self.vocabulary_size))
        return not any(WORD_START in name.lstrip(WORD_START) for name in names) and all(
            self.encode(before + after) == self.encode(before) + self.encode(after) for before, after in PARTED
        )

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join([self._bytes[piece] for piece in self._known(ids)])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, without the space that many models put before the first word."""
        text: str = self._processor.decode(self._known(ids))
        return text

    def _known(self, ids: Iterable[int]) -> list[int]:
        pieces = list(ids)
        if pieces and not 0 <= min(pieces) <= max(pieces) < self.vocabulary_size:
            raise TokenizerError(
                f"a token is not in the tokenizer's vocabulary of {self.vocabulary_size}; is this the tokenizer that "
                "the model was trained with?"
            )
        return pieces

    def save(self, directory: str | Path) -> None:
        save_sentence_piece(directory, self.model)

    @classmethod
    def load(cls, directory: Path, saved: dict[str, Any]) -> SentencePieceTokenizer:
        try:
            return cls(model=(directory / MODEL_FILE).read_bytes())
        except FileNotFoundError:
            raise CheckpointError(f"{directory} holds no SentencePiece model: there is no {MODEL_FILE} in it") from None

    @classmethod
    def train(cls, config: Config, documents: Iterable[str]) -> SentencePieceTokenizer:
        """Learn a model from documents, or read `config.model_file` if there is one.

        What is learnt reads every text back exactly (byte fallback, no normalization), but for U+2581, which is
        SentencePiece's sign for a space. Line ends are always pieces of their own.
        """
        if config.model_file is not None:
            return cls(config)
        model = io.BytesIO()
        try:
            _import_sentencepiece().SentencePieceTrainer.train(
                sentence_iterator=(
                    part for document in documents for line in document.splitlines() for part in parts_of(line)
                ),
                model_writer=model,
                vocab_size=config.vocabulary_size,
                model_type=config.algorithm,
                hard_vocab_limit=False,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                character_coverage=0.9999,
                bos_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ConfigurationError(
                f"tokenizer.vocabulary_size={config.vocabulary_size}: SentencePiece cannot learn so many pieces from "
                f"this text ({error})"
            ) from None
        return cls(config, model.getvalue())


def parts_of(line: str) -> Iterator[str]:
    """The line as SentencePiece can learn from it: whole, or in parts where it is too long."""
    length = PART_LENGTH if len(line.encode("utf-8", "replace")) > LONGEST_LINE else len(line)
    for start in range(0, len(line), max(1, length)):
        yield line[start : start + length]


def save_sentence_piece(directory: str | Path, model: bytes) -> None:
    """Write the content of a SentencePiece `.model` file as a tokenizer directory; needs no package."""
    write_atomically(Path(directory) / MODEL_FILE, lambda file: file.write_bytes(model))
    save_description(directory, {"kind": "sentencepiece"})


def read_model_file(name: str | None) -> bytes:
    if name is None:
        raise ConfigurationError("tokenizer.model_file: name a SentencePiece model, or prepare data to learn one from")
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as error:
        raise ConfigurationError(f"tokenizer.model_file: cannot read {name}: {error.strerror}") from None


def _import_sentencepiece() -> ModuleType:
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise TokenizerError(
            "the tokenizer 'sentencepiece' needs its package: pip install 'wavelet-train[sentencepiece]'"
        ) from None
    return sentencepiece
