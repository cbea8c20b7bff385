"""What a training step of every arm costs, measured before the first run: a budget is turned into steps by it.

The length of a run is thus known before it begins and the same whenever it is repeated or resumed. Every arm takes
turns with one reference, as many copies of each at the same time as runs will be side by side; its time is the
reference's, times the median of the ratios. A machine that slows down for a while slows both. With one thread a run it
is processor time, which is the clock's on an idle machine and does not count what other processes take on a busy one.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wavelet_core.atomic_files import write_atomically
from wavelet_core.config import ConfigurationError
from wavelet_train.comparison.spec import Budget
from wavelet_train.run_config import RunConfig
from wavelet_train.training_benchmark import WARM_UP_STEPS, Contestant, ContestantProcess, benchmark_run

ROUNDS = 12
# Steps are short, and a turn long enough to be measured.
SECONDS_PER_TURN, MOST_STEPS_PER_TURN = 0.3, 30


@dataclass(frozen=True)
class Speed:
    """What a step takes. seconds: with so many runs (`jobs`) side by side. flops: of matrix products.

    configuration: the sections model and train that it was measured with.
    """

    seconds: float
    flops: int
    tokens: int
    parameters: int
    jobs: int
    configuration: dict[str, Any]

    def steps(self, budget: Budget, share: float = 1.0) -> int:
        """How many steps a share of a budget is, one at least."""
        return max(1, round(share * budget.amount / getattr(self, budget.unit)))


class Speeds:
    """The measured speeds in a file, by arm."""

    def __init__(self, path: Path, runs: Mapping[str, RunConfig], jobs: int):
        self.path, self.runs, self.jobs = path, runs, jobs
        self.known: dict[str, Speed] = {}
        if path.is_file():
            try:
                content = json.loads(path.read_text("utf-8"))
                self.known = {name: Speed(**fields) for name, fields in content.items()}
            except (ValueError, TypeError, AttributeError):
                raise ConfigurationError(f"{path} is damaged; remove it, and the speeds are measured anew") from None
        if others := {speed.jobs for speed in self.known.values()} - {jobs}:
            raise ConfigurationError(
                f"--jobs {jobs}: {path} was measured with {others.pop()} side by side, which is what budgets are "
                "counted by; repeat that number, or name another directory with --out"
            )

    @property
    def missing(self) -> list[str]:
        """Arms that are not measured yet, or were with another configuration."""
        return [
            name
            for name, run in self.runs.items()
            if name not in self.known or self.known[name].configuration != _configuration(run)
        ]

    def measure(self, rounds: int = ROUNDS) -> None:
        """Measure what is missing, and write it down arm by arm. Raises what `training_benchmark` raises."""
        missing = self.missing
        if not missing:
            return
        reference = next((name for name in self.runs if name not in missing), missing[0])
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            first = stack.enter_context(_Team(reference, self.runs[reference], self.jobs, folder))
            for name in missing:
                if name == reference:
                    self._keep(name, first, statistics.median(first.step() for _ in range(rounds)))
                    continue
                with _Team(name, self.runs[name], self.jobs, folder) as team:
                    ratios = [team.step() / first.step() for _ in range(rounds)]
                    self._keep(name, team, self.known[reference].seconds * statistics.median(ratios))

    def _keep(self, name: str, team: _Team, seconds: float) -> None:
        process = team.processes[0]
        self.known[name] = Speed(
            seconds=seconds,
            flops=process.ask("flops"),
            tokens=process.about["tokens"],
            parameters=process.about["parameters"],
            jobs=self.jobs,
            configuration=_configuration(self.runs[name]),
        )
        content = json.dumps({name: asdict(speed) for name, speed in self.known.items()}, indent=1)
        write_atomically(self.path, lambda fresh: fresh.write_text(content + "\n", "utf-8"))


def _configuration(run: RunConfig) -> dict[str, Any]:
    return run.model_dump(mode="json", include={"model", "train"})


class _Team:
    """Copies of an arm in processes of their own, for a `with`."""

    def __init__(self, name: str, run: RunConfig, jobs: int, folder: Path):
        self.processes: list[ContestantProcess] = []
        self.steps = 1
        contestant = Contestant(f"arms.{name}", run.model)
        for number in range(jobs):
            home = folder / f"{name}-{number}"
            settings = benchmark_run(run, contestant, run.train.compile is True, home)
            self.processes.append(ContestantProcess(contestant, settings, home))

    def __enter__(self) -> _Team:
        with ExitStack() as stack:
            for process in self.processes:
                stack.enter_context(process)
            for process in self.processes:
                process.begin()
            about = self.processes[0].about
            self.request = "processor_step" if about["device"] == "cpu" and about["threads"] == 1 else "step"
            seconds = min(self.step() for _ in range(WARM_UP_STEPS))
            self.steps = min(MOST_STEPS_PER_TURN, math.ceil(SECONDS_PER_TURN / seconds))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def step(self) -> float:
        """Seconds of a step that all processes make at the same time, the mean of a turn."""
        for process in self.processes:
            for _ in range(self.steps):
                process.send(self.request)
        return statistics.mean(process.answer() for process in self.processes for _ in range(self.steps))
