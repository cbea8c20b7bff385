"""Original checkpoints come in and go out: strict, complete, and the identity there and back."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from wavelet_cli.seed.configuration import model_config_from_seed, seed_from_model_config
from wavelet_cli.seed.conversion import export_seed, import_seed
from wavelet_core import CheckpointError, ConfigurationError, ModelConfig, WaveletLM
from wavelet_core.digests import write_digests
from wavelet_core.tensor_files import load_tensors
from wavelet_core.tokenizers import BytePairTokenizer, BytesTokenizer

HERE = Path(__file__).parent / "cases"


@pytest.fixture
def haar(tmp_path):
    """A writable copy of a case that is in this repository."""
    return shutil.copytree(HERE / "haar", tmp_path / "haar")


def test_import_export_import_is_the_identity(directory, tmp_path):
    import_seed(directory / "best_model.pt", None, tmp_path / "first")
    export_seed(tmp_path / "first", tmp_path / "seed")
    import_seed(tmp_path / "seed" / "best_model.pt", None, tmp_path / "second")
    assert (tmp_path / "first" / "config.json").read_text() == (tmp_path / "second" / "config.json").read_text()
    first, second = (load_tensors(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_export_has_the_names_and_shapes_of_the_original(directory, tmp_path):
    import_seed(directory / "best_model.pt", None, tmp_path / "ours")
    export_seed(tmp_path / "ours", tmp_path / "seed")
    original = torch.load(directory / "best_model.pt", weights_only=True)["model_state"]
    exported = torch.load(tmp_path / "seed" / "best_model.pt", weights_only=True)["model_state"]
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (original, exported)]
    assert shapes[0] == shapes[1]
    flat = json.loads((tmp_path / "seed" / "config.json").read_text())
    assert model_config_from_seed(flat, 61) == model_config_from_seed(
        json.loads((directory / "config.json").read_text()), 61
    )


def rewrite(directory, change):
    """Apply a change to the wrapper of a copied case and return what was written."""
    path = directory / "best_model.pt"
    content = change(torch.load(path, weights_only=True))
    torch.save(content, path)
    return path


def test_a_configuration_too_large_for_the_memory_does_not_fit(haar, tmp_path):
    config = json.loads((haar / "config.json").read_text())
    (haar / "config.json").write_text(json.dumps({**config, "mlp_expansion": 2**40}))
    with pytest.raises(CheckpointError, match=r"does not fit its configuration: that makes [\d,]+ weights"):
        import_seed(haar / "best_model.pt", None, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_bare_state_dict_with_compile_prefixes(haar, tmp_path):
    import_seed(haar / "best_model.pt", None, tmp_path / "wrapped")
    rewrite(haar, lambda content: {f"_orig_mod.{name}": t for name, t in content["model_state"].items()})
    import_seed(haar / "best_model.pt", None, tmp_path / "bare")
    first, second = (load_tensors(tmp_path / name / "model.safetensors") for name in ("wrapped", "bare"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_half_precision_weights_stay_half_precision(haar, tmp_path):
    rewrite(haar, lambda c: {**c, "model_state": {name: t.half() for name, t in c["model_state"].items()}})
    import_seed(haar / "best_model.pt", None, tmp_path / "out")
    tensors = load_tensors(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_mixed_precision_becomes_float32(haar, tmp_path):
    def halve_some(content):
        state = {name: t.half() if "ln" in name else t for name, t in content["model_state"].items()}
        return {**content, "model_state": state}

    rewrite(haar, halve_some)
    import_seed(haar / "best_model.pt", None, tmp_path / "out")
    tensors = load_tensors(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_tensors_of_options_that_did_not_exist_yet_are_taken_as_neutral(haar, tmp_path):
    def before_scale_weights(content):
        state = {name: t for name, t in content["model_state"].items() if "scale_weights" not in name}
        return {**content, "model_state": state}

    rewrite(haar, before_scale_weights)
    report = import_seed(haar / "best_model.pt", None, tmp_path / "out")
    assert any("layers.0.scale_weights" in remark for remark in report.remarks)
    assert WaveletLM.from_pretrained(tmp_path / "out").blocks[0].scale_gains.eq(1).all()


def test_options_missing_from_an_old_configuration_are_seen_in_the_tensors(haar, tmp_path):
    import_seed(haar / "best_model.pt", None, tmp_path / "full")
    flat = json.loads((haar / "config.json").read_text())
    for key in ("learned_residual", "decompose_bypass", "use_mixer_gate", "skip_proj_out", "per_layer_embedding"):
        del flat[key]
    (haar / "config.json").write_text(json.dumps(flat))
    import_seed(haar / "best_model.pt", None, tmp_path / "old")
    assert (tmp_path / "full" / "config.json").read_text() == (tmp_path / "old" / "config.json").read_text()


def test_everything_that_does_not_fit_is_listed_by_name_and_shape(haar, tmp_path):
    def damage(content):
        state = dict(content["model_state"])
        del state["layers.0.ln1.weight"]
        state["layers.0.ln2.weight"] = torch.zeros(7)
        state["layers.0.stranger"] = torch.zeros(2, 3)
        return {**content, "model_state": state}

    rewrite(haar, damage)
    with pytest.raises(CheckpointError) as refusal:
        import_seed(haar / "best_model.pt", None, tmp_path / "out")
    message = str(refusal.value)
    assert "missing layers.0.ln1.weight [24]" in message
    assert "layers.0.ln2.weight has shape [7], but the configuration makes it [24]" in message
    assert "unexpected layers.0.stranger [2, 3]" in message
    assert not (tmp_path / "out").exists()


def test_shared_lifting_that_differs_between_blocks_is_refused(haar, tmp_path):
    case = shutil.copytree(HERE / "bypass_ema", tmp_path / "shared")

    def damage(content):
        state = dict(content["model_state"])
        state["layers.1.lifting_wavelet.predict_nets.0.0.bias"] = torch.ones(32)
        return {**content, "model_state": state}

    rewrite(case, damage)
    with pytest.raises(CheckpointError, match="but the configuration shares them"):
        import_seed(case / "best_model.pt", None, tmp_path / "out")


def test_a_pickle_with_code_is_not_executed(tmp_path, haar):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"model_state": Evil()}, haar / "best_model.pt")
    with pytest.raises(CheckpointError, match="not a whole PyTorch checkpoint of plain tensors"):
        import_seed(haar / "best_model.pt", None, tmp_path / "out")
    assert not (tmp_path / "executed").exists()


def test_truncated_and_missing_files_are_named(haar, tmp_path):
    path = haar / "best_model.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"best_model\.pt: not a whole"):
        import_seed(path, None, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no such file"):
        import_seed(tmp_path / "nothing.pt", None, tmp_path / "out")


def test_embedded_sentencepiece_model_goes_there_and_back(haar, tmp_path):
    rewrite(haar, lambda content: {**content, "sentencepiece_model": b"model bytes", "tokenizer_name": "sp"})
    import_seed(haar / "best_model.pt", None, tmp_path / "ours")
    assert (tmp_path / "ours" / "tokenizer" / "sentencepiece.model").read_bytes() == b"model bytes"
    export_seed(tmp_path / "ours", tmp_path / "seed")
    content = torch.load(tmp_path / "seed" / "best_model.pt", weights_only=True)
    assert content["sentencepiece_model"] == b"model bytes"
    assert content["tokenizer_name"] == "sp"
    assert json.loads((tmp_path / "seed" / "config.json").read_text())["tokenizer"] == "sp"


def directory_content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("kind", ["byte_pair", "bytes"])
def test_a_tokenizer_that_the_original_has_not_goes_there_and_back(haar, tmp_path, kind):
    import_seed(haar / "best_model.pt", None, tmp_path / "ours")
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the"]
    tokenizer = BytesTokenizer() if kind == "bytes" else BytePairTokenizer(BytePairTokenizer.Config(), tokens)
    tokenizer.save(tmp_path / "ours" / "tokenizer")
    write_digests(tmp_path / "ours")
    export_seed(tmp_path / "ours", tmp_path / "seed")
    assert torch.load(tmp_path / "seed" / "best_model.pt", weights_only=True)["tokenizer_name"] == kind
    report = import_seed(tmp_path / "seed" / "best_model.pt", None, tmp_path / "again")
    assert report.remarks == []
    ours, again = (directory_content(tmp_path / name / "tokenizer") for name in ("ours", "again"))
    assert again == ours


@pytest.mark.parametrize("files", [{"../tokenizer.json": b"{}"}, {"tokenizer.json": b"["}, {"tokenizer.json": 3}, [1]])
def test_damaged_files_of_a_tokenizer_are_refused(haar, tmp_path, files):
    rewrite(haar, lambda content: {**content, "wavelet_tokenizer": files})
    with pytest.raises(CheckpointError, match="wavelet_tokenizer is damaged"):
        import_seed(haar / "best_model.pt", None, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_the_name_of_a_tokenizer_that_does_not_fit_is_kept(haar, tmp_path):
    import_seed(haar / "best_model.pt", None, tmp_path / "ours")
    export_seed(tmp_path / "ours", tmp_path / "seed")
    assert torch.load(tmp_path / "seed" / "best_model.pt", weights_only=True)["tokenizer_name"] == "gpt2"
    assert json.loads((tmp_path / "seed" / "config.json").read_text())["tokenizer"] == "gpt2"


def test_a_tokenizer_of_another_size_is_replaced_by_token_ids(haar, tmp_path):
    report = import_seed(haar / "best_model.pt", None, tmp_path / "ours")
    assert any("'gpt2' has 50257 tokens, but the model 61" in remark for remark in report.remarks)
    assert json.loads((tmp_path / "ours" / "tokenizer" / "tokenizer.json").read_text())["kind"] == "token_ids"


@pytest.mark.parametrize(
    ("section", "value", "named"),
    [
        ("mixer", {"parametrization": "exponential"}, "model.mixer.parametrization"),
        ("memories", [{"kind": "mlp"}, {"kind": "mlp"}], "model.memories"),
    ],
)
def test_what_the_original_cannot_express_is_named(section, value, named):
    config = ModelConfig.model_validate({"vocabulary_size": 8, "width": 8, section: value})
    with pytest.raises(ConfigurationError, match=named):
        seed_from_model_config(config)


def test_sharing_with_multi_basis_is_refused_naming_both(haar, tmp_path):
    flat = json.loads((haar / "config.json").read_text())
    flat |= {"wavelet_mode": "lifting", "multi_basis_lifting": True, "shared_lifting_weights": True}
    with pytest.raises(ConfigurationError, match=r"multi_basis.*shared_wavelet"):
        model_config_from_seed(flat, 61)


def test_routing_that_nothing_reads_is_left_out_with_a_remark(haar, tmp_path):
    flat = json.loads((haar / "config.json").read_text()) | {"cross_scale_gating": True, "use_mixer_gate": False}
    (haar / "config.json").write_text(json.dumps(flat))

    def without_gate(content):
        state = {name: t for name, t in content["model_state"].items() if ".gate." not in name}
        return {**content, "model_state": state | {"layers.0.scale_routing": torch.eye(4)}}

    rewrite(haar, without_gate)
    report = import_seed(haar / "best_model.pt", None, tmp_path / "out")
    assert any("layers.0.scale_routing is left out" in remark for remark in report.remarks)


def test_skip_proj_out_has_no_effect_on_a_padded_width():
    flat = {"C": 24, "layers": 1, "levels": 2, "skip_proj_out": True}
    assert model_config_from_seed(flat, 61).block.projection
    assert not model_config_from_seed(flat | {"C": 32}, 61).block.projection


def test_fast_weights_learned_before_saving_are_added_to_the_values(tmp_path):
    case = shutil.copytree(HERE / "fwpkm_heads2_updates", tmp_path / "fwpkm")
    import_seed(case / "best_model.pt", None, tmp_path / "before")

    def learn(content):
        content["model_state"]["layers.0.fwpkm.value_deltas"] += 0.5
        return content

    rewrite(case, learn)
    report = import_seed(case / "best_model.pt", None, tmp_path / "after")
    assert any("layers.0.fwpkm.value_deltas" in remark for remark in report.remarks)
    name = "blocks.0.memories.memories.1.values.weight"
    before, after = (load_tensors(tmp_path / d / "model.safetensors")[name] for d in ("before", "after"))
    torch.testing.assert_close(after, before + 0.5)
