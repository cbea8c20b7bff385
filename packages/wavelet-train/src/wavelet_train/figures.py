"""Figures: one style for all that is drawn, and the files that they are saved to. A page that holds them is `page.py`.

They are drawn by matplotlib, the extra `wavelet-train[plot]`, which is imported when the first one is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavelet_core.atomic_files import write_atomically
from wavelet_core.config import ConfigurationError
from wavelet_core.messages import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
# Inches. Two of them stand side by side on a page, and one is still legible on a phone.
WIDTH, HEIGHT = 5.2, 3.1
# Told apart from each other and, at a contrast of 3 or more, from light and from dark paper.
COLORS = ("#3b82f6", "#e8590c", "#2b9348", "#c04bd6", "#0f91a8", "#a87000", "#e03131", "#757575")
# Of text and axes, and of grid lines: a page gives them the colours of its own text and lines.
INK, GRID = "#22262d", "#dfe3e8"
COLOR_MAP = "viridis"

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "font.family": ["DejaVu Sans"],  # matplotlib brings it
    "font.size": 9.5,
    "grid.color": GRID,
    "image.cmap": COLOR_MAP,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "legend.fontsize": "small",
    "lines.linewidth": 1.6,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def check_picture(path: Path) -> None:
    """Raise ConfigurationError unless a picture can be drawn and its name says a format that there is."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigurationError(f"{shown(str(path))}: the name of a picture must end in {' or '.join(FORMATS)}")
    require_matplotlib()


def require_matplotlib() -> None:
    """Raise ConfigurationError that names the extra if nothing can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigurationError("figures need matplotlib: pip install 'wavelet-train[plot]'") from None


@contextmanager
def figure(width: float = WIDTH, height: float = HEIGHT) -> Iterator[Figure]:
    """An empty matplotlib figure, in inches, to be filled within the `with`, where the style holds.

    Raises ConfigurationError where matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    with rc_context({**STYLE, "axes.prop_cycle": cycler(color=COLORS)}):
        yield Figure(figsize=(width, height))


def line_style(index: int) -> dict[str, Any]:
    """The colour and dashes of the index-th curve of a figure, for as many as can be told apart."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": ("-", "--", ":")[index // len(COLORS) % 3]}


def plain(text: str) -> str:
    """A text that matplotlib shows as it is, whatever dollar signs it has."""
    return text.replace("$", r"\$")


def save_figure(drawn: Figure, path: Path) -> None:
    """Save as PNG or SVG, by the name's ending, whole or not at all. Raises WriteError."""

    def write(fresh: Path) -> None:
        with _saving():
            drawn.savefig(fresh, format=path.suffix[1:].lower(), facecolor="white")

    write_atomically(path, write)


def inline_svg(drawn: Figure, name: str) -> str:
    """An <svg> element for a page of HTML: transparent, in the page's font and colours.

    name: what the names inside begin with, so that those of several figures differ.
    """
    buffer = io.StringIO()
    with _saving():
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--line)")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)


@contextmanager
def _saving() -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        # A browser has other fonts for what DejaVu lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield
