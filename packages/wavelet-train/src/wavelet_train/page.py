"""A page of HTML in one file: text, tables and figures, for screens of any width, light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from wavelet_core.atomic_files import write_atomically
from wavelet_train.figures import inline_svg, save_figure
from wavelet_train.tables import number_columns, text_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE_SHEET = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #22262d; --quiet: #59616c; --line: #dfe3e8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --ink: #e4e7eb; --quiet: #a3abb6; --line: #343a43; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 1.5rem 1rem 4rem; display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
main > * { grid-column: 1 / -1; min-width: 0; margin: 0; }
main > figure.narrow { grid-column: auto; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 1.5rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .35rem; }
th, td { padding: .3rem 1.25rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--quiet); font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
figure h3 { font-size: 1rem; margin: 0 0 .25rem; }
figure svg { display: block; width: 100%; height: auto; }
figure.wide svg { min-width: 40rem; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--quiet); font-size: .85rem; }
"""


class Page:
    """What is added stands in this order; figures that are not wide stand side by side where there is room.

    Texts are plain, not HTML. Nothing outside the file is needed, and it holds no scripts.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []
        self._figures: list[tuple[str, Figure]] = []

    def add_heading(self, text: str) -> None:
        """The beginning of a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def add_text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def add_table(self, rows: Sequence[Sequence[object]], header: Sequence[str] = (), caption: str = "") -> None:
        """A table with numbers formatted and aligned as `tables.table` does it."""
        cells = text_cells(rows)
        kinds = [' class="number"' if numbers else "" for numbers in number_columns(cells)] or [""] * len(header)

        def line(texts: Sequence[str], tag: str) -> str:
            fields = zip(texts, kinds, strict=True)
            return "<tr>" + "".join(f"<{tag}{kind}>{escape(text)}</{tag}>" for text, kind in fields) + "</tr>"

        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        head = f"<thead>{line(header, 'th')}</thead>" if header else ""
        body = "\n".join(line(row, "td") for row in cells)
        self._parts.append(f'<div class="scroll"><table>{title}{head}<tbody>\n{body}\n</tbody></table></div>')

    def add_figure(self, drawn: Figure, title: str, caption: str = "", wide: bool = False) -> None:
        """A figure under its title; the caption says what is to be seen. wide: as wide as the page."""
        self._figures.append((title, drawn))
        svg = inline_svg(drawn, f"figure{len(self._figures)}")
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(f"{title}. {caption}".strip())}" ', 1)
        below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._parts.append(
            f'<figure class="{"wide" if wide else "narrow"}"><h3>{escape(title)}</h3>'
            f'<div class="scroll">{svg}</div>{below}</figure>'
        )

    def html(self) -> str:
        """The whole page."""
        body = "\n".join([f"<h1>{escape(self.title)}</h1>", *self._parts])
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE_SHEET}</style></head>\n"
            f"<body><main>\n{body}\n</main></body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all. Raises WriteError."""
        write_atomically(path, lambda fresh: fresh.write_text(self.html(), "utf-8"))

    def save_figures(self, folder: Path) -> list[Path]:
        """Save every figure as a PNG that is named after its number and title. Raises WriteError."""
        paths = []
        for number, (title, drawn) in enumerate(self._figures, 1):
            words = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
            paths.append(folder / f"{number:02}-{words}.png")
            save_figure(drawn, paths[-1])
        return paths
