"""The loss against how much of a text has been read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wavelet_train.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Where ranges of positions begin: 1, 2, 3, 4, 6, 8, 11, 16, ..., two to an octave.
POSITION_EDGES = np.unique(np.round(2 ** (np.arange(80) / 2))).astype(np.int64)


@dataclass(frozen=True)
class LossByPosition:
    """Sums over the tokens that were predicted when POSITION_EDGES[i] to POSITION_EDGES[i + 1] - 1 tokens had been read
    of their window or, where a text streams, of their document. nats, tokens: (ranges,) float64 each."""

    nats: np.ndarray
    tokens: np.ndarray

    def as_list(self) -> list[dict[str, Any]]:
        """The ranges that hold tokens, for JSON; `first` and `last` are the tokens read before."""
        return [
            {
                "first": int(POSITION_EDGES[index]),
                "last": int(POSITION_EDGES[index + 1]) - 1,
                "tokens": int(self.tokens[index]),
                "nats_per_token": float(self.nats[index] / self.tokens[index]),
            }
            for index in np.flatnonzero(self.tokens)
        ]

    def draw(self) -> Figure:
        """A figure of the loss over the position. Raises ConfigurationError where matplotlib is not installed."""
        ranges = self.as_list()
        with figure() as drawn:
            axes = drawn.subplots()
            middles = [(entry["first"] * entry["last"]) ** 0.5 for entry in ranges]
            axes.plot(middles, [entry["nats_per_token"] for entry in ranges], marker="o", markersize=3)
            axes.set(xscale="log", xlabel="tokens read before", ylabel="nats per token")
        return drawn
