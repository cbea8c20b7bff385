"""How error messages show what they were given: a value may be a megabyte, or nested a thousand levels deep."""

from __future__ import annotations

import reprlib
from typing import Any

LONGEST = 200

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = LONGEST // 2


def shortened(text: str, longest: int = LONGEST) -> str:
    """The text, without its middle where it has more than `longest` characters."""
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end]} ... {text[-end:]}"


def shown(value: Any) -> str:
    """A value as Python writes it, at most a little longer than LONGEST characters."""
    return shortened(_repr.repr(value))
