"""Tokenizers: text to token ids and back, losslessly. Kinds `byte_pair`, `tiktoken`, `bytes`, `token_ids`.

`byte_pair` and `tiktoken` run on the tiktoken package (`pip install 'wavelet-core[text]'`), which is imported when
the first of them is made.
"""

from __future__ import annotations

import base64
import codecs
import json
import re
import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from wavelet_core.atomic_files import write_atomically
from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_core.digests import DIGESTS_FILE, verify_digests
from wavelet_core.messages import shortened, shown
from wavelet_core.registry import RegistryError, nearest, registry
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizer_file import byte_level_file

FILE_NAME = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"

# How GPT-2 splits text before it merges bytes: contractions, words, numbers, other signs, white space.
WHITE_SPACE_BEFORE_LAST = r"\s+(?!\S)"
GPT2_PATTERN = rf"""'(?:[sdmt]|ll|ve|re)| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{WHITE_SPACE_BEFORE_LAST}|\s+"""

# Places in a text. Before a space after something else than white space no split pattern lets a word go on.
BEFORE_SPACE = re.compile(r"(?<=\S)(?= )")
# Nor does one, GPT-2's and those after it, between a letter or digit and a line end or one of these signs, which no
# contraction begins with. Letters are those that every version of Unicode calls so, of scripts that have few spaces.
BEFORE_SPACE_OR_SIGN = re.compile(
    BEFORE_SPACE.pattern
    + r"|(?<=[0-9A-Za-z\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3])"
    + r"(?=[\t\n\r!\"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~\u3000-\u3002\uff01\uff0c\uff1a\uff1b\uff1f])"
)


class TokenizerError(ValueError):
    """A tokenizer that cannot be made or used; the message says what would help."""


class Tokenizer(ABC):
    """A component of kind `tokenizer`.

    vocabulary_size: ids are 0 .. vocabulary_size - 1. end_of_text: the id that separates documents, or None.
    A subclass has a nested `Config`. One that is learnt from text has a class method `train(config, documents)`, and
    its own `save` and `load`; others are made with their `Config` alone.
    """

    Config: type[ComponentConfig]
    vocabulary_size: int
    end_of_text: int | None = None

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text. The name of a special token in it is ordinary text."""

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of some ids; of two lists in a row, the bytes of one after the bytes of the other.

        Raises TokenizerError for an id outside the vocabulary.
        """

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every token by its id, b"" for the end of text and for ids that nothing is encoded to."""
        texts = []
        for token in range(self.vocabulary_size):
            try:
                texts.append(b"" if token == self.end_of_text else self.decode_bytes([token]))
            except TokenizerError:
                texts.append(b"")
        return texts

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json`, with the kind under "kind", and whatever else `load` needs."""
        save_description(directory, self.config.model_dump())

    @classmethod
    def load(cls, directory: Path, saved: dict[str, Any]) -> Tokenizer:
        """Read what `save` wrote; `saved` is the content of `tokenizer.json`."""
        return cls(cls.Config.model_validate({name: saved[name] for name in cls.Config.model_fields}))

    def tokenizers_file(self) -> dict[str, Any]:
        """The content of a `tokenizer.json` of the library `tokenizers`, which gives the same ids.

        Raises TokenizerError for a tokenizer that has none.
        """
        raise TokenizerError(
            f"the tokenizer {self.config.kind!r} has no form that the library `tokenizers` reads; byte_pair, tiktoken "
            "and bytes have one"
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def encode_buffer(self, text: str) -> Any:
        """The ids of a text as a buffer of unsigned 32-bit integers.

        Several threads call it at once for large texts; what lets other threads run meanwhile uses all processors.
        """
        return array("I", self.checked(self.encode(text)))

    def pieces(self, text: str, size: int) -> Iterator[str]:
        """Cut a long text at places where that changes no token: the pieces' ids in a row are the text's ids.

        size: characters that a piece should have at least; the last may have fewer. Whether a place is one to cut at
        depends on the characters beside it alone, so that it is one whatever follows the text. Tokenizers that know no
        such places give the text back whole.
        """
        yield text

    def stream(self) -> IncrementalDecoder:
        """A decoder for ids that arrive a few at a time."""
        return IncrementalDecoder(self)

    def checked(self, ids: list[int]) -> list[int]:
        """What `encode` gave. Raises TokenizerError for what is no id of the vocabulary: a model cannot look it up."""
        known = range(self.vocabulary_size)
        wrong = [token for token in set(ids) if token not in known]
        if wrong:
            raise TokenizerError(
                f"the tokenizer {self.config.kind!r} gave {shown(wrong[0])}, which is no id from 0 to {known[-1]}, its "
                f"vocabulary of {self.vocabulary_size}: its `encode` or `vocabulary_size` is wrong; tell whoever wrote "
                "it, or use another tokenizer"
            )
        return ids


class IncrementalDecoder:
    """Turns ids that arrive one by one into text, holding back the bytes of a character that is not complete yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; may be empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """What is held back, as U+FFFD; call it after the last id."""
        return self._decoder.decode(b"", final=True)


def cut_before_spaces(text: str, size: int) -> Iterator[str]:
    """Parts of a text with `size` characters or a little more, each but the first beginning with a run of white space.

    A text without spaces stays whole.
    """
    return cut_at(BEFORE_SPACE, text, size)


def cut_at(place: re.Pattern[str], text: str, size: int) -> Iterator[str]:
    """Parts of a text that end at the first match of `place` after `size` characters; the last one where the text does.

    place: matches the empty string at a border and looks no further than one character to each side.
    """
    start = 0
    while len(text) - start > size and (cut := place.search(text, start + size)) and cut.start() < len(text):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


class BytesTokenizer(Tokenizer):
    """The 256 byte values themselves. Needs no training and no package; it has no end-of-text token."""

    class Config(ComponentConfig):
        kind: Literal["bytes"] = "bytes"

    vocabulary_size = 256

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or self.Config())

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        try:
            return bytes(ids)
        except ValueError:
            raise TokenizerError("bytes have ids from 0 to 255; the model's vocabulary is larger than that") from None

    def tokenizers_file(self) -> dict[str, Any]:
        return byte_level_file({bytes([byte]): byte for byte in range(256)})

    def pieces(self, text: str, size: int) -> Iterator[str]:
        return (text[start : start + size] for start in range(0, len(text), size))


class TokenIds(Tokenizer):
    """No text: "12 7 55" is the ids 12, 7 and 55. For models whose tokenizer is not known."""

    class Config(ComponentConfig):
        kind: Literal["token_ids"] = "token_ids"
        vocabulary_size: int = Field(ge=1, description="number of ids")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.vocabulary_size = config.vocabulary_size

    def encode(self, text: str) -> list[int]:
        ids = []
        for word in text.split():
            if not word.isdecimal() or int(word) >= self.vocabulary_size:
                raise TokenizerError(
                    f"{shown(word)} is no token id from 0 to {self.vocabulary_size - 1}; this checkpoint has no text "
                    "tokenizer, so that a prompt is token ids such as '12 7 55'"
                )
            ids.append(int(word))
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return "".join(f"{token} " for token in ids).encode()


class _EncodingTokenizer(Tokenizer):
    """What the two kinds that run a `tiktoken.Encoding` share."""

    def __init__(
        self, config: Any, name: str, pattern: str, ranks: dict[bytes, int], special_tokens: dict[str, int]
    ) -> None:
        super().__init__(config)
        self._pattern = pattern
        # The same split with steps of 256: single steps overflow the matcher's stack at a million of white space.
        long_first = rf"(?:\s{{256}}(?=\s))++\s*(?!\S)|{WHITE_SPACE_BEFORE_LAST}"
        pattern = pattern.replace(WHITE_SPACE_BEFORE_LAST, long_first)
        self._new_encoding = partial(
            _import_tiktoken(config.kind).Encoding,
            name,
            pat_str=pattern,
            mergeable_ranks=ranks,
            special_tokens=special_tokens,
        )
        self.encoding = encoding = self._new_encoding()
        self._of_thread = threading.local()
        self.vocabulary_size = encoding.n_vocab
        self.end_of_text = encoding.eot_token if END_OF_TEXT in encoding.special_tokens_set else None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.encoding.encode_ordinary(text)
        return ids

    def encode_buffer(self, text: str) -> Any:
        # Threads that search with one compiled pattern wait for each other.
        if not hasattr(self._of_thread, "encoding"):
            self._of_thread.encoding = self._new_encoding()
        try:
            return self._of_thread.encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # half a character, which `encode` replaces
            return super().encode_buffer(text)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = list(ids)
        try:
            text: bytes = self.encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            unknown = next(token for token in ids if not self._knows(token))
            message = f"token {unknown} is not in the tokenizer's vocabulary of {self.vocabulary_size}"
            raise TokenizerError(f"{message}; is this the tokenizer that the model was trained with?") from None
        return text

    def _knows(self, token: int) -> bool:
        try:
            self.encoding.decode_single_token_bytes(token)
        except (KeyError, OverflowError):
            return False
        return True

    def tokenizers_file(self) -> dict[str, Any]:
        return byte_level_file(self.encoding._mergeable_ranks, self._pattern, self.encoding._special_tokens)

    def pieces(self, text: str, size: int) -> Iterator[str]:
        # The split pattern parts them before any merge is looked for.
        return cut_at(BEFORE_SPACE_OR_SIGN, text, size)


class BytePairTokenizer(_EncodingTokenizer):
    """Byte-level byte-pair encoding with a learnt vocabulary and GPT-2's split pattern (Radford et al. 2019).

    tokens: the bytes of every token in the order of the merges, the 256 single bytes first. Their places are their
    ids, and the end-of-text token has the id after the last. wavelet_train.byte_pair learns them.
    """

    class Config(ComponentConfig):
        kind: Literal["byte_pair"] = "byte_pair"
        vocabulary_size: int = Field(
            4096,
            ge=257,
            description="tokens to learn, the 256 bytes and the end of text among them; fewer if the text has no more",
        )

    def __init__(self, config: Config, tokens: Sequence[bytes]) -> None:
        self.tokens = list(tokens)
        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        if set(self.tokens[:256]) != {bytes([byte]) for byte in range(256)} or len(ranks) != len(self.tokens):
            raise TokenizerError("a byte-pair vocabulary needs the 256 single bytes first and no token twice")
        super().__init__(config, "byte_pair", GPT2_PATTERN, ranks, {END_OF_TEXT: len(self.tokens)})

    def save(self, directory: str | Path) -> None:
        tokens = [base64.b64encode(token).decode() for token in self.tokens]
        save_description(directory, {"kind": "byte_pair", "tokens": tokens})

    @classmethod
    def load(cls, directory: Path, saved: dict[str, Any]) -> BytePairTokenizer:
        tokens = [base64.b64decode(token, validate=True) for token in saved["tokens"]]
        return cls(cls.Config(vocabulary_size=len(tokens) + 1), tokens)


class TiktokenTokenizer(_EncodingTokenizer):
    """One of tiktoken's published encodings, such as GPT-2's 50257 tokens.

    tiktoken downloads an encoding when it is first used; TIKTOKEN_CACHE_DIR names the folder that keeps it.
    """

    class Config(ComponentConfig):
        kind: Literal["tiktoken"] = "tiktoken"
        encoding: str = Field("gpt2", description="tiktoken's name of the encoding")

    def __init__(self, config: Config) -> None:
        tiktoken = _import_tiktoken("tiktoken")
        known = tiktoken.list_encoding_names()
        if config.encoding not in known:
            raise ConfigurationError(
                f"tokenizer.encoding: {shown(config.encoding)} is unknown{nearest(config.encoding, known)} "
                f"tiktoken has: {', '.join(sorted(known))}"
            )
        try:
            encoding = tiktoken.get_encoding(config.encoding)
        except OSError as error:
            raise TokenizerError(
                f"the encoding {config.encoding!r} is not on this machine and could not be downloaded "
                f"({type(error).__name__}); set TIKTOKEN_CACHE_DIR to a folder that has it"
            ) from error
        super().__init__(config, encoding.name, encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)


def _import_tiktoken(kind: str) -> ModuleType:
    try:
        import tiktoken
    except ModuleNotFoundError:
        raise TokenizerError(f"the tokenizer {kind!r} needs tiktoken: pip install 'wavelet-core[text]'") from None
    return tiktoken


def save_description(directory: str | Path, description: dict[str, Any]) -> None:
    """Write a tokenizer's `tokenizer.json`, atomically; `description` has its kind under "kind"."""
    text = json.dumps(description, indent=1) + "\n"
    write_atomically(Path(directory) / FILE_NAME, lambda file: file.write_text(text, encoding="utf-8"))


def read_description(directory: str | Path) -> dict[str, Any]:
    """The content of a tokenizer's `tokenizer.json`. Raises CheckpointError where it has none that names a kind."""
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no tokenizer: there is no {FILE_NAME} in it")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {shortened(repr(error))}") from error
    if not isinstance(saved, dict) or not isinstance(saved.get("kind"), str):
        raise CheckpointError(f"{path} is damaged: it names no kind of tokenizer")
    return saved


def load_tokenizer(directory: str | Path, verify: bool = True) -> Tokenizer:
    """The tokenizer that was saved in a directory, or in the folder `tokenizer` of a checkpoint directory.

    verify: check first that its files are what was saved, where digests of them are beside it.
    Raises CheckpointError when there is none or its files are damaged, RegistryError when no installed package has
    its kind, and TokenizerError when a package that it needs is missing.
    """
    directory = Path(directory)
    # A checkpoint can have a file of this name for the library `tokenizers`.
    if (directory / "tokenizer" / FILE_NAME).is_file():
        directory = directory / "tokenizer"
    if verify and (directory / FILE_NAME).is_file():
        for place, parts in ((directory, None), (directory.parent, (directory.name,))):
            if (place / DIGESTS_FILE).exists():
                verify_digests(place, parts)
    saved = read_description(directory)
    try:
        tokenizer_class: Any = registry.get("tokenizer", saved["kind"])
        tokenizer: Tokenizer = tokenizer_class.load(directory, saved)
    except (RegistryError, TokenizerError, ConfigurationError):
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / FILE_NAME} is damaged: {shortened(repr(error))}") from error
    return tokenizer


def checkpoint_tokenizer(directory: str | Path, vocabulary_size: int, verify: bool = True) -> Tokenizer:
    """The tokenizer of a checkpoint directory whose model has `vocabulary_size` entries.

    A model may have more entries than its tokenizer has tokens (padding), not fewer. verify: as in `load_tokenizer`.

    Raises CheckpointError when it has fewer, and what `load_tokenizer` raises.
    """
    tokenizer = load_tokenizer(directory, verify)
    if tokenizer.vocabulary_size > vocabulary_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokenizer.vocabulary_size} tokens, but the model's vocabulary only "
            f"{vocabulary_size} entries (model.vocabulary_size); put back the tokenizer that the model was trained with"
        )
    return tokenizer
