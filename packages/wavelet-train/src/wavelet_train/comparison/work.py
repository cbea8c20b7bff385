"""The runs of a comparison: which there are, in what order they are done, and going on where one was stopped.

    speeds.json                     what a step of every arm costs
    tuning/BUDGET/ARM/ROUND/        sweeps of the learning rate, and its extensions beyond the first or last
    runs/BUDGET/ARM/seed-N/         the runs that are compared
    worker-N.log                    what the processes said that did them

All of it lies in run directories and sweeps, so that whoever works next sees what is done. A run belongs to the process
that holds its lock; one that was killed is gone on with by the next that comes by.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from wavelet_core.config import ConfigurationError
from wavelet_core.file_lock import try_lock
from wavelet_train.comparison.spec import Budget, Comparison
from wavelet_train.comparison.speed import Speed
from wavelet_train.divergence import DivergenceError
from wavelet_train.resume_rules import changes_between
from wavelet_train.run_config import RunConfig, load_run_config
from wavelet_train.run_directory import CONFIG_FILE, METRICS_FILE
from wavelet_train.run_history import RunHistory, number
from wavelet_train.search_space import Choices
from wavelet_train.sweep import Plan, Sweep
from wavelet_train.sweep_results import SweepResults, results_of
from wavelet_train.trainer import train

FAILURE_FILE = "failure.txt"
LOCK_FILE = "comparison.lock"
# Of a sweep's run: somebody is at it, or will be.
OPEN = ("waiting", "unfinished")
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Run:
    """A run that is compared, and where it is."""

    budget: Budget
    arm: str
    seed: int
    directory: Path

    @property
    def failure(self) -> str | None:
        """Why it could not be finished, if so."""
        path = self.directory / FAILURE_FILE
        return path.read_text("utf-8") if path.is_file() else None

    @property
    def history(self) -> RunHistory:
        """What it has recorded so far."""
        return RunHistory.read(self.directory / METRICS_FILE)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be done."""
        return self.failure is not None or bool(self.history.report)

    def score(self, name: str) -> float | None:
        """What the final report says by a name, such as bits_per_byte; None where it does not, or there is none."""
        for record in self.history.report[-1:]:
            validation = record.get("validation")
            value = number(validation.get(name)) if isinstance(validation, dict) else math.nan
            return value if math.isfinite(value) else None
        return None

    def __str__(self) -> str:
        return f"{self.arm}, {self.budget.name}, seed {self.seed}"


@dataclass(frozen=True)
class Tuned:
    """What tuning found. rate: the best, None where all runs failed. scores: bits per byte of every rate that was
    tried, None where its run was given up. at_edge: no rate beyond the best one was tried on one side."""

    rate: float | None
    scores: dict[float, float | None]
    at_edge: bool


class ComparisonWork:
    """What is to be done for a comparison in a directory.

    arms: the configuration of each, ready but for length, rate and seed. speeds: what a step of it costs. with_data:
    the same as arms for every budget that has data of its own.
    """

    def __init__(
        self,
        comparison: Comparison,
        directory: Path,
        arms: Mapping[str, RunConfig],
        speeds: Mapping[str, Speed],
        with_data: Mapping[str, Mapping[str, RunConfig]] = MappingProxyType({}),
    ):
        self.comparison, self.directory, self.arms, self.speeds = comparison, directory, arms, speeds
        self.with_data = dict(with_data)
        self._complete: dict[Path, SweepResults] = {}

    def work(self) -> str | None:
        """Do runs until all are done; the name of the signal that stopped it, if one did.

        For one budget after the other rates are tuned, and then the runs made by seed and arm. Several processes may
        work in one directory.
        """
        while True:
            waiting = False
            for budget in self.comparison.budgets:
                for arm in self.tuned_arms(budget):
                    while (sweep := self._open_sweep(budget, arm)) is not None:
                        if stopped_by := sweep.work():
                            return stopped_by
                        if self._results(sweep) is None:
                            waiting = True  # for somebody else's run
                            break
                for run in self.runs_of(budget):
                    if not run.finished:
                        done, stopped_by = self._try(run)
                        waiting |= not done
                        if stopped_by:
                            return stopped_by
            if not waiting:
                return None
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def check(self) -> None:
        """Raise ConfigurationError where a run in the directory is not the one that is to be done."""
        for run in self.runs():
            tuned = self.tuned(run.budget, run.arm) if (run.directory / CONFIG_FILE).is_file() else None
            if tuned is not None and tuned.rate is not None:
                _check_same(run, self.configuration(run, tuned.rate))

    def runs(self) -> Iterator[Run]:
        """The runs that are compared, in the order in which they are done."""
        for budget in self.comparison.budgets:
            yield from self.runs_of(budget)

    def runs_of(self, budget: Budget) -> Iterator[Run]:
        """Those of one budget."""
        for seed in budget.seeds:
            for arm in self.comparison.arms_of(budget):
                yield Run(budget, arm, seed, self.directory / "runs" / budget.name / arm / f"seed-{seed}")

    def tunings(self) -> Iterator[tuple[Budget, str]]:
        """The arms whose rate is tuned, with the budgets that it is tuned for."""
        return ((budget, arm) for budget in self.comparison.budgets for arm in self.tuned_arms(budget))

    def tuned_arms(self, budget: Budget) -> list[str]:
        """The arms whose rate is tuned for a budget."""
        if len(self.comparison.tuning.rates) == 1:
            return []
        arms = self.comparison.arms_of(budget)
        return [arm for arm in arms if self.comparison.tuning_budget(budget, arm) is budget]

    def tuned(self, budget: Budget, arm: str) -> Tuned | None:
        """What tuning an arm for a budget found; None while it is not finished."""
        rates = self.comparison.tuning.rates
        if len(rates) == 1:
            return Tuned(rates[0], {}, False)
        results, sweep = self._search(self.comparison.tuning_budget(budget, arm), arm)
        return None if sweep is not None else _tuned(results)

    def configuration(self, run: Run, rate: float) -> RunConfig:
        """The configuration of a run."""
        return self._configuration(run.budget, run.arm, self.speeds[run.arm].steps(run.budget), rate, run.seed)

    def sweeps(self, budget: Budget, arm: str) -> list[SweepResults]:
        """The sweeps of an arm's rate so far; none before the first has begun."""
        if not self._tuning_directory(budget, arm).is_dir():
            return []
        results, sweep = self._search(budget, arm)
        return results if sweep is None else [*results, results_of(sweep)]

    def _tuning_directory(self, budget: Budget, arm: str) -> Path:
        return self.directory / "tuning" / budget.name / arm

    def _open_sweep(self, budget: Budget, arm: str) -> Sweep | None:
        return self._search(budget, arm)[1]

    def _search(self, budget: Budget, arm: str) -> tuple[list[SweepResults], Sweep | None]:
        """The complete sweeps of an arm's rate, and the one that is not complete yet, if there is one."""
        tuning = self.comparison.tuning
        rates = tuning.rates
        steps = self.speeds[arm].steps(budget, tuning.share)
        complete: list[SweepResults] = []
        for extension in range(1 + tuning.extend):
            directory = self._tuning_directory(budget, arm) / str(extension)
            if (results := self._complete.get(directory)) is None:
                configuration = self._configuration(budget, arm, steps, rates[0], tuning.seed)
                space = [Choices("train.lr", tuple(f"{rate:g}" for rate in rates))]
                sweep = Sweep(Plan(configuration, space, prune=tuning.prune), directory)
                results = self._results(sweep)
                if results is None:
                    return complete, sweep
            complete.append(results)
            beyond = _beyond(_tuned(complete))
            if beyond is None:
                break
            rates = [beyond]
        return complete, None

    def _results(self, sweep: Sweep) -> SweepResults | None:
        """What a sweep found, None while it is not complete."""
        results = results_of(sweep)
        if any(run.state in OPEN for run in results.runs):
            return None
        self._complete[sweep.directory] = results
        return results

    def _configuration(self, budget: Budget, arm: str, steps: int, rate: float, seed: int) -> RunConfig:
        run = self.with_data.get(budget.name, self.arms)[arm]
        validate_every = math.ceil(steps / self.comparison.validations)
        settings = {"steps": steps, "lr": rate, "seed": seed, "validate_every": validate_every}
        return run.model_copy(update={"train": run.train.model_copy(update=settings)})

    def _try(self, run: Run) -> tuple[bool, str | None]:
        """Do a run if it is nobody's and its rate is known: whether it is done with, and what signal stopped it."""
        tuned = self.tuned(run.budget, run.arm)
        if tuned is None:
            return False, None
        run.directory.mkdir(parents=True, exist_ok=True)
        if (lock := _take(run.directory)) is None:
            return False, None
        with lock:
            if run.finished:  # just now, by another process
                return True, None
            if tuned.rate is None:
                self._fail(run, "all runs of its tuning failed")
                return True, None
            return True, self._train(run, self.configuration(run, tuned.rate))

    def _train(self, run: Run, configuration: RunConfig) -> str | None:
        print(f"{run}: {configuration.train.steps:,} steps at {configuration.train.lr:g}", file=sys.stderr)
        resume = (run.directory / "last").is_dir()
        try:
            return train(configuration, run.directory, resume=resume, overwrite=not resume).stopped_by
        except DivergenceError as error:
            self._fail(run, str(error))
            return None

    def _fail(self, run: Run, reason: str) -> None:
        (run.directory / FAILURE_FILE).write_text(reason, "utf-8")
        print(f"{run}: {reason}", file=sys.stderr)


def _take(directory: Path) -> BinaryIO | None:
    """The lock of a run's directory, held until it is closed; None where another process holds it."""
    lock = (directory / LOCK_FILE).open("a+b")
    if try_lock(lock) is not False:
        return lock
    lock.close()
    return None


def _check_same(run: Run, configuration: RunConfig) -> None:
    """Raise ConfigurationError where a run that was begun is not the one that is to be done."""
    begun = load_run_config(run.directory / CONFIG_FILE)
    if changes := changes_between(begun, configuration):
        path, (before, now) = next(iter(changes.items()))
        raise ConfigurationError(
            f"{run.directory} holds a run with {path}={before}, not {now}: undo the change of the comparison, remove "
            "that directory, or name another one with --out"
        )


def _tuned(sweeps: list[SweepResults]) -> Tuned:
    scores = {float(run.values["train.lr"]): run.bits_per_byte for sweep in sweeps for run in sweep.runs}
    known = {rate: score for rate, score in sorted(scores.items()) if score is not None}
    best = min(known, key=known.__getitem__, default=None)
    return Tuned(best, dict(sorted(scores.items())), best in (min(scores), max(scores)))


def _beyond(tuned: Tuned) -> float | None:
    """The rate that continues those that were tried, on the side where the best one is the last; None in between."""
    rates = list(tuned.scores)
    if tuned.rate == rates[0]:
        return float(f"{rates[0] ** 2 / rates[1]:.3g}")
    if tuned.rate == rates[-1]:
        return float(f"{rates[-1] ** 2 / rates[-2]:.3g}")
    return None
