"""A run's directory: its configuration, its metrics, and two checkpoints.

config.yaml      the resolved configuration
metrics.jsonl    one JSON object a line
best/            the checkpoint with the lowest validation loss
last/            the newest one, with `trainer/`, from which the run resumes exactly
steps/           earlier states of last/, if any are kept, by their steps
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wavelet_core.atomic_files import append_whole, recover, write_atomically
from wavelet_core.checkpoint import CONFIG_FILE as CHECKPOINT_CONFIG_FILE
from wavelet_core.checkpoint import read_config, save_checkpoint, verify_checkpoint
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import Tokenizer, checkpoint_tokenizer
from wavelet_train.json_values import json_value
from wavelet_train.run_config import RunConfig, dump, run_config
from wavelet_train.training_state import DIRECTORY, STATE_FILE, TrainingState, read_state

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """Appends lines to a `metrics.jsonl`.

    size: bytes of the file that belong to the run so far; what a killed run wrote after its last checkpoint is cut off,
    so that a resumed run leaves the lines of an uninterrupted one. 0 starts afresh.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        with path.open("ab") as file:
            file.truncate(min(size, file.tell()))

    def flush(self) -> int:
        """Bring all lines to disk; returns the bytes written so far."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def write(self, **values: Any) -> None:
        """Append one line, or nothing. Numbers that JSON does not have (infinity, not a number) become null."""
        append_whole(self.path, f"{json.dumps(json_value(values))}\n".encode())


@dataclass(frozen=True)
class SavedRun:
    """What `last/` says about its run, without weights and other tensors."""

    config: RunConfig
    state: TrainingState
    tokenizer: Tokenizer


class RunDirectory:
    """A directory that a run is written to.

    best, last: the checkpoints' places. metrics: from `begin` on. Raises FileExistsError where there is a file.
    """

    metrics: MetricsFile

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; name a directory for the run")
        self.best, self.last, self.steps = self.path / "best", self.path / "last", self.path / "steps"

    def check(self, resume: bool, overwrite: bool) -> None:
        """Raise CheckpointError unless a run to resume is whole, FileExistsError where one would be lost unasked."""
        for checkpoint in (self.best, self.last):
            recover(checkpoint)
        if resume and not self.last.is_dir():
            raise CheckpointError(f"{self.path} holds no run that can be resumed: it has no {self.last.name}/")
        if resume:
            verify_checkpoint(self.last)
        if not (resume or overwrite) and self.last.exists():
            raise FileExistsError(
                f"{self.path} holds a run already: resume that one, name another directory, or ask to overwrite it"
            )

    def read_last(self) -> SavedRun:
        """Raises CheckpointError where something is missing, damaged, or does not belong together."""
        data, state = read_config(self.last), read_state(self.last)
        config = run_config(data, (), str(self.last / CHECKPOINT_CONFIG_FILE))
        size = self._metrics_path.stat().st_size if self._metrics_path.exists() else None
        if size is not None and size < state.counters.metrics_size:
            raise CheckpointError(
                f"{self.last / DIRECTORY / STATE_FILE}: counters.metrics_size: {state.counters.metrics_size} bytes of "
                f"{self._metrics_path} belong to the run, but it has only {size}; put the whole file back, or remove "
                "what is left of it to go on without"
            )
        return SavedRun(config, state, checkpoint_tokenizer(self.last, config.model.vocabulary))

    def events_after(self, size: int) -> list[Any]:
        """The lines of metrics beyond so many bytes, as far as they are whole."""
        try:
            with self._metrics_path.open("rb") as file:
                file.seek(size)
                return [json.loads(line) for line in file]
        except (OSError, ValueError):
            return []

    def step_of_best(self) -> int | None:
        """After how many steps `best/` was made; None where there is none, or one that cannot be read."""
        try:
            return read_config(self.best).get("step")
        except CheckpointError:
            return None

    @property
    def checkpoint_bytes(self) -> int:
        """What the checkpoints take on the disk; files that several have are there once."""
        folders = (self.best, self.last, self.steps)
        files = [file.stat() for folder in folders for file in folder.rglob("*") if file.is_file()]
        return sum({file.st_ino: file.st_size for file in files}.values())

    @property
    def free_bytes(self) -> int:
        """What is free on the disk where the directory is, or will be."""
        place = self.path.absolute()
        return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free

    def clear(self) -> None:
        """Remove the checkpoints of an earlier run."""
        for checkpoints in (self.best, self.last, self.steps):
            shutil.rmtree(checkpoints, ignore_errors=True)

    def begin(self, run: RunConfig, metrics_size: int) -> None:
        """Write the configuration, and open the metrics after the bytes that belong to the run so far."""
        text = dump(run)
        write_atomically(self.path / CONFIG_FILE, lambda file: file.write_text(text, "utf-8"))
        self.metrics = MetricsFile(self._metrics_path, metrics_size)

    @property
    def _metrics_path(self) -> Path:
        return self.path / METRICS_FILE

    def save(
        self,
        checkpoint: Path,
        model: Any,
        tensors: Mapping[str, Tensor],
        tokenizer: Tokenizer,
        run: RunConfig,
        step: int,
        write_more: Callable[[Path], None] = lambda directory: None,
    ) -> None:
        """Replace a checkpoint; `write_more` puts what else belongs to it into the new directory."""
        sections = {"step": step, **run.model_dump(mode="json", include={"data", "train"})}
        save_checkpoint(model, checkpoint, tokenizer, sections, write_more, tensors)

    def keep_last(self, step: int, newest: int, every: int | None) -> None:
        """Keep `last/`, which is of this step, in `steps/` too, and of those there the newest ones and each `every`-th.

        It shares its files with `last/` where the file system has hard links.
        """
        if not newest and not (every and step % every == 0):
            return
        write_atomically(
            self.steps / f"{step:08}", lambda fresh: shutil.copytree(self.last, fresh, copy_function=_link_or_copy)
        )
        kept = sorted(int(place.name) for place in self.steps.glob("[0-9]*"))
        for old in kept[: max(0, len(kept) - newest)]:
            if not (every and old % every == 0):
                # Nobody should take what a kill leaves of it for a checkpoint.
                os.replace(self.steps / f"{old:08}", self.steps / f".{old:08}")
        for remains in self.steps.glob(".*"):
            shutil.rmtree(remains)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
