"""What `wavelet evaluate --probe` measures: how much a model recalls, for every combination of some settings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from wavelet_cli.output import titled
from wavelet_core.checkpoint import read_config
from wavelet_core.config import ConfigurationError, parse
from wavelet_core.messages import shortened
from wavelet_core.registry import build, nearest, registry
from wavelet_train.probes.figure import settings_label, varied_settings
from wavelet_train.probes.probe import Probe
from wavelet_train.search_space import split_list
from wavelet_train.tables import table

Settings = list[dict[str, Any]]


def probe_settings(arguments: Sequence[str]) -> Settings:
    """Every combination of the values in `FIELD=VALUE,VALUE,...` arguments.

    Raises ConfigurationError for what is no such argument, and fields that are given twice.
    """
    fields: dict[str, list[Any]] = {}
    for argument in arguments:
        where = f"--set {shortened(argument)}"
        field, equals, values = argument.partition("=")
        if not equals or not field.strip():
            raise ConfigurationError(f"{where}: expected a field and its values, as in pairs=4,16,64")
        if field.strip() in fields:
            raise ConfigurationError(f"{where}: the field is set more than once; give all values at once")
        try:
            fields[field.strip()] = [yaml.safe_load(value) for value in split_list(values)]
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigurationError(f"{where}: a value is not YAML") from None
    return [dict(zip(fields, values, strict=True)) for values in product(*fields.values())]


def make_probe(kind: str, settings: dict[str, Any], directory: Path, vocabulary_size: int) -> Probe:
    """A probe with these fields, and otherwise those that the checkpoint in a directory was trained on, if it was.

    Raises ConfigurationError for what is no probe, fields that do not fit, and ids that the model does not have.
    """
    known = [name for name in registry.names("dataset") if issubclass(registry.get("dataset", name), Probe)]
    if kind not in known:
        raise ConfigurationError(f"--probe {shortened(kind)}: unknown{nearest(kind, known)} Probes: {', '.join(known)}")
    config: Any = registry.get("dataset", kind).Config  # type: ignore[attr-defined]
    trained_on = (read_config(directory).get("data") or {}).get("dataset")
    if isinstance(trained_on, dict) and trained_on.get("kind") == kind:
        fields = trained_on
    else:
        default = config.model_fields["vocabulary_size"].default
        fields = {"kind": kind, "vocabulary_size": min(default, vocabulary_size)}
    probe: Probe = build("dataset", parse(config, {**fields, **settings}, "--set"))
    if probe.vocabulary_size > vocabulary_size:
        raise ConfigurationError(
            f"--set vocabulary_size={probe.vocabulary_size}: the model has {vocabulary_size} token ids; use no more"
        )
    return probe


def describe(report: dict[str, Any]) -> str:
    """Two tables: the accuracy for all settings, and by distance."""
    results = report["results"]
    varied = varied_settings(results)
    scores, by_distance = [], []
    for result in results:
        settings = [str(result["settings"][name]) for name in varied]
        answered = f"{result['accuracy']:.4f}", f"{result['nats_per_answer']:.4f}", result["answers"]
        scores.append([*settings, *answered])
        for entry in result["by_distance"]:
            distances = f"{entry['first']:,} to {entry['last']:,}"
            by_distance.append([*settings, distances, f"{entry['accuracy']:.4f}", entry["answers"]])
    first = table(scores, [*varied, "accuracy", "nats per answer", "answers"])
    second = table(by_distance, [*varied, "distance", "accuracy", "answers"])
    fixed = {name: value for name, value in results[0]["settings"].items() if name not in varied}
    title = ", ".join(filter(None, (f"{report['checkpoint']} on {report['probe']}", settings_label(fixed))))
    return "\n".join([titled(f"{title}\n{first}"), "", titled(f"By how many tokens back it stood\n{second}")])
