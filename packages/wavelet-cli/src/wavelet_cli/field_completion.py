"""Completion of `--set FIELD=VALUE`: from the configuration that it changes, with the components of all plugins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from click.shell_completion import CompletionItem
from pydantic import BaseModel

from wavelet_cli.run_configuration import load_configuration
from wavelet_core.config import ComponentOf
from wavelet_core.registry import KINDS, registry
from wavelet_train.run_config import RunConfig


def complete_field(source: str | Path | None, overrides: Sequence[str], incomplete: str) -> list[CompletionItem[Any]]:
    """What the beginning of FIELD=VALUE can go on with. A configuration that does not load counts as the defaults."""
    try:
        configuration = load_configuration(source, overrides) if source else RunConfig()
    except (ValueError, OSError):
        configuration = RunConfig()
    path, equals, value = incomplete.partition("=")
    *parents, name = path.split(".")
    section: Any = configuration
    try:
        for key in parents:
            section = section[int(key)] if isinstance(section, list) else getattr(section, key)
        if equals:
            return [
                CompletionItem(f"{path}={choice}") for choice in _choices(section, name) if choice.startswith(value)
            ]
    except (AttributeError, IndexError, KeyError, ValueError):
        return []
    prefix = "".join(f"{key}." for key in parents)
    return [
        CompletionItem(f"{prefix}{key}{'.' if _has_fields(child) else '='}", help=description)
        for key, child, description in _members(section)
        if key.startswith(name)
    ]


def _members(section: Any) -> list[tuple[str, Any, str | None]]:
    """Name, value and description of everything in a section or a list of components."""
    if isinstance(section, list):
        return [(str(index), entry, getattr(entry, "kind", None)) for index, entry in enumerate(section)]
    fields = type(section).model_fields if isinstance(section, BaseModel) else {}
    return [(name, getattr(section, name), field.description) for name, field in fields.items()]


def _has_fields(value: Any) -> bool:
    return isinstance(value, BaseModel) or (isinstance(value, list) and any(map(_has_fields, value)))


def _choices(section: Any, name: str) -> list[str]:
    """The values of a field that has but a few."""
    if name == "kind":
        return next(registry.names(kind) for kind in KINDS if _is_of(section, kind))
    field = type(section).model_fields[name]
    return _words(field.annotation, field.metadata)


def _is_of(config: Any, kind: str) -> bool:
    name = config.kind
    return name in registry.names(kind) and registry.get(kind, name).Config is type(config)  # type: ignore[attr-defined]


def _words(annotation: Any, metadata: Sequence[Any] = ()) -> list[str]:
    """The words that a type allows: names of components, those of a Literal, true and false, null."""
    for mark in metadata:
        if isinstance(mark, ComponentOf):
            return registry.names(mark.kind)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is bool:
        return ["true", "false"]
    if annotation is type(None):
        return ["null"]
    if origin is Literal:
        return [str(value) for value in arguments]
    if origin is Annotated:
        return _words(arguments[0], arguments[1:])
    return [word for argument in arguments for word in _words(argument)] if origin in (Union, UnionType) else []
