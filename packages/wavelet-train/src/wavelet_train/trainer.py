"""Training: steps, validations, checkpoints, and going on where a run was stopped."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core import build, build_model, load_checkpoint
from wavelet_core.checkpoint import WEIGHTS_FILE, named_tensors
from wavelet_core.devices import resolve_device
from wavelet_core.state import leaves
from wavelet_core.tensor_files import CheckpointError, check_fit, load_tensors_into
from wavelet_core.threads import available_processors, use_threads
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.allocator import keep_freed_memory
from wavelet_train.data import PreparedData
from wavelet_train.evaluation import Evaluation, evaluate
from wavelet_train.gradient_norms import PartNorms, gradient_norms, parts_of
from wavelet_train.interruption import StopOnSignal, Stopped
from wavelet_train.logger import LoggedRun
from wavelet_train.precision import autocast, resolve_precision
from wavelet_train.progress import Progress
from wavelet_train.report import Report, make_report
from wavelet_train.resume_rules import Changes
from wavelet_train.resuming import changes_to, go_on
from wavelet_train.run_config import RunConfig
from wavelet_train.run_directory import RunDirectory
from wavelet_train.run_lock import run_lock
from wavelet_train.run_log import RunLog
from wavelet_train.run_plan import RunPlan, expected_seconds, make_plan
from wavelet_train.run_records import RunRecords
from wavelet_train.training_loss import TrainingLoss
from wavelet_train.training_state import (
    DIRECTORY,
    TENSORS_FILE,
    Counters,
    LossScaler,
    TrainingState,
    make_optimizer_state,
    optimizer_tensors,
    read_tensors,
    restore_optimizer,
    write_state,
)
from wavelet_train.weight_average import PREFIX as AVERAGE
from wavelet_train.weight_average import WeightAverage
from wavelet_train.windows import ConsecutiveWindows, RandomWindows

OnValidation = Callable[[int, int, Evaluation], None]


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
    run: RunConfig,
    output_directory: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    accept_changed_data: bool = False,
    on_validation: OnValidation = lambda step, steps, result: None,
) -> TrainingResult:
    """Train the model of a run configuration into a directory (`run_directory.py` says what it then holds).

    resume: go on from the directory's `last/`, bit for bit as the run would have gone on, with the run's own tokenizer.
    What of the configuration may differ is in `resume_rules.py`. accept_changed_data: resume also where the text is no
    longer what it was. overwrite: start anew even if the directory holds a run, whose checkpoints and metrics are then
    replaced. A finished run is left as it is, and its report is given again.
    on_validation: called with the step, all steps and the result once a validation's checkpoints are saved; what it
    raises ends the training. Ctrl-C and SIGTERM save `last/` and return; a second one ends the process.

    Raises ConfigurationError for what cannot be trained as configured, CheckpointError when there is nothing to resume
    or it is damaged, FileExistsError when the directory holds another run, RunInUseError when another process trains
    into it, DivergenceError when the loss is not finite.
    """
    directory = RunDirectory(output_directory)
    with run_lock(directory.path):
        trainer = _prepare(run, directory, resume, overwrite, accept_changed_data)
        if trainer.earlier_report is None:
            plan = make_plan(trainer)
            print(plan, file=sys.stderr)
            plan.warn()
        if not resume:
            directory.clear()
        trainer.on_validation = on_validation
        with trainer.records:
            return trainer.run_to_the_end()


def plan_training(
    run: RunConfig,
    output_directory: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    accept_changed_data: bool = False,
) -> RunPlan:
    """What `train` with the same arguments would do, and how long it should take, from a few steps that are made.

    Nothing is written but the token cache. Raises what `train` raises before its first step.
    """
    trainer = _prepare(run, RunDirectory(output_directory), resume, overwrite, accept_changed_data)
    return replace(make_plan(trainer), seconds=expected_seconds(trainer))


def _prepare(
    run: RunConfig, directory: RunDirectory, resume: bool, overwrite: bool, accept_changed_data: bool
) -> Trainer:
    """A trainer before its first step, or where its run was stopped."""
    directory.check(resume, overwrite)
    if not resume:
        return Trainer(run, directory)
    saved = directory.read_last()
    changes = changes_to(saved, run)
    trainer = Trainer(run, directory, saved.tokenizer, saved.state.counters.threads)
    go_on(trainer, saved, changes, accept_changed_data)
    return trainer


class Trainer:
    """One run in one process: the model and everything that changes while it is trained.

    tokenizer: that of a run that is resumed, instead of the configured one. threads: what such a run computed with, for
    one that configures no number. changes: of its configuration. earlier_report: what it ended with, if there is
    nothing left to do.
    """

    def __init__(
        self, run: RunConfig, directory: RunDirectory, tokenizer: Tokenizer | None = None, threads: int | None = None
    ):
        self.config = config = run.train
        self.directory = directory
        self.stop = StopOnSignal()
        self.device = resolve_device(config.device, "train.device")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dtype = resolve_precision(config.precision, self.device)
        self.data = PreparedData(run.data, tokenizer)
        model_config = run.model.with_vocabulary(self.data.tokenizer.vocabulary_size)
        self.run = run.model_copy(update={"model": model_config})

        torch.manual_seed(config.seed)
        self.model: Any = build_model(model_config).to(self.device)
        self.parameters: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        self.loss: nn.Module = TrainingLoss(self.model)
        if config.compile:
            self.loss.compile()
        carries = getattr(self.model, "carries_window", False)
        self.carried = self.model.new_state(config.batch_size, self.device) if carries else None
        self.windows = self._windows(model_config.context_length)
        steps_per_epoch = max(1, self.windows.batches_per_epoch // config.accumulation)
        steps = config.steps or max(1, round(config.epochs * steps_per_epoch))
        self.tokens_per_step = model_config.context_length * config.batch_size * config.accumulation

        self.optimizer = build("optimizer", config.optimizer, list(self.parameters.items()), config.lr)
        self.schedule = build("schedule", config.schedule, config.lr, steps)
        averaging = config.weight_average
        self.average = None if averaging is None else WeightAverage(averaging, self.parameters)
        # The small gradients of float16 would vanish without it.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if threads is not None and threads > available_processors():
            threads = None  # the run comes from a larger machine
        positions = config.batch_size * model_config.context_length
        self.counters = Counters.start(steps, use_threads(config.threads or threads, self.model, positions))
        self.changes: Changes = {}
        self.earlier_report: Report | None = None
        self.on_validation: OnValidation = lambda step, steps, result: None
        self.records = RunRecords([build("logger", each) for each in config.loggers])
        self.parts = parts_of(self.model) if config.log_gradient_norms else None
        self.part_norms: PartNorms | None = None

    def _windows(self, context_length: int) -> RandomWindows | ConsecutiveWindows:
        """Consecutive text for a model that carries state from window to window, random windows for any other."""
        train, config = self.data.split("train"), self.config
        if self.carried is None:
            return RandomWindows(train.tokens, context_length, config.batch_size, config.seed)
        return ConsecutiveWindows(train.tokens, train.document_starts, context_length, config.batch_size)

    @property
    def steps(self) -> int:
        """All that the run is to do."""
        return self.counters.steps

    def run_to_the_end(self) -> TrainingResult:
        """Train until all steps are done or a signal stops the run."""
        path, counters = self.directory.path, self.counters
        if self.earlier_report is not None:
            print(
                f"{path} is finished: all of its {self.steps:,} steps are done and nothing is left. To go on: "
                f"wavelet train --resume {path} --set train.steps=N",
                file=sys.stderr,
            )
            return TrainingResult(path, counters.step, self.steps, report=self.earlier_report)
        self.directory.begin(self.run, counters.metrics_size)
        self.records.begin(self.directory.metrics, LoggedRun(path, self.run.model_dump(mode="json"), counters.step))
        if self.changes:
            self.records.write(event="changes", step=counters.step, fields=self.changes)
        if counters.best_step and counters.best_step == counters.step != self.directory.step_of_best():
            self._save_best()
        log = RunLog(self.records, counters, self.tokens_per_step)
        try:
            with self.stop:
                with log:
                    self._train(log)
                return TrainingResult(path, counters.step, self.steps, report=self._report())
        except Stopped as stopped:
            self._save_last()
            print(
                f"Stopped by {stopped} at step {counters.step:,} of {self.steps:,} and saved. "
                f"Go on with: wavelet train --resume {path}",
                file=sys.stderr,
            )
            return TrainingResult(path, counters.step, self.steps, stopped_by=str(stopped))

    def _train(self, log: RunLog) -> None:
        config, counters = self.config, self.counters
        self.loss.train()
        while True:
            if counters.step > counters.validated_step and self._due(config.validate_every):
                self._validate(log)
                log.restart_clock()
            elif config.checkpoint_every and counters.step and self._due(config.checkpoint_every):
                self._save_last()
            self.stop.check()
            if counters.step >= self.steps:
                return
            lr = self.schedule(counters.step)
            loss, gradient_norm = self.take_step(lr)
            counters.step += 1
            counters.tokens += self.tokens_per_step
            counters.loss_sum += loss
            counters.loss_steps += 1
            log.stepped(self.tokens_per_step, f"loss {loss:.3f}")
            if self._due(config.log_every):
                log.step(lr, gradient_norm, self.part_norms)

    def _due(self, every: int, steps_ahead: int = 0) -> bool:
        step = self.counters.step + steps_ahead
        return step % every == 0 or step == self.steps

    def take_step(self, lr: float) -> tuple[float, float]:
        """One optimizer step; returns the loss in nats per token and the norm of the gradient before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        total = torch.zeros((), device=self.device)
        for _ in range(self.config.accumulation):
            with autocast(self.device, self.dtype):
                loss = self._next_loss() / self.config.accumulation
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self._require_finite(total.item(), "loss", lr)
        self.scaler.unscale_(self.optimizer)
        if self.parts is not None and self._due(self.config.log_every, steps_ahead=1):
            self.part_norms = gradient_norms(self.parts)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.gradient_clipping or math.inf)
        if not self.scaler.is_enabled():
            self._require_finite(norm.item(), "norm of the gradient", lr)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        return total.item(), norm.item()

    def _next_loss(self) -> Tensor:
        batch: Any = next(self.windows)
        inputs, targets = batch.inputs.to(self.device), batch.targets.to(self.device)
        if self.carried is not None:
            self.model.begin_window(self.carried)
            self.carried.reset((~batch.continues).nonzero().flatten())
        loss: Tensor = self.loss(inputs, targets, self.carried)
        return loss

    def _require_finite(self, value: float, what: str, lr: float) -> None:
        if not math.isfinite(value):
            last = self.directory.last
            saved = f"The checkpoint before it is {last}" if last.exists() else "No checkpoint had been saved yet"
            raise DivergenceError(
                f"the {what} became {value} after {self.counters.step:,} steps (learning rate {lr:g}): training has "
                f"diverged. {saved}. Lower train.lr, lengthen train.schedule.warmup or lower train.gradient_clipping"
            )

    def _validate(self, log: RunLog) -> None:
        """Evaluate, write a line of metrics, save `last/`, and `best/` if it is; with an average of the weights, that.

        `last/` is first: should `best/` not come to be, it is made of it when the run is resumed.
        """
        counters, started = self.counters, time.monotonic()
        with self._averaged():
            result = evaluate(
                self.model,
                self.data.split("validation"),
                self.data.tokenizer,
                batch_size=self.config.batch_size,
                token_limit=self.config.validation_tokens,
                dtype=self.dtype,
                on_batch=lambda scored: self.stop.check(),
            )
        self._require_finite(result.nats, "validation loss", self.optimizer.param_groups[0]["lr"])
        seconds = time.monotonic() - started
        counters.validated_step = counters.step
        best = counters.best_nats is None or result.nats_per_token < counters.best_nats
        if best:
            counters.best_nats, counters.best_step = result.nats_per_token, counters.step
        log.validation(result, seconds)
        self._save_last()
        if best:
            self._save_best()
        log.validated(result, best)
        self.on_validation(counters.step, self.steps, result)

    def _report(self) -> Report:
        """Evaluate the best checkpoint on the whole validation split."""
        model = load_checkpoint(self.directory.best, device=self.device)
        tokens = len(self.data.split("validation").tokens) - 1
        with Progress("evaluating the best checkpoint", tokens, " tokens") as progress:

            def on_batch(scored: int) -> None:
                progress.advance(scored)
                self.stop.check()

            report = make_report(model, self.data, self.config, self.dtype, on_batch)
        self.records.write(event="report", step=self.counters.step, **report.as_dict())
        return report

    def _averaged(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are evaluated and kept in `best/`."""
        return nullcontext() if self.average is None else self.average.applied()

    def _save_best(self) -> None:
        with self._averaged():
            self.directory.save(self.directory.best, self.model, self.data.tokenizer, self.run, self.counters.step)

    def _save_last(self) -> None:
        self.counters.metrics_size = self.directory.metrics.flush()
        scaler = None
        if self.scaler.is_enabled():
            scaler = LossScaler(
                scale=self.scaler.get_scale(), growth_tracker=self.scaler.state_dict()["_growth_tracker"]
            )
        state = TrainingState(counters=self.counters, loss_scaler=scaler, data=self.data.identity)
        tensors = self.state_tensors()
        self.directory.save(
            self.directory.last,
            self.model,
            self.data.tokenizer,
            self.run,
            self.counters.step,
            lambda fresh: write_state(fresh, state, tensors),
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """All tensors besides the weights that decide how the run goes on, by name, on any device."""
        return {
            **optimizer_tensors(self.optimizer, self.parameters),
            **({} if self.average is None else self.average.tensors()),
            **{f"windows.{name}": tensor for name, tensor in self.windows.state_dict().items()},
            **{f"carried.{name}": tensor for name, tensor in self._carried_tensors().items()},
            **self._random_states(),
        }

    def _carried_tensors(self) -> dict[str, Tensor]:
        return {} if self.carried is None else dict(leaves(self.carried.tree))

    def _random_states(self) -> dict[str, Tensor]:
        states = {"random.cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            states[f"random.{self.device.type}"] = torch.get_device_module(self.device).get_rng_state(self.device)
        return states

    def load_tensors(self, state: TrainingState, restart_text: bool) -> None:
        """Take weights and all other tensors from `last/`. restart_text: read from its beginning what is read in order.

        Raises CheckpointError that lists by name what does not fit.
        """
        last = self.directory.last
        file = last / DIRECTORY / TENSORS_FILE
        saved = read_tensors(last)
        with torch.no_grad():
            load_tensors_into(named_tensors(self.model), last / WEIGHTS_FILE)
        make_optimizer_state(self.optimizer, self.parameters, saved, state.counters.step)
        # A run may go on on another device, whose own generator then starts from the seed.
        random = self._random_states()
        saved = {name: tensor for name, tensor in saved.items() if not name.startswith("random.") or name in random}
        saved = {**{name: state for name, state in random.items() if name != "random.cpu"}, **saved}
        # An average of the weights may have been turned off, or on, and then starts from them.
        if self.average is None:
            saved = {name: tensor for name, tensor in saved.items() if not name.startswith(AVERAGE)}
        elif not any(name.startswith(AVERAGE) for name in saved):
            self.average.start()
            saved.update(self.average.tensors())
        try:
            check_fit(file, self.state_tensors(), saved)
        except CheckpointError as error:
            raise CheckpointError(f"{error}\nResume with the configuration that lies beside {last}") from None
        restore_optimizer(self.optimizer, self.parameters, saved)
        if self.average is not None:
            self.average.restore(saved)
        for name, tensor in self._carried_tensors().items():
            tensor.copy_(saved[f"carried.{name}"])
        try:
            if self.carried is None or not restart_text:
                self.windows.load_state_dict({name: saved[f"windows.{name}"] for name in self.windows.state_dict()})
            for name in random:
                set_state = torch.set_rng_state if name == "random.cpu" else self._set_device_random_state
                set_state(saved[name])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); put back an undamaged copy of {last}") from None
        if state.loss_scaler is not None:
            factors = {"scale": state.loss_scaler.scale, "_growth_tracker": state.loss_scaler.growth_tracker}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **factors})

    def _set_device_random_state(self, state: Tensor) -> None:
        torch.get_device_module(self.device).set_rng_state(state, self.device)
