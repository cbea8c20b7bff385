"""docs/configuration.md is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from wavelet_cli import PACKAGES
from wavelet_cli.main import cli
from wavelet_cli.reference import SECTIONS, configuration_reference
from wavelet_cli.seed.configuration import SEED_KEYS
from wavelet_cli.seed.recipe import RECIPE_KEYS
from wavelet_core import ModelConfig
from wavelet_core.registry import KINDS, registry

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
CONFIG_UNDER_HEADING = {f"### {title}": section for title, section in SECTIONS} | {
    f"#### {kind} `{name}`": registry.get(kind, name).Config
    for kind in KINDS
    for name in registry.names(kind)
    if registry.owner(kind, name).package in PACKAGES and registry.get(kind, name).Config is not ModelConfig
}


@pytest.fixture(scope="module")
def reference() -> str:
    return configuration_reference()


def rows_below(heading: str, page: str) -> list[list[str]]:
    """The cells of the table that follows a heading, without the table's own head."""
    _, found, rest = page.partition(f"{heading}\n")
    assert found, f"there is no heading {heading!r}"
    lines = rest.partition("\n#")[0].splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]


def test_the_committed_page_is_up_to_date(reference):
    committed = PAGE.read_text(encoding="utf-8")
    assert committed == reference, "run: .venv/bin/wavelet config reference > docs/configuration.md"


def test_the_command_prints_the_page(reference):
    result = CliRunner().invoke(cli, ["config", "reference"])
    assert (result.exit_code, result.stdout) == (0, reference)


@pytest.mark.parametrize("heading", CONFIG_UNDER_HEADING)
def test_every_field_is_on_the_page_with_type_default_and_meaning(reference, heading):
    above = set(ModelConfig.model_fields) if heading.startswith("#### model") else {"kind"}
    fields = [name for name in CONFIG_UNDER_HEADING[heading].model_fields if name not in {*above, "kind"}]
    rows = rows_below(heading, reference)
    assert [row[0] for row in rows] == [f"`{name}`" for name in fields]
    assert all(len(row) == 4 and all(row) for row in rows), "a field has no description"


def test_limits_and_defaults_are_those_of_the_code(reference):
    rows = {row[0]: row for row in rows_below("#### wavelet `lifting`", reference)}
    assert rows["`crawl`"][1:3] == ["integer or null, ≥ 1, ≤ 33", "`null`"]
    assert rows["`initialization`"][1:3] == ["`haar`, `zero`, `random`", "`haar`"]
    assert rows["`dropout`"][1:3] == ["number, ≥ 0, < 1", "`0.0`"]


def test_every_key_of_the_original_is_on_the_page_with_its_place(reference):
    rows = rows_below("## Keys of the original configuration", reference)
    assert [(row[0], row[2]) for row in rows] == [
        (f"`{key.name}`", f"`{key.place}`") for key in (*SEED_KEYS, *RECIPE_KEYS)
    ]
    assert all(len(row) == 5 and all(row) for row in rows)
