"""What `wavelet evaluate --probe` measures: how much a model recalls, for every combination of some settings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wavelet_cli.output import titled
from wavelet_core.checkpoint import read_config
from wavelet_core.config import ConfigurationError, parse
from wavelet_core.messages import shortened
from wavelet_core.registry import build, nearest, registry
from wavelet_train.figures import WIDTH, figure, line_style, plain
from wavelet_train.probes.probe import Probe
from wavelet_train.search_space import split_list
from wavelet_train.tables import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    varied = _varied(results)
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
    title = ", ".join(filter(None, (f"{report['checkpoint']} on {report['probe']}", _label(fixed))))
    return "\n".join([titled(f"{title}\n{first}"), "", titled(f"By how many tokens back it stood\n{second}")])


def draw(report: dict[str, Any]) -> Figure:
    """The accuracy against the first setting that has several values, and against the distance.

    Raises ConfigurationError where matplotlib is not installed.
    """
    results = report["results"]
    varied = _varied(results)
    with figure(width=2 * WIDTH) as drawn:
        left, right = drawn.subplots(1, 2, sharey=True)
        if varied:
            lines: dict[str, list[tuple[str, float]]] = {}
            for result in results:
                across, *others = (result["settings"][name] for name in varied)
                label = _label(dict(zip(varied[1:], others, strict=True)))
                lines.setdefault(label, []).append((str(across), result["accuracy"]))
            for index, (label, points) in enumerate(lines.items()):
                left.plot(*zip(*points, strict=True), marker="o", markersize=4, label=plain(label), **line_style(index))
            left.set(xlabel=varied[0], ylabel="accuracy", ylim=(0, 1.02))
            if len(lines) > 1:
                left.legend()
        for index, result in enumerate(results):
            points = [((entry["first"] * entry["last"]) ** 0.5, entry["accuracy"]) for entry in result["by_distance"]]
            label = plain(_label({name: result["settings"][name] for name in varied}))
            right.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label, **line_style(index))
        right.set(xlabel="distance in tokens", xscale="log")
        if len(results) > 1:
            right.legend()
    return drawn


def _varied(results: Sequence[dict[str, Any]]) -> list[str]:
    """The settings that have several values."""
    return [name for name in results[0]["settings"] if len({str(each["settings"][name]) for each in results}) > 1]


def _label(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
