"""Going on where a run was stopped: with its own tokenizer, on its own text, and with changes that it can take."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from wavelet_core.config import ConfigurationError
from wavelet_core.registry import build
from wavelet_train.report import Report
from wavelet_train.resume_rules import (
    REPORT,
    SCORE,
    TEXT,
    Changes,
    changes_between,
    check_changes,
    explain,
    touched,
)
from wavelet_train.run_config import RunConfig
from wavelet_train.run_directory import SavedRun
from wavelet_train.saving import restore
from wavelet_train.training_state import Counters

if TYPE_CHECKING:
    from wavelet_train.trainer import Trainer


def changes_to(saved: SavedRun, run: RunConfig) -> Changes:
    """What a configuration changes of the run's own. Raises ConfigurationError for what may not change."""
    model = run.model.with_vocabulary(saved.tokenizer.vocabulary_size)
    changes = changes_between(saved.config, run.model_copy(update={"model": model}))
    check_changes(changes)
    return changes


def go_on(trainer: Trainer, saved: SavedRun, changes: Changes, accept_changed_data: bool) -> None:
    """Put a new trainer where the run was stopped, and say on stderr what the changes do.

    Raises CheckpointError that lists by name what does not fit, and ConfigurationError for a text that is not the
    run's, unless that is accepted, and for a change that the run cannot take.
    """
    before, now = saved.state.data, trainer.data.identity
    if now.fingerprint != before.fingerprint:
        if not accept_changed_data:
            raise ConfigurationError(
                "data.dataset: the text is not what the run was trained on: that was "
                f"{before.description} (fingerprint {before.fingerprint[:8]}), this is "
                f"{now.description} (fingerprint {now.fingerprint[:8]}). Put the text back, name its place with "
                "--set data.dataset, or go on with this one by --accept-changed-data"
            )
        changes = {**changes, TEXT: (before.fingerprint, now.fingerprint)}
    if trainer.carried.contiguous and "train.batch_size" in changes:
        raise ConfigurationError(
            f"train.batch_size is {trainer.config.batch_size}, but the model carries something from window to window "
            f"for each of the {changes['train.batch_size'][0]} that the run was trained with: leave it as it was"
        )
    restore(trainer, saved.state, restart_text=TEXT in changes)

    counters = saved.state.counters.model_copy(
        update={
            "steps": _steps(trainer, saved.state.counters),
            "threads": trainer.counters.threads,
            "compiled": trainer.counters.compiled,
        }
    )
    if touched(changes, SCORE):
        counters.best_nats = counters.best_step = None
    config = trainer.config
    trainer.changes, trainer.counters = changes, counters
    trainer.schedule = build("schedule", config.schedule, config.lr, counters.steps)
    if changes:
        print(explain(changes, saved.state.counters, counters.steps, _rates(trainer, saved)), file=sys.stderr)
    if counters.step == counters.steps and not touched(changes, REPORT):
        trainer.earlier_report = _report(trainer)


def _steps(trainer: Trainer, done: Counters) -> int:
    """All steps of the run: train.steps, or those done and as many as the tokens that are left of train.epochs need."""
    if trainer.config.steps is None:
        left = trainer.steps * trainer.tokens_per_step - done.tokens
        return done.step + max(0, round(left / trainer.tokens_per_step))
    if trainer.steps < done.step:
        raise ConfigurationError(
            f"train.steps={trainer.steps} is less than the {done.step} steps that the run has done already; name a "
            "larger number"
        )
    return trainer.steps


def _rates(trainer: Trainer, saved: SavedRun) -> tuple[float, float] | None:
    """The learning rate of the next step as the run was configured before, and as it is now."""
    step, before, config = trainer.counters.step, saved.state.counters, saved.config.train
    if step == trainer.steps:
        return None
    schedule = build("schedule", config.schedule, config.lr, before.steps)
    return schedule(min(step, before.steps - 1)), trainer.schedule(step)


def _report(trainer: Trainer) -> Report | None:
    """The report that the finished run wrote, where it is still whole."""
    for line in trainer.directory.events_after(trainer.counters.metrics_size):
        with suppress(ArithmeticError, KeyError, TypeError, ValueError):
            if line["event"] == "report" and line["step"] == trainer.counters.step:
                report = Report.from_dict(line)
                str(report)  # what cannot be shown is made again
                return report
    return None
