"""The configuration reference, docs/configuration.md: every field and every key of the original, from the code."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wavelet_cli import PACKAGES, PLUGINS
from wavelet_cli.seed.configuration import REQUIRED, SEED_KEYS, SeedKey
from wavelet_cli.seed.recipe import RECIPE_KEYS
from wavelet_core.config import ComponentConfig, ComponentOf, ModelConfig
from wavelet_core.generation.settings import GenerationSettings, LookaheadSettings
from wavelet_core.registry import KINDS, registry
from wavelet_train.data import DataConfig
from wavelet_train.run_config import RunConfig, TrainConfig

INTRODUCTION = """\
# Configuration reference

This page is made from the code by `wavelet config reference`; edit the descriptions there.

A configuration is one YAML or JSON file with the sections `model`, `data` and `train`. A field that is left out has its
default; an unknown field is an error that names the nearest known one. `--set FIELD=VALUE` overrides any field on the
command line, with a dotted path and a YAML value: `--set train.lr=0.02 --set model.memories.0.expansion=8`.

- Commands that take a configuration take the name of a preset, a file, a checkpoint's `config.json`, or the original's.
- `wavelet config list` lists the presets, `wavelet config show demo` prints one with every field,
  `wavelet config show demo --parameters` counts its parameters.
- `wavelet config schema` prints a JSON Schema, plugins included, for completion and checks in an editor.
- A *component* is chosen by its `kind` and brings fields of its own: `mixer: {kind: gated_spectral, rank: 8}`, or only
  its name, `transform: identity`, for its defaults. A plugin's components are configured in the same way.

Contents: [sections](#sections), [components](#components), [generation settings](#generation-settings),
[keys of the original](#keys-of-the-original-configuration).
"""

SEED_INTRODUCTION = """\
## Keys of the original configuration

The research code keeps one flat `config.json`. Given as a configuration it is translated, as by `wavelet import` for a
checkpoint; `wavelet export --format seed` goes back. "Absent" is what a file without the key means; "default" is what
ours means without the field. Names like `model.memories[mlp].expansion` stand for the field of that entry of the list.
Where a file does not say whether an option is on and the tensors of a checkpoint do, the import believes the tensors.
What a file names and nothing here corresponds to, such as a data set that is not known, is refused with the `--set`
that says what to take instead; other keys that are switched on and not listed are named in a note and left out.
"""

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("Top level", RunConfig),
    ("`model`", ModelConfig),
    ("`data`", DataConfig),
    ("`train`", TrainConfig),
)

FIELD_COLUMNS = ("field", "type", "default", "meaning")
SEED_COLUMNS = ("original key", "absent", "ours", "default", "meaning")
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}
TYPE_NAMES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def configuration_reference() -> str:
    """The page as Markdown. Only the components of our own packages are on it, so that it is the same everywhere."""
    parts = [INTRODUCTION, "## Sections\n"]
    for title, section in SECTIONS:
        parts += [f"### {title}\n", f"{_summary(section)}\n", _field_table(section)]
    parts.append("## Components\n")
    for kind in KINDS:
        components = [named for named in _own_components(kind) if named[1].Config is not ModelConfig]  # type: ignore[attr-defined]
        if components:
            parts.append(f"### {kind.capitalize()}\n")
        for name, component in components:
            package = registry.owner(kind, name).package
            parts += [f"#### {kind} `{name}`\n", f"{_summary(component)} ({package})\n"]
            parts.append(_field_table(component.Config, ModelConfig.model_fields if kind == "model" else ()))  # type: ignore[attr-defined]
    parts += [
        "## Generation settings\n",
        "`wavelet_core.generation.GenerationSettings`, which `wavelet generate` fills in from its options.\n",
        _field_table(GenerationSettings),
        "`lookahead`:\n",
        _field_table(LookaheadSettings),
        SEED_INTRODUCTION,
        _table(SEED_COLUMNS, [_seed_row(key) for key in (*SEED_KEYS, *RECIPE_KEYS)]),
    ]
    return "\n".join(part for part in parts if part)


def _own_components(kind: str) -> Iterator[tuple[str, type]]:
    for name in registry.names(kind):
        if registry.owner(kind, name).package in PACKAGES + PLUGINS:
            yield name, registry.get(kind, name)


def _summary(described: type) -> str:
    """The first paragraph of a docstring, without its shapes and its citation of the specification."""
    paragraph = inspect.cleandoc(described.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    uncited = re.sub(r"docs/model\.md[^;)]*(; )?", "", paragraph.split(" Shapes: ")[0])
    return uncited.replace(" ()", "")


def _field_table(section: type[BaseModel], described: Collection[str] = ()) -> str:
    """The fields of a section but for those described elsewhere."""
    rows = [
        (f"`{name}`", _limited_type(field.annotation, field.metadata), _default(field), field.description or "")
        for name, field in section.model_fields.items()
        if name != "kind" and name not in described
    ]
    return _table(FIELD_COLUMNS, rows) if rows else "It has no fields.\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return f"`{_value(default)}`" if not isinstance(default, BaseModel) else "its defaults"


def _value(value: Any) -> str:
    """A value as it stands in a YAML file; a component by its name where nothing but that is given."""
    if isinstance(value, ComponentConfig):
        changed = value.model_dump(exclude_defaults=True)
        return _value({"kind": value.kind} | changed)
    if isinstance(value, dict):
        if set(value) == {"kind"}:
            return str(value["kind"])
        return "{" + ", ".join(f"{key}: {_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return value if isinstance(value, str) and value else json.dumps(value)


def _limited_type(annotation: Any, metadata: Sequence[Any]) -> str:
    """A type with its limits: "integer, ≥ 1"."""
    for mark in metadata:
        if isinstance(mark, ComponentOf):
            return f"{mark.kind} component"
    return ", ".join([_type(annotation), *filter(None, map(_limit, metadata))])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _limited_type(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        names = [_type(argument) for argument in arguments if argument is not type(None)]
        return " or ".join([*names, *(["null"] if type(None) in arguments else [])])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}s"
    if origin is dict:
        return f"mapping from {_type(arguments[0])} to {_type(arguments[1])}"
    if annotation in TYPE_NAMES:
        return TYPE_NAMES[annotation]
    if isinstance(annotation, type) and issubclass(annotation, ComponentConfig):
        return f"`{annotation.model_fields['kind'].default}` configuration"
    return "section"


def _limit(mark: Any) -> str | None:
    """One limit of a field in words, or None for metadata that is no limit."""
    if isinstance(mark, FieldInfo):
        return ", ".join(filter(None, map(_limit, mark.metadata)))
    for attribute, sign in LIMITS.items():
        if hasattr(mark, attribute):
            return f"{sign} {getattr(mark, attribute):g}"
    return None


def _seed_row(key: SeedKey) -> tuple[str, str, str, str, str]:
    description, default = _at(key.place)
    meaning = f"{description} ({key.note})" if key.note else description
    absent = "required" if key.name in REQUIRED else f"`{_value(key.absent)}`"
    return f"`{key.name}`", absent, f"`{key.place}`", default, meaning


def _at(place: str) -> tuple[str, str]:
    """Description and default of what `place` names: a field of a section, or of a component in it."""
    section, name, *rest = place.split(".")
    if section != "model" and rest in ([], ["kind"]):
        return _described(dict(SECTIONS)[f"`{section}`"], name)
    if entry := re.fullmatch(r"memories\[(\w+)\]", name):
        component = registry.get("memory", entry[1])
        if not rest:
            present = entry[1] in [memory.kind for memory in ModelConfig().memories]
            return _summary(component), "present" if present else "not present"
        return _described(component.Config, rest[0])  # type: ignore[attr-defined]
    if name == "kind":
        return "the model family", f"`{ModelConfig().kind}`"
    if not rest or rest == ["kind"]:
        return _described(registry.get("model", "multinodal").Config, name)  # type: ignore[attr-defined]
    for _, component in _own_components(name):
        if rest[0] in component.Config.model_fields:  # type: ignore[attr-defined]
            return _described(component.Config, rest[0])  # type: ignore[attr-defined]
    raise ValueError(f"{place} names no field of a {name}")


def _described(section: type[BaseModel], name: str) -> tuple[str, str]:
    field = section.model_fields[name]
    return field.description or "", _default(field)
