"""A figure of how much a model recalls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wavelet_train.figures import WIDTH, figure, line_style, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What `ProbeScores.as_dict` gives, each with the `settings` of its probe, which have the same names in all.
Results = Sequence[dict[str, Any]]


def varied_settings(results: Results) -> list[str]:
    """The settings that have several values."""
    return [name for name in results[0]["settings"] if len({str(each["settings"][name]) for each in results}) > 1]


def settings_label(settings: dict[str, Any]) -> str:
    """Settings as text."""
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def draw_recall(results: Results) -> Figure:
    """The accuracy against the first setting that has several values, and against the distance.

    Raises ConfigurationError where matplotlib is not installed.
    """
    varied = varied_settings(results)
    with figure(width=2 * WIDTH) as drawn:
        left, right = drawn.subplots(1, 2, sharey=True)
        if varied:
            lines: dict[str, list[tuple[str, float]]] = {}
            for result in results:
                across, *others = (result["settings"][name] for name in varied)
                label = settings_label(dict(zip(varied[1:], others, strict=True)))
                lines.setdefault(label, []).append((str(across), result["accuracy"]))
            for index, (label, points) in enumerate(lines.items()):
                left.plot(*zip(*points, strict=True), marker="o", markersize=4, label=plain(label), **line_style(index))
            left.set(xlabel=varied[0], ylabel="accuracy", ylim=(0, 1.02))
            if len(lines) > 1:
                left.legend()
        for index, result in enumerate(results):
            points = [((entry["first"] * entry["last"]) ** 0.5, entry["accuracy"]) for entry in result["by_distance"]]
            label = plain(settings_label({name: result["settings"][name] for name in varied}))
            right.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label, **line_style(index))
        right.set(xlabel="distance in tokens", xscale="log")
        if len(results) > 1:
            right.legend()
    return drawn
