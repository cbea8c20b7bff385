"""What a sweep has found: a table, a figure and the configuration of its best run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wavelet_core.atomic_files import write_atomically
from wavelet_train.figures import COLORS, HEIGHT, WIDTH, figure
from wavelet_train.run_config import dump
from wavelet_train.sweep import DIRECTORY, HOST, PROGRESS, REASON, SAME_AS, Sweep
from wavelet_train.tables import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Runs that a figure names, and how many times the smallest value the largest is where an axis is logarithmic.
MOST_LABELS, LOGARITHMIC_FROM = 8, 9
BEST_FILE = "best.yaml"
FIGURE_FILE = "sweep.png"
# What Optuna calls the states of a trial, and what they are called here.
STATES = {
    "COMPLETE": "done",
    "PRUNED": "given up",
    "FAIL": "failed",
    "RUNNING": "unfinished",
    "WAITING": "waiting",
}


@dataclass(frozen=True)
class SweptRun:
    """One run. values: by field. bits_per_byte: of the best checkpoint on the whole validation split, None until then.

    curve: per cent of the run and bits per byte, of every validation.
    """

    number: int
    values: dict[str, str]
    state: str
    bits_per_byte: float | None
    progress: float
    curve: list[tuple[int, float]]
    directory: str | None
    host: str | None
    remark: str | None


@dataclass(frozen=True)
class SweepResults:
    """All runs, the best first, and the number of the best; None while none is done."""

    fields: list[str]
    runs: list[SweptRun]
    best: int | None

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for JSON."""
        return {"fields": self.fields, "best": self.best, "runs": [vars(run) for run in self.runs]}

    def __str__(self) -> str:
        header = ["run", *self.fields, "bits per byte", "state", "done", "remark"]
        rows = [
            [
                str(run.number),
                *(run.values.get(field, "") for field in self.fields),
                "" if run.bits_per_byte is None else f"{run.bits_per_byte:.4f}",
                run.state,
                f"{100 * run.progress:.0f}%",
                run.remark or "",
            ]
            for run in self.runs
        ]
        return table(rows, header)


def results_of(sweep: Sweep) -> SweepResults:
    """What is known about a sweep's runs now."""
    runs = []
    for trial in sweep.study.get_trials(deepcopy=False):
        known = trial.user_attrs
        state = STATES[trial.state.name]
        values = sweep.values_of(trial) or trial.system_attrs.get("fixed_params", {})
        remark = f"as run {known[SAME_AS]}" if SAME_AS in known else known.get(REASON)
        run = SweptRun(
            number=trial.number,
            values=values,
            state=state,
            bits_per_byte=trial.value if state == "done" else None,
            progress=1.0 if state == "done" else known.get(PROGRESS, 0.0),
            curve=sorted(trial.intermediate_values.items()),
            directory=known.get(DIRECTORY) and str(Path(known[DIRECTORY]) / "runs" / f"{trial.number:03d}"),
            host=known.get(HOST),
            remark=remark and remark.splitlines()[0],
        )
        runs.append(run)
    runs.sort(key=lambda run: (run.bits_per_byte is None, run.bits_per_byte or 0.0, run.number))
    best = runs[0].number if runs and runs[0].bits_per_byte is not None else None
    return SweepResults([dimension.path for dimension in sweep.plan.space], runs, best)


def write_best(sweep: Sweep, results: SweepResults) -> Path | None:
    """Write the configuration of the best run, ready for `wavelet train`; its path, or None while there is none."""
    if results.best is None:
        return None
    path = sweep.directory / BEST_FILE
    text = dump(sweep.configuration_of(results.runs[0].values))
    write_atomically(path, lambda file: file.write_text(text, "utf-8"))
    return path


def draw(results: SweepResults) -> Figure:
    """Bits per byte against the values of every field, and along every run."""
    with figure(WIDTH * (len(results.fields) + 1), HEIGHT) as drawn:
        *panels, curves = drawn.subplots(1, len(results.fields) + 1, sharey=True)
        for panel, field in zip(panels, results.fields, strict=True):
            _draw_field(panel, field, results)
        for run in sorted(results.runs, key=lambda run: run.number):
            if run.curve:
                label = f"run {run.number}" if len(results.runs) <= MOST_LABELS else None
                curves.plot(*zip(*run.curve, strict=True), marker=".", label=label)
        curves.set_xlabel("% of the run's steps")
        if any(run.curve for run in results.runs) and len(results.runs) <= MOST_LABELS:
            curves.legend()
        (panels or [curves])[0].set_ylabel("bits per byte")
    return drawn


def _draw_field(panel: Any, field: str, results: SweepResults) -> None:
    """The last known bits per byte of every run, filled where it is done, against a field's value."""
    runs = [run for run in results.runs if run.curve or run.bits_per_byte is not None]
    texts = sorted({run.values[field] for run in runs})
    numbers = [number for text in texts if (number := _number(text)) is not None]
    scale = dict(zip(texts, numbers if len(numbers) == len(texts) else range(len(texts)), strict=True))
    for state, face in (("done", COLORS[0]), ("given up", "none"), ("unfinished", "none")):
        chosen = [run for run in runs if run.state == state]
        places = [scale[run.values[field]] for run in chosen]
        heights = [run.curve[-1][1] if run.bits_per_byte is None else run.bits_per_byte for run in chosen]
        if chosen:
            panel.scatter(places, heights, facecolors=face, edgecolors=COLORS[0], label=state)
    if len(numbers) == len(texts) and numbers and 0 < LOGARITHMIC_FROM * min(numbers) <= max(numbers):
        panel.set_xscale("log")
    if len(numbers) < len(texts) or len(texts) <= MOST_LABELS:
        panel.set_xticks(list(scale.values()), list(scale))
        panel.minorticks_off()
    if runs:
        panel.legend()
    panel.set_xlabel(field)


def _number(text: str) -> float | None:
    """The number that a value is, if it is one."""
    value = yaml.safe_load(text)
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
