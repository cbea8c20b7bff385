"""Figures of how runs were trained: one run's, and several laid over each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wavelet_train.figures import INK, figure, line_style
from wavelet_train.maps import draw_map
from wavelet_train.page import Page
from wavelet_train.run_history import RunHistory

# Of a curve; more are averaged, and a band shows how far they spread.
MOST_POINTS = 600
# With fewer points than this, each is marked.
MARKED = 40


def add_curves(page: Page, runs: Mapping[str, RunHistory]) -> None:
    """Loss, validation, learning rate, speed and gradient norms of runs by their names."""
    several = len(runs) > 1
    _add(page, runs, "Loss", "nats per token", "loss", across="tokens", validation="nats_per_token")
    if several:
        _add(page, runs, "Loss by time", "nats per token", "loss", across="seconds", validation="nats_per_token")
    _add(page, runs, "Validation", "bits per byte", None, across="tokens", validation="bits_per_byte")
    _add(page, runs, "Learning rate", "learning rate", "lr")
    _add(page, runs, "Speed", "tokens per second", "tokens_per_second", from_zero=True)
    if several or not _add_part_norms(page, *runs.values()):
        _add(page, runs, "Gradient norm, before clipping", "norm", "gradient_norm", logarithmic=True)


def _add(
    page: Page,
    runs: Mapping[str, RunHistory],
    title: str,
    unit: str,
    column: str | None,
    across: str = "step",
    validation: str | None = None,
    from_zero: bool = False,
    logarithmic: bool = False,
) -> None:
    """A figure of a column against steps, tokens or seconds, unless no run has a number for it."""
    curves: list[tuple[str, list[float], list[float], dict[str, Any]]] = []
    for index, (name, history) in enumerate(runs.items()):
        x = history.seconds() if across == "seconds" else history.column(across)
        own = line_style(index)
        if column is not None:
            curves.append((name if len(runs) > 1 else "training", x, history.column(column), own))
        if validation is not None:
            label = f"{name}, validation" if len(runs) > 1 and column else "validation" if column else name
            style = own if len(runs) > 1 or column is None else line_style(1)
            style = {**style, "marker": "o", "markersize": 4, "linestyle": "--" if column else "-"}
            curves.append((label, history.at_steps(x), history.column(validation, "validation"), style))
    if not any(_shown(x, y, logarithmic).any() for _, x, y, _ in curves):
        return
    with figure() as drawn:
        axes = drawn.subplots()
        for label, x, y, style in curves:
            draw_curve(axes, x, y, label, logarithmic, **style)
        axes.set(xlabel=across, ylabel=unit)
        if logarithmic:
            axes.set_yscale("log")
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="x", scilimits=(-3, 5))
        if len(curves) > 1:
            axes.legend()
    page.add_figure(drawn, title)


def _shown(x: Sequence[float], y: Sequence[float], logarithmic: bool) -> np.ndarray[Any, Any]:
    across, values = np.asarray(x, float), np.asarray(y, float)
    shown = np.isfinite(across) & np.isfinite(values)
    return shown & (values > 0) if logarithmic else shown


def draw_curve(
    axes: Any, x: Sequence[float], y: Sequence[float], label: str, logarithmic: bool = False, **style: Any
) -> None:
    """A curve without the points that are no numbers, and thinned where there are too many for a figure."""
    shown = _shown(x, y, logarithmic)
    across, values = np.asarray(x, float)[shown], np.asarray(y, float)[shown]
    if len(values) > MOST_POINTS:
        groups = [np.array_split(each, MOST_POINTS) for each in (across, values)]
        lowest, highest = ([extreme(group) for group in groups[1]] for extreme in (np.min, np.max))
        across, values = ([group.mean() for group in each] for each in groups)
        axes.fill_between(across, lowest, highest, alpha=0.2, linewidth=0, color=style.get("color"))
    elif len(values) <= MARKED:
        style = {"marker": "o", "markersize": 3, **style}
    axes.plot(across, values, label=label, **style)


def _add_part_norms(page: Page, history: RunHistory) -> bool:
    """Figures of the gradient's norms by part and block; False where none are recorded."""
    parts = history.part_norms()
    steps = history.column("step")
    whole = {name: [_root_sum(entry) for entry in entries] for name, entries in parts.items()}
    whole = {name: values for name, values in whole.items() if _shown(steps, values, True).any()}
    if not whole:
        return False
    with figure(height=4.2) as drawn:
        axes = drawn.subplots()
        for index, (name, values) in enumerate(whole.items()):
            draw_curve(axes, steps, values, name, True, **line_style(index))
        draw_curve(axes, steps, history.column("gradient_norm"), "all parts", True, color=INK, linestyle=":")
        axes.set(xlabel="step", ylabel="norm", yscale="log")
        drawn.legend(loc="outside lower center", ncols=3)
    page.add_figure(drawn, "Gradient norm of each part", "Before clipping; a part's blocks together.")
    last = {name: next((e for e in reversed(entries) if _root_sum(e) > 0), []) for name, entries in parts.items()}
    last = {name: entry for name, entry in last.items() if len(entry) > 1}
    if last:
        blocks = max(map(len, last.values()))
        norms = np.full((len(last), blocks), math.nan)
        for row, entry in enumerate(last.values()):
            norms[row, : len(entry)] = entry
        with figure(height=4.2) as drawn:
            ticks = (list(last), [str(block) for block in range(blocks)])
            draw_map(drawn.subplots(), norms, ("part", "block"), ticks, "norm", logarithmic=True)
        page.add_figure(drawn, "Gradient norm of each part by block", "As last recorded.")
    return True


def _root_sum(norms: Sequence[float]) -> float:
    finite = [norm for norm in norms if math.isfinite(norm)]
    return math.sqrt(sum(norm * norm for norm in finite)) if finite else math.nan
