"""What the parts of a model show of themselves is what they compute, and showing it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import nn

from wavelet_core import ComponentConfig, ModelConfig, build_model, hookimpl, registry
from wavelet_core.diagnostics import Diagnostic, diagnose, scale_names
from wavelet_core.multinodal import MultinodalConfig

TOKENS = torch.arange(20) % 11
SIZES = {"vocabulary_size": 11, "width": 12, "levels": 2, "layers": 1, "context_length": 32}
FAST = {"kind": "fast_weight_product_key", "num_keys": 4, "top_k": 2}
MEMORIES = [{"kind": "mlp"}, {"kind": "product_key", "num_keys": 16, "top_k": 3, "heads": 2}]


def model_of(**fields):
    torch.manual_seed(0)
    model = build_model(ModelConfig(**{**SIZES, **fields}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def titled(model, start: str) -> list[tuple[str, Diagnostic]]:
    return [(place, shown) for place, shown in diagnose(model, TOKENS) if shown.title.startswith(start)]


def test_crawl_weights_are_those_of_the_look_backs_nearest_first():
    model = model_of(wavelet={"kind": "lifting", "crawl": 3}, shared_wavelet=True, layers=2)
    [(place, shown)] = titled(model, "Crawl")
    assert place == "block 0"  # one wavelet, one figure
    theta = model.blocks[0].wavelet.delay.theta
    assert torch.allclose(shown.values, theta.softmax(-1))
    assert shown.ticks[0] == ["1: 1 to 3 back", "2: 1 to 3 back"]
    assert not titled(model_of(), "Crawl")


def test_the_scalogram_is_the_energy_of_every_blocks_coefficients():
    model = model_of(layers=2, shared_wavelet=True)
    scalograms = titled(model, "Scalogram")
    assert [place for place, _ in scalograms] == ["block 0", "block 1"]
    block = model.blocks[0]
    with torch.no_grad():
        coefficients = block.wavelet.decompose(block._padded(block.norm_in(model.embed(TOKENS[None]))))
    energy = coefficients[0].square().mean(-1).sqrt().T
    assert torch.allclose(scalograms[0][1].values, energy, atol=1e-6)
    assert scalograms[0][1].ticks[0] == scale_names(3) == ["approximation", "detail 2", "detail 1"]


def test_gates_are_shown_as_the_mean_sigmoid_of_what_opens_them():
    model = model_of(mixer={"kind": "gated_spectral", "routing": True, "widths": [1.0, 0.5, 1.0]})
    [(_, gates)] = titled(model, "Gates")
    [(_, routing)] = titled(model, "Routing")
    mixer = model.blocks[0].mixer
    assert torch.equal(routing.values, mixer.routing.mix.weight)
    given = []
    handle = mixer.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        model(TOKENS[None])
    handle.remove()
    z = torch.einsum("rs,btsp->rbtp", routing.values, given[0])[:, 0]
    wide, narrow = mixer.banks
    for scale, index in ((0, 0), (2, 1)):
        openness = (z[scale] @ wide.gate.weight[index].T).sigmoid().mean(0)
        assert torch.allclose(gates.values[scale], openness, atol=1e-5)
    half = narrow.gate.weight.shape[-1]
    assert gates.values[1, :half].isfinite().all() and gates.values[1, half:].isnan().all()
    assert not titled(model_of(mixer={"kind": "gated_spectral", "gate": None}), "Gates")


def test_slots_are_counted_over_all_heads_and_positions():
    model = model_of(memories=MEMORIES)
    [(_, ranked)] = titled(model, "Slots of product_key: reads by rank")
    [(_, use)] = titled(model, "Slots of product_key: how")
    assert ranked.values.sum() == 20 * 3 * 2 and len(ranked.values) == 2 * 16
    assert ranked.values.equal(ranked.values.sort(descending=True).values)
    assert use.values[0] == (ranked.values > 0).double().mean()
    assert use.values[1] == ranked.values[0] / ranked.values.sum()
    assert use.values[1] <= 1 and use.values[2] <= use.values[0]


def test_gains_and_scalars_are_the_parameters():
    model = model_of(memories=MEMORIES)
    block = model.blocks[0]
    [(_, gains)] = titled(model, "Scale gains")
    [(_, scalars)] = titled(model, "Residual")
    [(_, bypass)] = titled(model, "Bypass")
    assert torch.equal(gains.values, block.scale_gains[:, 0])
    alphas = [block.spectral_residual.alpha, block.memory_residual.alpha, *block.memories.alphas]
    assert scalars.values.tolist() == [each.item() for each in alphas]
    assert torch.allclose(bypass.values, block.bypass.gains.square().mean(-1).sqrt())


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": 3, "shared_block": True},
        {"loop_iterations": 2},
        {"wavelet": {"kind": "multi_basis"}, "shared_wavelet": False},
        {"mixer": {"kind": "deep_gated_spectral"}},
        {"bypass": None, "memories": []},
        {
            "bypass": {"kind": "ema"},
            "memories": [*MEMORIES, FAST],
        },
        {"transform": "identity", "block": {"learned_residual": False}, "memories": []},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_model_is_as_it_was_afterwards(fields):
    model = model_of(**fields).train()
    before = [dict(module.__dict__) for module in model.modules()]
    found = diagnose(model, TOKENS)
    assert model.training and found
    for module, attributes in zip(model.modules(), before, strict=True):
        assert module.__dict__.keys() == attributes.keys()
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(shown.values.ndim == len(shown.axes) for _, shown in found)
    for _, shown in found:
        for size, names in zip(shown.values.shape, shown.ticks, strict=False):
            assert names is None or len(names) == size
    scalograms = [place for place, shown in found if shown.title.startswith("Scalogram")]
    assert scalograms == [f"block {n}" for n in range(model.config.layers * model.config.loop_iterations)]


def test_every_cell_of_a_multinodal_model_is_shown():
    model = build_model(MultinodalConfig(cells=2, **SIZES))
    places = [place for place, shown in diagnose(model, TOKENS) if shown.title == "Scale gains"]
    assert places == ["block 0", "block 1"]


class Halving(nn.Module):
    class Config(ComponentConfig):
        kind: Literal["halving"] = "halving"

    def __init__(self, config, shape):
        super().__init__()

    def diagnose(self, z) -> Iterator[Diagnostic]:
        yield Diagnostic("What is halved", z[0].abs().mean((0, 2)), ("scale",), "mean", (scale_names(z.shape[2]),))

    def forward(self, z):
        return z / 2


def test_a_part_from_outside_shows_what_it_likes(monkeypatch):
    class Plugin:
        @hookimpl
        def register_components(self, register):
            register("mixer", Halving)

    monkeypatch.setattr(registry, "_components", dict(registry._components))
    registry.add_plugin(Plugin(), "halving")
    [(place, shown)] = titled(model_of(mixer="halving"), "What is halved")
    assert place == "block 0" and len(shown.values) == 3
