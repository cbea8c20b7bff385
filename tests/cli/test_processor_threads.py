"""The number of threads that commands compute with, and how threads wait for each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from wavelet_cli.processor_threads import choose_workers
from wavelet_core import ModelConfig, WaveletLM, load_checkpoint
from wavelet_core.tokenizers import BytesTokenizer
from wavelet_train.training_state import read_state


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """The numbers of threads so far; torch itself keeps the one that it has, because more would only be slow here."""
    numbers = [7]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    return numbers


@pytest.fixture
def checkpoint(tmp_path):
    """Make the checkpoint of a run with this setting of train.threads."""
    config = ModelConfig.model_validate({"vocabulary_size": 256, "width": 8, "levels": 2, "context_length": 8})
    model = WaveletLM(config)

    def save(threads=None):
        extra = {"train": {"threads": threads}}
        model.save_pretrained(tmp_path / "checkpoint", BytesTokenizer(), extra)
        return tmp_path / "checkpoint"

    return save


COMMANDS = {
    "generate": ["--prompt", "a", "--tokens", 2],
    "bench": ["--positions", 4, "--rounds", 1, "--window-rounds", 0],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_option_comes_before_the_runs_setting_and_that_before_the_choice(wavelet, checkpoint, threads, command):
    name = ["bench", "decode"] if command == "bench" else [command]
    for own, option in ((None, []), (2, []), (2, ["--threads", 3])):
        result = wavelet(*name, checkpoint(own), *COMMANDS[command], *option)
        assert result.exit_code == 0, result.output
    assert threads == [7, 1, 2, 3]


def test_evaluation_scores_batches_at_a_time_instead_on_one_thread_each(wavelet, checkpoint, tmp_path, threads):
    (tmp_path / "text.txt").write_text("a text\n" * 9)
    model = load_checkpoint(checkpoint())
    workers = [choose_workers(checkpoint(own), model, option, 1)() for own, option in ((None, None), (2, None), (2, 3))]
    assert workers == [1, 2, 3]
    assert set(threads[1:]) == {1}
    streaming = ("evaluate", checkpoint(2), "--data", tmp_path / "text.txt", "--windows", "streaming")
    assert wavelet(*streaming).exit_code == 0
    assert wavelet(*streaming, "--threads", 3).exit_code == 0
    assert threads[-2:] == [2, 3]


@pytest.mark.parametrize("number", ["0", "1025", "many"])
def test_what_is_no_number_of_threads_is_refused(wavelet, checkpoint, number):
    result = wavelet("generate", checkpoint(), "--threads", number)
    assert result.exit_code == 2
    assert "--threads" in result.stderr


@pytest.mark.parametrize("setting", ["x" * 9999, 4096, [2], {}])
def test_a_damaged_setting_of_the_run_is_named_in_a_line(wavelet, checkpoint, setting):
    result = wavelet("generate", checkpoint(setting), "--tokens", 1)
    assert result.exit_code == 1
    assert "number of threads" in result.stderr
    assert len(result.stderr) < 300


def test_a_run_goes_on_with_the_threads_that_it_began_with(wavelet, tmp_path, threads):
    (tmp_path / "text.txt").write_text("the cat sat on a mat\n" * 60)
    content = {
        "model": {"width": 8, "levels": 2, "context_length": 8},
        "data": {"dataset": {"kind": "text", "path": str(tmp_path / "text.txt")}, "tokenizer": "bytes"},
        "train": {"steps": 1, "batch_size": 2, "precision": "float32"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    result = wavelet("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "processor threads: 1" in result.stderr
    assert read_state(tmp_path / "run" / "last").counters.threads == 1
    threads.append(7)
    assert wavelet("train", "--resume", tmp_path / "run", "--set", "train.steps=2").exit_code == 0
    assert threads[-1] == 1
    for directory in ("best", "last"):
        saved = json.loads((tmp_path / "run" / directory / "config.json").read_text())
        assert saved["train"]["threads"] is None, "what was chosen is no setting"


@pytest.mark.parametrize(("name", "value"), [(None, None), ("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
def test_threads_wait_briefly_unless_the_environment_says_how(name, value):
    waiting = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {key: text for key, text in os.environ.items() if key not in waiting}
    if name:
        environment[name] = value
    script = (
        "import os, sys\n"
        "sys.argv = ['wavelet', '--version']\n"
        "from wavelet_cli.main import main\n"
        "try: main()\n"
        f"finally: print([os.environ.get(name) for name in {waiting}])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    expected = [value if key == name else None for key in waiting] if name else [None, "10000", "1"]
    assert done.stdout.splitlines()[-1] == str(expected)
