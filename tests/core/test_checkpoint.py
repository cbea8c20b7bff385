"""Checkpoint directories: whole or old after a kill, strict, each tensor once, loaded without a copy."""

import json
import os
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wavelet_core import (
    CheckpointError,
    ComponentConfig,
    ConfigurationError,
    ModelConfig,
    WaveletLM,
    atomic_files,
    build_model,
    checkpoint,
    hookimpl,
    load_checkpoint,
)
from wavelet_core.checkpoint import load_weights, locate_checkpoint, named_tensors, read_config
from wavelet_core.registry import Registry


@pytest.fixture(scope="module")
def model(make_model, headline):
    return make_model(headline)


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens)


@pytest.mark.parametrize(
    "name",
    [
        "headline",
        "discrete_cosine",
        "multi_basis_untied",
        "untied_reconstruction",
        "spectral_norm",
        "deep_mixer",
        "tied_embedding",
        "shared_block",
        "multinodal",
        "multinodal_gated",
    ],
)
def test_models_come_back_bit_for_bit(make_model, architectures, name, tokens, tmp_path):
    model = make_model(architectures[name])
    model.save_pretrained(tmp_path / "model")
    loaded = WaveletLM.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config and not loaded.training
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters()
    }


def test_the_directory_says_what_it_needs(saved, model):
    config = json.loads((saved / "config.json").read_text())
    assert config["model"] == model.config.model_dump(mode="json")
    assert config["components"]["mixer gated_spectral"].startswith("wavelet-core ")
    assert config["components"]["memory product_key"].startswith("wavelet-memory ")
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "digests.json", "model.safetensors"]


def test_sections_and_a_tokenizer_are_kept_with_the_model(model, tmp_path):
    class Tokenizer:
        def save(self, directory):
            directory.mkdir()
            (directory / "tokenizer.json").write_text("{}")

    model.save_pretrained(tmp_path / "model", tokenizer=Tokenizer(), extra={"train": {"steps": 3}})
    assert read_config(tmp_path / "model")["train"] == {"steps": 3}
    assert (tmp_path / "model" / "tokenizer" / "tokenizer.json").exists()


def test_shared_and_tied_tensors_are_stored_once_and_stay_shared(make_model, tmp_path):
    model = make_model({"tied_embedding": True, "layers": 3})
    model.save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == sum(p.numel() for p in model.parameters())
    assert "head.weight" not in stored and not any(name.startswith("blocks.1.wavelet") for name in stored)
    loaded = WaveletLM.from_pretrained(tmp_path / "model")
    assert loaded.head.weight is loaded.embedding.weight
    assert loaded.blocks[2].wavelet.predict[0].last.weight is loaded.blocks[0].wavelet.predict[0].last.weight


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges directories")
def test_the_old_checkpoint_is_never_out_of_its_place(saved, make_model, monkeypatch):
    replace = os.replace

    def only_others(old, new):
        assert saved not in (old, new)
        replace(old, new)

    monkeypatch.setattr(os, "replace", only_others)
    make_model().save_pretrained(saved)
    assert not WaveletLM.from_pretrained(saved).config.memories


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_new_checkpoint_replaces_the_old_one_whole(saved, make_model, monkeypatch, exchanged):
    if not exchanged:
        monkeypatch.setattr(atomic_files, "_exchange", lambda first, second: False)
    (saved / "left-over").write_text("of the old one")
    make_model().save_pretrained(saved)
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "digests.json", "model.safetensors"]
    assert not WaveletLM.from_pretrained(saved).config.memories


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(saved, make_model, monkeypatch):
    newer = make_model(seed=1)
    verify, calls = checkpoint.verify_checkpoint, []

    def replaced_first(directory, parts):
        calls.append(directory)
        if len(calls) == 1:
            newer.save_pretrained(directory)
            raise CheckpointError("old digests and new files")
        return verify(directory, parts)

    monkeypatch.setattr(checkpoint, "verify_checkpoint", replaced_first)
    loaded = WaveletLM.from_pretrained(saved)
    assert all(tensor.equal(newer.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert len(calls) == 2


def test_tensors_that_do_not_fit_are_listed_by_name_and_shape(saved):
    def change(tensors):
        del tensors["norm.bias"], tensors["blocks.0.scale_gains"]
        tensors["surplus"] = torch.zeros(2, 3)
        tensors["norm.weight"] = torch.zeros(5)

    rewrite(saved, change)
    with pytest.raises(CheckpointError) as refused:
        WaveletLM.from_pretrained(saved)
    for line in (
        "missing norm.bias [12]",
        "missing blocks.0.scale_gains [4, 1]",
        "unexpected surplus [2, 3]",
        "norm.weight has shape [5], but the configuration makes it [12]",
    ):
        assert line in str(refused.value)


def test_a_truncated_or_missing_file_is_named(saved):
    weights = saved / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-100], content[:20], b""):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
            WaveletLM.from_pretrained(saved)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        WaveletLM.from_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"not a checkpoint directory: it has no config\.json"):
        WaveletLM.from_pretrained(saved)
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        WaveletLM.from_pretrained(saved / "nowhere")


def test_a_damaged_or_foreign_configuration_is_named(saved):
    file = saved / "config.json"
    file.write_text(file.read_text()[:-30])
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        WaveletLM.from_pretrained(saved)
    file.write_text('{"embed_dim": 12, "num_layers": 2}')
    with pytest.raises(CheckpointError, match=r"no `model` section.*`wavelet import`"):
        WaveletLM.from_pretrained(saved)
    for section in ("model", "components", "quantization"):
        file.write_text(json.dumps({"model": {}, section: ["a"]}))
        with pytest.raises(CheckpointError, match=rf"config\.json: `{section}` is not a section: \['a'\]"):
            WaveletLM.from_pretrained(saved)
    file.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        WaveletLM.from_pretrained(saved)
    file.write_text('{"model": {"vocabulary_size": 29, "widht": 12}}')
    with pytest.raises(ConfigurationError, match=r"config\.json: model.*widht: unknown field; did you mean 'width'"):
        WaveletLM.from_pretrained(saved)


class Gain(nn.Module):
    class Config(ComponentConfig):
        kind: Literal["gain"] = "gain"

    def __init__(self, config, shape):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape.padded_width))
        self.register_buffer("mask", torch.ones(shape.padded_width), persistent=False)

    def forward(self, z):
        return z * self.gain * self.mask


class GainPlugin:
    @hookimpl
    def register_components(self, register):
        register("mixer", Gain)


@pytest.fixture
def gain_plugin(monkeypatch):
    """A registry with a plugin; calling the fixture's value uninstalls that again."""
    modules = [sys.modules[f"wavelet_core.{name}"] for name in ("config", "checkpoint", "registry")]

    def use(registry):
        for module in modules:
            monkeypatch.setattr(module, "registry", registry)

    registry = Registry()
    registry.add_plugin(GainPlugin(), "gain", "gain-package", "1.5")
    use(registry)
    return lambda: use(Registry())


def test_a_checkpoint_of_an_absent_plugin_names_it(gain_plugin, make_config, tmp_path):
    build_model(make_config({"mixer": "gain"})).save_pretrained(tmp_path / "model")
    gain_plugin()
    with pytest.raises(CheckpointError, match=r"'mixer gain' of gain-package 1\.5, which is not installed or failed"):
        WaveletLM.from_pretrained(tmp_path / "model")


def test_buffers_that_nobody_refills_are_named(gain_plugin, make_config, tmp_path):
    build_model(make_config({"mixer": "gain"})).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"\(Gain\) keeps mask out of the checkpoint; .*reset_buffers"):
        WaveletLM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_asked_for_is_what_comes(make_model, tokens, tmp_path, dtype):
    model = make_model({"mixer": {"parametrization": "spectral_norm"}}).bfloat16()
    model.save_pretrained(tmp_path / "model")
    loaded = WaveletLM.from_pretrained(tmp_path / "model", dtype=dtype)
    assert {tensor.dtype for tensor in named_tensors(loaded).values()} == {dtype or torch.bfloat16}
    assert logits(loaded, tokens).dtype == (dtype or torch.bfloat16)


def test_loading_takes_no_copy_of_the_weights(make_config, tmp_path):
    """Memory-mapped weights add to the resident set as they are read, but not to what the process has written."""
    config = make_config({"vocabulary_size": 200_000, "width": 64})
    build_model(config).save_pretrained(tmp_path / "model")
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size > 100e6
    before = anonymous_memory()
    loaded = WaveletLM.from_pretrained(tmp_path / "model")
    assert anonymous_memory() - before < 0.2 * size
    assert loaded.embedding.weight.shape == (200_000, 64)


def anonymous_memory():
    try:
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
    except OSError:
        pytest.skip("needs /proc")
    return int(fields["RssAnon"].split()[0]) * 1024


def test_weights_can_be_loaded_by_hand(saved, model, tokens):
    with torch.device("meta"):
        empty = build_model(model.config)
    load_weights(empty, saved / "model.safetensors", "cpu")
    assert torch.equal(logits(empty.eval(), tokens), logits(model, tokens))


@pytest.mark.parametrize("name", ["headline", "multinodal"])
def test_a_checkpoint_of_the_first_format_gives_the_logits_that_it_gave(name):
    directory = Path(__file__).parent / "first_format" / name
    expected = load_file(directory / "expected.safetensors")
    model = load_checkpoint(directory)
    torch.testing.assert_close(logits(model, expected["tokens"]), expected["logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("version", [4, 99, 0, "2b", True])
def test_a_newer_format_is_refused_by_name(saved, version):
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": version}))
    with pytest.raises(CheckpointError, match=rf"format_version={version!r} is newer than 3.*pip install --upgrade"):
        load_checkpoint(saved)


def test_a_run_directory_stands_for_its_best_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "run" / "last")
    assert locate_checkpoint(tmp_path / "run") == tmp_path / "run" / "last"
    model.save_pretrained(tmp_path / "run" / "best")
    assert locate_checkpoint(tmp_path / "run") == tmp_path / "run" / "best"
    assert locate_checkpoint(tmp_path / "run" / "last") == tmp_path / "run" / "last"
    (tmp_path / "run" / "best" / "config.json").unlink()
    assert locate_checkpoint(tmp_path / "run") == tmp_path / "run" / "best"


def test_nothing_is_unpickled(saved, model, tokens, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled something")

    for unpickler in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(unpickler, refuse)
    assert torch.equal(logits(WaveletLM.from_pretrained(saved).eval(), tokens), logits(model, tokens))


def test_saving_never_replaces_a_directory_that_is_no_checkpoint(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    model = WaveletLM(ModelConfig(vocabulary_size=8, width=8, levels=2))
    with pytest.raises(CheckpointError, match="holds files that are no checkpoint"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
