"""What a data set is: documents in three splits. Those without splits deal documents, or one text's lines, 90/5/5."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal, Protocol, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Where the validation and the test part begin.
VALIDATION_FROM, TEST_FROM = 0.90, 0.95


class Dataset(Protocol):
    """A component of kind `dataset`, made with its `Config` alone.

    It may also have `size(split) -> int`, roughly the bytes of text of a split; progress bars then show the time left.
    And `describe() -> str`, what to call it, for people; its kind and the fields that are set otherwise.
    """

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of a split, the same and in the same order every time.

        Raises ConfigurationError when there are none, naming what to change.
        """

    def fingerprint(self) -> str:
        """A string that changes whenever any document of any split does; it keys the token cache."""


def split_of(name: str) -> Split:
    """The split of the document with this name (a relative path with forward slashes, or its text).

    A hash decides, so a document stays in its split on every machine, whatever else comes or goes.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < VALIDATION_FROM:
        return "train"
    return "validation" if position < TEST_FROM else "test"


def part_of(text: str, split: Split) -> str:
    """The lines of one long text that belong to a split: the first 90%, the next 5%, the last 5%."""

    def line_start_after(share: float) -> int:
        return text.find("\n", int(len(text) * share)) + 1 or len(text)

    validation, test = line_start_after(VALIDATION_FROM), line_start_after(TEST_FROM)
    return {"train": text[:validation], "validation": text[validation:test], "test": text[test:]}[split]
