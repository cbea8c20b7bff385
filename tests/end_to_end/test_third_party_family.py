"""A model family from outside, an LSTM, through every command: no line of ours knows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from wavelet_cli.main import cli
from wavelet_core import load_checkpoint, registry, save_checkpoint
from wavelet_core.testing import check_model
from wavelet_quant import quantize, weight_bytes

PLUGIN = Path(__file__).with_name("lstm_plugin.py")
METADATA = "Metadata-Version: 2.1\nName: lstm-language-model\nVersion: 0.1.0\n"
SENTENCES = [f"the {noun} {verb} a stone.\n" for noun in ("fox", "dog", "owl") for verb in ("sees", "finds", "has")]
MODEL = {"kind": "lstm", "channels": 24, "depth": 2, "context_length": 32}
TRAINING = {
    "steps": 30,
    "batch_size": 4,
    "lr": 0.02,
    "schedule": "constant",
    "validate_every": 15,
    "device": "cpu",
    "precision": "float32",
}

Wavelet = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The family is installed: its package lies where packages are found, and the registry looks anew."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(PLUGIN, site / "lstm_language_model.py")
    information = site / "lstm_language_model-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(METADATA)
    (information / "entry_points.txt").write_text("[wavelet]\nlstm = lstm_language_model\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        for name, fresh in (("_manager", None), ("_components", {}), ("_conflicts", {})):
            patch.setattr(registry, name, fresh)
        yield


@pytest.fixture(scope="module")
def wavelet() -> Wavelet:
    """Run `wavelet ARGUMENTS... --json` and return what it prints."""

    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(cli, [*map(str, arguments), "--json"], prog_name="wavelet")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, wavelet: Wavelet) -> Path:
    """A folder with the runs `whole` and `small`, and `resumed`, which was stopped half way and went on."""
    folder = tmp_path_factory.mktemp("runs")
    for name, count in (("train", 20), ("validation", 3), ("test", 2)):
        (folder / f"{name}.txt").write_text("".join(SENTENCES * count))
    dataset = {"kind": "text", **{name: str(folder / f"{name}.txt") for name in ("train", "validation", "test")}}
    data = {"dataset": dataset, "tokenizer": "bytes", "cache_directory": str(folder / "cache")}
    configuration = folder / "lstm.yaml"
    configuration.write_text(yaml.safe_dump({"model": MODEL, "data": data, "train": TRAINING}))
    wavelet("train", configuration, "--out", folder / "whole")
    wavelet("train", configuration, "--out", folder / "small", "--set", "model.channels=8", "--set", "model.depth=1")
    wavelet("train", configuration, "--out", folder / "resumed", "--set", "train.steps=15")
    wavelet("train", "--resume", folder / "resumed", "--set", "train.steps=30")
    return folder


@pytest.fixture(scope="module")
def tokens(runs: Path, wavelet: Wavelet) -> Callable[..., list[int]]:
    """The tokens that `wavelet generate` gives with these options."""

    def generate(*options: object) -> list[int]:
        fixed = ("--prompt", "the fox ", "--num-tokens", 20, "--seed", 1)
        [text] = wavelet("generate", runs / "whole", *fixed, *options)["texts"]
        assert len(text["tokens"]) == 20 and all(0 <= token < 257 for token in text["tokens"])
        return text["tokens"]

    return generate


def test_it_is_listed_and_keeps_the_contract(wavelet):
    [listed] = [plugin for plugin in wavelet("plugins")["plugins"] if plugin["package"] == "lstm-language-model"]
    assert listed["components"] == {"model": ["lstm"]} and listed["error"] is None
    family = registry.get("model", "lstm")
    check_model(family)
    check_model(family, family.Config(channels=5, depth=3, vocabulary_size=11, context_length=8))


def test_it_learns_and_resumes_bit_for_bit(runs):
    lines = [json.loads(line) for line in (runs / "whole" / "metrics.jsonl").read_text().splitlines()]
    first, last = (line["nats_per_token"] for line in lines if line["event"] == "validation")
    assert last < first < 5.5
    whole, resumed = (load_checkpoint(runs / name / "last").state_dict() for name in ("whole", "resumed"))
    assert all(tensor.equal(resumed[name]) for name, tensor in whole.items())


def test_it_is_inspected_and_evaluated(runs, wavelet):
    report = wavelet("inspect", runs / "whole")
    assert report["model"]["depth"] == 2 and report["components"] == {"model lstm": "lstm-language-model 0.1.0"}
    model = load_checkpoint(runs / "whole")
    assert report["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
    table = CliRunner().invoke(cli, ["inspect", str(runs / "whole")]).stdout
    assert "lstm" in table and "depth 2" in table
    scores = wavelet("evaluate", runs / "whole", "--split", "validation", "--device", "cpu")
    lines = [json.loads(line) for line in (runs / "whole" / "metrics.jsonl").read_text().splitlines()]
    [final] = [line["validation"] for line in lines if line["event"] == "report"]
    assert scores["bits_per_byte"] == pytest.approx(final["bits_per_byte"], rel=1e-5)


def greedy_text(model: Any) -> list[int]:
    """The most probable next token twenty times, each from a whole forward pass."""
    text = list(b"the fox ")
    with torch.no_grad():
        for _ in range(20):
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    return text[-20:]


def test_greedy_text_is_the_argmax_of_whole_forwards(runs, tokens):
    assert tokens("--temperature", 0) == greedy_text(load_checkpoint(runs / "whole"))


def test_every_sampler_draws_from_it(tokens):
    plain = tokens()
    drawn = {name: tokens("--sampler", f"{{kind: {name}}}") for name in registry.names("sampler")}
    assert {"top_k", "wavelet_coherence"} <= drawn.keys()
    assert drawn["temperature"] == plain, "a temperature of 1 changes nothing"
    assert drawn["repetition_penalty"] != plain


@pytest.mark.parametrize(
    "options",
    [
        ("--lookahead-k", 3, "--lookahead-depth", 2),
        ("--best-of-n", 3),
        ("--context", "window"),
        ("--context", "hop:4"),
        ("--metrics",),
        ("--dtype", "bfloat16"),
    ],
    ids=lambda options: options[0].strip("-"),
)
def test_it_generates_in_every_way(tokens, options):
    generated = tokens(*options)
    assert generated and generated == tokens(*options)


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("draft", ["ngram", "small"])
def test_speculation_changes_no_token(runs, tokens, draft, temperature):
    guessed = tokens("--temperature", temperature, "--draft", draft if draft == "ngram" else runs / draft)
    assert guessed == tokens("--temperature", temperature)


def test_it_is_quantized_and_saved_so(runs, tokens, tmp_path):
    model = load_checkpoint(runs / "whole")
    before = weight_bytes(model)
    assert weight_bytes(quantize(model, "int8")) < 0.35 * before
    save_checkpoint(model, tmp_path / "quantized")
    assert tokens("--ptq8", "--temperature", 0) == greedy_text(load_checkpoint(tmp_path / "quantized"))


def test_its_decoding_is_measured(runs, wavelet):
    options = ("--positions", "1,8", "--rounds", 2, "--window-rounds", 1, "--batches", 2, "--device", "cpu")
    report = wavelet("bench", "decode", runs / "whole", *options)
    model = load_checkpoint(runs / "whole")
    assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert report["state_bytes"] == model.new_state().nbytes == 4 * 2 * 2 * 24
    read = sum(part.nbytes for name, part in model.named_parameters() if not name.startswith("embedding")) + 4 * 24
    assert report["weight_bytes_per_token"] == read
