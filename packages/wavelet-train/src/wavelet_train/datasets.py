"""What a data set is: documents in three splits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from wavelet_train.splits import Split


class Dataset(Protocol):
    """A component of kind `dataset`, made with its `Config` alone.

    It may also have `size(split) -> int`, roughly the bytes of text of a split; progress bars then show the time left.
    """

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of a split, the same and in the same order every time.

        Raises ConfigurationError when there are none, naming what to change.
        """

    def fingerprint(self) -> str:
        """A string that changes whenever any document of any split does; it keys the token cache."""
