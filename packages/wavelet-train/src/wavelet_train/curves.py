"""Figures of how runs were trained: one run's, and several laid over each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wavelet_train.figures import INK, figure, line_style, plain
from wavelet_train.maps import draw_map
from wavelet_train.page import Page
from wavelet_train.run_history import RunHistory

# Of a curve; more are averaged, and a band shows how far they spread.
MOST_POINTS = 600
# With fewer points than this, each is marked.
MARKED = 40


@dataclass(frozen=True)
class Curve:
    """Numbers against numbers, what they are called, and how matplotlib draws them."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Mapping[str, Any]


def add_curves(page: Page, runs: Mapping[str, RunHistory]) -> None:
    """Loss, validation, learning rate, speed and gradient norms of runs by their names."""
    several = len(runs) > 1
    for across, title in (("tokens", "Loss"), *([("seconds", "Loss by time")] if several else [])):
        loss = [*_training(runs, "loss", across), *_validations(runs, "nats_per_token", across)]
        _add(page, title, across, "nats per token", loss)
    scores = [replace(curve, label=name) for name, curve in zip(runs, _validations(runs, "bits_per_byte"), strict=True)]
    _add(page, "Validation", "tokens", "bits per byte", scores)
    _add(page, "Learning rate", "step", "learning rate", _training(runs, "lr"))
    _add(page, "Speed", "step", "tokens per second", _training(runs, "tokens_per_second"), ylim=(0, None))
    if several or not _add_part_norms(page, *runs.values()):
        _add(page, "Gradient norm, before clipping", "step", "norm", _training(runs, "gradient_norm"), yscale="log")


def _training(runs: Mapping[str, RunHistory], column: str, across: str = "step") -> list[Curve]:
    return [
        Curve(name if len(runs) > 1 else "training", _places(run, across), run.column(column), line_style(index))
        for index, (name, run) in enumerate(runs.items())
    ]


def _validations(runs: Mapping[str, RunHistory], column: str, across: str = "tokens") -> list[Curve]:
    points = {"marker": "o", "markersize": 4, "linestyle": "--"}
    return [
        Curve(
            f"{name}, validation" if len(runs) > 1 else "validation",
            run.at_steps(_places(run, across)),
            run.column(column, "validation"),
            {**line_style(index if len(runs) > 1 else 1), **points},
        )
        for index, (name, run) in enumerate(runs.items())
    ]


def _places(run: RunHistory, across: str) -> list[float]:
    return run.seconds() if across == "seconds" else run.column(across)


def _add(page: Page, title: str, across: str, unit: str, curves: Sequence[Curve], **axis: Any) -> None:
    """A figure of the curves that have a number to show, if there are any. axis: what `Axes.set` takes."""
    logarithmic = axis.get("yscale") == "log"
    curves = [curve for curve in curves if _shown(curve.x, curve.y, logarithmic).any()]
    if not curves:
        return
    with figure() as drawn:
        axes = drawn.subplots()
        for curve in curves:
            draw_curve(axes, curve, logarithmic)
        axes.set(xlabel=across, ylabel=unit, **axis)
        axes.ticklabel_format(axis="x", scilimits=(-3, 5))
        if len(curves) > 1:
            axes.legend()
    page.add_figure(drawn, title)


def _shown(x: Sequence[float], y: Sequence[float], logarithmic: bool) -> np.ndarray[Any, Any]:
    across, values = np.asarray(x, float), np.asarray(y, float)
    shown = np.isfinite(across) & np.isfinite(values)
    return shown & (values > 0) if logarithmic else shown


def draw_curve(axes: Any, curve: Curve, logarithmic: bool = False) -> None:
    """A curve without the points that are no numbers, and thinned where there are too many for a figure."""
    shown = _shown(curve.x, curve.y, logarithmic)
    x, y = np.asarray(curve.x, float)[shown], np.asarray(curve.y, float)[shown]
    style = dict(curve.style)
    if len(y) > MOST_POINTS:
        groups = np.array_split(y, MOST_POINTS)
        x = np.array([group.mean() for group in np.array_split(x, MOST_POINTS)])
        y = np.array([group.mean() for group in groups])
        lowest, highest = ([extreme(group) for group in groups] for extreme in (np.min, np.max))
        axes.fill_between(x, lowest, highest, alpha=0.2, linewidth=0, color=style.get("color"))
    elif len(y) <= MARKED:
        style = {"marker": "o", "markersize": 3, **style}
    axes.plot(x, y, label=plain(curve.label), **style)


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
            draw_curve(axes, Curve(name, steps, values, line_style(index)), logarithmic=True)
        total = Curve("all parts", steps, history.column("gradient_norm"), {"color": INK, "linestyle": ":"})
        draw_curve(axes, total, logarithmic=True)
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
