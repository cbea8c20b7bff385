"""Recipes: which matrices of a model get which format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from wavelet_core import ComponentConfig, ComponentOf, Section
from wavelet_core.config import parse
from wavelet_core.configuration_files import locate, read_file
from wavelet_core.messages import shown

VERSION = 1
PRESETS = Path(__file__).with_name("recipes")

SCALES = re.compile("(?P<first>[0-9]{1,4})(?P<dash>-)?(?P<last>(?<=-)[0-9]{1,4})?")

Format = Annotated[Any, ComponentOf("format")]


class Rule(Section):
    """A format for the matrices of some modules."""

    modules: str = Field(
        min_length=1,
        description="their names in the model; * stands for any characters, dots too, ? for one, [0-3] for a digit",
    )
    scales: str | None = Field(
        None,
        description="only matrices of these scales of the wavelet, 0 the coarsest: 2, 0-2, or 3- for 3 and finer; "
        "null for any matrix",
    )
    format: Format | None = Field(description="what they are stored in; null leaves them as they are")
    otherwise: Format | None = Field(
        None, description="what those are stored in that the format does not fit, as where a group does not divide"
    )
    optional: bool = Field(False, description="it is no mistake if the model has no such modules")

    @field_validator("scales", mode="before")
    @classmethod
    def _check_scales(cls, value: Any) -> Any:
        if value is None:
            return None
        text = str(value)
        found = SCALES.fullmatch(text)
        if found is None or int(found["last"] or found["first"]) < int(found["first"]):
            raise ValueError("must be one scale, a range such as 0-2, or 3- for 3 and finer")
        return text

    def matches(self, name: str) -> bool:
        """Whether the rule is for a module of this name."""
        return fnmatchcase(name, self.modules)

    def has_scale(self, scale: int | None) -> bool:
        """Whether the rule is for a matrix of this scale; None for one that belongs to no scale."""
        if self.scales is None:
            return True
        found = SCALES.fullmatch(self.scales)
        if scale is None or found is None or scale < int(found["first"]):
            return False
        last = found["last"] if found["dash"] else found["first"]
        return not last or scale <= int(last)


class Recipe(Section):
    """Rules, of which the first that is for a matrix decides on its format; what none is for is left as it is."""

    version: int = Field(VERSION, ge=1, description="of the rules' meaning")
    name: str = Field("custom", min_length=1, max_length=100, description="what the recipe is called")
    description: str = Field("", max_length=1000, description="what it is good for")
    rules: list[Rule] = Field(min_length=1, description="the first that is for a matrix decides")

    @model_validator(mode="before")
    @classmethod
    def _check_version(cls, data: Any) -> Any:
        version = data.get("version") if isinstance(data, Mapping) else None
        if type(version) is int and version > VERSION:
            raise ValueError(
                f"version={version} is newer than {VERSION}, the newest that this wavelet-quant understands; "
                "upgrade it: pip install --upgrade wavelet-quant"
            )
        return data

    def formats(self) -> list[tuple[tuple[str | int, ...], ComponentConfig]]:
        """Every format that it names, with its place."""
        return [
            (("rules", number, field), getattr(rule, field))
            for number, rule in enumerate(self.rules)
            for field in ("format", "otherwise")
            if getattr(rule, field) is not None
        ]


def preset_recipes() -> dict[str, str]:
    """The recipes that come with this package: name -> description."""
    return {path.stem: read_file(path)["description"] for path in sorted(PRESETS.glob("*.yaml"))}


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """The recipe that a preset's name, a YAML or JSON file, or the content of one stands for.

    Raises ConfigurationError that says where and what is wrong with it, and for a name that is unknown.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return parse(Recipe, source, "recipe")
    if not isinstance(source, str | Path):
        raise TypeError(f"a recipe is a name, a path, a mapping or a Recipe, not {shown(source)}")
    path = locate(source, PRESETS)
    return parse(Recipe, {"name": path.stem, **read_file(path)}, str(source))
