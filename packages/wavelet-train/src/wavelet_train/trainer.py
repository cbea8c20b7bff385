"""Training: steps, validations, checkpoints, and going on where a run was stopped."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core import build, build_model, load_checkpoint
from wavelet_core.config import ConfigurationError
from wavelet_core.threads import available_processors, use_threads
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.allocator import keep_freed_memory
from wavelet_train.carried_state import CarriedState
from wavelet_train.checkpoint_writer import CheckpointWriter
from wavelet_train.compilation import choose, compile_loss
from wavelet_train.data import PreparedData
from wavelet_train.divergence import DivergenceError, first_not_finite
from wavelet_train.evaluation import Evaluation, score_text
from wavelet_train.gradient_norms import PartNorms, gradient_norms, parts_of
from wavelet_train.interruption import StopOnSignal, Stopped
from wavelet_train.logger import LoggedRun
from wavelet_train.parallel import work_together
from wavelet_train.precision import autocast, resolve_precision
from wavelet_train.progress import Progress
from wavelet_train.ranks import ALONE, Ranks, joined_ranks
from wavelet_train.report import Report, make_report
from wavelet_train.resume_rules import Changes
from wavelet_train.resuming import changes_to, go_on
from wavelet_train.run_config import RunConfig
from wavelet_train.run_directory import RunDirectory
from wavelet_train.run_lock import run_lock
from wavelet_train.run_log import RunLog
from wavelet_train.run_plan import RunPlan, expected_seconds, make_plan
from wavelet_train.run_records import RunRecords
from wavelet_train.saving import keep_last, save_best, save_last
from wavelet_train.training_loss import TrainingLoss
from wavelet_train.training_state import (
    Counters,
    optimizer_tensors,
)
from wavelet_train.weight_average import WeightAverage
from wavelet_train.windows import (
    ConsecutiveWindows,
    DocumentWindows,
    RandomWindows,
    ShuffledWindows,
    TrainingWindows,
    Windows,
)

OnValidation = Callable[[int, int, Evaluation], None]


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
    into it, DivergenceError when losses or gradients stay not finite.
    """
    with joined_ranks(run.train.device) as ranks, ExitStack() as stack:
        if not ranks.is_first:
            stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        directory = RunDirectory(output_directory)
        if ranks.is_first:
            ranks.in_turn(lambda: stack.enter_context(run_lock(directory.path)))
        else:
            ranks.in_turn(lambda: None)
        trainer = _prepare(run, directory, resume, overwrite, accept_changed_data, ranks=ranks)
        if trainer.earlier_report is None:
            plan = make_plan(trainer)
            print(plan, file=sys.stderr)
            plan.warn()
        if not resume and ranks.is_first:
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
    trainer = _prepare(run, RunDirectory(output_directory), resume, overwrite, accept_changed_data, may_compile=False)
    return replace(make_plan(trainer), seconds=expected_seconds(trainer))


def _prepare(
    run: RunConfig,
    directory: RunDirectory,
    resume: bool,
    overwrite: bool,
    accept_changed_data: bool,
    may_compile: bool = True,
    ranks: Ranks = ALONE,
) -> Trainer:
    """A trainer before its first step, or where its run was stopped."""
    ranks.in_turn(lambda: directory.check(resume, overwrite))
    compiled = None
    if resume:
        saved = directory.read_last()
        changes = changes_to(saved, run)
        compiled = saved.state.counters.compiled
        trainer = Trainer(run, directory, saved.tokenizer, saved.state.counters.threads, ranks)
        go_on(trainer, saved, changes, accept_changed_data)
    else:
        trainer = Trainer(run, directory, ranks=ranks)
    if run.train.compile == "auto" and trainer.earlier_report is None:
        print(choose(trainer, compiled, may_compile), file=sys.stderr)
    return trainer


def _both_splits(data: PreparedData) -> PreparedData:
    """The data with the splits that training reads tokenized."""
    data.split("train")
    data.split("validation")
    return data


class Trainer:
    """One run in one process: the model and everything that changes while it is trained.

    tokenizer: that of a run that is resumed, instead of the configured one. threads: what such a run computed with, for
    one that configures no number. ranks: this process among those that train the model together. changes: of the run's
    configuration. earlier_report: what it ended with, if there is nothing left to do.
    """

    def __init__(
        self,
        run: RunConfig,
        directory: RunDirectory,
        tokenizer: Tokenizer | None = None,
        threads: int | None = None,
        ranks: Ranks = ALONE,
    ):
        self.ranks = ranks
        self.config = config = run.train
        self.directory = directory
        self.stop = StopOnSignal()
        self.device = ranks.device(config.device)
        rows = ranks.rows(config.batch_size)
        local_batch_size = config.batch_size // ranks.count
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dtype = resolve_precision(config.precision, self.device)
        self.data = ranks.in_turn(lambda: _both_splits(PreparedData(run.data, tokenizer)))
        model_config = run.model.with_vocabulary(self.data.tokenizer.vocabulary_size)
        self.run = run.model_copy(update={"model": model_config})

        torch.manual_seed(config.seed)
        self.model: Any = build_model(model_config).to(self.device)
        self.loss: nn.Module = TrainingLoss(self.model)
        if config.compile is True:
            compile_loss(self.loss, run, self.device)
        self.carried = CarriedState(self.model, config, local_batch_size, self.device)
        self.together = work_together(config.parallel, self.model, self.loss, ranks, self.dtype)
        self.loss = self.together.loss
        self.parameters: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        self.windows = self._windows(model_config.context_length, rows)
        steps_per_epoch = max(1, self.windows.batches_per_epoch // config.accumulation)
        steps = config.steps or max(1, round(config.epochs * steps_per_epoch))
        self.tokens_per_step = model_config.context_length * config.batch_size * config.accumulation

        self.optimizer = build("optimizer", config.optimizer, list(self.parameters.items()), config.lr)
        self.schedule = build("schedule", config.schedule, config.lr, steps)
        averaging = config.weight_average
        self.average = None if averaging is None else WeightAverage(averaging, self.parameters)
        # The small gradients of float16 would vanish without it.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if threads is not None and threads * ranks.local_count > available_processors():
            threads = None  # the run comes from a larger machine, or from fewer processes
        positions = local_batch_size * model_config.context_length
        background, saves_together = config.background_saves, self.together.saves_together
        if background and saves_together:
            raise ConfigurationError(
                "train.background_saves=true does not go with train.parallel=fsdp, whose processes write their shards "
                "together; leave it null"
            )
        automatic = self.device.type != "cpu" and not saves_together
        self.writer = CheckpointWriter(automatic if background is None else background)
        self.counters = Counters.start(steps, use_threads(config.threads or threads, self.model, positions))
        self.counters.compiled = config.compile is True
        self.changes: Changes = {}
        self.earlier_report: Report | None = None
        self.on_validation: OnValidation = lambda step, steps, result: None
        self.records = RunRecords([build("logger", each) for each in config.loggers])
        self.parts = parts_of(self.model) if config.log_gradient_norms else None
        self.part_norms: PartNorms | None = None
        self.draw_apart(0)

    def draw_apart(self, step: int) -> None:
        """Let this process draw other random numbers, for dropout, than the first, whose generator is what is saved.

        Done whenever that is saved, so that a run that is resumed by as many processes draws as if it had gone on.
        """
        if not self.ranks.is_first:
            torch.manual_seed((self.config.seed * 1_000_003 + self.ranks.rank * 65_537 + step) % (1 << 63))

    def _windows(self, context_length: int, rows: slice = slice(None)) -> TrainingWindows:
        """The windows of the run's order; rows: those of every batch."""
        train, config, carried = self.data.split("train"), self.config, self.carried
        sizes = (context_length, config.batch_size)
        if carried.contiguous:
            whole = carried.mean_only
            return ConsecutiveWindows(
                train.tokens, train.document_starts, *sizes, rows, carried.isolated, whole, train.counts
            )
        options = (*sizes, config.seed, rows, train.document_starts if carried.isolated else None, train.counts)
        if config.order == "documents" or (config.order is None and train.counts is not None):
            return DocumentWindows(train.tokens, train.document_starts, *options)
        order = ShuffledWindows if config.order == "shuffled" else RandomWindows
        return order(train.tokens, *options)

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
        best_is_missing = counters.best_step == counters.step != self.directory.step_of_best()
        if self.ranks.is_first:
            self.directory.begin(self.run, counters.metrics_size)
            self.records.begin(self.directory.metrics, LoggedRun(path, self.run.model_dump(mode="json"), counters.step))
        self.ranks.wait()
        if self.changes:
            self.records.write(event="changes", step=counters.step, fields=self.changes)
        if best_is_missing:
            save_best(self)
        if self.ranks.is_first and counters.step and (self._save_due() or self._due(self.config.validate_every)):
            keep_last(self, counters.step)  # as it should have been when it was saved
        log = RunLog(self.records, counters, self.tokens_per_step)
        try:
            with self.stop:
                with log:
                    self._train(log)
                    self.writer.wait()
                return TrainingResult(path, counters.step, self.steps, report=self._report())
        except Stopped as stopped:
            save_last(self)
            self.writer.wait()
            print(
                f"Stopped by {stopped} at step {counters.step:,} of {self.steps:,} and saved. "
                f"Go on with: wavelet train --resume {path}",
                file=sys.stderr,
            )
            return TrainingResult(path, counters.step, self.steps, stopped_by=str(stopped))
        finally:
            self.writer.close()

    def _train(self, log: RunLog) -> None:
        config, counters = self.config, self.counters
        self.loss.train()
        while True:
            if counters.step > counters.validated_step and self._due(config.validate_every):
                self._validate(log)
                log.restart_clock()
            elif counters.step and self._save_due():
                save_last(self, keep=True)
            self._stop_if_asked()
            self.writer.check()
            if counters.step >= self.steps:
                return
            lr = self.schedule(counters.step)
            loss, gradient_norm = self.take_step(lr)
            counters.step += 1
            counters.tokens += self.tokens_per_step
            if math.isfinite(loss):
                counters.loss_sum += loss
                counters.loss_steps += 1
            log.stepped(self.tokens_per_step, f"loss {loss:.3f}")
            if self._due(config.log_every):
                log.step(lr, gradient_norm, self.part_norms)

    def _stop_if_asked(self) -> None:
        """Raise Stopped, in all processes after the same step, if one of them has been asked to stop."""
        name = self.stop.signal_name
        number = self.ranks.largest(signal.Signals[name] if name else 0)
        if number:
            raise Stopped(signal.Signals(number).name)

    def _due(self, every: int, steps_ahead: int = 0) -> bool:
        step = self.counters.step + steps_ahead
        return step % every == 0 or step == self.steps

    def _save_due(self) -> bool:
        """Not between skipped steps: the weights may be what is wrong."""
        every = self.config.checkpoint_every
        return every is not None and self._due(every) and not self.counters.skipped_in_row

    def take_step(self, lr: float) -> tuple[float, float]:
        """One optimizer step; returns the loss in nats per token and the norm of the gradient before clipping.

        Where one of them is not finite, only the place in the text moves on, and the step is counted as skipped.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        batches = [next(self.windows) for _ in range(self.config.accumulation)]
        random = self.random_states()
        sum_of_losses = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches, start=1):
            with self.together.accumulating(more=number < len(batches)):
                part = self.loss_of(batch, self.loss) / self.config.accumulation
                self.scaler.scale(part).backward()
            sum_of_losses += part.detach()
        self.part_norms = None
        loss, norm = self.ranks.mean(sum_of_losses).item(), math.nan
        if math.isfinite(loss):
            self.scaler.unscale_(self.optimizer)
            if self.parts is not None and self._due(self.config.log_every, steps_ahead=1):
                self.part_norms = gradient_norms(self.parts)
            norm = self.together.clip(list(self.parameters.values()), self.config.gradient_clipping)
            if math.isfinite(norm) or self.scaler.is_enabled():
                self.scaler.step(self.optimizer)
                self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        # A loss is scaled until its gradients overflow: that is the scaler's way, until there is nothing left to lower.
        lowered = math.isfinite(loss) and self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if self.average is not None and math.isfinite(norm):
            self.average.update()
        if math.isfinite(norm) or lowered:
            self.counters.skipped_in_row = 0
        else:
            self._skip(batches, random, "gradient" if math.isfinite(loss) else "loss", lr)
        return loss, norm

    def loss_of(self, batch: Windows, loss: Callable[..., Tensor]) -> Tensor:
        """The loss of a batch in the precision of the run; what is carried from batch to batch moves on."""
        inputs, targets = batch.inputs.to(self.device), batch.targets.to(self.device)
        with autocast(self.device, self.dtype):
            return loss(inputs, targets, self.carried.before(batch))

    def _skip(self, batches: list[Windows], random: dict[str, Tensor], what: str, lr: float) -> None:
        """Count a step that is skipped. Raises DivergenceError if it is one too many in a row."""
        counters = self.counters
        counters.skipped += 1
        counters.skipped_in_row += 1
        self.carried.forget()
        if counters.skipped_in_row >= self.config.most_skipped:
            self.set_random_states(random)
            losses = [lambda batch=batch: self.loss_of(batch, self.together.own_loss) for batch in batches]
            first = first_not_finite(self.model, losses, self.ranks)
            raise DivergenceError(
                f"training has diverged: the {what} was not finite at step {counters.step + 1:,} (learning rate "
                f"{lr:g}), the {counters.skipped_in_row}. step in a row that had to be skipped; the first that is not "
                f"finite there is {first}. {self._remedy()}"
            )

    def _remedy(self) -> str:
        last = self.directory.last
        saved = f"{last} is the checkpoint before" if last.exists() else "No checkpoint had been saved yet"
        return f"{saved}. Lower train.lr, lengthen train.schedule.warmup or lower train.gradient_clipping"

    def _validate(self, log: RunLog) -> None:
        """Evaluate, write a line of metrics, save `last/`, and `best/` if it is; with an average of the weights, that.

        `last/` is first: should `best/` not come to be, it is made of it when the run is resumed.
        """
        counters, started = self.counters, time.monotonic()
        split = self.data.split("validation")
        with self.averaged():
            scores = score_text(
                self.together.whole_model(self.model, self.run.model),
                split,
                self.data.tokenizer,
                batch_size=self.config.batch_size,
                token_limit=self.config.validation_tokens,
                dtype=self.dtype,
                on_batch=self._scored,
                ranks=self.ranks,
            )
        result = scores.total
        if not math.isfinite(result.nats):
            raise DivergenceError(
                f"training has diverged: the validation loss became {result.nats} after {counters.step:,} steps. "
                f"{self._remedy()}"
            )
        seconds = time.monotonic() - started
        counters.validated_step = counters.step
        best = counters.best_nats is None or result.nats_per_token < counters.best_nats
        if best:
            counters.best_nats, counters.best_step = result.nats_per_token, counters.step
        sources = scores.by_source(split)
        log.validation(result, seconds, sources)
        save_last(self, keep=True)
        if best:
            save_best(self)
        log.validated(result, best, sources)
        self.on_validation(counters.step, self.steps, result)

    def _scored(self, tokens: int) -> None:
        if self.ranks.count == 1:  # several have to stop at the same place
            self.stop.check()

    def _report(self) -> Report:
        """Evaluate the best checkpoint on the whole validation split."""
        self.ranks.wait()  # until the first has written it
        model = load_checkpoint(self.directory.best, device=self.device)
        tokens = len(self.data.split("validation").tokens) - 1
        with Progress("evaluating the best checkpoint", tokens, " tokens") as progress:

            def on_batch(scored: int) -> None:
                progress.advance(scored * self.ranks.count)
                self._scored(scored)

            report = make_report(model, self.data, self.config, self.dtype, on_batch, self.ranks)
        self.records.write(event="report", step=self.counters.step, **report.as_dict())
        return report

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are evaluated and kept in `best/`."""
        return nullcontext() if self.average is None else self.average.applied()

    def state_tensors(self) -> dict[str, Tensor]:
        """All tensors besides the weights that decide how the run goes on, by name, on any device."""
        return {
            **optimizer_tensors(self.optimizer, self.parameters),
            **({} if self.average is None else self.average.tensors()),
            **{f"windows.{name}": tensor for name, tensor in self.windows.state_dict().items()},
            **{f"carried.{name}": tensor for name, tensor in self.carried.tensors().items()},
            **self.random_states(),
        }

    def random_states(self) -> dict[str, Tensor]:
        states = {"random.cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            states[f"random.{self.device.type}"] = torch.get_device_module(self.device).get_rng_state(self.device)
        return states

    def set_random_states(self, states: Mapping[str, Tensor]) -> None:
        for name, state in states.items():
            if name == "random.cpu":
                torch.set_rng_state(state)
            else:
                torch.get_device_module(self.device).set_rng_state(state, self.device)
