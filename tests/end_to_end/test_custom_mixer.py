"""The example plugin as its author has it: installed, listed, trained with, generated with, uninstalled."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from wavelet_core.testing import check_component

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_mixer"
TEXT = "def add(first, second):\n    return first + second\n\n\n"


class Environment:
    """An environment of its own that sees the packages of this one."""

    def __init__(self, directory: Path):
        venv.create(directory, with_pip=False)
        self.python = directory / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        site = self._output("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        outer = sysconfig.get_path("purelib")
        (Path(site) / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")

    def _output(self, *arguments: str) -> str:
        return subprocess.run([self.python, *arguments], check=True, capture_output=True, text=True).stdout

    def pip(self, *arguments: str) -> None:
        self._output("-m", "pip", "--disable-pip-version-check", *arguments)

    def wavelet(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        program = "from wavelet_cli.main import main; main()"
        result = subprocess.run([self.python, "-c", program, *arguments], capture_output=True, text=True)
        assert result.returncode == status, result.stderr
        return result


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def test_the_mixers_keep_the_contract(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLE / "src")
    from diagonal_mixer import DiagonalMixer, IdentityMixer

    for mixer in (DiagonalMixer, IdentityMixer):
        check_component(mixer, kind="mixer")
    check_component(DiagonalMixer, DiagonalMixer.Config(shared_scales=True), kind="mixer")


def test_a_plugin_is_installed_used_and_missed(environment: Environment, tmp_path: Path):
    text = tmp_path / "text.py"
    text.write_text(TEXT * 200)
    configuration = tmp_path / "run.yaml"
    content = {
        "model": {"width": 16, "levels": 2, "context_length": 16, "mixer": {"kind": "diagonal", "initial_gain": 0.5}},
        "data": {
            "dataset": {"kind": "text", "path": str(text)},
            "tokenizer": "bytes",
            "cache_directory": str(tmp_path / "cache"),
        },
        "train": {"steps": 50, "batch_size": 2},
    }
    configuration.write_text(yaml.safe_dump(content))
    run = str(tmp_path / "run")

    environment.pip("install", "--no-deps", "--no-build-isolation", str(EXAMPLE))
    plugins = json.loads(environment.wavelet("plugins", "--json").stdout)["plugins"]
    [listed] = [plugin for plugin in plugins if plugin["package"] == "diagonal-mixer"]
    assert listed["components"] == {"mixer": ["diagonal", "identity_mixer"]}
    assert (listed["version"], listed["error"]) == ("0.1.0", None)

    report = json.loads(environment.wavelet("train", str(configuration), "--out", run, "--json").stdout)
    assert report["step"] == 50
    parts = json.loads(environment.wavelet("inspect", run, "--json").stdout)["parameters"]["parts"]
    assert {part["part"]: part["copies"] for part in parts}["mixer diagonal"] == [3 * 16] * 2
    written = environment.wavelet("generate", run, "--prompt", "def ", "--num-tokens", "20")
    assert written.stdout.startswith("def ") and len(written.stdout) > 10

    environment.pip("uninstall", "--yes", "diagonal-mixer")
    missed = environment.wavelet("generate", run, "--prompt", "def ", status=1)
    assert "'mixer diagonal' of diagonal-mixer 0.1.0" in missed.stderr
    assert "install" in missed.stderr and "Traceback" not in missed.stderr
