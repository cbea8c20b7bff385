"""docs/configuration.md is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from wavelet_cli.main import PACKAGES, cli
from wavelet_cli.reference import SECTIONS, configuration_reference
from wavelet_core.registry import KINDS, registry
from wavelet_core.seed import SEED_KEYS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
CONFIGS = {f"{kind} {name}": registry.get(kind, name).Config for kind in KINDS for name in registry.names(kind)}


@pytest.fixture(scope="module")
def reference() -> str:
    return configuration_reference()


def test_the_committed_page_is_up_to_date(reference):
    committed = PAGE.read_text(encoding="utf-8")
    assert committed == reference, "run: .venv/bin/wavelet config reference > docs/configuration.md"


def test_the_command_prints_the_page(reference):
    result = CliRunner().invoke(cli, ["config", "reference"])
    assert (result.exit_code, result.stdout) == (0, reference)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_component_of_ours_has_its_fields_on_the_page(reference, name):
    kind, component = name.split(" ")
    if registry.owner(kind, component).package not in PACKAGES:
        return
    _, _, rest = reference.partition(f"#### {kind} `{component}`\n")
    table = rest.partition("\n#")[0]
    described(CONFIGS[name], table)


@pytest.mark.parametrize("section", [section for _, section in SECTIONS], ids=lambda section: section.__name__)
def test_every_field_of_a_section_is_on_the_page(reference, section):
    described(section, reference)


def described(section: type[BaseModel], text: str) -> None:
    for name, field in section.model_fields.items():
        if name == "kind":
            continue
        assert field.description, f"{section.__qualname__}.{name} has no description"
        [line] = [line for line in text.splitlines() if line.startswith(f"| `{name}` |") and field.description in line]
        cells = line.strip("| ").split(" | ")
        assert len(cells) == 4 and all(cells), line


def test_every_key_of_the_original_is_on_the_page_with_its_place(reference):
    _, _, table = reference.partition("## Keys of the original configuration")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert [(row[0], row[2]) for row in rows] == [(f"`{key.name}`", f"`{key.place}`") for key in SEED_KEYS]
    assert all(len(row) == 5 and all(row) for row in rows)
