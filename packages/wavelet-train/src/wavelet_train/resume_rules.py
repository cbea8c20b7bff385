"""What of a run's configuration may change when the run is resumed.

A path stands for everything below it, and the longest one counts: `train.optimizer` may change, but not its `kind`.
Whether `data.dataset` is the same is for its fingerprint to say: a folder that was only moved may have another path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wavelet_core.config import ConfigurationError
from wavelet_train.run_config import RunConfig
from wavelet_train.training_state import Counters

MAY_CHANGE = (
    "description",
    "model.gradient_checkpointing",
    "model.embedding_dropout",
    "model.head_dropout",
    "data.dataset",
    "data.cache_directory",
    "data.threads",
    "data.canonical_words",
    "train.device",
    "train.threads",
    "train.precision",
    "train.compile",
    "train.parallel",
    "train.epochs",
    "train.steps",
    "train.batch_size",
    "train.accumulation",
    "train.lr",
    "train.optimizer",
    "train.schedule",
    "train.gradient_clipping",
    "train.most_skipped",
    "train.weight_average",
    "train.log_every",
    "train.log_gradient_norms",
    "train.loggers",
    "train.validate_every",
    "train.validation_tokens",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.background_saves",
    "train.final_stride",
    "train.compare_with_xz",
)

# What may not, and why.
FIXED = {
    "model": "the weights were trained in the model as it was",
    "data.tokenizer": "the weights were trained on the ids of the run's own tokenizer",
    "train.seed": "it decided the initial weights; the random generators go on from where they are",
    "train.order": "the place in the text is one of the run's own order",
    "train.reset_at_documents": "what is carried from window to window was made with it as it was",
    "train.optimizer.kind": "the state kept of every parameter is the other optimizer's",
    "train.optimizer.initial_accumulator": "the sums have long started",
    "train.optimizer.matrices": "the state kept of a parameter is that of what moved it, Muon or AdamW",
    "train.optimizer.adamw": "the state kept of a parameter is that of what moved it, Muon or AdamW",
}

# The path under which a changed text stands among the changes.
TEXT = "data.fingerprint"
# What the report on a finished run depends on, besides its weights.
REPORT = (TEXT, "data.canonical_words", "train.precision", "train.final_stride", "train.compare_with_xz")
# What validation losses depend on, so that those before and after a change of it do not compare.
SCORE = (TEXT, "train.validation_tokens")
# What decides the learning rate of a step.
RATE = (TEXT, "train.epochs", "train.steps", "train.batch_size", "train.accumulation", "train.lr", "train.schedule")

Changes = dict[str, tuple[Any, Any]]


def changes_between(before: RunConfig, now: RunConfig) -> Changes:
    """The fields that differ, by their paths: the value before (None where there was no such field) and now."""
    old, new = (dict(leaves("", run.model_dump(mode="json", exclude={"description"}))) for run in (before, now))
    return {path: (old.get(path), new.get(path)) for path in {**old, **new} if old.get(path) != new.get(path)}


def check_changes(changes: Changes) -> None:
    """Raise ConfigurationError that names every field that may not change, with both values and the reason."""
    refused = [
        f"{path} is {now!r}, but the run was trained with {before!r}: {reason}"
        for path, (before, now) in changes.items()
        if (reason := _reason(path)) is not None
    ]
    if refused:
        raise ConfigurationError(
            "\n".join(refused) + "\nLeave these as they were, or start a new run in another directory"
        )


def explain(changes: Changes, before: Counters, steps: int, rates: tuple[float, float] | None) -> str:
    """What the changes do, in lines for people.

    before: where the run stands, as it was configured. steps: how many it is now to do. rates: the learning rate of the
    next step before and now, if there is one.
    """
    fields = ", ".join(f"{path} from {old!r} to {new!r}" for path, (old, new) in changes.items())
    lines = [f"Going on after step {before.step:,} with changes: {fields}"]
    if steps != before.steps:
        lines.append(
            f"The run now has {steps:,} steps in all, {steps - before.step:,} of them left; it had {before.steps:,}"
        )
    if rates is not None and abs(rates[1] - rates[0]) > 0.01 * max(rates):
        causes = " and ".join(touched(changes, RATE))
        lines.append(
            f"The learning rate jumps at step {before.step + 1:,}: it is {rates[1]:.4g}, and would have been "
            f"{rates[0]:.4g} before {causes} changed"
        )
    if touched(changes, SCORE):
        lines.append("Validation losses do not compare with those before; the best checkpoint is chosen anew")
    return "\n".join(lines)


def touched(changes: Changes, paths: tuple[str, ...]) -> list[str]:
    """The changed fields among some paths and what is below them."""
    return [path for path in changes if any(_is_within(path, whole) for whole in paths)]


def _reason(path: str) -> str | None:
    """Why a field may not change, or None."""
    rule = max((rule for rule in (*MAY_CHANGE, *FIXED) if _is_within(path, rule)), key=len)
    return FIXED.get(rule)


def _is_within(path: str, whole: str) -> bool:
    return path == whole or path.startswith(f"{whole}.")


def leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values in nested mappings and lists, with dotted paths as `--set` takes them."""
    if isinstance(value, dict | list) and value:
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(f"{path}.{key}" if path else str(key), entry)
    else:
        yield path, value
