"""What a comparison has found so far: tables for people, everything for programs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from wavelet_train.comparison.decoding import DecodingSpeed
from wavelet_train.comparison.fits import Crossing, Fit, crossing, fit
from wavelet_train.comparison.spec import Budget
from wavelet_train.comparison.work import ComparisonWork, Run, Tuned
from wavelet_train.quantities import byte_size, duration
from wavelet_train.tables import table


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done. bits_per_byte: of its best checkpoint on the whole validation split, None where it failed.

    accuracy: share of its tokens, of recall probes the answers, that were held to be the likeliest. seconds: what its
    steps should take at the speed that was measured. measured_seconds: what they took. curve: of every validation its
    tokens and bits per byte.
    """

    arm: str
    budget: str
    seed: int
    rate: float | None
    steps: int
    tokens: int
    flops: float
    seconds: float
    measured_seconds: float
    bits_per_byte: float | None
    accuracy: float | None
    curve: list[tuple[int, float]]
    failure: str | None


@dataclass(frozen=True)
class Score:
    """An arm at a budget.

    measured_seconds: what the steps of its runs took, on average. bits_per_byte, deviation: mean and standard deviation
    over the seeds that are done. accuracy: mean share of tokens, of recall probes the answers, that are right.
    behind: mean difference to the best arm of the budget over the seeds that both have.
    """

    arm: str
    budget: str
    rate: float | None
    steps: int
    tokens: int
    flops: float
    seconds: float
    measured_seconds: float
    seeds: int
    bits_per_byte: float | None
    deviation: float | None
    accuracy: float | None
    behind: float | None


@dataclass(frozen=True)
class ComparisonResults:
    """What is known of the arms, their tuning and their runs.

    tuning: by budget and arm. recall: of budgets with a recall probe, its kind and how many pairs or tokens it has.
    points: seconds and bits per byte of each arm's finished runs on run.data, the best of its tuning among them. fits:
    of the points. crossings: of the fits of two arms. decoding: empty until it is measured. unfinished: how many runs
    there are still to be done.
    """

    description: str
    arms: dict[str, dict[str, Any]]
    tuning: dict[str, dict[str, Tuned]]
    runs: list[FinishedRun]
    scores: list[Score]
    recall: dict[str, tuple[str, int]]
    points: dict[str, list[tuple[float, float]]]
    fits: dict[str, Fit]
    crossings: dict[tuple[str, str], Crossing]
    decoding: list[DecodingSpeed]
    unfinished: int

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for JSON."""
        return {
            "description": self.description,
            "arms": self.arms,
            "tuning": {
                budget: {
                    arm: {
                        "rate": tuned.rate,
                        "at_edge": tuned.at_edge,
                        "scores": [{"rate": rate, "bits_per_byte": score} for rate, score in tuned.scores.items()],
                    }
                    for arm, tuned in arms.items()
                }
                for budget, arms in self.tuning.items()
            },
            "runs": [asdict(run) for run in self.runs],
            "scores": [asdict(score) for score in self.scores],
            "recall": {budget: {"probe": kind, "size": size} for budget, (kind, size) in self.recall.items()},
            "points": self.points,
            "fits": {arm: asdict(line) for arm, line in self.fits.items()},
            "crossings": [
                {"first": first, "second": second, **asdict(meeting)}
                for (first, second), meeting in self.crossings.items()
            ],
            "decoding": [asdict(speed) for speed in self.decoding],
            "unfinished": self.unfinished,
        }

    def __str__(self) -> str:
        parts = [
            f"{budget}\n{table(score_rows(self, budget), SCORE_HEADER)}"
            for budget in dict.fromkeys(score.budget for score in self.scores)
        ]
        if self.fits:
            parts.append(f"bits per byte = a + b ln(seconds)\n{table(fit_rows(self), FIT_HEADER)}")
        if self.crossings:
            parts.append(table(crossing_rows(self), CROSSING_HEADER))
        if self.decoding:
            parts.append(table(decoding_rows(self), DECODING_HEADER))
        if edges := self.edges:
            parts.append(f"The best rate is the first or last that was tried: {', '.join(edges)}")
        if self.unfinished:
            parts.append(f"{self.unfinished} runs are not done yet")
        return "\n\n".join(parts)

    @property
    def edges(self) -> list[str]:
        """Arms, with their budget, whose best rate is the first or last that was tried: others may be better."""
        return [f"{arm} ({budget})" for budget, arms in self.tuning.items() for arm in arms if arms[arm].at_edge]


# Of the times of crossings that are told as such.
LONGEST = 365 * 24 * 3600.0
SCORE_HEADER = (
    "arm",
    "parameters",
    "rate",
    "tokens",
    "PFLOP",
    "time",
    "measured",
    "seeds",
    "bits per byte",
    "deviation",
    "behind",
    "accuracy",
)
# What makes each recall probe harder.
RECALL_SIZES = {
    "associative_recall": "pairs",
    "selective_copying": "tokens",
    "induction": "passage",
    "key_at_distance": "distance",
}


FIT_HEADER = ("arm", "runs", "a", "b", "residual", "at 1 hour", "error")
CROSSING_HEADER = ("fits of", "and", "cross at", "within a factor of", "among the runs")
DECODING_HEADER = ("model", "context", "decoded tokens/s", "prompt tokens/s", "state")


def score_rows(results: ComparisonResults, budget: str) -> list[list[object]]:
    """The rows of a table with SCORE_HEADER for one budget, the best first."""
    scores = [score for score in results.scores if score.budget == budget]
    return [
        [
            score.arm,
            results.arms[score.arm]["parameters"],
            "" if score.rate is None else f"{score.rate:g}",
            score.tokens,
            f"{score.flops / 1e15:.3g}",
            duration(score.seconds),
            duration(score.measured_seconds),
            score.seeds,
            _shown(score.bits_per_byte),
            _shown(score.deviation),
            _shown(score.behind),
            "" if score.accuracy is None else f"{score.accuracy:.1%}",
        ]
        for score in sorted(scores, key=lambda score: (score.bits_per_byte is None, score.bits_per_byte))
    ]


def fit_rows(results: ComparisonResults) -> list[list[object]]:
    """The rows of a table with FIT_HEADER."""
    return [
        [
            arm,
            line.points,
            f"{line.intercept:.4f}",
            f"{line.slope:.4f}",
            _shown(line.residual),
            f"{line.at(3600):.4f}",
            _shown(line.error_at(3600)),
        ]
        for arm, line in results.fits.items()
    ]


def crossing_rows(results: ComparisonResults) -> list[list[object]]:
    """The rows of a table with CROSSING_HEADER."""
    return [
        [
            first,
            second,
            "nowhere" if meeting.seconds is None else _time(meeting.seconds),
            "" if meeting.factor is None else f"{meeting.factor:.3g}",
            "yes" if meeting.within else "no",
        ]
        for (first, second), meeting in results.crossings.items()
    ]


def decoding_rows(results: ComparisonResults) -> list[list[object]]:
    """The rows of a table with DECODING_HEADER."""
    return [
        [
            speed.name,
            speed.position,
            f"{speed.decode_speed:,.0f}",
            f"{speed.prompt_speed:,.0f}",
            byte_size(speed.state_bytes),
        ]
        for speed in results.decoding
    ]


def _time(seconds: float) -> str:
    """A time that a crossing is at, which may be anything."""
    if seconds < 1:
        return "under 1 s"
    return duration(seconds) if seconds < LONGEST else f"over {duration(LONGEST)}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def results_of(work: ComparisonWork, decoding: Sequence[DecodingSpeed] = ()) -> ComparisonResults:
    """What a comparison has found so far."""
    arms = {
        name: {
            "family": run.model.kind,
            "parameters": work.speeds[name].parameters,
            "seconds_per_step": work.speeds[name].seconds,
            "flops_per_step": work.speeds[name].flops,
            "tokens_per_step": work.speeds[name].tokens,
            "configuration": work.speeds[name].configuration,
        }
        for name, run in work.arms.items()
    }
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    tuning: dict[str, dict[str, Tuned]] = {}
    for budget, arm in work.tunings():
        if (tuned := work.tuned(budget, arm)) is not None:
            tuning.setdefault(budget.name, {})[arm] = tuned
            if budget.data is None and tuned.rate is not None and (score := tuned.scores[tuned.rate]) is not None:
                speed = work.speeds[arm]
                points[arm].append((speed.seconds * speed.steps(budget, work.comparison.tuning.share), score))
    planned = list(work.runs())
    runs = [_finished(work, run) for run in planned if run.finished]
    own_data = {budget.name for budget in work.comparison.budgets if budget.data is not None}
    for run in runs:
        if run.bits_per_byte is not None and run.budget not in own_data:
            points[run.arm].append((run.seconds, run.bits_per_byte))
    scores = [
        total
        for budget in work.comparison.budgets
        for arm in work.comparison.arms_of(budget)
        if (total := _score(arm, budget, runs)) is not None
    ]
    fits = {arm: line for arm, places in points.items() if (line := fit(places)) is not None}
    return ComparisonResults(
        description=work.comparison.description,
        arms=arms,
        tuning=tuning,
        runs=runs,
        scores=_with_distances(scores, runs),
        recall=_recall(work),
        points=points,
        fits=fits,
        crossings={(first, second): crossing(fits[first], fits[second]) for first, second in combinations(fits, 2)},
        decoding=list(decoding),
        unfinished=len(planned) - len(runs),
    )


def _finished(work: ComparisonWork, run: Run) -> FinishedRun:
    history, speed = run.history, work.speeds[run.arm]
    steps = speed.steps(run.budget)
    tuned = work.tuned(run.budget, run.arm)
    points = zip(history.column("step", "validation"), history.column("bits_per_byte", "validation"), strict=True)
    seconds = history.seconds()
    return FinishedRun(
        arm=run.arm,
        budget=run.budget.name,
        seed=run.seed,
        rate=None if tuned is None else tuned.rate,
        steps=steps,
        tokens=steps * speed.tokens,
        flops=float(steps * speed.flops),
        seconds=steps * speed.seconds,
        measured_seconds=seconds[-1] if seconds else 0.0,
        bits_per_byte=run.score("bits_per_byte"),
        accuracy=run.score("accuracy"),
        curve=[(int(step) * speed.tokens, score) for step, score in points],
        failure=run.failure,
    )


def _recall(work: ComparisonWork) -> dict[str, tuple[str, int]]:
    probes = {}
    for budget, arms in work.with_data.items():
        dataset = next(iter(arms.values())).data.dataset
        size = getattr(dataset, RECALL_SIZES.get(dataset.kind, ""), None)
        if isinstance(size, int):
            probes[budget] = dataset.kind, size
    return probes


def _score(arm: str, budget: Budget, runs: Sequence[FinishedRun]) -> Score | None:
    mine = [run for run in runs if run.arm == arm and run.budget == budget.name]
    if not mine:
        return None
    values = [run.bits_per_byte for run in mine if run.bits_per_byte is not None]
    right = [run.accuracy for run in mine if run.accuracy is not None]
    first = mine[0]
    return Score(
        arm=arm,
        budget=budget.name,
        rate=first.rate,
        steps=first.steps,
        tokens=first.tokens,
        flops=first.flops,
        seconds=first.seconds,
        measured_seconds=statistics.mean(run.measured_seconds for run in mine),
        seeds=len(values),
        bits_per_byte=statistics.mean(values) if values else None,
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        accuracy=statistics.mean(right) if right else None,
        behind=None,
    )


def _with_distances(scores: Sequence[Score], runs: Sequence[FinishedRun]) -> list[Score]:
    known = {(run.arm, run.budget, run.seed): run.bits_per_byte for run in runs if run.bits_per_byte is not None}
    result = []
    for score in scores:
        rivals = [other for other in scores if other.budget == score.budget and other.bits_per_byte is not None]
        best = min(rivals, key=lambda other: other.bits_per_byte or 0.0, default=None)
        pairs = [
            value - known[best.arm, budget, seed]
            for (arm, budget, seed), value in known.items()
            if best is not None and (arm, budget) == (score.arm, score.budget) and (best.arm, budget, seed) in known
        ]
        result.append(Score(**{**asdict(score), "behind": statistics.mean(pairs) if pairs else None}))
    return result
