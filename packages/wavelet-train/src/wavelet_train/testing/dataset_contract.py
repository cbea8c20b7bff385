"""The contract of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wavelet_core.config import ConfigurationError
from wavelet_core.testing.subject import Subject
from wavelet_train.datasets import SPLITS, Split, whole_documents
from wavelet_train.text_reading import is_unicode

# How far `size` may be off: it is there for the time that is left.
ROUGHLY = 4


def _make(subject: Subject) -> Any:
    with subject.expecting(f"being made as {subject.component.__name__}(config)", "give __init__ this one parameter"):
        return subject.component(subject.config)


def _check_documents(subject: Subject) -> None:
    dataset, again = _make(subject), _make(subject)
    texts: dict[Split, set[int]] = {}
    for split in SPLITS:
        count = size = 0
        hashes = set()
        # Two readers of one data set and one of another, side by side.
        readers = [iter(_documents(subject, each, split)) for each in (dataset, dataset, again)]
        for first, second, third in zip(*readers, strict=False):
            if not first == second == third:
                subject.fail(
                    f"gives other documents of the {split} split when it is asked again",
                    "give the same ones in the same order: sort files, draw no random numbers, start anew at each call",
                )
            if not isinstance(first, str):
                subject.fail(f"gives a {type(first).__name__} in the {split} split", "yield every document as a str")
            if not is_unicode(first):
                subject.fail(
                    f"gives a document in the {split} split that cannot be written as UTF-8: {first[:40]!r}",
                    "decode files strictly, or with errors='replace'",
                )
            count, size = count + 1, size + len(first.encode())
            hashes.add(hash(first))
        if any(next(reader, None) is not None for reader in readers):
            subject.fail(
                f"gives {count} documents of the {split} split, and more when it is asked again",
                "give the same ones at each call: start anew",
            )
        if count:
            texts[split] = hashes
        if split == "train":
            _check_size(subject, dataset, size)
    if "train" not in texts:
        subject.fail("has no train documents", "check it with a config that names some text")
    for split in texts.keys() - {"train"}:
        if texts[split] <= texts["train"]:
            subject.fail(
                f"has every document of its {split} split in the train split too",
                "keep the splits apart: scores of text that was trained on say nothing",
            )


def _documents(subject: Subject, dataset: Any, split: Split) -> Iterator[Any]:
    """The documents of a split; none where it says so. Others may not end without a document."""
    found = False
    with subject.expecting(
        f"reading the {split} split", "yield documents, or raise ConfigurationError that says what to change"
    ):
        try:
            for document in dataset.documents(split):
                found = True
                yield document
        except ConfigurationError:
            if found:
                raise
            return
    if not found:
        subject.fail(
            f"has no document in the {split} split and does not say so",
            "raise ConfigurationError in documents() that says what to change",
        )


def _check_size(subject: Subject, dataset: Any, size: int) -> None:
    if not hasattr(dataset, "size"):
        return
    with subject.expecting("in size('train')", "return roughly the bytes of text of a split, without reading it"):
        said = dataset.size("train")
    if said is not None and not (isinstance(said, int) and size / ROUGHLY <= said <= size * ROUGHLY):
        subject.fail(
            f"says that the train split has {said!r} bytes, and gives {size}",
            "return roughly the bytes of text as an int, or None: the time that is left is told by it",
        )


def _check_parts(subject: Subject) -> None:
    dataset = _make(subject)
    if not hasattr(dataset, "parts"):
        return
    for split in SPLITS:
        documents = [document for document in _documents(subject, dataset, split) if document]
        with subject.expecting("in parts", "yield Part(text, begins), a document's first part with begins=True"):
            parts = list(dataset.parts(split)) if documents else []
            found = list(whole_documents(parts))
        if found != documents or not all(text for text, _ in parts):
            subject.fail(
                f"gives other documents of the {split} split in parts than in documents",
                "give the same text, begins=True where a document begins, and no empty part",
            )


def _check_fingerprint(subject: Subject) -> None:
    dataset = _make(subject)
    with subject.expecting("in fingerprint()", "return a hash of all documents, or of what decides them"):
        before = dataset.fingerprint()
        for _ in _documents(subject, dataset, "train"):
            break
        after, again = dataset.fingerprint(), _make(subject).fingerprint()
    if not isinstance(before, str) or not before:
        subject.fail(f"has the fingerprint {before!r}", "return a str that changes whenever a document does")
    if not before == after == again:
        subject.fail(
            "has another fingerprint when it is asked again, or made again",
            "hash content and options, not times, ids or the order of a set: the tokens would be made anew every time",
        )


DATASET_CHECKS = (_check_documents, _check_parts, _check_fingerprint)
