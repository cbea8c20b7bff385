"""Plugins as a user has them: packages with entry points, some of them broken or at odds with each other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

MIXER = """
from typing import Literal

from torch import nn
from wavelet_core.config import ComponentConfig
from wavelet_core.plugins import hookimpl


class Mixer(nn.Module):
    class Config(ComponentConfig):
        kind: Literal["{name}"] = "{name}"

    def __init__(self, config, shape):
        super().__init__()

    def forward(self, z):
        return z


@hookimpl
def register_components(register):
    register("mixer", Mixer)
"""

COMMAND = """
import click

@hookimpl
def register_commands(cli):
    @cli.command("{name}")
    def greet():
        \"\"\"Say hello.\"\"\"
        click.echo("hello from a plugin")
"""

PLUGINS = {
    "healthy": MIXER.format(name="healthy_mixer") + COMMAND.format(name="hello"),
    "unimportable": "import a_package_that_is_not_there\n",
    "twin_a": MIXER.format(name="twin"),
    "twin_b": MIXER.format(name="twin"),
    "usurper": "from wavelet_core.plugins import hookimpl\n" + COMMAND.format(name="config"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of installed packages, as pip leaves them."""
    directory = tmp_path_factory.mktemp("site")
    for name, source in PLUGINS.items():
        package = f"{name.replace('_', '-')}-package"
        (directory / f"{name}_plugin.py").write_text(source)
        metadata = directory / f"{name}_package-1.5.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (metadata / "entry_points.txt").write_text(f"[wavelet]\n{name} = {name}_plugin\n")
    return directory


@pytest.fixture(scope="module")
def run(site: Path, wavelet_process: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str, str]]:
    def finish(*arguments: str) -> tuple[int, str, str]:
        process = wavelet_process(*arguments, site=site)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    return finish


def test_plugins_lists_every_plugin_and_what_is_wrong_with_it(run):
    status, output, errors = run("plugins", "--json")
    assert status == 0
    report = json.loads(output)
    plugins = {plugin["name"]: plugin for plugin in report["plugins"]}

    assert plugins["core"]["package"] == "wavelet-core"
    assert "walsh_hadamard" in plugins["core"]["components"]["transform"]
    assert plugins["memory"]["components"]["memory"]

    healthy = plugins["healthy"]
    assert (healthy["package"], healthy["version"], healthy["error"]) == ("healthy-package", "1.5", None)
    assert healthy["components"] == {"mixer": ["healthy_mixer"]}
    assert healthy["commands"] == ["hello"]

    assert "Traceback" in plugins["unimportable"]["error"]
    assert "No module named 'a_package_that_is_not_there'" in plugins["unimportable"]["error"]
    assert "`wavelet config` exists already" in plugins["usurper"]["error"]

    [conflict] = report["conflicts"]
    assert "mixer 'twin'" in conflict
    assert "twin-a-package 1.5" in conflict and "twin-b-package 1.5" in conflict

    assert "plugin 'unimportable' of unimportable-package 1.5 does not work" in errors


def test_plugins_prints_the_traceback_of_a_broken_plugin_for_people(run):
    status, output, _ = run("plugins")
    assert status == 0
    assert "unimportable (unimportable-package 1.5, module unimportable_plugin): BROKEN" in output
    assert "Traceback (most recent call last)" in output
    assert "conflict: mixer 'twin' is claimed by two packages" in output


def test_commands_of_a_plugin_are_listed_and_run_beside_broken_plugins(run):
    status, output, _ = run("hello")
    assert (status, output) == (0, "hello from a plugin\n")


def test_refused_and_missing_components_name_the_packages_behind_it(run):
    overrides = ("--set", "model.mixer.kind=twin", "--set", "train.optimizer=diagonal")
    status, output, errors = run("config", "show", "demo", *overrides)
    assert (status, output) == (2, "")
    assert "twin-a-package 1.5 and twin-b-package 1.5" in errors
    assert "unknown optimizer 'diagonal'" in errors
    assert "plugin 'unimportable' of unimportable-package 1.5 failed to load" in errors
    assert "Traceback" not in errors
