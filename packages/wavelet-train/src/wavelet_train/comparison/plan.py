"""What a comparison is about to do, and how long that should take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wavelet_train.comparison.progress import RunProgress, run_progress
from wavelet_train.comparison.work import ComparisonWork
from wavelet_train.quantities import duration
from wavelet_train.tables import table


@dataclass(frozen=True)
class ComparisonPlan:
    """arms: rows of what each is and costs. runs: by what they are called. seconds: of training that is left."""

    arms: list[tuple[str, str, int, float, float]]
    runs: dict[str, RunProgress]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for JSON."""
        names = ("arm", "family", "parameters", "tokens_per_second", "flops_per_token")
        runs = [{"run": name, "seconds": run.seconds, "share_done": run.share} for name, run in self.runs.items()]
        arms = [dict(zip(names, row, strict=True)) for row in self.arms]
        return {"arms": arms, "runs": runs, "seconds": self.seconds}

    def __str__(self) -> str:
        arms = [
            (name, family, parameters, f"{speed:,.0f}", f"{flops / 1e6:.1f}")
            for name, family, parameters, speed, flops in self.arms
        ]
        runs = [
            (name, duration(run.seconds), run.ended or (f"{run.share:.0%} done" if run.share else ""))
            for name, run in self.runs.items()
        ]
        return "\n\n".join(
            [
                table(arms, ("arm", "family", "parameters", "tokens/s", "MFLOP/token")),
                table(runs, ("run", "training", "")),
                f"{len(self.runs)} runs, about {duration(self.seconds)} of training left, validations not counted; "
                "further rates may be tried where the best is the first or last",
            ]
        )


def make_plan(work: ComparisonWork, jobs: int) -> ComparisonPlan:
    """What is to be done."""
    arms = []
    for name, run in work.arms.items():
        speed = work.speeds[name]
        costs = (speed.tokens / speed.seconds, speed.flops / speed.tokens)
        arms.append((name, run.model.kind, speed.parameters, *costs))
    runs = run_progress(work)
    seconds = sum(run.seconds * (1 - run.share) for run in runs.values()) / jobs
    return ComparisonPlan(arms, runs, seconds)
