"""Spacing cleanup: undo the spaces that WikiText's tokenization leaves around punctuation."""

from __future__ import annotations

import re

LONGEST_QUOTE = 1000

# Quotation marks that were torn apart, as in ' ' for ''.
_TORN = re.compile(r"""(?<!\S)(["']) +\1(?!\S)""")
_CERTAINLY_TORN = re.compile(r"""(?<!\S)(["']) +\1(?=\s)""")
# A quotation, spaced from its marks: (opening mark, what it is closed by).
_QUOTATIONS = {
    '"': re.compile(rf'(?<!\S)" +([^"\n]{{1,{LONGEST_QUOTE}}}?) +"'),
    "''": re.compile(rf"(?<!\S)'' +((?:(?!'')[^\n]){{1,{LONGEST_QUOTE}}}?) +''"),
}
_CONTRACTION = re.compile(r"(?<=\w) +'(?=(?:s|t|d|m|re|ve|ll)\b)")
_OPENING = re.compile(r"([(\[{]) +")
_CLOSING = re.compile(r" +(?=[)\]}])")
# A comma keeps its space before a quotation.
_PUNCTUATION = re.compile(r""" +(?=(?:[.!?;:]|,(?! *(?:"|'')))(?:[\s"')\]}]|$))""")
_BETWEEN_WORDS = re.compile(r"(?<=\w)(?= +\w)")


def clean_spacing(text: str) -> str:
    """The text without the spaces before punctuation and inside quotation marks and brackets.

    `He left ( early ) , she did n't .` and the like; line breaks are kept.
    """
    text = _TORN.sub(r"\1\1", text)
    for mark, quotation in _QUOTATIONS.items():
        text = quotation.sub(lambda match, mark=mark: f"{mark}{match[1].strip(' ')}{mark}", text)  # type: ignore[misc]
    text = _CONTRACTION.sub("'", text)
    text = _CLOSING.sub("", _OPENING.sub(r"\1", text))
    return _PUNCTUATION.sub("", text)


class SpacingStream:
    """`clean_spacing` for text that arrives in pieces.

    Text is given out between two words as soon as nothing that follows can change it; a quotation waits for its end,
    or for the end of its line. The pieces in a row are the cleaned text.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """The cleaned text that becomes certain with this piece."""
        self._held = _CERTAINLY_TORN.sub(r"\1\1", self._held + text)
        cut = _certain(self._held)
        certain, self._held = self._held[:cut], self._held[cut:]
        return clean_spacing(certain)

    def finish(self) -> str:
        """The rest, when no more text comes."""
        rest, self._held = self._held, ""
        return clean_spacing(rest)


def _certain(text: str) -> int:
    """How much of the text can be cleaned on its own."""
    line = text.rfind("\n") + 1
    end = len(text)
    inside: list[tuple[int, int]] = []
    for mark, quotation in _QUOTATIONS.items():
        found = [match.span() for match in quotation.finditer(text)]
        inside += found
        last = text.rfind(mark)
        closes = any(stop == last + len(mark) for _, stop in found)
        opens = text.startswith(" ", last + len(mark)) and not text[last - 1 : last].strip()
        if last >= line and opens and not closes and len(text) - last <= LONGEST_QUOTE + 2:
            end = min(end, last)
    cuts = [match.start() for match in _BETWEEN_WORDS.finditer(text, line, end)]
    free = (cut for cut in reversed(cuts) if not any(start < cut < stop for start, stop in inside))
    return next(free, line)
