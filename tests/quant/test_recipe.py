"""Recipes: which rule decides, what they refuse, and what they make of stacks by scale."""

import json
from typing import Literal

import pytest
import torch
from torch import nn

from wavelet_core import (
    ComponentConfig,
    ConfigurationError,
    ModelConfig,
    MultinodalConfig,
    build_model,
    load_checkpoint,
    registry,
    save_checkpoint,
)
from wavelet_core.linear import StackedLinear
from wavelet_core.testing import check_component
from wavelet_quant import Recipe, StoredMatrix, WeightFormat, load_recipe, preset_recipes, quantize
from wavelet_quant.recipe import Rule

INT4_128 = {"kind": "int4", "group": 128}


def model_of(**fields):
    torch.manual_seed(0)
    return build_model(ModelConfig(vocabulary_size=40, width=64, layers=1, **fields)).eval()


def rules(*made):
    return {"rules": list(made)}


def formats_of(model, recipe):
    """The formats of each module, by name."""
    found = {}
    quantize(model, recipe, progress=lambda matrix, total: found.__setitem__(matrix.name, matrix.formats))
    return found


@pytest.mark.parametrize("name", sorted(preset_recipes()))
def test_presets_are_for_every_family(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description == preset_recipes()[name]
    assert load_recipe(recipe.model_dump()) == recipe == load_recipe(json.loads(recipe.model_dump_json()))
    configs = [
        ModelConfig(vocabulary_size=40, width=32, mixer={"kind": "gated_spectral", "routing": True}, wavelet="haar"),
        MultinodalConfig(vocabulary_size=40, width=32, cross_cell_gating=True, layers=1, levels=2),
    ]
    tokens = torch.randint(40, (1, 9), generator=torch.Generator().manual_seed(0))
    for config in configs:
        model = build_model(config).eval()
        with torch.no_grad():
            before = model(tokens)
            after = quantize(model, name)(tokens)
        assert model.quantization.recipe.name == name
        assert 0 < (after - before).std() < 0.3 * before.std()
    assert quantize(nn.Linear(64, 5), name).weight.bits in (4, 8)


def test_the_published_mixture_goes_by_scale():
    model = model_of(levels=7, mixer={"kind": "gated_spectral", "widths": [1] * 4 + [0.5] * 4})
    quantize(model, "mixed-8-4-2")
    coarse, fine = model.blocks[0].mixer.banks
    assert [
        (part.bits, own) for part, own in zip(coarse.gate.weight.parts, coarse.gate.weight.members, strict=True)
    ] == [
        (8, [0, 1, 2]),
        (4, [3]),
    ]
    # 32 channels are no group of 64.
    assert fine.gate.weight.bits == 8
    assert [part.bits for part in fine.narrow.weight.parts] == [4, 2]
    assert model.blocks[0].project.weight.bits == model.blocks[0].memories.memories[0].layers[0].weight.bits == 4
    assert model.embedding.weight.bits == model.head.weight.bits == 8
    assert model.blocks[0].wavelet.predict[0].first.weight.bits == 8


def test_the_first_rule_that_is_for_a_matrix_decides():
    found = formats_of(
        model_of(),
        rules(
            {"modules": "head", "format": None},
            {"modules": "*.predict.[0-1].*", "format": {"kind": "dense", "dtype": "float16"}},
            {"modules": "*.wavelet.*", "format": {"kind": "int4", "group": 32}},
            {"modules": "*.wavelet.*", "format": "int2"},
        ),
    )
    assert "head" not in found and "embedding" not in found
    assert found["blocks.0.wavelet.predict.1.first"] == ("dense (dtype float16)",)
    assert found["blocks.0.wavelet.predict.2.first"] == ("int4 (group 32)",)


def test_a_shared_part_is_found_by_each_of_its_names():
    model = build_model(ModelConfig(vocabulary_size=40, width=64, layers=2))
    assert len(formats_of(model, rules({"modules": "blocks.1.wavelet.predict.0.*", "format": "int8"}))) == 2
    assert model.blocks[0].wavelet.predict[0].first is model.blocks[1].wavelet.predict[0].first


@pytest.mark.parametrize(
    ("scales", "those"),
    [(None, [0, 1, 2, 3, 4, None]), (2, [2]), ("2", [2]), ("1-3", [1, 2, 3]), ("3-", [3, 4]), ("0-0", [0])],
)
def test_scales_of_a_rule(scales, those):
    rule = Rule(modules="*", scales=scales, format="int8")
    assert [scale for scale in (0, 1, 2, 3, 4, None) if rule.has_scale(scale)] == those


def test_scales_that_no_rule_is_for_stay_as_they_are():
    stack = StackedLinear(3, 64, 8)
    stack.scales = (4, 0, 2)
    weight = stack.weight.detach().clone()
    stored = quantize(stack, rules({"modules": "*", "scales": "0-2", "format": "int4"})).weight
    assert stored.members == [[0], [1, 2]]
    assert torch.equal(stored.matrix()[0], weight[0])
    assert not torch.equal(stored.matrix()[1:], weight[1:])
    assert stored.bfloat16().parts[0].values.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (rules({"modules": "*.mixxer.*", "format": "int8"}), r"'\*\.mixxer\.\*' is for no matrix.*embedding"),
        (rules({"modules": "head", "scales": "0-1", "format": "int8"}), "scales=0-1 is for no matrix"),
        (rules({"modules": "*.norm*", "format": "int8"}), "is for no matrix"),
        (rules({"modules": "*", "format": INT4_128}), r"does not fit int4 \(group 128\).*`otherwise`"),
        (rules({"modules": "*", "format": INT4_128, "otherwise": INT4_128}), "does not fit int4"),
        (rules({"modules": "*", "format": {"kind": "int4", "group": 48}}), r"rules\[0\]\.format.*group"),
        (rules({"modules": "*", "format": "int3"}), r"unknown format 'int3'; did you mean 'int"),
        (rules({"modules": "*", "fromat": "int8"}), "unknown field; did you mean 'format'"),
        (rules({"modules": "*"}), "format"),
        (rules({"modules": "*", "scales": "3-1", "format": "int8"}), "such as 0-2"),
        (rules({"modules": "*", "scales": "fine", "format": "int8"}), "such as 0-2"),
        (rules(), "at least 1"),
        ({"version": 2, "laws": []}, "version=2 is newer than 1.*upgrade"),
        ("int5", "unknown preset 'int5'; did you mean 'int"),
        ("missing.yaml", "no configuration file at missing.yaml"),
    ],
)
def test_what_a_recipe_cannot_be(recipe, says):
    model = model_of()
    before = dict(model.named_parameters())
    with pytest.raises(ConfigurationError, match=rf"(?s){says}") as error:
        quantize(model, recipe)
    assert len(str(error.value)) < 600
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and not hasattr(model, "quantization")


def test_files_hold_recipes(tmp_path):
    (tmp_path / "mine.yaml").write_text("description: only the head\nrules:\n- {modules: head, format: int8}\n")
    assert load_recipe(tmp_path / "mine.yaml").name == "mine"
    assert list(formats_of(model_of(), str(tmp_path / "mine.yaml"))) == ["head"]
    (tmp_path / "bad.yaml").write_text("rules: [")
    with pytest.raises(ConfigurationError, match=r"bad\.yaml, line 1: not YAML"):
        load_recipe(tmp_path / "bad.yaml")


def test_a_stack_whose_scales_are_too_few_is_named():
    module = nn.ModuleDict({"stack": StackedLinear(3, 8, 8)})
    module["stack"].scales = (0, 1)
    with pytest.raises(ConfigurationError, match=r"stack\.scales names 2 scales for 3"):
        quantize(module, "int8")


class EighthsMatrix(StoredMatrix):
    def __init__(self, weight):
        super().__init__(weight.shape, weight.dtype, weight.device)
        if not (weight.is_meta or weight.isfinite().all()):
            raise ValueError("has entries that are not finite")
        self.register_buffer("eighths", (8 * weight.detach()).round().to(torch.int8))

    def matrix(self, dtype=None):
        return (self.eighths / 8).to(dtype or self.dtype)


class Eighths(WeightFormat):
    """A third party's format."""

    class Config(ComponentConfig):
        kind: Literal["eighths"] = "eighths"

    def store(self, weight, hessian=None):
        return EighthsMatrix(weight)


@pytest.fixture
def eighths(monkeypatch):
    monkeypatch.setattr(registry, "_components", dict(registry._components))
    registry.register("format", Eighths)


def test_a_third_partys_format_keeps_the_contract_and_is_used_by_name(eighths):
    check_component(Eighths)
    rest = {"modules": "*", "format": "int8"}
    model = quantize(model_of(), rules({"modules": "*.memories.*", "format": "eighths"}, rest))
    assert isinstance(model.blocks[0].memories.memories[0].layers[0].weight, EighthsMatrix)
    assert ("format", "eighths") in {(kind, config.kind) for _, kind, config in model.quantization.components()}


class Wrong(Eighths):
    """Breaks what a subclass says."""

    broken = EighthsMatrix

    def store(self, weight, hessian=None):
        return self.broken(weight)


class OtherRows(EighthsMatrix):
    def rows(self, index):
        return self.matrix()[index] + 1


class Narrow(EighthsMatrix):
    def matrix(self, dtype=None):
        return self.eighths / 8


class OtherProduct(EighthsMatrix):
    def forward(self, x, bias=None, gelu=False):
        return super().forward(x, None, gelu)


class Forgetful(EighthsMatrix):
    def __init__(self, weight):
        super().__init__(weight)
        self.kept = self.eighths
        del self.eighths

    def matrix(self, dtype=None):
        return (self.kept / 8).to(dtype or self.dtype)


class Careless(EighthsMatrix):
    def __init__(self, weight):
        super().__init__(weight.nan_to_num())


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (OtherRows, "gathers rows that are not those"),
        (Narrow, r"gives a matrix of torch\.float32"),
        (OtherProduct, "gives a product that is not that"),
        (Forgetful, "another matrix after load_state_dict"),
        (Careless, "stores a weight with NaN"),
    ],
)
def test_the_contract_finds_what_is_broken(eighths, broken, says, monkeypatch):
    monkeypatch.setattr(Wrong, "broken", broken)
    with pytest.raises(AssertionError, match=says):
        check_component(Wrong, kind="format")


def test_errors_are_those_of_outputs_where_inputs_are_known():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.Linear(32, 8, bias=False))
    weight, x = model[0].weight.detach().clone(), torch.randn(500, 64) * torch.logspace(0, 2, 64)
    outcomes = []
    hessian = (x.T @ x / len(x))[None]
    quantize(model, rules({"modules": "*", "format": "int8"}), [{model[0]: hessian}], lambda *one: outcomes.append(one))
    (first, total), (second, _) = outcomes
    assert total == 2 and (first.calibrated, second.calibrated) == (True, False)
    exact, out = x @ weight.T, x @ model[0].matrix().T
    assert first.squared_norm == pytest.approx(exact.square().sum().item() / len(x), rel=1e-4)
    assert first.squared_error == pytest.approx((out - exact).square().sum().item() / len(x), rel=1e-2)


def test_modules_are_replaced_group_by_group_and_put_back_where_it_fails():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    before = list(model)

    def hessians():
        yield {model[0]: torch.eye(64)[None]}
        assert model[0] is not before[0]
        raise RuntimeError("the text is gone")

    with pytest.raises(RuntimeError, match="the text is gone"):
        quantize(model, "int4", hessians())
    assert list(model) == before


@pytest.mark.parametrize("embedding", ["int8", None])
def test_the_first_module_decides_for_a_shared_weight_whatever_is_stored_first(embedding, tmp_path):
    model = model_of(tied_embedding=True)
    recipe = rules({"modules": "embedding", "format": embedding}, {"modules": "head", "format": "int4"})
    quantize(model, recipe, [{model.head: torch.eye(64)[None]}])
    assert model.head.weight is model.embedding.weight
    save_checkpoint(model, tmp_path / "model")
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.head.weight is loaded.embedding.weight
    if embedding is None:
        assert isinstance(loaded.head.weight, nn.Parameter)
    else:
        assert loaded.head.weight.bits == 8


def test_recipes_say_whether_inputs_matter():
    assert load_recipe("int4").rounds_by_inputs and not load_recipe("int8").rounds_by_inputs
    assert isinstance(load_recipe("int8"), Recipe)
