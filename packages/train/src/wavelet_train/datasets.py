"""What a data set is: documents in three splits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from wavelet_train.splits import Split


class Dataset(Protocol):
    """A component of kind `dataset`, made with its `Config` alone."""

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of a split, the same and in the same order every time.

        Raises ConfigurationError when there are none, naming what to change.
        """

    def fingerprint(self) -> str:
        """A string that changes whenever any document of any split does; it keys the token cache."""

    def size(self, split: Split) -> int:
        """Roughly how many bytes of text a split has, for the progress bar."""
