"""Maps: numbers as colours, in rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wavelet_train.figures import plain

# The numbers themselves are written into maps of at most so many rows and columns.
MOST_ROWS, MOST_COLUMNS = 16, 12


def draw_map(
    axes: Any,
    values: np.ndarray[Any, Any],
    names: Sequence[str],
    ticks: Sequence[Sequence[str] | None],
    unit: str,
    logarithmic: bool = False,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw values (rows, columns), with numbers or a bar to tell the colours by; what is not finite is left out.

    names: of the axes, rows first. ticks: what rows and columns are called, None where they are counted. limits: of
    the colours, where several maps have the same.
    """
    from matplotlib.colors import LogNorm

    shown = np.ma.masked_invalid(values)
    if logarithmic:
        shown = np.ma.masked_less_equal(shown, 0)
    low, high = limits or ((shown.min(), shown.max()) if shown.count() else (0.0, 1.0))
    scale = {"norm": LogNorm(low, high)} if logarithmic and low > 0 else {"vmin": low, "vmax": high}
    image = axes.imshow(shown, aspect="auto", interpolation="nearest", **scale)
    axes.grid(False)
    axes.set(xlabel=names[1], ylabel=names[0])
    for axis, entries in zip((axes.yaxis, axes.xaxis), ticks, strict=True):
        if entries is not None:
            turned = {"rotation": 45, "ha": "right"} if axis is axes.xaxis and max(map(len, entries)) > 3 else {}
            axis.set_ticks(range(len(entries)), labels=[plain(entry) for entry in entries], **turned)
    axes.tick_params(length=0)
    if shown.shape[0] <= MOST_ROWS and shown.shape[1] <= MOST_COLUMNS:
        for (row, column), value in np.ma.ndenumerate(shown):  # without what is masked
            red, green, blue, _ = np.ravel(image.cmap(image.norm(value)))
            color = "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"
            axes.text(column, row, short(value), ha="center", va="center", fontsize="small", color=color)
    else:
        axes.figure.colorbar(image, ax=axes, label=unit, pad=0.01)


def short(value: float) -> str:
    """A number in a few characters."""
    if value == 0 or 0.01 <= abs(value) < 100:
        return f"{value:.2f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
