"""`wavelet compile`, and what the commands that decode make of what it leaves beside a checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from wavelet_core import ModelConfig, build_model
from wavelet_core.config import parse
from wavelet_core.generation import compiled_files
from wavelet_core.tokenizers import BytesTokenizer

LETTER = ord("x")


class Always:
    """Stands in for a compiled library, which takes long to make: the next token is always the same letter."""

    def __init__(self, path, session, batch):
        self.vocabulary = session.config.vocabulary

    def __call__(self, tokens, state):
        return 100.0 * torch.nn.functional.one_hot(torch.full_like(tokens, LETTER), self.vocabulary)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("WAVELET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled_files, "compile_step", lambda session, batch, path: path.write_text("step"))
    monkeypatch.setattr(compiled_files, "CompiledStep", Always)
    torch.manual_seed(0)
    content = {"vocabulary_size": 256, "width": 8, "levels": 2, "layers": 1, "memories": []}
    build_model(parse(ModelConfig, content)).save_pretrained(tmp_path / "checkpoint", BytesTokenizer())
    return tmp_path / "checkpoint"


def generate(wavelet, checkpoint, *arguments):
    return wavelet("generate", checkpoint, "a", "--num-tokens", 4, "--seed", 0, "--json", *arguments)


def tokens_of(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["texts"][0]["tokens"]


def test_generate_uses_compiled_steps_where_they_fit(wavelet, checkpoint):
    plain = generate(wavelet, checkpoint)
    result = wavelet("compile", checkpoint, "--batch", "1,3")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"compiled into {checkpoint / 'compiled'} in ")
    for arguments in ((), ("--compiled",)):
        compiled = generate(wavelet, checkpoint, *arguments)
        assert tokens_of(compiled)[1:] == [LETTER] * 3  # the first token is the prompt's
        assert json.loads(compiled.stdout)["compiled"]
        assert "warning" not in compiled.stderr
    without = generate(wavelet, checkpoint, "--no-compiled")
    assert tokens_of(without) == tokens_of(plain) != tokens_of(compiled)
    assert not json.loads(without.stdout)["compiled"]


def test_stale_steps_are_named_and_generate_goes_on_without_them(wavelet, checkpoint):
    wavelet("compile", checkpoint)
    result = generate(wavelet, checkpoint, "--dtype", "bfloat16")
    assert "another type of the weights (float32, here bfloat16)" in result.stderr
    assert f"wavelet compile {checkpoint}" in result.stderr
    assert tokens_of(result) == tokens_of(generate(wavelet, checkpoint, "--dtype", "bfloat16", "--no-compiled"))
    wanted = generate(wavelet, checkpoint, "--dtype", "bfloat16", "--compiled")
    assert (wanted.exit_code, wanted.stdout) == (1, "")
    assert "another type of the weights" in wanted.stderr


def test_a_copied_checkpoint_keeps_its_steps(wavelet, checkpoint, tmp_path):
    wavelet("compile", checkpoint)
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert tokens_of(generate(wavelet, tmp_path / "copy", "--compiled"))[1:] == [LETTER] * 3


@pytest.mark.parametrize(
    ("compile_first", "message"), [(False, "is not compiled"), (True, "is compiled for 1, 3 texts")]
)
def test_compiled_steps_that_are_not_there_are_missed(wavelet, checkpoint, compile_first, message):
    if compile_first:
        wavelet("compile", checkpoint, "--batch", "3,1")
    result = generate(wavelet, checkpoint, "--compiled", "-n", 2)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr and f"wavelet compile {checkpoint} --batch 2" in result.stderr


@pytest.mark.parametrize("compile_first", [False, True])
def test_bench_decode_measures_compiled_steps(wavelet, checkpoint, compile_first):
    if compile_first:
        wavelet("compile", checkpoint)
    options = ("--positions", 3, "--rounds", 1, "--window-rounds", 0, "--json")
    for arguments, compiled in (((), False), (("--compiled",), True)):
        result = wavelet("bench", "decode", checkpoint, *options, *arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["compiled"] is compiled
    assert (checkpoint / "compiled").exists() == compile_first


@pytest.mark.parametrize("batches", ["0", "x", "", "1,,2"])
def test_numbers_of_texts_that_are_none_are_refused(wavelet, checkpoint, batches):
    result = wavelet("compile", checkpoint, "--batch", batches)
    assert result.exit_code == 2
    assert "must be whole numbers" in result.stderr
