"""`wavelet quantize`, and what the other commands make of what it writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wavelet_core import ModelConfig, WaveletLM, load_checkpoint, save_checkpoint
from wavelet_core.tokenizers import BytesTokenizer

TEXT = "the cat sat on a mat, and the rat ate the hat. " * 40
RECIPES = ("int8", "int4", "mixed-8-4-2")
CONFIG = {
    "vocabulary_size": 256,
    "width": 64,
    "layers": 1,
    "levels": 1,
    "context_length": 32,
    "memories": [{"kind": "mlp", "expansion": 2}, {"kind": "product_key", "num_keys": 16, "top_k": 2}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint `model` that knows its data, the texts, and a recipe."""
    folder = tmp_path_factory.mktemp("quantize")
    for split in ("train", "validation", "test"):
        (folder / f"{split}.txt").write_text(TEXT)
    dataset = {"kind": "text", **{split: str(folder / f"{split}.txt") for split in ("train", "validation", "test")}}
    data = {"dataset": dataset, "tokenizer": {"kind": "bytes"}, "cache_directory": str(folder / "cache")}
    torch.manual_seed(0)
    model = WaveletLM(ModelConfig.model_validate(CONFIG))
    save_checkpoint(model, folder / "model", BytesTokenizer(), extra={"step": 3, "data": data, "train": {"threads": 1}})
    rule = {"modules": "head", "format": {"kind": "dense", "dtype": "float16"}}
    (folder / "head.json").write_text(json.dumps({"rules": [rule]}))
    return folder


@pytest.fixture(scope="module")
def quantized(folder: Path, wavelet) -> Path:
    """The same folder with the checkpoint in every recipe."""
    for recipe in RECIPES:
        result = wavelet("quantize", folder / "model", folder / recipe, "--recipe", recipe, "--windows", 4, "--json")
        assert result.exit_code == 0, result.stderr
        report = json.loads(result.stdout)
        (folder / f"{recipe}.report").write_text(json.dumps(report))
    return folder


def texts(wavelet, *arguments):
    result = wavelet("generate", *arguments, "--num-tokens", 12, "--temperature", 0, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    return [text["tokens"] for text in json.loads(result.stdout)["texts"]]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_report_adds_up(quantized, recipe):
    report = json.loads((quantized / f"{recipe}.report").read_text())
    calibrated = recipe != "int8"
    assert report["recipe"] == recipe and (report["calibration"] is not None) == calibrated
    assert sum(row["bytes_after"] for row in report["parts"]) < report["bytes_after"] < report["bytes_before"]
    assert {row["part"] for row in report["parts"]} >= {"embedding", "head", "wavelet lifting", "memory product_key"}
    assert {row["error_of"] for row in report["parts"]} == ({"output", "weights"} if calibrated else {"weights"})
    assert all(0 <= row["relative_error"] < 0.2 for row in report["parts"])  # some weights are zeros and ones
    assert all(row["relative_error"] > 0 for row in report["parts"] if row["part"] in ("head", "embedding"))
    size = (quantized / recipe / "model.safetensors").stat().st_size
    assert report["bytes_after"] < size < report["bytes_after"] + 30_000


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_quantized_directory_is_a_checkpoint_as_any_other(quantized, wavelet, recipe):
    directory = quantized / recipe
    config, original = (json.loads((quantized / name / "config.json").read_text()) for name in (recipe, "model"))
    assert {key: config[key] for key in ("step", "data", "train", "model")} == {
        key: original[key] for key in ("step", "data", "train", "model")
    }
    assert config["quantization"]["recipe"]["name"] == recipe
    model = load_checkpoint(directory)
    text, state, read = list(b"the "), model.new_state(), 0
    with torch.no_grad():
        for _ in range(12):  # few at a time, since many may be rounded more coarsely
            logits, read = model(torch.tensor([text[read:]]), state), len(text)
            text.append(int(logits[0, -1].argmax()))
    [tokens] = texts(wavelet, directory, "the ")
    assert tokens == text[4:]
    assert texts(wavelet, directory, "the ", "--draft", "ngram") == [tokens]
    assert texts(wavelet, directory, "the ", "--draft", quantized / "model") == [tokens]
    assert texts(wavelet, quantized / "model", "the ", "--draft", directory) == texts(
        wavelet, quantized / "model", "the "
    )
    assert texts(wavelet, directory, "--prompt", "the ", "--prompt", "a cat")[0] == tokens
    result = wavelet("evaluate", directory, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["bits_per_byte"] > 0
    assert wavelet("inspect", directory, "--verify").exit_code == 0


def test_on_the_fly_is_what_a_quantized_directory_holds(quantized, wavelet):
    model = quantized / "model"
    [tokens] = texts(wavelet, quantized / "int8", "the ")
    assert texts(wavelet, model, "the ", "--quantize", "int8") == texts(wavelet, model, "the ", "--ptq8") == [tokens]
    assert texts(wavelet, model, "the ", "--quantize", quantized / "head.json") == texts(wavelet, model, "the ")
    scores = []
    for arguments in ((model, "--quantize", "int8"), (quantized / "int8",)):
        result = wavelet("evaluate", *arguments, "--device", "cpu", "--json")
        assert result.exit_code == 0, result.stderr
        scores.append(json.loads(result.stdout)["bits_per_byte"])
    assert scores[0] == scores[1]


def test_calibration_is_by_the_text_that_is_named(quantized, wavelet):
    (quantized / "other.txt").write_text("0123456789" * 30)
    made = {}
    for name, options in {
        "by itself": ["--no-calibrate"],
        "training data": [],
        "other text": ["--calibrate", quantized / "other.txt"],
    }.items():
        out = quantized / "again"
        result = wavelet(
            "quantize", quantized / "model", out, "--recipe", "int4", "--windows", 4, "--overwrite", *options
        )
        assert result.exit_code == 0, result.stderr
        assert f"{out}: " in result.stdout and "relative error" in result.stdout
        made[name] = load_checkpoint(out)
    sections = [model.quantization.calibration for model in made.values()]
    assert sections[0] is None
    assert [section["text"] for section in sections[1:]] == ["the training data", "other.txt"]
    heads = [model.head.matrix() for model in made.values()]
    assert not any(heads[i].equal(heads[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_inspect_says_what_is_stored_how(quantized, wavelet):
    report = json.loads(wavelet("inspect", quantized / "mixed-8-4-2", "--json").stdout)
    parts = report["quantization"]["parts"]
    made = json.loads((quantized / "mixed-8-4-2.report").read_text())["parts"]
    assert sum(row["bytes_after"] for row in parts) == sum(row["bytes_after"] for row in made)
    assert {row["formats"] for row in parts} == {"int8", "int4 (group 64)"}
    assert report["components"]["format int4"].startswith("wavelet-quant")
    shown = wavelet("inspect", quantized / "mixed-8-4-2").stdout
    assert "by the recipe mixed-8-4-2, calibrated with the training data" in shown and "int4 (group 64)" in shown
    assert json.loads(wavelet("inspect", quantized / "model", "--json").stdout)["quantization"] is None


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("quantize", "model", "int8"), 2, "exists already"),
        (("quantize", "model", "model", "--overwrite"), 2, "is the checkpoint itself"),
        (("quantize", "int8", "new"), 2, "quantized already"),
        (("quantize", "model", "new", "--recipe", "int7"), 2, "unknown preset 'int7'"),
        (("quantize", "model", "new", "--calibrate", "head.json", "--no-calibrate"), 2, "contradict"),
        (("quantize", "model", "new", "--recipe", "int4", "--calibrate", "nothing.txt"), 2, "does not exist"),
        (("quantize", "bare", "new", "--recipe", "int4"), 1, "does not say what it was trained on.*--no-calibrate"),
        (("quantize", "nowhere", "new"), 1, "no such checkpoint directory"),
        (("quantize", "model", "head.json/new"), 1, "head.json/new: cannot be written.*another place$"),
        (("generate", "model", "a", "--ptq8", "--quantize", "int4"), 2, "give one of the two"),
        (("generate", "int8", "a", "--quantize", "int4"), 2, "quantized already"),
        (("generate", "model", "a", "--quantize", "int4", "--no-verify"), 2, "--no-verify"),
        (("evaluate", "model", "--quantize", "int4", "--no-verify"), 2, "--no-verify"),
        (("export", "int8", "new", "--format", "seed"), 1, "is quantized"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_refused(quantized, wavelet, monkeypatch, arguments, status, says):
    monkeypatch.chdir(quantized)
    if not Path("bare").exists():
        save_checkpoint(load_checkpoint("model"), "bare", BytesTokenizer())
    result = wavelet(*arguments)
    assert result.exit_code == status, result.output
    assert "matrix 1" not in result.stderr
    output = " ".join(result.stderr.split())
    assert re.search(says, output), output
    assert "Traceback" not in output and not Path("new").exists()


MEASURE = """
import re, sys, torch
from wavelet_core import load_checkpoint
from wavelet_core.generation import DecodingSession
import wavelet_quant

def now(field):
    return 1024 * int(re.search(rf"{field}:\\s*(\\d+)", open("/proc/self/status").read())[1])

warm = load_checkpoint(sys.argv[1])
DecodingSession(warm).hidden(torch.tensor([[1]]))
del warm
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
before = now("VmRSS")
model = load_checkpoint(sys.argv[2])
session = DecodingSession(model)
state = session.new_state(1)
with torch.inference_mode():
    for token in range(8):
        session.head(session.hidden(torch.tensor([[token]]), state))
print(now("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not tell peaks of memory")
def test_loading_and_decoding_takes_the_memory_of_the_file(quantized, wavelet, tmp_path):
    torch.manual_seed(0)
    fields = {**CONFIG, "vocabulary_size": 10_000, "width": 512, "memories": [{"kind": "mlp", "expansion": 8}]}
    save_checkpoint(WaveletLM(ModelConfig.model_validate(fields)), tmp_path / "large")
    result = wavelet("quantize", tmp_path / "large", tmp_path / "packed")
    assert result.exit_code == 0, result.stderr
    size = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert size > 15 << 20
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, quantized / "int8", tmp_path / "packed"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert int(measured.stdout) < 1.15 * size
