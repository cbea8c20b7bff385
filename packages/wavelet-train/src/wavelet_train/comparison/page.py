"""The page of a comparison: tables and figures, in one file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wavelet_train.comparison.published import HEADER as PUBLISHED_HEADER
from wavelet_train.comparison.published import NOTES, published_rows
from wavelet_train.comparison.results import (
    CROSSING_HEADER,
    DECODING_HEADER,
    FIT_HEADER,
    RECALL_SIZES,
    SCORE_HEADER,
    ComparisonResults,
    FinishedRun,
    crossing_rows,
    decoding_rows,
    fit_rows,
    score_rows,
)
from wavelet_train.figures import figure, line_style, plain
from wavelet_train.page import Page
from wavelet_train.resume_rules import leaves

LEGEND = {"loc": "outside lower center", "ncols": 3}


def comparison_page(results: ComparisonResults) -> Page:
    """The page of what is known so far. Raises ConfigurationError where matplotlib is missing."""
    page = Page("Comparison of model families")
    if results.description:
        page.add_text(results.description)
    if results.unfinished:
        page.add_text(f"{results.unfinished} runs are not done yet.")
    styles = {arm: line_style(index) for index, arm in enumerate(results.arms)}
    _add_scores(page, results, styles)
    _add_recall(page, results, styles)
    _add_curves(page, results, styles)
    _add_fits(page, results, styles)
    _add_tuning(page, results, styles)
    if results.decoding:
        _add_decoding(page, results, styles)
    _add_arms(page, results)
    page.add_heading("Published")
    page.add_table(published_rows(), PUBLISHED_HEADER, caption="Test splits, as their authors report them")
    for note in NOTES:
        page.add_text(note)
    return page


def _add_scores(page: Page, results: ComparisonResults, styles: dict[str, Any]) -> None:
    page.add_heading("Scores")
    page.add_text(
        "Bits per byte of the best checkpoint on the whole validation split, mean and standard deviation over seeds; "
        "behind: the mean distance to the best arm at the same seeds. Time is at the speed that was measured before "
        "the first run, measured what the steps took; operations are those of matrix products."
    )
    for budget in dict.fromkeys(score.budget for score in results.scores):
        page.add_table(score_rows(results, budget), SCORE_HEADER, caption=budget)
    if not results.runs:
        return
    with figure(height=3.6) as drawn:
        axes = drawn.subplots()
        for arm, style in styles.items():
            heights = [score.bits_per_byte or math.nan for score in results.scores if score.arm == arm]
            parameters = [results.arms[arm]["parameters"]] * len(heights)
            axes.scatter(parameters, heights, color=style["color"], label=plain(arm))
        axes.set(xlabel="parameters", ylabel="bits per byte", xscale="log")
        drawn.legend(**LEGEND)
    page.add_figure(drawn, "Bits per byte and parameters", "A point for every budget.")


def _add_recall(page: Page, results: ComparisonResults, styles: dict[str, Any]) -> None:
    for probe in dict.fromkeys(kind for kind, _ in results.recall.values()):
        with figure(height=3.6) as drawn:
            axes = drawn.subplots()
            for arm, style in styles.items():
                accuracies = {
                    results.recall[score.budget][1]: score.accuracy
                    for score in results.scores
                    if score.arm == arm
                    and score.accuracy is not None
                    and results.recall.get(score.budget, ("",))[0] == probe
                }
                if accuracies:
                    axes.plot(*zip(*sorted(accuracies.items()), strict=True), marker="o", label=plain(arm), **style)
            axes.set(xlabel=RECALL_SIZES[probe], ylabel="accuracy", ylim=(0, 1.02))
            drawn.legend(**LEGEND)
        page.add_figure(drawn, f"Recall: {probe.replace('_', ' ')}", "Trained on the probe; of held-out answers.")


def _add_curves(page: Page, results: ComparisonResults, styles: dict[str, Any]) -> None:
    across: Sequence[tuple[str, str, Callable[[FinishedRun, int], float]]] = (
        ("tokens", "tokens", lambda run, tokens: tokens),
        ("operations", "operations of matrix products", lambda run, tokens: run.flops * tokens / run.tokens),
        ("time", "seconds of training", lambda run, tokens: run.seconds * tokens / run.tokens),
    )
    if not results.runs:
        return
    page.add_heading("While training")
    page.add_text(
        "Validations during training, on the beginning of the split without overlapping windows; a line is a run. What "
        "a run scores before its learning rate has come down is not what a shorter run would have scored."
    )
    for title, label, place in across:
        with figure(height=3.6) as drawn:
            axes = drawn.subplots()
            for arm, style in styles.items():
                runs = [
                    run for run in results.runs if run.arm == arm and run.curve and run.budget not in results.recall
                ]
                for number, run in enumerate(runs):
                    tokens, scores = zip(*run.curve, strict=True)
                    name = plain(arm) if number == 0 else None
                    axes.plot([place(run, count) for count in tokens], scores, label=name, linewidth=1, **style)
            axes.set(xlabel=label, ylabel="bits per byte", xscale="log")
            drawn.legend(**LEGEND)
        page.add_figure(drawn, f"Bits per byte against {title}")


def _add_fits(page: Page, results: ComparisonResults, styles: dict[str, Any]) -> None:
    if not results.fits:
        return
    page.add_heading("Finished runs against time")
    with figure(2 * 5.2, 4.2) as drawn:
        axes = drawn.subplots()
        ends = [end for line in results.fits.values() for end in (line.shortest, line.longest)]
        span = np.geomspace(min(ends) / 1.5, max(ends) * 3, 60)
        for arm, line in results.fits.items():
            style = styles[arm]
            seconds, scores = zip(*results.points[arm], strict=True)
            axes.scatter(seconds, scores, s=16, color=style["color"])
            heights = np.array([line.at(place) for place in span])
            axes.plot(span, heights, label=plain(arm), **style)
            if line.covariance is not None:
                errors = np.array([line.error_at(place) for place in span])
                axes.fill_between(
                    span, heights - errors, heights + errors, color=style["color"], alpha=0.12, linewidth=0
                )
        axes.set(xlabel="seconds of training", ylabel="bits per byte", xscale="log")
        drawn.legend(**LEGEND)
    page.add_figure(
        drawn,
        "Bits per byte against time, with fits",
        "Points are finished runs, the best of tuning among them. Bands: one standard error of the line.",
        wide=True,
    )
    page.add_table(fit_rows(results), FIT_HEADER, caption="bits per byte = a + b ln(seconds), least squares")
    if results.crossings:
        page.add_table(crossing_rows(results), CROSSING_HEADER, caption="Where the fits cross")


def _add_tuning(page: Page, results: ComparisonResults, styles: dict[str, Any]) -> None:
    for budget, arms in results.tuning.items():
        page.add_heading(f"Tuning for {budget}")
        with figure(height=3.6) as drawn:
            axes = drawn.subplots()
            for arm, tuned in arms.items():
                known = [(rate, score) for rate, score in tuned.scores.items() if score is not None]
                if known:
                    axes.plot(*zip(*known, strict=True), marker="o", markersize=3, label=plain(arm), **styles[arm])
            axes.set(xlabel="learning rate", ylabel="bits per byte", xscale="log")
            drawn.legend(**LEGEND)
        page.add_figure(
            drawn, f"Bits per byte against the learning rate, {budget}", "Runs that were given up are left out."
        )
    if results.edges:
        page.add_text(f"The best rate is the first or last that was tried: {', '.join(results.edges)}.")


def _add_decoding(page: Page, results: ComparisonResults, styles: dict[str, Any]) -> None:
    page.add_heading("Decoding")
    page.add_text("One stream, random weights in float32, the models in turns; medians.")
    names = list(dict.fromkeys(speed.name for speed in results.decoding))
    for title, unit, field in (
        ("Decoding speed", "tokens per second", "decode_speed"),
        ("Prompt speed", "tokens per second", "prompt_speed"),
        ("State", "bytes", "state_bytes"),
    ):
        with figure(height=3.6) as drawn:
            axes = drawn.subplots()
            for index, name in enumerate(names):
                speeds = [speed for speed in results.decoding if speed.name == name]
                style = styles.get(name) or line_style(index)
                places = [speed.position for speed in speeds]
                axes.plot(places, [getattr(speed, field) for speed in speeds], marker="o", label=plain(name), **style)
            axes.set(xlabel="context (tokens)", ylabel=unit, xscale="log", yscale="log")
            drawn.legend(**LEGEND)
        page.add_figure(drawn, title)
    page.add_table(decoding_rows(results), DECODING_HEADER)


def _add_arms(page: Page, results: ComparisonResults) -> None:
    page.add_heading("Arms")
    rows = [
        (
            name,
            arm["family"],
            arm["parameters"],
            f"{arm['tokens_per_step'] / arm['seconds_per_step']:,.0f}",
            f"{arm['flops_per_step'] / arm['tokens_per_step'] / 1e6:.1f}",
        )
        for name, arm in results.arms.items()
    ]
    page.add_table(rows, ("arm", "family", "parameters", "trained tokens/s", "MFLOP/token"))
    columns = [dict(leaves("", arm["configuration"])) for arm in results.arms.values()]
    paths = dict.fromkeys(path for column in columns for path in column)
    differing = [
        (path, *(str(column.get(path, "")) for column in columns))
        for path in paths
        if len({str(column.get(path)) for column in columns}) > 1
    ]
    if differing:
        page.add_table(differing, ("field", *results.arms), caption="Fields in which the arms differ")
