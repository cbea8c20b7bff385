"""The arms of a comparison, ready to be trained: one vocabulary, equal threads, matched sizes."""

from __future__ import annotations

from typing import Any

import torch

from wavelet_core.config import ConfigurationError, parse
from wavelet_core.language_model import build_model
from wavelet_core.parameter_counts import count_parameters
from wavelet_core.threads import available_processors
from wavelet_train.comparison.spec import Comparison, Match, run_of
from wavelet_train.data import DataConfig, PreparedData
from wavelet_train.run_config import RunConfig, run_config

# The widest that `fit` looks for, in multiples.
MOST_MULTIPLES = 4096


def prepare_arms(comparison: Comparison, jobs: int) -> dict[str, RunConfig]:
    """The configuration of every arm, with the vocabulary of the tokenizer, which is learnt where it has to be.

    jobs: runs side by side, which share the processors where `train.threads` is not given. Steps are compiled only
    where `train.compile` is true: what a run would choose for itself is not what was measured.

    Raises ConfigurationError for arms that do not fit, or whose number of parameters does not match.
    """
    runs = {name: run_of(comparison, name) for name in comparison.arms}
    data = PreparedData(next(iter(runs.values())).data)
    data.split("train")
    data.split("validation")
    threads = max(1, available_processors() // jobs)
    return {
        name: _resolved(comparison, name, run, data.tokenizer.vocabulary_size, threads) for name, run in runs.items()
    }


def with_own_data(comparison: Comparison, arms: dict[str, RunConfig]) -> dict[str, dict[str, RunConfig]]:
    """The configurations of the arms for every budget that has data of its own, with the vocabulary of that.

    Raises ConfigurationError for data that cannot be used.
    """
    return {
        budget.name: _with_data(arms, budget.data, f"budget {budget.name}: data")
        for budget in comparison.budgets
        if budget.data is not None
    }


def _with_data(arms: dict[str, RunConfig], data: dict[str, Any], where: str) -> dict[str, RunConfig]:
    config = parse(DataConfig, data, where)
    prepared = PreparedData(config)
    prepared.split("train")
    prepared.split("validation")
    size = prepared.tokenizer.vocabulary_size
    return {
        name: run.model_copy(update={"data": config, "model": run.model.model_copy(update={"vocabulary_size": size})})
        for name, run in arms.items()
    }


def _resolved(comparison: Comparison, name: str, run: RunConfig, vocabulary: int, threads: int) -> RunConfig:
    train = run.train.model_copy(update={"threads": run.train.threads or threads, "compile": run.train.compile is True})
    run = run.model_copy(update={"model": run.model.with_vocabulary(vocabulary), "train": train})
    match, field = comparison.match, comparison.arms[name].fit
    if match is None:
        return run
    if field is not None:
        run = _fitted(run, field, match, f"arms.{name}.fit")
    found = parameters_of(run)
    if abs(found - match.parameters) > match.tolerance * match.parameters:
        remedy = "name a field to vary with `fit`, or change its sizes" if field is None else "widen match.tolerance"
        raise ConfigurationError(
            f"arms.{name} has {found:,} parameters, not {match.parameters:,} within {match.tolerance:.0%}: {remedy}"
        )
    return run


def _fitted(run: RunConfig, field: str, match: Match, where: str) -> RunConfig:
    """The run whose field is the multiple that comes nearest to the number of parameters; it grows with the field."""
    best: tuple[int, RunConfig] | None = None
    problem = "none was tried"
    for count in range(1, MOST_MULTIPLES):
        value = f"{field}={count * match.multiple}"
        try:
            candidate = run_config(run.model_dump(mode="json"), [value], where)
            found = parameters_of(candidate)
        except ConfigurationError as error:  # a width that heads do not divide, say
            problem = str(error).splitlines()[0]
            continue
        distance = abs(found - match.parameters)
        if best is None or distance < best[0]:
            best = distance, candidate
        if found > match.parameters:
            break
    if best is None:
        raise ConfigurationError(f"{where}: no multiple of {match.multiple} fits {field}: {problem}")
    return best[1]


def parameters_of(run: RunConfig) -> int:
    """How many parameters the model of a run has, which is built without memory for them."""
    with torch.device("meta"):
        return count_parameters(build_model(run.model))
