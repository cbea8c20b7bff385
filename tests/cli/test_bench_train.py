"""`wavelet bench train`: models that train in turns, and what cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from wavelet_cli.bench_train import _build_native, _describe, _native_libraries, _revision

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "model.width=16", "--set", "model.vocabulary_size=300", "--set", "model.context_length=16"]
QUICK = ["--rounds", 1, "--threads", 1, "--device", "cpu", "--precision", "float32"]

FAMILY = """
from __future__ import annotations
from typing import Literal
from torch import nn
from wavelet_core import LanguageModelConfig, hookimpl
from wavelet_core.language_model import cross_entropy

class Bigrams(nn.Module):
    class Config(LanguageModelConfig):
        kind: Literal["bigrams"] = "bigrams"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, 32)
        self.head = nn.Linear(32, config.vocabulary, bias=False)

    def loss(self, tokens, targets, state=None):
        return cross_entropy(self.head(self.embedding(tokens)), targets)

@hookimpl
def register_components(register):
    register("model", Bigrams)
"""


def test_models_train_in_turns(wavelet, tmp_path: Path):
    (tmp_path / "bigrams.py").write_text(FAMILY)
    arguments = ["demo", *SMALL, *QUICK, "--set", "train.batch_size=2"]
    result = wavelet("bench", "train", *arguments, "--against", ROOT, "--against", tmp_path / "bigrams.py", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    ours, same, family = found["models"]
    assert (ours["name"], ours["kind"], family["kind"]) == ("demo", "wavelet", "bigrams")
    assert ours["parameters"] == same["parameters"] and ours["flops_per_token"] == same["flops_per_token"]
    assert family["parameters"] == 2 * 300 * 32 and family["flops_per_token"] == 3 * 2 * 300 * 32
    assert (found["tokens"], found["threads"], found["precision"]) == (32, 1, "float32")
    for model in found["models"]:
        assert model["tokens_per_second"] == pytest.approx(32 / model["seconds_per_step"])
        assert model["speed_over_first"] == pytest.approx(ours["seconds_per_step"] / model["seconds_per_step"])
        share = model["tokens_per_second"] * model["flops_per_token"] / found["matrix_products"]["float32"]
        assert model["share_of_peak"]["float32"] == pytest.approx(share)
        assert model["peak_tensors"] > 16 * model["parameters"]
    assert found["breakdown"]["wavelet"]["forward"] > 0
    shown = _describe(found)
    assert all(words in shown for words in ("tokens/s", "share of float32", str(ROOT), "backward, ms"))


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_code_of_a_revision_is_taken_from_git(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-C", str(tmp_path)]
    code = tmp_path / "packages" / "wavelet-train" / "code.py"
    code.parent.mkdir(parents=True)
    subprocess.run([*git, "init", "-q"], check=True)
    for content in ("first", "second"):
        code.write_text(content)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", content], check=True)
    (tmp_path / "made").mkdir()
    folder = _revision("HEAD~1", tmp_path / "made" / "0")
    assert folder is not None and (folder / "packages" / "wavelet-train" / "code.py").read_text() == "first"
    assert _revision("nothing", tmp_path / "made" / "1") is None


def test_the_native_library_of_a_revision_is_built(tmp_path: Path, capsys):
    pytest.importorskip("hatchling", reason="what builds packages")
    package = tmp_path / "packages" / "wavelet-quant"
    (package / "src").mkdir(parents=True)
    (package / "pyproject.toml").write_text(
        "project = {name = 'wavelet-quant', version = '1'}\n"
        "tool.hatch.build.targets.wheel = {packages = ['src'], hooks = {custom = {}}}\n"
        "build-system = {requires = ['hatchling'], build-backend = 'hatchling.build'}\n"
    )
    hook = """
        from pathlib import Path
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface

        class Native(BuildHookInterface):
            def initialize(self, version, build_data):
                {work}
        """
    for work, libraries, said in (
        ("raise SystemExit('no compiler')", [], "building wavelet-quant: no compiler"),
        ("Path(self.root, 'src', 'native.so').touch()", ["native.so"], ""),
    ):
        (package / "hatch_build.py").write_text(textwrap.dedent(hook).format(work=work))
        _build_native(tmp_path)
        assert _native_libraries(tmp_path) == libraries and capsys.readouterr().err.strip() == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dem"], "did you mean 'demo'"),
        (["demo", "--against", "no-such-thing"], "no preset, configuration file, Python file or checkout"),
        (["demo", "--against", "none.py"], "none.py"),
        (["demo", "--against", "empty.py"], "registers 0 model families"),
        (["demo", "--against", "broken.py"], "broken.py cannot be loaded: ZeroDivisionError"),
        (["demo", "--set", "model.vocabulary_size=3"], "model.vocabulary_size=3"),
    ],
)
def test_what_cannot_be_measured_is_refused(wavelet, tmp_path: Path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0")
    result = wavelet("bench", "train", *arguments, *QUICK)
    assert result.exit_code in (1, 2) and result.stdout == ""
    assert message in result.stderr and "Traceback" not in result.stderr
