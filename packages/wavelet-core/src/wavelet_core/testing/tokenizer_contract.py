"""The contract of a tokenizer."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wavelet_core.testing.subject import Subject
from wavelet_core.tokenizers import END_OF_TEXT, FILE_NAME, Tokenizer, TokenizerError

TEXTS = (
    "",
    " ",
    "The owl found nothing.",
    "  two spaces, a tab\t, and the end:  \n",
    "one\r\ntwo\rthree\n\n\nfour\u2028five\x0bsix\x0c",
    "def f(x):\n    return {'a': [1, 2.50e-3]} if x else None\n",
    "naïve Ångström, cafe\u0301, \u1e9b\u0323, ﬁ, ½, Ⅷ",
    "Привет, καλή μέρα, שלום עולם, مرحبا, नमस्ते, 你好世界, 안녕",
    "👍\U0001f3fd 🎉🎉 \U0001f469\u200d\U0001f467 \U0001d518\U0001d52b \U00013000",
    "\ufeffmarks\u200b that\u00ad hide \u202eand turn\u202c",
    "controls \x00 \x01 \x1b[0m \x7f \x85",
    "\ufffd \uffff \U0010ffff",
    f"{END_OF_TEXT} <s></s> <unk> <pad> [MASK] <0x0A>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + 70 * " " + 70 * "=",
)
LONG = "\n".join(f"{text} {number}. The owls found  {number * 7919} stones." for number, text in enumerate(TEXTS))


def _documents() -> Iterator[str]:
    """Text to learn from; as the token cache gives it, once."""
    for number in range(200):
        yield LONG if number % 50 == 0 else f"The {number % 7} owls found {number * number} stones by the old river.\n"


def _make(subject: Subject) -> Any:
    train = getattr(subject.component, "train", None)
    with subject.expecting(
        f"being made as {subject.component.__name__}{'(config)' if train is None else '.train(config, documents)'}",
        "give __init__ this one parameter, or add a class method train(config, documents) for one that is learnt",
    ):
        return subject.component(subject.config) if train is None else train(subject.config, _documents())


def _ids(subject: Subject, tokenizer: Any, text: str) -> list[int]:
    with subject.expecting(f"encoding {text[:40]!r}", "encode every text, by single bytes or characters if need be"):
        ids: list[int] = tokenizer.encode(text)
    return ids


def _check_construction(subject: Subject) -> None:
    tokenizer = _make(subject)
    if not isinstance(tokenizer, Tokenizer):
        subject.fail("is no Tokenizer", "let the class inherit from wavelet_core.tokenizers.Tokenizer")
    size, end = getattr(tokenizer, "vocabulary_size", None), tokenizer.end_of_text
    if not isinstance(size, int) or size < 1:
        subject.fail(f"has vocabulary_size={size!r}", "set it to the number of ids")
    if end is not None and not (isinstance(end, int) and 0 <= end < size):
        subject.fail(f"has end_of_text={end!r} and {size} ids", "choose one of the ids, or None")
    again = _make(subject)
    with subject.expecting("decoding every id", "raise TokenizerError for an id that nothing is encoded to"):
        same = again.token_bytes == tokenizer.token_bytes
    if not same or any(_ids(subject, again, text) != _ids(subject, tokenizer, text) for text in (*TEXTS, LONG)):
        subject.fail(
            "is another tokenizer when it is made again from the same documents",
            "draw no random numbers, and break ties by an order that does not depend on hashes or threads",
        )


def _check_encoding(subject: Subject) -> None:
    tokenizer = _make(subject)
    for text in (*TEXTS, LONG):
        ids = _ids(subject, tokenizer, text)
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            subject.fail(f"encodes {text[:40]!r} to a {type(ids).__name__} that is no list of int", "return list[int]")
        if outside := [token for token in ids if not 0 <= token < tokenizer.vocabulary_size]:
            subject.fail(
                f"encodes {text[:40]!r} to {outside[0]}, but has {tokenizer.vocabulary_size} ids",
                "count special tokens in vocabulary_size, and give ids from 0 without gaps",
            )
        if tokenizer.end_of_text in ids:
            subject.fail(
                f"encodes {text[:40]!r} to its end-of-text token",
                "treat names of special tokens in a text as ordinary text: only the trainer puts the end of text",
            )
        if tokenizer.encode(text) != ids:
            subject.fail(f"encodes {text[:40]!r} otherwise the second time", "keep nothing between calls")
        with subject.expecting("in encode_buffer", "return a buffer of unsigned 32-bit integers, or keep the default"):
            buffer = array("I", bytes(tokenizer.encode_buffer(text)))
        if buffer.tolist() != ids:
            subject.fail("gives other ids in encode_buffer than in encode", "let both do the same")


def _check_decoding(subject: Subject) -> None:
    tokenizer = _make(subject)
    for text in (*TEXTS, LONG):
        ids = _ids(subject, tokenizer, text)
        with subject.expecting("decoding", "take any iterable of ids and return bytes; decode() makes text of them"):
            whole, parts = tokenizer.decode_bytes(iter(ids)), [tokenizer.decode_bytes([token]) for token in ids]
            decoded = tokenizer.decode(ids)
        if whole != text.encode() or decoded != text:
            subject.fail(
                f"reads {text[:40]!r} back as {decoded[:40]!r}",
                "be lossless: normalize nothing, and have a token for every byte or character",
            )
        if b"".join(parts) != whole:
            subject.fail(
                f"gives other bytes for the ids of {text[:40]!r} one by one than at once",
                "let a token's bytes depend on that token alone",
            )
        stream = tokenizer.stream()
        if "".join([*(stream.decode([token]) for token in ids), stream.finish()]) != decoded:
            subject.fail(f"streams {text[:40]!r} otherwise than it decodes it", "keep the default stream()")
    for token in (-1, tokenizer.vocabulary_size):
        try:
            tokenizer.decode_bytes([token])
        except TokenizerError:
            continue
        except Exception as error:
            subject.fail(f"raises {type(error).__name__} for the id {token}", "raise TokenizerError, naming the id")
        subject.fail(f"decodes the id {token}, which is not in its vocabulary", "raise TokenizerError, naming the id")


def _check_pieces(subject: Subject) -> None:
    tokenizer = _make(subject)
    for text in (*TEXTS, LONG):
        for size in (1, 7, 200):
            with subject.expecting("in pieces", "yield the text in parts, as wavelet_core's cut_before_spaces does"):
                pieces = list(tokenizer.pieces(text, size))
            if "".join(pieces) != text:
                subject.fail(f"loses text in pieces({text[:40]!r}, {size})", "yield all of the text, in order")
            if [token for piece in pieces for token in tokenizer.encode(piece)] != tokenizer.encode(text):
                subject.fail(
                    f"gives other ids for the pieces of {text[:40]!r} than for the whole",
                    "cut only where no token can reach across; the default, one piece, is always right",
                )
            *cut, rest = list(tokenizer.pieces(text[: len(text) // 2], size)) or [""]
            cut.append(rest + text[len(text) // 2 :])
            if [token for piece in cut for token in tokenizer.encode(piece)] != tokenizer.encode(text):
                subject.fail(
                    f"cuts the beginning of {text[:40]!r} where more text gives other ids",
                    "decide by the characters beside a place alone whether to cut there",
                )


def _check_saving(subject: Subject) -> None:
    tokenizer = _make(subject)
    with TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        first.mkdir()
        second.mkdir()
        with subject.expecting("saving", f"write {FILE_NAME} into the directory, with the kind under 'kind'"):
            tokenizer.save(first)
            saved = json.loads((first / FILE_NAME).read_text(encoding="utf-8"))
            if saved["kind"] != subject.config.kind:
                subject.fail(f"saves the kind {saved['kind']!r}", f"write {subject.config.kind!r}, its registered name")
        with subject.expecting("loading what it saved", "let load(directory, saved) read what save(directory) wrote"):
            loaded = subject.component.load(first, saved)
            loaded.save(second)
        facts = [(each.vocabulary_size, each.end_of_text, each.encode(LONG)) for each in (tokenizer, loaded)]
        if facts[0] != facts[1]:
            subject.fail("is another tokenizer after saving and loading", "save all that encoding depends on")
        if _content(first) != _content(second):
            subject.fail(
                "writes other files when it is saved again after loading",
                "write the same bytes for the same tokenizer, and no time: the token cache knows it by its files",
            )


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TOKENIZER_CHECKS = (_check_construction, _check_encoding, _check_decoding, _check_pieces, _check_saving)
