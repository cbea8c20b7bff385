"""A run's directory: its configuration, its metrics, and two checkpoints.

config.yaml      the resolved configuration
metrics.jsonl    one JSON object a line
best/            the checkpoint with the lowest validation loss
last/            the newest one, with `trainer/`, from which the run resumes exactly
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wavelet_core.atomic_files import append_whole, recover, write_atomically
from wavelet_core.checkpoint import write_checkpoint
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.run_config import RunConfig, dump

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

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    def write(self, **values: Any) -> None:
        """Append one line, or nothing. Numbers that JSON does not have (infinity, not a number) become null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        append_whole(self.path, f"{json.dumps(finite)}\n".encode())


class RunDirectory:
    """A directory that a run is written to. What a kill left of its checkpoints is recovered first.

    best, last: the checkpoints' places. metrics: from `begin` on. Raises FileExistsError where there is a file.
    """

    metrics: MetricsFile

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; name a directory for the run")
        self.best, self.last = self.path / "best", self.path / "last"
        for checkpoint in (self.best, self.last):
            recover(checkpoint)

    def check(self, resume: bool, overwrite: bool) -> None:
        """Raise CheckpointError where there is no run to resume, FileExistsError where one would be lost unasked."""
        if resume and not self.last.is_dir():
            raise CheckpointError(f"{self.path} holds no run that can be resumed: it has no {self.last.name}/")
        if not (resume or overwrite) and self.last.exists():
            raise FileExistsError(
                f"{self.path} holds a run already: resume that one, name another directory, or ask to overwrite it"
            )

    def clear(self) -> None:
        """Remove the checkpoints of an earlier run."""
        for checkpoint in (self.best, self.last):
            shutil.rmtree(checkpoint, ignore_errors=True)

    def begin(self, run: RunConfig, metrics_size: int) -> None:
        """Write the configuration, and open the metrics after the bytes that belong to the run so far."""
        text = dump(run)
        write_atomically(self.path / CONFIG_FILE, lambda file: file.write_text(text, "utf-8"))
        self.metrics = MetricsFile(self.path / METRICS_FILE, metrics_size)

    def save(
        self,
        checkpoint: Path,
        model: Any,
        tokenizer: Tokenizer,
        run: RunConfig,
        write_more: Callable[[Path], None] = lambda directory: None,
    ) -> None:
        """Replace a checkpoint; `write_more` puts what else belongs to it into the new directory."""
        sections = run.model_dump(mode="json", include={"data", "train"})

        def write(fresh: Path) -> None:
            write_checkpoint(model, fresh, tokenizer, sections)
            write_more(fresh)

        write_atomically(checkpoint, write)
