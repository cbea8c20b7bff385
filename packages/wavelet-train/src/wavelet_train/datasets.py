"""What a data set is: documents in three splits. Those without splits deal documents, or one text's lines, 90/5/5."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, Protocol, get_args

from wavelet_core.config import ComponentConfig

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Where the validation and the test part begin.
VALIDATION_FROM, TEST_FROM = 0.90, 0.95


class Part(NamedTuple):
    """Some of a document's text. begins: whether the document begins with it; else it goes on after the part before."""

    text: str
    begins: bool


class Dataset(Protocol):
    """A component of kind `dataset`, made with its `Config` alone.

    It may also have

    - `parts(split) -> Iterator[Part]`: what `documents` gives, long documents in several parts, so that no document has
      to be in memory whole. Preparing data reads it instead of `documents`;
    - `size(split) -> int`: roughly the bytes of text of a split; progress bars then show the time left;
    - `examples(split)` and `vocabulary_size`: token ids instead of text, for `data.tokenizer: token_ids`. Every example
      has `tokens`, its ids, and `counts`, which of them are to be predicted (bool); each stands alone in its window;
    - `describe() -> str`: what to call it, for people, instead of its kind and the fields that are set otherwise.
    """

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of a split, the same and in the same order every time.

        Raises ConfigurationError when there are none, naming what to change.
        """

    def fingerprint(self) -> str:
        """A string that changes whenever any document of any split does; it keys the token cache."""


def parts_of(dataset: Dataset, split: Split) -> Iterator[Part]:
    """The documents of a split in parts, whether the data set gives parts or not; empty ones are left out."""
    parts = getattr(dataset, "parts", None)
    if parts is None:
        return (Part(document, True) for document in dataset.documents(split) if document)
    found: Iterator[Part] = parts(split)
    return found


def whole_documents(parts: Iterable[Part]) -> Iterator[str]:
    """Documents from their parts."""
    held: list[str] = []
    for text, begins in parts:
        if begins and held:
            yield "".join(held)
            held = []
        held.append(text)
    if held:
        yield "".join(held)


def one_document(texts: Iterable[str]) -> Iterator[Part]:
    """One document that is read in some texts; none if they are empty."""
    begins = True
    for text in filter(None, texts):
        yield Part(text, begins)
        begins = False


def size_of(dataset: Dataset, split: Split) -> int | None:
    """Roughly the bytes of a split, where the data set can tell."""
    size = getattr(dataset, "size", None)
    return size(split) if size else None


def describe(dataset: Dataset, config: ComponentConfig) -> str:
    """What the data set calls itself, or else its kind and the fields that are set."""
    own = getattr(dataset, "describe", None)
    if own is not None:
        return str(own())
    fields = config.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    return ", ".join([config.kind, *(f"{name}={value}" for name, value in fields.items())])


def split_of(name: str) -> Split:
    """The split of the document with this name (a relative path with forward slashes, or its text).

    A hash decides, so a document stays in its split on every machine, whatever else comes or goes.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < VALIDATION_FROM:
        return "train"
    return "validation" if position < TEST_FROM else "test"


def part_of(read: Callable[[], Iterable[str]], split: Split) -> Iterator[str]:
    """The lines of one long text that belong to a split: the first 90%, the next 5%, the last 5%.

    read: gives the text in pieces; it is read twice, the first time for its length.
    """
    length = sum(map(len, read()))
    borders = [int(length * VALIDATION_FROM), int(length * TEST_FROM)]
    wanted, current, position = SPLITS.index(split), 0, 0
    for text in read():
        while text:
            # The current part ends with the first line that ends at or behind its border.
            newline = text.find("\n", max(0, borders[current] - position)) if current < len(borders) else -1
            end = newline + 1 or len(text)
            if current == wanted:
                yield text[:end]
            text, position = text[end:], position + end
            while newline >= 0 and current < len(borders) and borders[current] < position:
                current += 1
            if current > wanted:
                return
