"""What a comparison says while it runs: which run of how many, what it gave, and how much time is left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from wavelet_train.comparison.work import OPEN, ComparisonWork
from wavelet_train.quantities import duration

SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_LINES = 5.0, 60.0


@dataclass(frozen=True)
class RunProgress:
    """A run. seconds: what all of it should take. share: how much of it is done. ended: with what, None while open."""

    seconds: float
    share: float
    ended: str | None


class ComparisonProgress:
    """Looks at the runs of a comparison now and then, and says on stderr which have come to an end."""

    def __init__(self, work: ComparisonWork, jobs: int):
        self.work, self.jobs = work, jobs
        self.runs = run_progress(work)
        self._done_before, self._started = _seconds_done(self.runs), time.monotonic()
        self._looked = self._said = time.monotonic()
        self._say("in all")

    @property
    def left(self) -> bool:
        """Whether a run is still to be done."""
        return any(run.ended is None for run in self.runs.values())

    def look(self) -> None:
        """Say what has happened since the last time, if that is a while ago."""
        if time.monotonic() - self._looked >= SECONDS_BETWEEN_LOOKS:
            self.tell()

    def tell(self) -> None:
        """Say what has happened since the last time."""
        now = time.monotonic()
        before, self.runs, self._looked = self.runs, run_progress(self.work), now
        for name, run in self.runs.items():
            if run.ended is not None and (name not in before or before[name].ended is None):
                self._say(f"{name}: {run.ended}")
        if now - self._said >= SECONDS_BETWEEN_LINES:
            running = [f"{name} {run.share:.0%}" for name, run in self.runs.items() if run.ended is None and run.share]
            self._say(f"now {'; '.join(running)}" if running else "starting")

    def seconds_left(self) -> float:
        """What the rest should take, by the pace so far."""
        done = _seconds_done(self.runs)
        left = sum(run.seconds for run in self.runs.values()) - done
        fresh, passed = done - self._done_before, time.monotonic() - self._started
        return left / self.jobs if fresh < SECONDS_BETWEEN_LINES else left * passed / fresh

    def _say(self, what: str) -> None:
        self._said = time.monotonic()
        ended = sum(run.ended is not None for run in self.runs.values())
        time_left = duration(self.seconds_left())
        print(f"{ended} of {len(self.runs)} runs, {time_left} left: {what}", file=sys.stderr, flush=True)


def run_progress(work: ComparisonWork) -> dict[str, RunProgress]:
    """All runs by what they are called, tuning included, as far as it is known which there will be."""
    seen = {}
    tuning = work.comparison.tuning
    for budget, arm in work.tunings():
        speed = work.speeds[arm]
        seconds = speed.seconds * speed.steps(budget, tuning.share)
        name = f"tuning {arm}, {budget.name}, rate"
        seen.update({f"{name} {rate:g}": RunProgress(seconds, 0.0, None) for rate in tuning.rates})
        for results in work.sweeps(budget, arm):
            for run in results.runs:
                score = run.state if run.bits_per_byte is None else f"{run.bits_per_byte:.4f} bits per byte"
                ended = None if run.state in OPEN else score
                seen[f"{name} {run.values['train.lr']}"] = RunProgress(seconds, 1.0 if ended else run.progress, ended)
    for planned in work.runs():
        speed = work.speeds[planned.arm]
        steps = speed.steps(planned.budget)
        bits = planned.score("bits_per_byte")
        ended = planned.failure or (None if bits is None else f"{bits:.4f} bits per byte")
        share = 1.0 if ended else planned.history.steps / steps
        seen[str(planned)] = RunProgress(speed.seconds * steps, share, ended)
    return seen


def _seconds_done(runs: dict[str, RunProgress]) -> float:
    return sum(run.seconds * run.share for run in runs.values())
