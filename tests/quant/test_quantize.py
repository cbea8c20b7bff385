"""Whole models in the formats of recipes: what is stored how, what is left alone, and that the rest does not notice."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wavelet_core import (
    CheckpointError,
    ConfigurationError,
    ModelConfig,
    WaveletLM,
    load_checkpoint,
    registry,
    save_checkpoint,
)
from wavelet_core.checkpoint import materialize, named_tensors
from wavelet_core.computed import Computed
from wavelet_core.digests import write_digests
from wavelet_core.kernels import as_single_rows
from wavelet_core.linear import Linear, StackedLinear
from wavelet_core.tensor_files import load_tensors, save_tensors
from wavelet_quant import drop_ins, load_recipe, preset_recipes, quantize, weight_bytes
from wavelet_quant.packed import PackedMatrix

HEADLINE = {
    "vocabulary_size": 61,
    "width": 24,
    "levels": 3,
    "wavelet": {"kind": "lifting", "crawl": 3},
    "mixer": {"kind": "gated_spectral", "rank": 2, "routing": True, "widths": [1, 1, 0.5, 0.5]},
    "block": {"kind": "wavelet", "embedding_residual": True},
    "memories": [
        {"kind": "mlp", "expansion": 2},
        {"kind": "product_key", "num_keys": 64, "top_k": 4},
        {"kind": "fast_weight_product_key", "num_keys": 64, "top_k": 4, "inference_updates": True, "chunk_size": 4},
    ],
}
OTHERS = {
    "tied": HEADLINE | {"tied_embedding": True},
    "shared_block": HEADLINE | {"shared_block": True},
    "haar": HEADLINE | {"wavelet": "haar", "bypass": "ema"},
    "spectral_norm": HEADLINE | {"mixer": {"kind": "gated_spectral", "parametrization": "spectral_norm"}},
    "deep": HEADLINE | {"mixer": {"kind": "deep_gated_spectral", "stabilizers": True}},
}


def model_of(config=HEADLINE, seed=0):
    torch.manual_seed(seed)
    return WaveletLM(ModelConfig.model_validate(config)).eval()


def int8(model):
    return quantize(model, "int8")


def tokens_of(batch=2, length=20):
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(1))


def test_weights_that_are_not_finite_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].weight[2, 0] = math.nan
    with pytest.raises(ValueError, match=r"^1\.weight .*not finite"):
        int8(model)


def test_each_kind_of_weight_has_a_scale_per_output_channel():
    model = int8(model_of())
    block = model.blocks[0]
    shapes = {
        model.embedding: (61, 24),
        model.head: (61, 24),
        block.project: (24, 32),
        block.mixer.banks[0].matrix: (2, 32, 32),
        block.mixer.banks[1].narrow: (2, 16, 32),
        block.mixer.banks[0].down: (2, 2, 32),
        block.memories.memories[1].values: (64, 24),
        block.memories.memories[1].keys_a: (1, 8, 12),
    }
    for module, shape in shapes.items():
        assert module.weight.shape == shape and module.weight.bits == 8
        table = module in (model.embedding, block.memories.memories[1].values)
        assert module.weight.scales.shape[-2:] == ((shape[0], 1) if table else (1, 16))


@pytest.mark.parametrize("config", [HEADLINE, *OTHERS.values()], ids=["headline", *OTHERS])
def test_every_matrix_is_quantized_and_nothing_else(config):
    model = model_of(config)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    int8(model)
    left = dict(model.named_parameters())
    gains = ("gains", "theta", "scale_gains", "bias", "norms", "routing")
    for name, parameter in before.items():
        if name in left:
            assert parameter.dim() < 2 or any(part in gains for part in name.split(".")), f"{name} is still float"
            assert torch.equal(left[name], parameter)
        else:
            assert parameter.dim() >= 2 and not name.endswith("gains") and "routing" not in name


@pytest.mark.parametrize("config", [HEADLINE, *OTHERS.values()], ids=["headline", *OTHERS])
def test_logits_are_those_of_the_rounded_weights(config):
    model = model_of(config)
    quantized = int8(copy.deepcopy(model))
    rounded = copy.deepcopy(model)
    with torch.no_grad(), as_single_rows():
        for path, module in rounded.named_modules():
            drop_in = quantized.get_submodule(path)
            if type(drop_in) is not type(module):
                module.weight.copy_(drop_in.matrix())
                if isinstance(module, Computed):
                    module._frozen = drop_in.matrix()
        expected, out = rounded(tokens_of()), quantized(tokens_of())
        original = model(tokens_of())
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-3)
    assert 0 < (out - original).std() < 0.05 * original.std()


@pytest.mark.parametrize("config", [HEADLINE, *OTHERS.values()], ids=["headline", *OTHERS])
def test_logits_of_many_rows_are_near_those_of_the_model(config):
    """Where many rows become integers of 8 bits that changes logits as much as weights of 8 bits do."""
    model = model_of(config)
    with torch.no_grad():
        original, out = model(tokens_of()), int8(model)(tokens_of())
    assert 0 < (out - original).std() < 0.04 * original.std()


def test_tied_and_shared_weights_are_quantized_once_and_stay_shared():
    model = int8(model_of(HEADLINE | {"tied_embedding": True}))
    assert model.head.weight is model.embedding.weight
    assert model.blocks[0].wavelet.predict[0].first is model.blocks[1].wavelet.predict[0].first
    model.to(torch.bfloat16).to("cpu")
    assert model.head.weight.values is model.embedding.weight.values
    names = [name for name in named_tensors(model) if name.endswith("weight.values")]
    assert "embedding.weight.values" in names and "head.weight.values" not in names


def test_memory_shrinks():
    config = HEADLINE | {"width": 256, "vocabulary_size": 2000, "mixer": {"kind": "gated_spectral"}}
    model = model_of(config)
    before = weight_bytes(model)
    assert weight_bytes(int8(model)) < 0.27 * before


def test_state_dict_round_trip():
    model = int8(model_of(seed=0))
    other = int8(model_of(seed=1))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(tokens_of()), model(tokens_of()))


@pytest.mark.parametrize("config", [HEADLINE, *OTHERS.values()], ids=["headline", *OTHERS])
def test_a_model_without_weights_yet_can_be_quantized_and_loaded(config):
    model = int8(model_of(config))
    with torch.device("meta"):
        empty = int8(model_of(config))
    assert empty.head.weight.values.is_meta
    materialize(empty, named_tensors(model.bfloat16()))
    with torch.no_grad():
        assert torch.equal(empty.eval()(tokens_of()), model(tokens_of()))


def test_what_is_quantized_already_is_refused():
    with pytest.raises(ConfigurationError, match="quantized already"):
        quantize(int8(model_of()), "int4")


def test_changing_the_type_keeps_the_scales_precise():
    model = int8(model_of())
    scales = model.head.weight.scales.clone()
    model.bfloat16()
    assert torch.equal(model.head.weight.scales, scales)
    assert (
        model.head.matrix().dtype == model.new_state().tree["blocks"]["0"]["wavelet"]["level0"].dtype == torch.bfloat16
    )
    with torch.no_grad():
        assert model(tokens_of()).dtype == torch.bfloat16


def test_causal_and_streaming_as_before():
    model = int8(model_of())
    tokens = tokens_of()
    with torch.no_grad(), as_single_rows():
        whole = model(tokens, model.new_state(2))
        state = model.new_state(2)
        parts = torch.cat([model(part, state) for part in tokens.split([1, 1, 7, 1, 10], dim=1)], dim=1)
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
        changed = tokens.clone()
        changed[:, 12] = (changed[:, 12] + 1) % 61
        torch.testing.assert_close(model(changed)[:, :12], model(tokens)[:, :12])


def test_compiles_without_graph_breaks():
    model = int8(model_of(HEADLINE | {"layers": 1, "levels": 1, "mixer": "gated_spectral"}))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens_of()), model(tokens_of()))


class ForeignMixer(nn.Module):
    """What a plugin might bring: both kinds of linear maps, also in a list, raw parameters, and its own norms."""

    def __init__(self):
        super().__init__()
        self.stack = StackedLinear(4, 8, 8)
        self.more = nn.ModuleList([nn.Linear(8, 8), Linear(8, 8, bias=False)])
        self.gains = nn.Parameter(torch.randn(4, 8))
        self.norm = nn.LayerNorm((4, 8))
        self.norm.weight.data.normal_()

    def forward(self, z):
        z = self.norm(z) * self.gains
        return self.more[1](self.more[0](self.stack(z.flatten(0, 1).transpose(0, 1))))


def test_modules_it_never_heard_of():
    torch.manual_seed(0)
    mixer = ForeignMixer()
    z = torch.randn(2, 3, 4, 8)
    expected = mixer(z)
    int8(mixer)
    assert sorted(name for name, _ in mixer.named_parameters()) == ["gains", "more.0.bias", "norm.bias", "norm.weight"]
    assert mixer.stack.weight.shape == (4, 8, 8)
    torch.testing.assert_close(mixer(z), expected, atol=0.1, rtol=0)
    assert not torch.equal(mixer(z), expected)


class ScaledEmbedding(nn.Embedding):
    def forward(self, input):
        return 2 * super().forward(input)


def test_what_no_drop_in_can_stand_for_is_left_in_floating_point():
    modules = nn.ModuleList(
        [
            ScaledEmbedding(5, 4),
            nn.Embedding(5, 4, max_norm=1.0),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, 4, bias=False),
        ]
    )
    x = torch.randn(1, 3, 4)
    before = dict(modules.named_parameters())
    int8(modules)
    assert dict(modules.named_parameters()).keys() == before.keys() - {"3.weight"}
    assert modules[2](x, x, x)[0].isfinite().all()


def test_the_model_knows_what_made_it():
    quantization = int8(model_of()).quantization
    assert quantization.kind == "recipe" and quantization.recipe == load_recipe("int8")
    assert quantization.made_by.keys() == {"wavelet-quant", "torch"} and quantization.calibration is None


@pytest.mark.parametrize("recipe", sorted(preset_recipes()))
def test_embeddings_give_floating_point_only_to_the_rows_asked_for(recipe, monkeypatch):
    embedding = quantize(nn.Embedding(50, 64), recipe)
    index = torch.tensor([[3, 3, 49], [0, 1, 2]])
    expected = F.embedding(index, embedding.matrix())
    monkeypatch.setattr(PackedMatrix, "matrix", lambda self: pytest.fail("the whole table became floating point"))
    torch.testing.assert_close(embedding(index), expected)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("rows", [50, 4])
def test_bags_of_rows_equal_the_floating_point_ones(mode, rows, monkeypatch):
    monkeypatch.setattr(drop_ins, "GATHERED", 2 * 5 * 8)
    bag = int8(nn.EmbeddingBag(rows, 8, mode=mode))
    index = torch.randint(rows, (3, 5))
    weights = torch.rand(3, 5) if mode == "sum" else None
    expected = F.embedding_bag(index, bag.matrix(), mode=mode, per_sample_weights=weights)
    torch.testing.assert_close(bag(index, per_sample_weights=weights), expected)
    offsets = torch.tensor([0, 4])
    expected = F.embedding_bag(index.flatten(), bag.matrix(), offsets, mode=mode)
    torch.testing.assert_close(bag(index.flatten(), offsets), expected)


def test_int8_costs_a_trained_model_next_to_nothing():
    text = torch.tensor(list(Path(__file__).read_bytes()))
    torch.manual_seed(0)
    config = HEADLINE | {"vocabulary_size": 256, "width": 32, "memories": [{"kind": "mlp", "expansion": 2}]}
    model = WaveletLM(ModelConfig.model_validate(config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        start = torch.randint(len(text) - 65, (8, 1)) + torch.arange(65)
        window = text[start]
        optimizer.zero_grad()
        model.loss(window[:, :-1], window[:, 1:]).backward()
        optimizer.step()
    windows = text[: len(text) // 129 * 129].view(-1, 129)

    @torch.no_grad()
    def bits_per_byte():
        return model.eval().loss(windows[:, :-1], windows[:, 1:]).item() / math.log(2)

    trained = bits_per_byte()
    assert trained < 4, "the model must have learned something"
    int8(model)
    assert abs(bits_per_byte() - trained) < 0.01


@pytest.mark.parametrize("config", [HEADLINE, *OTHERS.values()], ids=["headline", *OTHERS])
@pytest.mark.parametrize("recipe", ["int8", "mixed-8-4-2"])
def test_a_quantized_model_is_saved_and_loaded_as_it_is(config, recipe, tmp_path):
    model, tokens = quantize(model_of(config), recipe), tokens_of()
    save_checkpoint(model, tmp_path / "model")
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.quantization == model.quantization
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model(tokens))
        narrow = load_checkpoint(tmp_path / "model", torch.bfloat16)
        assert narrow(tokens).dtype == torch.bfloat16
    scales = {matrix.scales.dtype for matrix in narrow.modules() if isinstance(matrix, PackedMatrix)}
    assert scales <= {torch.float32, torch.float16}


def test_a_quantized_checkpoint_names_the_package_that_it_needs(tmp_path, monkeypatch):
    save_checkpoint(int8(model_of()), tmp_path / "model")
    components = registry._components
    monkeypatch.setattr(
        registry, "_components", {key: value for key, value in components.items() if key[0] != "quantizer"}
    )
    with pytest.raises(CheckpointError, match=r"'quantizer recipe' of wavelet-quant .*, which is not installed"):
        load_checkpoint(tmp_path / "model")


def test_a_format_that_is_not_understood_is_refused(tmp_path):
    save_checkpoint(int8(model_of()), tmp_path / "model")
    change(tmp_path, lambda content: content["quantization"]["recipe"]["rules"][1]["format"].update(bits=8))
    with pytest.raises(ConfigurationError, match=r"config\.json: quantization: recipe.*bits: unknown field"):
        load_checkpoint(tmp_path / "model")


def change(folder, how):
    file = folder / "model" / "config.json"
    content = json.loads(file.read_text())
    how(content)
    file.write_text(json.dumps(content))


def test_a_checkpoint_of_an_early_format_says_to_quantize_again(tmp_path):
    save_checkpoint(model_of(), tmp_path / "model")
    change(tmp_path, lambda content: content.update(format={"kind": "int8"}))
    with pytest.raises(CheckpointError, match="quantize the original checkpoint again"):
        load_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (lambda values, scales: {"head.weight.values": values[:-1]}, r"head\.weight\.values has shape \[3, 6, 16, 4\]"),
        (lambda values, scales: {"head.weight.values": values.int()}, r"head\.weight\.values is torch\.int32"),
        (lambda values, scales: {"head.weight.scales": scales[..., :8]}, r"head\.weight\.scales has shape"),
        (lambda values, scales: {"head.weight.scales": scales * torch.inf}, r"head\.weight\.scales: 64 of 64 values"),
    ],
    ids=["truncated", "type", "scales", "infinite"],
)
def test_packed_tensors_that_do_not_fit_are_named(tensor, says, tmp_path):
    save_checkpoint(int8(model_of()), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_tensors(file)
    tensors |= tensor(tensors["head.weight.values"], tensors["head.weight.scales"])
    save_tensors(tensors, file)
    write_digests(tmp_path / "model")
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(tmp_path / "model")
