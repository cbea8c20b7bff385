"""Training: steps, validations, checkpoints, and going on where a run was stopped.

A run's directory holds `config.yaml` (the resolved configuration), `metrics.jsonl`, and the checkpoints `best/` (lowest
validation loss) and `last/` (with `trainer/`, from which the run resumes exactly).
"""

from __future__ import annotations

import math
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core import LanguageModelConfig, build, build_model, load_checkpoint
from wavelet_core.atomic_files import recover, write_atomically
from wavelet_core.checkpoint import WEIGHTS_FILE, named_tensors, write_checkpoint
from wavelet_core.devices import resolve_device
from wavelet_core.state import leaves
from wavelet_core.tensor_files import CheckpointError, load_tensors_into
from wavelet_train.allocator import keep_freed_memory
from wavelet_train.config import RunConfig, dump
from wavelet_train.data import PreparedData, prepare
from wavelet_train.evaluation import Evaluation, evaluate
from wavelet_train.interruption import StopOnSignal, Stopped
from wavelet_train.metrics_file import MetricsFile
from wavelet_train.precision import autocast, loss_scaler, resolve_precision
from wavelet_train.progress import Progress
from wavelet_train.report import Report, make_report
from wavelet_train.training_state import (
    Counters,
    optimizer_tensors,
    read_state,
    restore_optimizer,
    write_state,
)
from wavelet_train.windows import ConsecutiveWindows, RandomWindows

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
BEST = "best"
LAST = "last"


class DivergenceError(ValueError):
    """The loss is no longer a number; the message says what to change."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended: after all its steps with a report, or stopped by a signal (its name) without one."""

    directory: Path
    step: int
    steps: int
    stopped_by: str | None = None
    report: Report | None = None


def train(
    run: RunConfig, output_directory: str | Path, resume: bool = False, overwrite: bool = False
) -> TrainingResult:
    """Train the model of a run configuration into a directory.

    resume: go on from the directory's `last/`, bit for bit as the run would have gone on. overwrite: start anew even
    if the directory holds a run, whose checkpoints and metrics are then replaced.
    Ctrl-C and SIGTERM save `last/` and return; a second one ends the process.

    Raises ConfigurationError for what cannot be trained as configured, CheckpointError when there is nothing to resume
    or it is damaged, FileExistsError when the directory holds another run, DivergenceError when the loss is not finite.
    """
    directory = Path(output_directory)
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; name a directory for the run")
    for name in (BEST, LAST):
        recover(directory / name)
    if resume and not (directory / LAST).is_dir():
        raise CheckpointError(f"{directory} holds no run that can be resumed: it has no {LAST}/")
    if not resume and not overwrite and (directory / LAST).exists():
        raise FileExistsError(
            f"{directory} holds a run already: resume that one, name another directory, or ask to overwrite it"
        )
    trainer = Trainer(run, directory)
    if resume:
        trainer.load()
    else:
        for name in (BEST, LAST):
            shutil.rmtree(directory / name, ignore_errors=True)
    return trainer.run_to_the_end()


class Trainer:
    """One run in one process: the model and everything that changes while it is trained."""

    def __init__(self, run: RunConfig, directory: Path):
        self.config = config = run.train
        self.directory = directory
        self.stop = StopOnSignal()
        self.device = resolve_device(config.device, "train.device")
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dtype = resolve_precision(config.precision, self.device)
        self.data: PreparedData = prepare(run.data)
        model_config = run.model.with_vocabulary(self.data.tokenizer.vocabulary_size)
        self.run = run.model_copy(update={"model": model_config})

        random.seed(config.seed)
        torch.manual_seed(config.seed)
        self.model: Any = build_model(model_config).to(self.device)
        self.loss: Callable[..., Tensor] = torch.compile(self.model.loss) if config.compile else self.model.loss
        self.carried = (
            self.model.new_state(config.batch_size, self.device)
            if getattr(self.model, "carries_window", False)
            else None
        )
        self.windows = self._windows(model_config)
        steps_per_epoch = max(1, self.windows.batches_per_epoch // config.accumulation)
        self.steps = config.steps or max(1, round(config.epochs * steps_per_epoch))
        self.tokens_per_step = model_config.context_length * config.batch_size * config.accumulation

        self.optimizer = build("optimizer", config.optimizer, list(self.model.named_parameters()), config.lr)
        self.schedule = build("schedule", config.schedule, config.lr, self.steps)
        self.scaler = loss_scaler(self.device, self.dtype)
        self.counters = Counters()
        self.metrics: MetricsFile | None = None

    def _windows(self, model: LanguageModelConfig) -> RandomWindows | ConsecutiveWindows:
        """Consecutive text for a model that carries state from window to window, random windows for any other."""
        train, config = self.data.train, self.config
        if self.carried is None:
            return RandomWindows(train.tokens, model.context_length, config.batch_size, config.seed)
        return ConsecutiveWindows(train.tokens, train.document_starts, model.context_length, config.batch_size)

    def run_to_the_end(self) -> TrainingResult:
        """Train until all steps are done or a signal stops the run."""
        self.directory.mkdir(parents=True, exist_ok=True)
        text = dump(self.run)
        write_atomically(self.directory / CONFIG_FILE, lambda file: file.write_text(text, "utf-8") and None)
        self.metrics = MetricsFile(self.directory / METRICS_FILE, self.counters.metrics_size)
        self._announce()
        try:
            with self.stop:
                done = self.counters.step * self.tokens_per_step
                with Progress("training", self.steps * self.tokens_per_step, " tokens", done) as progress:
                    self._train(progress)
                report = self._report()
        except Stopped as stopped:
            self._save(LAST)
            print(
                f"Stopped by {stopped} at step {self.counters.step:,} of {self.steps:,} and saved. "
                f"Go on with: wavelet train --resume {self.directory}",
                file=sys.stderr,
            )
            return TrainingResult(self.directory, self.counters.step, self.steps, stopped_by=str(stopped))
        return TrainingResult(self.directory, self.counters.step, self.steps, report=report)

    def _announce(self) -> None:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        # Reading the validation split here refuses a run that would fail at its first validation.
        train, validation = self.data.train, self.data.validation
        print(
            f"{parameters:,} parameters, {train.token_count:,} training tokens ({train.byte_count:,} bytes), "
            f"{validation.token_count:,} validation tokens, vocabulary {self.run.model.vocabulary_size:,}; "
            f"{self.steps:,} steps of {self.tokens_per_step:,} tokens on {self.device} in "
            f"{str(self.dtype).removeprefix('torch.')}",
            file=sys.stderr,
        )

    def _train(self, progress: Progress) -> None:
        config, counters = self.config, self.counters
        self.model.train()
        since_step, since = counters.step, time.monotonic()
        while True:
            if counters.step > counters.validated_step and self._due(config.validate_every):
                self._validate(progress)
                since_step, since = counters.step, time.monotonic()
            elif config.checkpoint_every and counters.step and self._due(config.checkpoint_every):
                self._save(LAST)
            self.stop.check()
            if counters.step >= self.steps:
                return
            lr = self.schedule(counters.step)
            loss, gradient_norm = self._step(lr)
            counters.step += 1
            counters.loss_sum += loss
            counters.loss_steps += 1
            progress.advance(self.tokens_per_step, f"loss {loss:.3f}")
            if self._due(config.log_every):
                now = time.monotonic()
                rate = (counters.step - since_step) * self.tokens_per_step / (now - since)
                since_step, since = counters.step, now
                self._log_step(lr, gradient_norm, rate)

    def _due(self, every: int) -> bool:
        return self.counters.step % every == 0 or self.counters.step == self.steps

    def _step(self, lr: float) -> tuple[float, float]:
        """One optimizer step; returns the loss in nats per token and the norm of the gradient before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total = torch.zeros((), device=self.device)
        for _ in range(self.config.accumulation):
            with autocast(self.device, self.dtype):
                loss = self._next_loss() / self.config.accumulation
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self._require_finite(total.item(), "loss", lr)
        self.scaler.unscale_(self.optimizer)
        limit = self.config.gradient_clipping or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if not self.scaler.is_enabled():
            self._require_finite(norm.item(), "norm of the gradient", lr)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item(), norm.item()

    def _next_loss(self) -> Tensor:
        batch: Any = next(self.windows)
        inputs, targets = batch.inputs.to(self.device), batch.targets.to(self.device)
        if self.carried is None:
            return self.loss(inputs, targets)
        self.model.begin_window(self.carried)
        self.carried.reset((~batch.continues).nonzero().flatten())
        return self.loss(inputs, targets, self.carried)

    def _require_finite(self, value: float, what: str, lr: float) -> None:
        if not math.isfinite(value):
            last = self.directory / LAST
            saved = f"The checkpoint before it is {last}" if last.exists() else "No checkpoint had been saved yet"
            raise DivergenceError(
                f"the {what} became {value} after {self.counters.step:,} steps (learning rate {lr:g}): training has "
                f"diverged. {saved}. Lower train.lr, lengthen train.schedule.warmup or lower train.gradient_clipping"
            )

    def _log_step(self, lr: float, gradient_norm: float, rate: float) -> None:
        counters = self.counters
        assert self.metrics is not None
        self.metrics.write(
            event="train",
            step=counters.step,
            tokens=counters.step * self.tokens_per_step,
            loss=counters.loss_sum / counters.loss_steps,
            lr=lr,
            gradient_norm=gradient_norm,
            tokens_per_second=rate,
        )
        counters.loss_sum, counters.loss_steps = 0.0, 0

    def _validate(self, progress: Progress) -> None:
        """Evaluate, write a line of metrics, save `last/`, and `best/` if it is."""
        started = time.monotonic()
        result = self._evaluate()
        self._require_finite(result.nats, "validation loss", self.optimizer.param_groups[0]["lr"])
        assert self.metrics is not None
        seconds = time.monotonic() - started
        self.metrics.write(event="validation", step=self.counters.step, **result.as_dict(), seconds=seconds)
        self.counters.validated_step = self.counters.step
        best = self.counters.best_nats is None or result.nats_per_token < self.counters.best_nats
        if best:
            self.counters.best_nats = result.nats_per_token
            self._save(BEST)
        self._save(LAST)
        progress.message(
            f"step {self.counters.step:,}: validation {result.bits_per_byte:.4f} bits per byte, "
            f"perplexity per token {result.perplexity_per_token:.2f}{' (best so far)' if best else ''}"
        )

    def _evaluate(self) -> Evaluation:
        return evaluate(
            self.model,
            self.data.validation,
            self.data.tokenizer,
            batch_size=self.config.batch_size,
            token_limit=self.config.validation_tokens,
            dtype=self.dtype,
            on_batch=lambda scored: self.stop.check(),
        )

    def _report(self) -> Report:
        """Evaluate the best checkpoint on the whole validation split."""
        model = load_checkpoint(self.directory / BEST, device=self.device)
        with Progress("evaluating the best checkpoint", self.data.validation.token_count - 1, " tokens") as progress:

            def on_batch(scored: int) -> None:
                progress.advance(scored)
                self.stop.check()

            report = make_report(
                model,
                self.data,
                self.config.final_stride,
                self.config.batch_size,
                self.config.compare_with_xz,
                self.dtype,
                on_batch,
            )
        assert self.metrics is not None
        self.metrics.write(event="report", step=self.counters.step, **report.as_dict())
        return report

    def _save(self, name: str) -> None:
        """Write the checkpoint `best/` or `last/`."""
        sections: dict[str, Any] = {
            section: getattr(self.run, section).model_dump(mode="json") for section in ("data", "train")
        }
        if name == BEST:
            self.model.save_pretrained(self.directory / BEST, self.data.tokenizer, sections)
            return
        assert self.metrics is not None
        self.counters.metrics_size = self.metrics.size

        def write(fresh: Path) -> None:
            fresh.mkdir()
            write_checkpoint(self.model, fresh, self.data.tokenizer, sections)
            write_state(fresh, self.counters, self._tensors(), self.scaler.state_dict())

        write_atomically(self.directory / LAST, write)

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors besides the weights that decide how the run goes on, by name."""
        groups: dict[str, dict[str, Tensor]] = {
            "optimizer": optimizer_tensors(self.optimizer),
            "windows": self.windows.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "python": torch.tensor(random.getstate()[1])},
            "carried": {} if self.carried is None else dict(leaves(self.carried.tree)),
        }
        if self.device.type != "cpu":
            groups["random"]["device"] = torch.get_device_module(self.device).get_rng_state(self.device)
        return {f"{group}.{name}": value for group, tensors in groups.items() for name, value in tensors.items()}

    def load(self) -> None:
        """Take everything from `last/`."""
        last = self.directory / LAST
        with torch.no_grad():
            load_tensors_into(named_tensors(self.model), last / WEIGHTS_FILE)
        self.counters, tensors, scaler = read_state(last)
        if self.scaler.is_enabled() and scaler:
            self.scaler.load_state_dict(scaler)

        def part(group: str) -> dict[str, Tensor]:
            prefix = f"{group}."
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        try:
            restore_optimizer(self.optimizer, part("optimizer"))
            self.windows.load_state_dict(part("windows"))
            generators = part("random")
            torch.set_rng_state(generators["cpu"])
            random.setstate((random.getstate()[0], tuple(generators["python"].tolist()), None))
            if self.device.type != "cpu" and "device" in generators:
                torch.get_device_module(self.device).set_rng_state(generators["device"], self.device)
            if self.carried is not None:
                carried = part("carried")
                for name, tensor in leaves(self.carried.tree):
                    tensor.copy_(carried[name])
        except (KeyError, RuntimeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{last}/trainer does not fit the configuration ({error}); resume with the configuration of the run"
            ) from error
