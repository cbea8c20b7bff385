"""Completion in a shell: what is offered, by click's protocol, and what bash, zsh and fish make of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from wavelet_cli.completion import Bash, Zsh
from wavelet_cli.main import cli
from wavelet_train.run_config import list_presets

RUN = "last/model.safetensors"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: with two runs, a configuration, and other things."""
    for path in (f"runs/demo/{RUN}", f"deep/er/run/{RUN}", "my.yaml", "notes.txt", f".hidden/run/{RUN}"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("model: {mixer: {kind: deep_gated_spectral}}\n")
    (tmp_path / "runs/demo/config.yaml").write_text("model: {mixer: {kind: deep_gated_spectral}}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(*words: str) -> list[str]:
    """What may stand for the last word."""
    completion = ShellComplete(cli, {}, "wavelet", "_WAVELET_COMPLETE")
    return [item.value for item in completion.get_completions(list(words[:-1]), words[-1])]


def test_presets_and_configuration_files_are_offered():
    assert offered("train", "") == offered("config", "show", "") == sorted([*list_presets(), "my.yaml"])
    assert offered("train", "m") == ["mini", "my.yaml"] == offered("bench", "decode", "--preset", "m")


@pytest.mark.parametrize(
    "words", [["generate"], ["evaluate"], ["inspect"], ["export"], ["bench", "decode"], ["train", "--resume"]]
)
def test_runs_and_checkpoints_are_offered_however_deep_they_are(words):
    assert offered(*words, "") == ["deep/er/run", "runs/demo"]
    assert offered(*words, "ru") == ["runs/demo"]
    assert offered(*words, "./runs/demo/") == ["./runs/demo/last"]


def test_values_of_options_are_offered():
    assert offered("generate", "runs/demo", "--device", "c") == ["cpu", "cuda"]
    assert offered("generate", "runs/demo", "--context", "") == ["stream", "window", "hop:"]
    assert offered("generate", "runs/demo", "--draft", "") == ["ngram", "deep/er/run", "runs/demo"]
    assert offered("generate", "runs/demo", "--sampler", "top_") == ["top_k", "top_p"]


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("tr", ["train."]),
        ("train.comp", ["train.compile=", "train.compare_with_xz="]),
        ("train.compile=", ["train.compile=auto", "train.compile=true", "train.compile=false"]),
        ("train.optimizer=adag", ["train.optimizer=adagrad"]),
        ("model.memories.", ["model.memories.0.", "model.memories.1.", "model.memories.2."]),
        ("model.memories.1.num", ["model.memories.1.num_keys="]),
        ("model.memories.1.kind=pro", ["model.memories.1.kind=product_key"]),
        (
            "model.bypass=",
            ["model.bypass=decayed_mean", "model.bypass=ema", "model.bypass=running_mean", "model.bypass=null"],
        ),
        ("model.wavelet.initialization=h", ["model.wavelet.initialization=haar"]),
        ("model.nowhere.", []),
        ("model.memories.9.kind=", []),
    ],
)
def test_fields_and_components_of_the_configuration_are_offered(typed, values):
    assert offered("train", "demo", "--set", typed) == values


def test_fields_follow_what_stands_before_them():
    depth = ["model.mixer.depth="]
    assert offered("train", "demo", "--set", "model.mixer.dep") == []
    assert (
        offered("train", "demo", "--set", "model.mixer.kind=deep_gated_spectral", "--set", "model.mixer.dep") == depth
    )
    assert offered("train", "my.yaml", "--set", "model.mixer.dep") == depth
    assert offered("train", "--resume", "runs/demo", "--set", "model.mixer.dep") == depth


@pytest.mark.parametrize(
    ("words", "position", "reply"),
    [
        ("wavelet train demo --set model.wavelet.initialization = ha", 6, ["plain,haar"]),
        ("wavelet train demo --set train.compile =", 5, ["plain,auto", "plain,true", "plain,false"]),
        ("wavelet train demo --set train.compi", 4, ["plain,train.compile="]),
    ],
)
def test_bash_gets_what_follows_the_equals_sign_at_which_it_cuts(monkeypatch, words, position, reply):
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(position))
    assert Bash(cli, {}, "wavelet", "_WAVELET_COMPLETE").complete().splitlines() == reply


def test_paths_and_presets_are_completed_without_torch(workplace):
    program = "import sys; from wavelet_cli.main import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    for words, reply in (
        ("wavelet train de", "demo"),
        ("wavelet generate ru", "runs/demo"),
        ("wavelet gen", "generate"),
    ):
        environment = {**os.environ, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment | {"_WAVELET_COMPLETE": "bash_complete"},
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == (f"plain,{reply}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed_and_is_one_of_that_shell(wavelet, shell):
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("click asks bash for its version")
    result = wavelet("completion", shell)
    assert result.exit_code == 0 and f"_WAVELET_COMPLETE={shell}_complete" in result.stdout
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=result.stdout, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_scripts_put_no_space_behind_a_field():
    assert "compopt -o nospace" in Bash.source_template
    assert Zsh.source_template.count('"${suffix[@]}"') == 2 and "suffix=(-S '')" in Zsh.source_template
