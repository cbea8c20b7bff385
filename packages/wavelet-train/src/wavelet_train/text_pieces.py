"""Documents in pieces that can be encoded one by one, whatever the length of a document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from wavelet_train.datasets import Part

# Characters. A piece has this many or a little more; one without a place to cut at in LONGEST characters is cut there.
PIECE_SIZE = 1 << 19
LONGEST = 1 << 22


class Piece(NamedTuple):
    """Some of a document's text. words: how many begin in it; one that the piece before began is not counted again."""

    text: str
    begins: bool
    words: int


def pieces_of(parts: Iterable[Part], cut: Callable[[str, int], Iterator[str]]) -> Iterator[Piece]:
    """Every document in pieces that follow from its whole text, however that is parted.

    cut: such as a tokenizer's `pieces`, whose places to cut at depend on the characters beside them alone.
    """
    held, begins, inside_word = "", True, False
    tried = 0  # characters in which no place to cut at was found

    def ready(at_the_end: bool) -> Iterator[Piece]:
        nonlocal held, begins, inside_word, tried
        while held and (at_the_end or len(held) > max(PIECE_SIZE, 2 * tried)):
            text = next(cut(held, PIECE_SIZE))[:LONGEST]
            if len(text) == len(held) < LONGEST and not at_the_end:
                tried = len(held)
                return
            words = len(text.split()) - (inside_word and not text[0].isspace())
            yield Piece(text, begins, words)
            held, begins, inside_word, tried = held[len(text) :], False, not text[-1].isspace(), 0

    for part in parts:
        if part.begins:
            yield from ready(at_the_end=True)
            begins, inside_word = True, False
        for start in range(0, len(part.text), PIECE_SIZE):
            held += part.text[start : start + PIECE_SIZE]
            yield from ready(at_the_end=False)
    yield from ready(at_the_end=True)
