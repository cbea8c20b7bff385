"""Figures of what the parts of a model show of themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wavelet_core.diagnostics import Diagnostic
from wavelet_train.figures import HEIGHT, WIDTH, figure, line_style, plain
from wavelet_train.maps import draw_map
from wavelet_train.page import Page

# Maps of more blocks than this are shown of some, from the first to the last.
MOST_MAPS = 6
# A map with more columns than this is drawn as wide as the page.
WIDE_FROM = 20


def add_diagnostics(page: Page, found: Sequence[tuple[str, Diagnostic]]) -> None:
    """One figure for all diagnostics of the same title and shape, with the places that they come from."""
    groups: dict[tuple[str, tuple[int, ...]], list[tuple[str, Diagnostic]]] = {}
    for place, shown in found:
        if shown.values.numel():
            groups.setdefault((shown.title, tuple(shown.values.shape)), []).append((place, shown))
    for group in groups.values():
        first = group[0][1]
        if first.values.ndim == 2:
            _add_maps(page, group)
        elif first.ticks:
            _add_rows(page, group)
        else:
            _add_lines(page, group)


def _values(shown: Diagnostic) -> np.ndarray:
    values: np.ndarray = shown.values.detach().float().cpu().numpy()
    return values


def _add_rows(page: Page, group: Sequence[tuple[str, Diagnostic]]) -> None:
    first = group[0][1]
    with figure(height=1.5 + 0.28 * len(group)) as drawn:
        values = np.stack([_values(shown) for _, shown in group])
        ticks = ([place for place, _ in group], first.ticks[0])
        draw_map(drawn.subplots(), values, ("", first.axes[0]), ticks, first.unit, first.logarithmic)
    page.add_figure(drawn, first.title, first.explanation)


def _add_lines(page: Page, group: Sequence[tuple[str, Diagnostic]]) -> None:
    first = group[0][1]
    logarithmic = first.logarithmic and any((_values(shown) > 0).any() for _, shown in group)
    with figure() as drawn:
        axes = drawn.subplots()
        for index, (place, shown) in enumerate(_some(group)):
            values = _values(shown)
            if logarithmic:
                values = np.where(values > 0, values, np.nan)
            axes.plot(range(1, len(values) + 1), values, label=plain(place), **line_style(index))
        scale = "log" if logarithmic else "linear"
        axes.set(xlabel=first.axes[0], ylabel=first.unit, xscale=scale, yscale=scale)
        axes.legend()
    page.add_figure(drawn, first.title, _caption(group))


def _add_maps(page: Page, group: Sequence[tuple[str, Diagnostic]]) -> None:
    first = group[0][1]
    rows, columns = first.values.shape
    wide = columns > WIDE_FROM
    chosen = _some(group)
    across = 1 if wide else min(len(chosen), 2)
    down = -(-len(chosen) // across)
    height = (0.7 + 0.21 * rows) if wide else max(HEIGHT, 1.4 + 0.27 * rows)
    finite = np.concatenate([_values(shown).ravel() for _, shown in chosen])
    finite = finite[np.isfinite(finite) & ((finite > 0) | (not first.logarithmic))]
    limits = (float(finite.min()), float(finite.max())) if finite.size else None
    size = (2.1 * WIDTH, 0.5 + height * down) if wide or across > 1 else (WIDTH, height)
    with figure(*size) as drawn:
        panels = drawn.subplots(down, across, squeeze=False, sharex=wide, sharey=True)
        for axes, (place, shown) in zip(panels.flat, chosen, strict=False):
            ticks = (*shown.ticks, None, None)[:2]
            draw_map(axes, _values(shown), shown.axes, ticks, shown.unit, shown.logarithmic, limits)
            if len(chosen) > 1:
                axes.set_title(plain(place))
            axes.label_outer()
        for axes in panels.flat[len(chosen) :]:
            axes.axis("off")
    page.add_figure(drawn, first.title, _caption(group), wide=wide or across > 1)


def _some(group: Sequence[tuple[str, Diagnostic]]) -> list[tuple[str, Diagnostic]]:
    """At most as many as are shown, from the first to the last."""
    count = min(len(group), MOST_MAPS)
    return [group[round(index * (len(group) - 1) / max(1, count - 1))] for index in range(count)]


def _caption(group: Sequence[tuple[str, Diagnostic]]) -> str:
    explanation = group[0][1].explanation
    left_out = f"{len(_some(group))} of {len(group)} blocks are shown." if len(group) > MOST_MAPS else ""
    return f"{explanation} {left_out}".strip()
