"""The text of a row as it comes, and the strings that end it."""

from __future__ import annotations

from collections.abc import Sequence

from wavelet_core.tokenizers import Tokenizer


class TextStream:
    """Turns tokens into text piece by piece, and notices stop strings, however the tokens cut them.

    Text is given out as soon as it is certain: bytes of an unfinished character wait for the rest of it, and text that
    may turn out to be the beginning of a stop string waits until that is decided. Work per token is bounded by the
    lengths of the stop strings.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()):
        self.stop_strings = tuple(stop_strings)
        self.stopped = False
        self._decoder = tokenizer.stream()
        self._held = ""

    def feed(self, token: int) -> str:
        """The text that becomes certain with this token; after a stop string nothing comes any more."""
        return self._release(self._decoder.decode([token]))

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        last = self._release(self._decoder.finish())
        held, self._held = self._held, ""
        return last + ("" if self.stopped else held)

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        starts = [start for stop in self.stop_strings if (start := self._held.find(stop)) >= 0]
        if starts:
            self.stopped = True
            certain, self._held = self._held[: min(starts)], ""
            return certain
        keep = max((_overlap(self._held, stop) for stop in self.stop_strings), default=0)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
