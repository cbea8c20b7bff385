"""What a run is about to do: on what, with what, for how long, and with how much of the disk."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wavelet_core.checkpoint import named_tensors
from wavelet_train.evaluation import evaluate
from wavelet_train.quantities import byte_size, duration
from wavelet_train.tables import table
from wavelet_train.token_split import MixedSource
from wavelet_train.training_state import optimizer_bytes

if TYPE_CHECKING:
    from wavelet_train.trainer import Trainer


@dataclass(frozen=True)
class RunPlan:
    """Sizes are in bytes, times in seconds.

    data: what the data set is called. sources: what a mix takes from each of its data sets. tokenizer, model: their
    kinds. optimizer: its kind, or how it splits the parameters where it does. step: steps done already, of `steps`.
    last_bytes: None where the optimizer does not tell what it will keep. disk_needed: beyond what is used now, while a
    save has the old checkpoint and the new one, with all that the run is to keep. seconds: what all that is left should
    take, None where that was not measured.
    """

    directory: str
    data: str
    sources: tuple[MixedSource, ...]
    train_documents: int
    train_bytes: int
    train_tokens: int
    validation_tokens: int
    tokenizer: str
    vocabulary_size: int
    model: str
    parameters: int
    optimizer: str
    device: str
    precision: str
    threads: int
    processes: int
    compiled: bool
    step: int
    steps: int
    tokens_per_step: int
    best_bytes: int
    last_bytes: int | None
    disk_needed: int | None
    disk_free: int
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        left = self.steps - self.step
        training = f"{left:,} steps of {self.tokens_per_step:,} tokens, {left * self.tokens_per_step:,} in all"
        if self.step:
            training += f" ({self.step:,} of {self.steps:,} steps are done)"
        if self.last_bytes is None or self.disk_needed is None:
            disk = f"best/ {byte_size(self.best_bytes)}, last/ as much and the optimizer's state"
        else:
            disk = f"best/ {byte_size(self.best_bytes)}, last/ {byte_size(self.last_bytes)}"
            disk += f"; {byte_size(self.disk_needed)} more while saving"
        rows = [
            ("run", self.directory),
            ("data", self.data),
            ("", f"{self.train_tokens:,} tokens in {self.train_documents:,} documents, {self.train_bytes:,} bytes"),
            *(("", str(source)) for source in self.sources),
            ("", f"{self.validation_tokens:,} tokens for validation"),
            ("tokenizer", f"{self.tokenizer}, vocabulary {self.vocabulary_size:,}"),
            ("model", f"{self.model}, {self.parameters:,} parameters"),
            ("optimizer", self.optimizer),
            ("training", training),
            (
                "computing",
                f"on {self.device} in {self.precision}, processor threads: {self.threads}, "
                f"{'compiled' if self.compiled else 'not compiled'}"
                + (f", in {self.processes} processes" if self.processes > 1 else ""),
            ),
            ("disk", f"{disk}, {byte_size(self.disk_free)} free"),
        ]
        if self.seconds is not None:
            rows.append(("time", f"about {duration(self.seconds)}, validations and report included"))
        return table(rows)

    def warn(self) -> None:
        """Say so on stderr where the disk has too little space."""
        if self.disk_needed is not None and self.disk_needed > self.disk_free:
            print(
                f"Warning: saving into {self.directory} takes {byte_size(self.disk_needed)}, but its disk has only "
                f"{byte_size(self.disk_free)} free: make room, or name a directory on another disk",
                file=sys.stderr,
            )


def make_plan(trainer: Trainer) -> RunPlan:
    """What a trainer is going to do. Reads both splits, and so refuses what lacks one."""
    run, counters, data, directory = trainer.run, trainer.counters, trainer.data, trainer.directory
    train, validation = data.split("train"), data.split("validation")
    weights = _total_bytes(named_tensors(trainer.model))
    optimizer = optimizer_bytes(run.train.optimizer, trainer.parameters, run.train.lr)
    others = {name: tensor for name, tensor in trainer.state_tensors().items() if not name.startswith("optimizer.")}
    last = None if optimizer is None else weights + optimizer + _total_bytes(others)
    kept = run.train.keep_checkpoints + counters.steps // (run.train.keep_every or counters.steps + 1)
    return RunPlan(
        directory=str(directory.path),
        data=data.identity.description,
        sources=train.sources,
        train_documents=len(train.document_starts),
        train_bytes=train.byte_count,
        train_tokens=len(train.tokens),
        validation_tokens=len(validation.tokens),
        tokenizer=data.tokenizer.config.kind,
        vocabulary_size=data.tokenizer.vocabulary_size,
        model=run.model.kind,
        parameters=sum(parameter.numel() for parameter in trainer.parameters.values()),
        optimizer=trainer.optimizer.describe() if hasattr(trainer.optimizer, "describe") else run.train.optimizer.kind,
        device=str(trainer.device),
        precision=str(trainer.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        processes=trainer.ranks.count,
        compiled=counters.compiled,
        step=counters.step,
        steps=counters.steps,
        tokens_per_step=trainer.tokens_per_step,
        best_bytes=weights,
        last_bytes=last,
        disk_needed=None if last is None else max(0, weights + (2 + kept) * last - directory.checkpoint_bytes),
        disk_free=directory.free_bytes,
    )


def expected_seconds(trainer: Trainer) -> float:
    """Seconds that what is left should take. The steps that it makes are real: the trainer is of no use after it."""
    config, counters = trainer.config, trainer.counters
    context_length = trainer.run.model.context_length
    left = counters.steps - counters.step
    seconds = left * _seconds_per_step(trainer) if left else 0.0

    validation = trainer.data.split("validation")
    times = [(time.monotonic(), 0)]
    evaluate(
        trainer.model,
        validation,
        trainer.data.tokenizer,
        batch_size=config.batch_size,
        token_limit=4 * config.batch_size * context_length,
        dtype=trainer.dtype,
        on_batch=lambda scored: times.append((time.monotonic(), scored)),
    )
    times = times[1:] if len(times) > 2 else times  # the first batch also sets things up
    seconds_per_token = (times[-1][0] - times[0][0]) / sum(scored for _, scored in times[1:])
    all_tokens = len(validation.tokens) - 1
    validations = math.ceil(counters.steps / config.validate_every) - counters.step // config.validate_every
    report = all_tokens * context_length / (config.final_stride or max(1, context_length // 2))
    tokens = validations * min(config.validation_tokens or all_tokens, all_tokens) + report
    return seconds + tokens * seconds_per_token


def _seconds_per_step(trainer: Trainer) -> float:
    rate = trainer.schedule(trainer.counters.step)
    trainer.loss.train()
    trainer.take_step(rate)  # which also sets things up
    steps, started = 0, time.monotonic()
    while steps < 2 or (time.monotonic() - started < 1 and steps < 20):
        trainer.take_step(rate)
        steps += 1
    return (time.monotonic() - started) / steps


def _total_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
