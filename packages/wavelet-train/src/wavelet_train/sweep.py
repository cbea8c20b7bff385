"""Sweeps: many runs of one configuration with other values of some fields, searched and kept by Optuna.

All that processes and machines must agree on stands in the study's storage. The runs that are to be done wait there as
trials; whoever works takes one at a time. A run that was killed is still marked as running, but its directory is locked
by nobody: the next process that works in the same directory goes on with it.
"""

from __future__ import annotations

import json
import math
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from wavelet_core.config import ConfigurationError
from wavelet_core.file_lock import try_lock
from wavelet_train.divergence import DivergenceError
from wavelet_train.evaluation import Evaluation
from wavelet_train.run_config import RunConfig, run_config
from wavelet_train.search_space import Dimension, grid
from wavelet_train.trainer import train

try:
    import optuna
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError as error:
    raise ImportError("a sweep needs Optuna: pip install 'wavelet-train[sweep]'") from error

STORAGE_FILE = "sweep.db"
LOCK_FILE = "sweep.lock"
# Attributes of the study, which every process must find as it would write them, and of a trial.
CONFIGURATION, SPACE, SEARCH = "configuration", "space", "search"
HOST, DIRECTORY, REASON, SAME_AS, PROGRESS = "host", "directory", "reason", "same_as", "progress"

# Per cent of a run before which it is not given up, and runs that must have got as far before one is.
SPARED, FIRST_RUNS = 25, 2


class Pruned(Exception):
    """The run is hopeless: the others were better where it is now."""


@dataclass(frozen=True)
class Plan:
    """What a sweep does.

    configuration: of every run, before its own values. runs: how many are drawn by the tree-structured Parzen
    estimator (Bergstra et al. 2011); None makes every combination of values. prune: give up runs that are worse, after
    a quarter of their steps or more, than the median of the others was there. storage: any URL that Optuna takes; None
    is a SQLite file in the directory. name: of the study in a storage that holds several.
    """

    configuration: RunConfig
    space: Sequence[Dimension]
    runs: int | None = None
    prune: bool = True
    seed: int = 0
    storage: str | None = None
    name: str = "sweep"


class Sweep:
    """A sweep in a directory: `study` is Optuna's, `runs/NNN` are the run directories.

    Raises ConfigurationError when a value does not fit the configuration, the directory or study holds another sweep,
    or the storage cannot be opened.
    """

    def __init__(self, plan: Plan, directory: Path):
        self.plan, self.directory = plan, directory
        self.base = plan.configuration.model_dump(mode="json")
        for dimension in plan.space:
            for value in dimension.samples:
                self.configuration_of({dimension.path: value})
        points = grid(plan.space) if plan.runs is None else [{}] * plan.runs
        directory.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._lock():
            self.study = self._open()
            self._agree()
            self._enqueue(points)

    def _open(self) -> optuna.Study:
        storage = self.plan.storage or f"sqlite:///{(self.directory / STORAGE_FILE).absolute()}"
        pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST_RUNS, n_warmup_steps=SPARED)
        try:
            return optuna.create_study(
                storage=storage,
                study_name=self.plan.name,
                load_if_exists=True,
                direction="minimize",
                pruner=pruner if self.plan.prune else optuna.pruners.NopPruner(),
            )
        except Exception as error:  # whatever the storage's own driver raises
            what = f"--storage {storage}" if self.plan.storage else str(self.directory / STORAGE_FILE)
            reason = str(error).strip().splitlines()[0]
            raise ConfigurationError(
                f"{what}: cannot be opened as the storage of a sweep: {reason}; name one that Optuna takes, such as "
                "sqlite:///sweep.db, or another directory"
            ) from error

    def _agree(self) -> None:
        """Note in a new study what it is about; in one that exists, make sure that it is about the same."""
        mine = {
            CONFIGURATION: self.base,
            SPACE: [str(dimension) for dimension in self.plan.space],
            SEARCH: "grid" if self.plan.runs is None else "tpe",
        }
        known = self.study.user_attrs
        for key, value in mine.items():
            text = json.dumps(value, sort_keys=True)
            if key not in known:
                self.study.set_user_attr(key, text)
            elif known[key] != text:
                raise ConfigurationError(
                    f"{self.plan.storage or self.directory} holds a sweep with another {key}"
                    f"{_difference(json.loads(known[key]), value)}: repeat its own command to go on with it, or name "
                    "another directory with --out (in a shared storage, another study with --study)"
                )

    def _enqueue(self, points: Sequence[dict[str, Any]]) -> None:
        """Let the runs that are still missing wait for somebody who does them."""
        if self.plan.runs is not None:
            there = self.study.get_trials(deepcopy=False)
            points = points[len([trial for trial in there if trial.state != TrialState.FAIL]) :]
        for point in points:
            self.study.enqueue_trial(point, skip_if_exists=self.plan.runs is None)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process of this directory at a time."""
        with (self.directory / LOCK_FILE).open("a+b") as file:
            while try_lock(file) is False:
                time.sleep(0.02)
            yield

    def configuration_of(self, values: dict[str, str]) -> RunConfig:
        """The configuration of the run with these values. Raises ConfigurationError when they do not fit."""
        data: dict[str, Any] = json.loads(json.dumps(self.base))
        return run_config(data, [f"{path}={value}" for path, value in values.items()], f"the sweep in {self.directory}")

    def values_of(self, trial: FrozenTrial) -> dict[str, str]:
        """The values of a run, as they stand in `--set`."""
        return {path: value if isinstance(value, str) else repr(value) for path, value in trial.params.items()}

    def work(self) -> str | None:
        """Do runs until none is left; the name of the signal that stopped it, if one did."""
        while (taken := self._next()) is not None:
            trial, lock = taken
            with lock:
                if stopped_by := self._run(trial):
                    return stopped_by
        return None

    def release(self, host: str) -> int:
        """Put what a machine left unfinished and will not finish back among the waiting runs; how many those are."""
        left = [trial for trial in self._running() if trial.user_attrs.get(HOST) == host]
        for trial in left:
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.enqueue_trial(trial.params)
        return len(left)

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _next(self) -> tuple[Trial, BinaryIO] | None:
        """A run of this directory that somebody left, or else one that waits, and the lock that makes it ours."""
        here = {HOST: socket.gethostname(), DIRECTORY: str(self.directory.absolute())}
        with self._lock():
            for left in self._running():
                if here.items() <= left.user_attrs.items() and (lock := self._take(left.number)) is not None:
                    if any(trial.number == left.number for trial in self._running()):
                        return Trial(self.study, left._trial_id), lock
                    lock.close()  # it was finished just now
            if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                return None
            trial = self.study.ask()
            for key, value in here.items():
                trial.set_user_attr(key, value)
            lock = self._take(trial.number)
            assert lock is not None
            return trial, lock

    def _take(self, number: int) -> BinaryIO | None:
        """The lock of a run's directory, held until it is closed; None where another process holds it."""
        directory = self.run_directory(number)
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK_FILE).open("a+b")
        if try_lock(lock) is not False:
            return lock
        lock.close()
        return None

    def run_directory(self, number: int) -> Path:
        """Where the run with this number is, on the machine that does it."""
        return self.directory / "runs" / f"{number:03d}"

    def _run(self, trial: Trial) -> str | None:
        # Seeded by the trial, so that no process repeats what another, or itself before it was killed, has drawn.
        self.study.sampler = optuna.samplers.TPESampler(seed=self.plan.seed + trial.number)
        values = {dimension.path: dimension.suggest(trial) for dimension in self.plan.space}
        named = ", ".join(f"{path}={value}" for path, value in values.items())
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if same := [other for other in done if other.params == trial.params]:
            trial.set_user_attr(SAME_AS, same[0].number)
            self._tell(trial, same[0].value)
            return None
        print(f"Run {trial.number}: {named}", file=sys.stderr)
        directory = self.run_directory(trial.number)

        def on_validation(step: int, steps: int, result: Evaluation) -> None:
            trial.set_user_attr(PROGRESS, step / steps)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a run that is resumed may validate again where it has
                trial.report(result.bits_per_byte, round(100 * step / steps))
            if step < steps and trial.should_prune():
                self._tell(trial, state=TrialState.PRUNED)
                raise Pruned

        resume = (directory / "last").is_dir()
        try:
            run = self.configuration_of(values)
            result = train(run, directory, resume=resume, overwrite=not resume, on_validation=on_validation)
        except Pruned:
            print(f"Run {trial.number} is given up: the median of the others was better here", file=sys.stderr)
            return None
        except DivergenceError as error:
            trial.set_user_attr(REASON, str(error))
            self._tell(trial, state=TrialState.PRUNED)
            print(f"Run {trial.number} is given up: {error}", file=sys.stderr)
            return None
        except ConfigurationError as error:  # values that fit one by one, but not together
            trial.set_user_attr(REASON, str(error))
            self._tell(trial, state=TrialState.FAIL)
            print(f"Run {trial.number} cannot be done: {error}", file=sys.stderr)
            return None
        if result.report is not None:
            value = result.report.evaluation.bits_per_byte
            self._tell(trial, value if math.isfinite(value) else None)
            print(f"Run {trial.number}: {value:.4f} bits per byte, {named}", file=sys.stderr)
        return result.stopped_by

    def _tell(self, trial: Trial, value: float | None = None, state: TrialState | None = None) -> None:
        self.study.tell(trial, value, state, skip_if_finished=True)


def work_on(plan: Plan, directory: Path) -> str | None:
    """Do runs of a sweep until none is left, as one of the processes that share them; see `Sweep.work`."""
    return Sweep(plan, directory).work()


def _difference(known: Any, mine: Any) -> str:
    """What is told of two values that should be the same: the first field that differs, or both."""
    if isinstance(known, dict) and isinstance(mine, dict):
        for key in sorted({*known, *mine}):
            if known.get(key) != mine.get(key):
                return f".{key}{_difference(known.get(key), mine.get(key))}"
    return f" ({known}, not {mine})"
