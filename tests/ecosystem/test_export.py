"""`wavelet export --format pt2` and `onnx`: programs that run without us give the logits that the model gives."""

import json
import sys

import numpy as np
import pytest
import tokenizers
import torch
from click.testing import CliRunner

from wavelet_cli.main import cli
from wavelet_core import build_model
from wavelet_core.checkpoint import load_checkpoint
from wavelet_core.config import parse_model
from wavelet_core.generation import ExportError, export_programs
from wavelet_core.generation.exported_programs import _solve_triangular
from wavelet_core.kernels import active_kernels
from wavelet_core.tokenizers import TokenIds, load_tokenizer

PROMPT_TOKENS = 8
TEXT = torch.randint(400, (1, 2 * PROMPT_TOKENS + 3), generator=torch.Generator().manual_seed(0))

# Reads TEXT with what was exported, in a process where an import of ours fails.
RUN_PT2 = """
import json, sys
sys.modules.update({name: None for name in ("wavelet_core", "wavelet_memory", "wavelet_baselines", "wavelet_quant")})
import torch
for directory in sys.argv[1:]:
    prompt, step = (torch.export.load(f"{directory}/{name}.pt2") for name in ("prompt", "step"))
    _, state = step.example_inputs[0]
    assert not any(tensor.any() for tensor in state.values())
    logits = []
    text = torch.load(f"{directory}/text.pt")
    length = json.load(open(f"{directory}/export.json"))["prompt_tokens"]
    whole = text.shape[1] // length * length
    for program, pieces in ((prompt, text[:, :whole].split(length, 1)), (step, text[:, whole:].split(1, 1))):
        for tokens in pieces:
            new, state = program.module()(tokens, state)
            logits.append(new)
    torch.save(torch.cat(logits, 1), f"{directory}/logits.pt")
"""


def export(checkpoint, out, output_format, *arguments):
    arguments = ["export", str(checkpoint), str(out), "--format", output_format, *map(str, arguments)]
    return CliRunner().invoke(cli, arguments)


@torch.no_grad()
def logits_of(checkpoint, text):
    return load_checkpoint(checkpoint)(text)


def test_torch_alone_runs_what_was_exported(checkpoints, tmp_path, fresh_process):
    names = ["wavelet", "gated_delta_net"]
    for name in names:
        result = export(checkpoints[name], tmp_path / name, "pt2", "--batch", 2, "--prompt-tokens", PROMPT_TOKENS)
        assert result.exit_code == 0, result.output
        torch.save(TEXT.repeat(2, 1), tmp_path / name / "text.pt")
    fresh_process(RUN_PT2, *(tmp_path / name for name in names))
    for name in names:
        found = torch.load(tmp_path / name / "logits.pt")
        torch.testing.assert_close(found, logits_of(checkpoints[name], TEXT).repeat(2, 1, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["wavelet", pytest.param("gated_delta_net", marks=pytest.mark.slow)])
def test_onnx_runs_what_was_exported(checkpoints, tmp_path, name):
    pytest.importorskip("onnxscript", reason="needs wavelet-core[onnx]")
    onnxruntime = pytest.importorskip("onnxruntime")
    result = export(checkpoints[name], tmp_path / "out", "onnx", "--prompt-tokens", PROMPT_TOKENS)
    assert result.exit_code == 0, result.output
    prompt, step = (onnxruntime.InferenceSession(tmp_path / "out" / f"{each}.onnx") for each in ("prompt", "step"))
    described = json.loads((tmp_path / "out" / "export.json").read_text())["state"]
    state = {key: np.zeros(each["shape"], each["dtype"]) for key, each in described.items()}
    assert [each.name for each in step.get_inputs()] == ["tokens", *state]
    found = []
    for session, pieces in ((prompt, TEXT[:, :-3].split(PROMPT_TOKENS, 1)), (step, TEXT[:, -3:].split(1, 1))):
        for tokens in pieces:
            logits, *following = session.run(
                ["logits", *(f"{key}.next" for key in state)], {"tokens": tokens.numpy(), **state}
            )
            state = dict(zip(state, following, strict=True))
            found.append(logits)
    torch.testing.assert_close(
        torch.from_numpy(np.concatenate(found, 1)), logits_of(checkpoints[name], TEXT), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("unit", [True, False])
def test_triangles_are_solved_row_by_row(unit):
    a, b = torch.randn(2, 5, 5).tril() + 3 * torch.eye(5), torch.randn(2, 5, 3)
    expected = torch.linalg.solve_triangular(a, b, upper=False, unitriangular=unit)
    torch.testing.assert_close(_solve_triangular(a, b, upper=False, unitriangular=unit), expected)


def test_what_lies_beside_the_programs(checkpoints, tmp_path, tokenizer):
    model = load_checkpoint(checkpoints["residual_lstm"], torch.bfloat16)
    kernels = active_kernels()
    export_programs(model, tmp_path / "out", "pt2", 3, 2, load_tokenizer(checkpoints["residual_lstm"]))
    assert active_kernels() == kernels
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (described["texts"], described["prompt_tokens"], described["end_of_text"]) == (3, 2, 399)
    assert {(each["shape"][0], each["dtype"]) for each in described["state"].values()} <= {
        (3, "bfloat16"),
        (3, "float32"),
    }
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert theirs.encode("def f(x): é").ids == tokenizer.encode("def f(x): é")
    export_programs(model, tmp_path / "ids", "pt2", 1, 2, TokenIds(TokenIds.Config(vocabulary_size=400)))
    assert not (tmp_path / "ids" / "tokenizer.json").exists()


def test_what_cannot_be_exported_is_refused(checkpoints, tmp_path):
    memory = {"kind": "fast_weight_product_key", "num_keys": 16, "top_k": 3, "inference_updates": True}
    model = build_model(parse_model({"vocabulary_size": 30, "width": 16, "levels": 2, "memories": [memory]})).eval()
    with pytest.raises(ExportError, match="which torch alone does not have"):
        export_programs(model, tmp_path / "out", "pt2")
    result = export(checkpoints["wavelet"], tmp_path / "out", "seed", "--batch", 2)
    assert (result.exit_code, "--batch is for the formats pt2 and onnx" in result.output) == (2, True)
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_packages_says_what_to_install(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = export(checkpoints["residual_lstm"], tmp_path / "out", "onnx")
    assert result.exit_code == 1
    assert "pip install 'wavelet-core[onnx]'" in result.output
