"""The page that `wavelet inspect` makes of a run and of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wavelet_core.checkpoint import load_checkpoint, read_config
from wavelet_core.config import ConfigurationError
from wavelet_core.diagnostics import Diagnostic, diagnose
from wavelet_core.messages import shortened
from wavelet_core.parameter_counts import count_parameters
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import Tokenizer, checkpoint_tokenizer
from wavelet_train.curves import add_curves
from wavelet_train.data import PreparedData
from wavelet_train.diagnostic_figures import add_diagnostics
from wavelet_train.page import Page
from wavelet_train.resume_rules import changes_between
from wavelet_train.run_config import RunConfig, load_run_config, run_config
from wavelet_train.run_directory import CONFIG_FILE, METRICS_FILE
from wavelet_train.run_history import RunHistory

# Positions of a text that a model is shown with, and up to how many its tokens can be read below a figure.
MOST_POSITIONS, LEGIBLE_TOKENS = 256, 48
VALIDATION_COLUMNS = ("step", "bits_per_byte", "nats_per_token", "perplexity_per_token", "perplexity_per_word")
# Lines of a table of events.
MOST_EVENTS = 30


def is_run(path: Path) -> bool:
    """Whether a directory is that of a run, however far it came."""
    return (path / METRICS_FILE).is_file()


def run_page(run: Path | None, checkpoint: Path | None, text: str | None = None, others: Sequence[Path] = ()) -> Page:
    """The page of a run, a checkpoint, or both.

    run: its directory, whose history is shown. checkpoint: whose model is shown while it reads a text. text: this one;
    None is the start of the validation split. others: runs that are laid over the first.

    Raises ConfigurationError where matplotlib is missing or a run to compare is none, and CheckpointError for a
    checkpoint that is damaged.
    """
    subject = run or checkpoint
    assert subject is not None
    shown = " and ".join([*(["training"] if run else []), *(["model"] if checkpoint else [])])
    page = Page(f"{subject.resolve().name}: {shown}")
    if run is not None and others:
        _add_comparison(page, [run, *others])
    if run is not None:
        _add_history(page, run)
    if checkpoint is not None:
        _add_model(page, checkpoint, text)
    return page


def _add_comparison(page: Page, runs: Sequence[Path]) -> None:
    for run in runs:
        if not is_run(run):
            raise ConfigurationError(f"{run} is not the directory of a run: it has no {METRICS_FILE}")
    names = _names(runs)
    page.add_heading("Comparison")
    add_curves(page, {name: RunHistory.read(run / METRICS_FILE) for name, run in zip(names, runs, strict=True)})
    configurations = [_configuration(run) for run in runs]
    if None in configurations:
        unread = ", ".join(name for name, each in zip(names, configurations, strict=True) if each is None)
        page.add_text(f"Configurations are not compared: that of {unread} cannot be read.")
        return
    rows = _differences([each for each in configurations if each is not None])
    if rows:
        page.add_table(rows, ("field", *names), caption="Fields of the configurations that differ")
    else:
        page.add_text("The configurations are the same.")


def _names(runs: Sequence[Path]) -> list[str]:
    """What to call runs: the ends of their paths, as long as needed to tell them apart."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _configuration(run: Path) -> RunConfig | None:
    with suppress(ConfigurationError, OSError):
        return load_run_config(run / CONFIG_FILE)
    return None


def _differences(runs: Sequence[RunConfig]) -> list[tuple[str, ...]]:
    first, *others = runs
    changes = [changes_between(first, other) for other in others]
    rows = []
    for path in dict.fromkeys(path for each in changes for path in each):
        before = next(each[path][0] for each in changes if path in each)
        values = [before, *(each[path][1] if path in each else before for each in changes)]
        rows.append((path, *map(_shown, values)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else shortened(str(value), 200)


def _add_history(page: Page, run: Path) -> None:
    history = RunHistory.read(run / METRICS_FILE)
    page.add_heading("Training")
    config = _configuration(run)
    rows: list[tuple[str, object]] = [("run", str(run)), ("recorded up to step", history.steps)]
    if config is not None:
        rows += [("description", config.description)] if config.description else []
        rows += [("steps", config.train.steps)] if config.train.steps else []
    scores = [score for score in history.column("bits_per_byte", "validation") if math.isfinite(score)]
    rows += [("best validation", f"{min(scores):.4f} bits per byte")] if scores else []
    page.add_table([(name, str(value)) for name, value in rows])
    if history.unreadable:
        page.add_text(f"{history.unreadable} lines of {METRICS_FILE} cannot be read and are left out.")
    if not history.train:
        page.add_text("No step is recorded yet.")
    add_curves(page, {run.resolve().name: history})
    if history.validation:
        _add_records(page, history.validation, VALIDATION_COLUMNS, "Validations")
    for report in history.report[-1:]:
        _add_report(page, report)
    if history.other:
        events = [
            (record["step"], record["event"], _shown({k: v for k, v in record.items() if k not in ("event", "step")}))
            for record in history.other[-MOST_EVENTS:]
        ]
        page.add_table(events, ("step", "event", "what"), caption="Other events")


def _add_records(page: Page, records: Sequence[Mapping[str, Any]], columns: Sequence[str], caption: str) -> None:
    kept = records[-MOST_EVENTS:]
    header = [name for name in columns if any(record.get(name) is not None for record in kept)]
    rows = [[_cell(record.get(name)) for name in header] for record in kept]
    page.add_table(rows, [name.replace("_", " ") for name in header], caption=caption)


def _cell(value: Any) -> object:
    if isinstance(value, float):
        return f"{value:,.4f}"
    return value if isinstance(value, int) else _shown(value)


def _add_report(page: Page, report: Mapping[str, Any]) -> None:
    values = {**report, **report["validation"]} if isinstance(report.get("validation"), dict) else dict(report)
    rows = [(name.replace("_", " "), _cell(value)) for name, value in values.items() if isinstance(value, int | float)]
    page.add_table(rows, ("measure", "value"), caption="Final report: the best checkpoint on the validation split")


def _add_model(page: Page, checkpoint: Path, text: str | None) -> None:
    model = load_checkpoint(checkpoint)
    config = read_config(checkpoint)
    page.add_heading("Model")
    rows = [
        ("checkpoint", str(checkpoint)),
        ("family", model.config.kind),
        ("parameters", f"{count_parameters(model):,}"),
    ]
    page.add_table([*rows, *([("step", f"{config['step']:,}")] if type(config.get("step")) is int else [])])
    length = min(model.config.context_length, MOST_POSITIONS)
    try:
        tokenizer = checkpoint_tokenizer(checkpoint, model.config.vocabulary)
        given = None if text is None else torch.tensor(tokenizer.encode(text)[:length], dtype=torch.long)
        tokens = _validation_tokens(config, tokenizer, length) if given is None else given
    except (ConfigurationError, CheckpointError, OSError) as error:
        if text is not None:
            raise
        page.add_text(f"There is no text for the model to read: {error}. Give one by --text.")
        return
    if not len(tokens):
        raise ConfigurationError("--text has no tokens; give a longer one")
    source = "the start of the validation split" if text is None else "the text that was given"
    found = diagnose(model, tokens)
    if not found:
        page.add_text("The parts of this model show nothing of themselves.")
        return
    page.add_text(f"What its parts show while the model reads {len(tokens):,} tokens: {source}.")
    page.add_text(f"“{shortened(tokenizer.decode(tokens.tolist()), 300)}”")
    if len(tokens) <= LEGIBLE_TOKENS:
        names = [_visible(tokenizer.decode([token])) for token in tokens.tolist()]
        found = [(place, _named(shown, names)) for place, shown in found]
    add_diagnostics(page, found)


def _visible(text: str) -> str:
    return "".join({"\n": "⏎", "\t": "⇥"}.get(each, each if each.isprintable() else "·") for each in text)


def _named(shown: Diagnostic, tokens: Sequence[str]) -> Diagnostic:
    """With the tokens below the positions."""
    if shown.axes[-1] != "position":
        return shown
    return replace(shown, ticks=(*shown.ticks[:-1], tokens))


def _validation_tokens(config: dict[str, Any], tokenizer: Tokenizer, length: int) -> torch.Tensor:
    data = run_config(dict(config), (), "the checkpoint's configuration").data
    return torch.tensor(PreparedData(data, tokenizer).split("validation").tokens[:length].tolist())
