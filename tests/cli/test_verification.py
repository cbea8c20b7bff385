"""Damaged checkpoints on the command line: what verifies them, what a person reads, and how it is switched off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wavelet_core import ModelConfig, WaveletLM, save_checkpoint
from wavelet_core.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from wavelet_core.tokenizers import BytesTokenizer

TENSOR = "blocks.0.norm_in.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small model that reads bytes."""
    directory = tmp_path_factory.mktemp("whole") / "model"
    torch.manual_seed(0)
    model = WaveletLM(ModelConfig(vocabulary_size=256, width=16, layers=1, levels=2, context_length=8))
    save_checkpoint(model, directory, BytesTokenizer())
    return directory


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """A copy of it with one other weight."""
    directory = shutil.copytree(whole, tmp_path / "damaged")
    change(directory, 1.5)
    return directory


def change(directory: Path, value: float) -> None:
    tensors = load_file(directory / WEIGHTS_FILE)
    tensors[TENSOR][3] = value
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def generate(directory: Path) -> tuple[object, ...]:
    return "generate", directory, "--prompt", "a", "--num-tokens", 1


def evaluate(directory: Path) -> tuple[object, ...]:
    text = directory.parent / "text.txt"
    text.write_text("the cat sat on a mat " * 9)
    return "evaluate", directory, "--data", text


def bench(directory: Path) -> tuple[object, ...]:
    return "bench", "decode", directory, "--positions", 2, "--rounds", 1, "--window-rounds", 0


def quantize(directory: Path) -> tuple[object, ...]:
    return *generate(directory), "--ptq8"


def draft(directory: Path) -> tuple[object, ...]:
    return "generate", directory.with_name("whole"), "--prompt", "a", "--num-tokens", 1, "--draft", directory


def export(directory: Path) -> tuple[object, ...]:
    return "export", directory, directory.parent / "exported", "--format", "seed"


def inspect(directory: Path) -> tuple[object, ...]:
    return "inspect", directory, "--verify"


@pytest.mark.parametrize("command", [generate, evaluate, quantize, draft, export, inspect])
def test_a_damaged_checkpoint_is_refused_with_the_tensors_name(wavelet, whole, damaged, command):
    shutil.copytree(whole, damaged.with_name("whole"))
    result = wavelet(*command(damaged))
    assert result.exit_code == 1
    assert f"{WEIGHTS_FILE}: {TENSOR} has changed" in result.stderr
    assert f"wavelet inspect --accept {damaged}" in result.stderr
    assert "Traceback" not in result.stderr and not (damaged.parent / "exported").exists()


@pytest.mark.parametrize("command", [generate, evaluate, bench, draft])
def test_verifying_can_be_switched_off(wavelet, whole, damaged, command):
    shutil.copytree(whole, damaged.with_name("whole"))
    result = wavelet(*command(damaged), "--no-verify")
    assert result.exit_code == 0, result.stderr


def test_no_verify_stands_only_where_something_is_verified_at_choice(wavelet, whole):
    for arguments in (quantize(whole), ("bench", "decode", "--preset", "demo", "--random")):
        result = wavelet(*arguments, "--no-verify")
        assert result.exit_code == 2
        assert "--no-verify" in result.stderr


def test_inspect_says_what_it_verified(wavelet, whole):
    assert "verified" not in wavelet("inspect", whole, "--no-html").stdout
    result = wavelet("inspect", whole, "--verify", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    verified = report["verified"]
    assert verified["seconds"] > 0
    files = {name: size for name, size in report["files"].items() if name != "digests.json"}
    assert (verified["files"], verified["bytes"]) == (len(files), sum(files.values()))
    assert verified["tensors"] == sum(report["tensor_types"].values())
    shown = wavelet("inspect", whole, "--verify").stdout
    assert f"{verified['files']} files with {verified['tensors']} tensors" in shown and "are what was saved" in shown


def test_inspect_says_where_there_are_no_digests(wavelet, damaged):
    (damaged / "digests.json").unlink()
    result = wavelet("inspect", damaged, "--verify")
    assert result.exit_code == 1
    assert "digests.json: no such file" in result.stderr
    config = json.loads((damaged / CONFIG_FILE).read_text())
    (damaged / CONFIG_FILE).write_text(json.dumps({**config, "format_version": 2}))
    result = wavelet("inspect", damaged, "--verify")
    assert result.exit_code == 0, result.stderr
    assert "saved without digests" in result.stdout
    assert json.loads(wavelet("inspect", damaged, "--verify", "--json").stdout)["verified"] is None


def test_a_change_can_be_accepted_unless_it_is_no_number(wavelet, damaged):
    assert wavelet("inspect", damaged, "--accept", "--verify").exit_code == 0
    assert wavelet(*generate(damaged)).exit_code == 0
    change(damaged, float("nan"))
    result = wavelet("inspect", damaged, "--accept")
    assert result.exit_code == 1
    assert f"{TENSOR}: 1 of 16 values" in result.stderr
    result = wavelet(*generate(damaged))
    assert result.exit_code == 1
    assert f"{TENSOR} has changed and has values that are not finite" in result.stderr


def test_an_original_checkpoint_is_not_imported_damaged(wavelet, whole, tmp_path):
    exported = tmp_path / "exported"
    assert wavelet("export", whole, exported, "--format", "seed").exit_code == 0
    path = exported / "best_model.pt"
    content = path.read_bytes()
    at = content.index(load_file(whole / WEIGHTS_FILE)[TENSOR].numpy().tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    result = wavelet("import", path, tmp_path / "imported")
    assert result.exit_code == 1
    assert str(path) in result.stderr and "damaged" in result.stderr
    path.write_bytes(content)
    state = torch.load(path, weights_only=True)
    state["model_state"]["token_embedding.weight"][5, 3] = float("inf")
    torch.save(state, path)
    result = wavelet("import", path, tmp_path / "imported")
    assert result.exit_code == 1
    assert "token_embedding.weight: 1 of" in result.stderr and not (tmp_path / "imported").exists()
