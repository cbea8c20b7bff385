"""Every field of the model's configuration changes what it claims to change, and leaves no trace when it is off."""

import random
import re
import zlib
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wavelet_core import ModelConfig, MultinodalConfig, build_model, registry
from wavelet_core.config import parse
from wavelet_core.generation import GenerationSettings, generate
from wavelet_core.state import leaves
from wavelet_core.testing.part_contract import PART_CONTRACTS


@dataclass
class Option:
    """What switching an option on does to a small model.

    on, off: changes to the configuration. changes: which of FACETS differ, all of them and no others. own: a pattern
    of the parameters and states that exist only while the option is on.
    """

    on: dict[str, Any]
    changes: str
    own: str = ""
    off: dict[str, Any] = field(default_factory=dict)


FACETS = {
    "parameters": "the names and shapes of the parameters",
    "initial": "the values of fresh parameters, where there are the same ones",
    "state": "the names and shapes of the streaming state",
    "output": "logits of the same weights",
    "streamed": "logits with a streaming state, where those without one are the same",
    "training": "two training passes differ from each other",
    "memory": "the activations kept for the backward pass, where output and parameters are the same",
}


def block(**options):
    return {"block": options}


def wavelet(**options):
    return {"wavelet": options}


def mixer(**options):
    return {"mixer": options}


def deep(**options):
    return {"mixer": {"kind": "deep_gated_spectral", **options}}


def memory(kind, **options):
    keys = SIZES.get(kind, {})
    return {"memories": [{"kind": kind, **keys, **options}]}


def bases(*options, **others):
    return {"shared_wavelet": False, "wavelet": {"kind": "multi_basis", "bases": list(options), **others}}


def cells(**options):
    return {"kind": "multinodal", "layers": 3, "cells": 2, "width": 8, **options}


LEARNING = {"inference_updates": True, "chunk_size": 4, "update_learning_rate": 2.0}
FAST, DELTA = "fast_weight_product_key", "gated_delta"
SIZES = {
    "product_key": {"num_keys": 16, "top_k": 3},
    FAST: {"num_keys": 16, "top_k": 3},
    DELTA: {"heads": 2, "key_width": 4, "value_width": 4},
}

OPTIONS = {
    "model.vocabulary_size": Option({"vocabulary_size": 31}, "parameters output"),
    "model.width": Option({"width": 10}, "parameters state output"),
    # Nothing inside the model: what it decides is shown by a test of its own, below.
    "model.context_length": Option({"context_length": 8}, ""),
    "model.layers": Option({"layers": 3}, "parameters state output", r"blocks\.2\."),
    "model.levels": Option({"levels": 4}, "parameters state output", r"predict\.3\.|level3"),
    "model.tied_embedding": Option({"tied_embedding": True}, "parameters output"),
    "model.embedding_scaling": Option({"embedding_scaling": True}, "output"),
    "model.embedding_dropout": Option({"embedding_dropout": 0.5}, "training"),
    "model.head_dropout": Option({"head_dropout": 0.5}, "training"),
    "model.embedding_std": Option({"embedding_std": 0.02}, "initial"),
    "model.head_std": Option({"head_std": 0.001}, "initial"),
    "model.logit_soft_cap": Option({"logit_soft_cap": 0.5}, "parameters output"),
    "model.bigram_rows": Option({"bigram_rows": 37}, "parameters state output", "bigram"),
    "model.shared_block": Option({"shared_block": True}, "parameters output"),
    "model.shared_wavelet": Option({"shared_wavelet": False}, "parameters output", r"blocks\.1\.wavelet\.predict"),
    "model.loop_iterations": Option({"loop_iterations": 2}, "state output", r"^blocks\.[23]\..*level0"),
    "model.stochastic_depth": Option({"layers": 4, "stochastic_depth": 0.9}, "training", off={"layers": 4}),
    "model.gradient_checkpointing": Option({"gradient_checkpointing": True}, "memory"),
    "model.cross_window_state": Option({"cross_window_state": True}, "state", "window"),
    "model.stable_parametrization": Option({"stable_parametrization": True}, "initial output training"),
    "model.block": Option({"block": {"kind": "wavelet", "learned_residual": False}}, "parameters output"),
    "model.wavelet": Option({"wavelet": "haar"}, "parameters output"),
    "model.transform": Option({"transform": "identity"}, "parameters state output"),
    "model.mixer": Option({"mixer": "deep_gated_spectral"}, "parameters output"),
    "model.bypass": Option({}, "parameters state output", "bypass", off={"bypass": None}),
    "model.memories": Option({"memories": ["mlp", "mlp"]}, "parameters output", "memories"),
    "block.wavelet.embedding_residual": Option(block(embedding_residual=True), "parameters output", "gamma"),
    "block.wavelet.value_embedding": Option(block(value_embedding=True), "parameters output", "value_"),
    **{
        f"block.wavelet.{name}": Option(
            block(**{name: 4}) | memory("mlp"), "parameters state output", name, memory("mlp")
        )
        for name in ("wavelet_convolution", "memory_convolution")
    },
    "block.wavelet.learned_residual": Option(
        {}, "parameters output", r"residual\.alpha", off=block(learned_residual=False)
    ),
    "block.wavelet.projection": Option(
        {"width": 16}, "parameters output", "project", off={"width": 16, **block(projection=False)}
    ),
    "block.wavelet.projection_scaling": Option(block(projection_scaling=True), "initial"),
    "block.wavelet.zero_projection": Option(block(zero_projection=True), "initial"),
    "block.wavelet.mixer_dropout": Option(block(mixer_dropout=0.5), "training"),
    "block.wavelet.projection_dropout": Option(block(projection_dropout=0.5), "training"),
    "block.wavelet.decomposition_norm": Option(
        block(decomposition_norm=True), "parameters output", "decomposition_norm"
    ),
    "block.wavelet.reconstruction_norm": Option(
        block(reconstruction_norm=True), "parameters output", "reconstruction_norm"
    ),
    "wavelet.lifting.network": Option({}, "parameters output", "first", off=wavelet(network="linear")),
    "wavelet.lifting.hidden_multiplier": Option(wavelet(hidden_multiplier=2), "parameters output"),
    "wavelet.lifting.dropout": Option(wavelet(dropout=0.5), "training"),
    "wavelet.lifting.initialization": Option(wavelet(initialization="zero"), "initial"),
    "wavelet.lifting.level_scaling": Option(wavelet(level_scaling=True), "initial"),
    "wavelet.lifting.crawl": Option(wavelet(crawl=5), "parameters state output", "theta"),
    "wavelet.lifting.crawl_groups": Option(
        wavelet(crawl=3, crawl_groups=2), "parameters output", "select", wavelet(crawl=3)
    ),
    "wavelet.lifting.untied_reconstruction": Option(
        wavelet(untied_reconstruction=True), "parameters output", "reconstruction_update"
    ),
    "bypass.decayed_mean.longest": Option(
        {"bypass": {"kind": "decayed_mean", "longest": 50}}, "initial state output", off={"bypass": "decayed_mean"}
    ),
    "wavelet.multi_basis.bases": Option(
        bases({}, {}, {}), "parameters state output", r"bases\.2|\.2\.level", bases({}, {})
    ),
    "wavelet.multi_basis.untied_reconstruction": Option(
        bases({}, {}, untied_reconstruction=True), "parameters output", "reconstruction_update", bases({}, {})
    ),
    "mixer.gated_spectral.rank": Option({}, "parameters output", r"\.(up|down)\.weight$", off=mixer(rank=0)),
    "mixer.gated_spectral.gate": Option({}, "parameters output", r"\.gate\.weight$", off=mixer(gate=None)),
    "mixer.gated_spectral.parametrization": Option(mixer(parametrization="exponential"), "initial output"),
    "mixer.gated_spectral.noise_scaling": Option(mixer(noise_scaling=True), "initial"),
    "mixer.gated_spectral.routing": Option(mixer(routing=True), "parameters output", "routing"),
    "mixer.gated_spectral.widths": Option(mixer(widths=[1, 1, 0.5, 0.5]), "parameters output", "narrow|widen"),
    "mixer.deep_gated_spectral.rank": Option(deep(), "parameters output", r"\.(up|down)\.weight$", off=deep(rank=0)),
    "mixer.deep_gated_spectral.gate": Option(deep(), "parameters output", r"\.gate\.weight$", off=deep(gate=None)),
    "mixer.deep_gated_spectral.parametrization": Option(
        deep(parametrization="exponential"), "initial output", off=deep()
    ),
    "mixer.deep_gated_spectral.noise_scaling": Option(deep(noise_scaling=True), "initial", off=deep()),
    "mixer.deep_gated_spectral.depth": Option(deep(depth=3), "parameters output", r"banks\.2|norms\.1", deep()),
    "mixer.deep_gated_spectral.stabilizers": Option(
        deep(stabilizers=True), "parameters output", r"mixer\.(alpha|beta)", deep()
    ),
    "mixer.deep_gated_spectral.residuals": Option(deep(residuals=True), "output", off=deep()),
    "memory.mlp.expansion": Option(memory("mlp", expansion=2), "parameters output", off=memory("mlp")),
    "memory.mlp.layers": Option(memory("mlp", layers=3), "parameters output", r"layers\.4", memory("mlp")),
    "memory.mlp.activation": Option(memory("mlp", activation="relu_squared"), "output", off=memory("mlp")),
    "memory.mlp.bias": Option(memory("mlp"), "parameters output", r"layers.*bias", memory("mlp", bias=False)),
    "memory.mlp.zero_output": Option(memory("mlp", zero_output=True), "initial", off=memory("mlp")),
    "memory.mlp.dropout": Option(memory("mlp", dropout=0.5), "training", off=memory("mlp")),
    "memory.mlp.output_scaling": Option(memory("mlp", output_scaling=True), "initial", off=memory("mlp")),
    **{
        f"memory.{kind}.{name}": Option(memory(kind, **{name: value}), changes, off=memory(kind))
        for kind in ("product_key", FAST)
        for name, value, changes in (
            ("num_keys", 25, "parameters output"),
            ("top_k", 2, "output"),
            ("heads", 2, "parameters output"),
        )
    },
    f"memory.{FAST}.inference_updates": Option(
        memory(FAST, **LEARNING), "state streamed", "deltas|pending", memory(FAST)
    ),
    f"memory.{FAST}.update_learning_rate": Option(
        memory(FAST, **LEARNING | {"update_learning_rate": 1.0}), "streamed", off=memory(FAST, **LEARNING)
    ),
    f"memory.{FAST}.chunk_size": Option(
        memory(FAST, **LEARNING | {"chunk_size": 7}), "state streamed", off=memory(FAST, **LEARNING)
    ),
    **{
        f"memory.gated_delta.{name}": Option(memory(DELTA, **on), changes, own, memory(DELTA, **off))
        for name, on, off, changes, own in (
            ("heads", {"heads": 3}, {}, "parameters state output", ""),
            ("key_width", {"key_width": 5}, {}, "parameters state output", ""),
            ("value_width", {"value_width": 5}, {}, "parameters state output", ""),
            ("chunk_size", {"chunk_size": 7}, {}, "memory", ""),
            ("convolution", {}, {"convolution": None}, "parameters state output", "convolution"),
            ("decay", {}, {"decay": False}, "parameters output", "log_rate|step_bias"),
            ("output_norm", {}, {"output_norm": False}, "parameters output", "gain$"),
            ("output_gate", {}, {"output_gate": False}, "parameters output", ""),
            ("gate_activation", {"gate_activation": "sigmoid"}, {}, "output", ""),
            ("start", {"start": "induction"}, {}, "initial", ""),
            ("zero_output", {}, {"zero_output": False}, "initial", ""),
        )
    },
    "multinodal.cells": Option(cells(), "parameters state output", r"cells\.1|^1\.", cells(cells=1)),
    "multinodal.seeds": Option(cells(seeds=[1, 2]), "initial", off=cells()),
    "multinodal.combination": Option(cells(combination="sum"), "output", off=cells()),
    "multinodal.cross_cell_gating": Option(cells(cross_cell_gating=True), "parameters output", "gates", cells()),
    "multinodal.gate_interval": Option(
        cells(cross_cell_gating=True, gate_interval=2), "parameters output", off=cells(cross_cell_gating=True)
    ),
    "multinodal.features_per_cell": Option(cells(features_per_cell=3), "initial", off=cells()),
    "multinodal.bagged_value": Option(
        cells(features_per_cell=3, bagged_value=0.5), "initial", off=cells(features_per_cell=3)
    ),
}


def sections():
    """Every configuration class of the model, by the name it has in OPTIONS."""
    yield "model", ModelConfig
    yield "multinodal", MultinodalConfig
    for kind in PART_CONTRACTS:
        for name in registry.names(kind):
            component = registry.get(kind, name)
            if component.__module__.startswith(("wavelet_core", "wavelet_memory")):
                yield f"{kind}.{name}", component.Config


def test_no_option_is_left_out():
    fields = {f"{name}.{field}" for name, section in sections() for field in section.model_fields if field != "kind"}
    fields -= {f"multinodal.{field}" for field in ModelConfig.model_fields}
    assert fields == OPTIONS.keys()


def with_weights(model):
    """The same numbers for the same parameter, whatever else the model has."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {list(parameter.shape)}".encode()))
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


class Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += 1
        return function(*arguments, **(options or {}))


class Observed:
    """A small model, looked at from all sides."""

    def __init__(self, config, tokens):
        torch.manual_seed(0)
        model = build_model(config)
        self.initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.parameters = {name: tuple(parameter.shape) for name, parameter in self.initial.items()}
        model = with_weights(model).eval()
        with torch.no_grad():
            self.output = model(tokens)
            state = model.new_state(2)
            with Operations() as operations:
                self.streamed = model(tokens, state)
        self.operations, self.size = operations.count, sum(parameter.numel() for parameter in model.parameters())
        self.state = {name: tuple(tensor.shape) for name, tensor in leaves(state.tree)}
        model.train()
        passes, kept = [], []
        for seed in (1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
                passes.append(model(tokens))
        self.training = not torch.equal(*passes)
        self.memory = sum(kept)

    def names(self, pattern):
        everything = [*self.parameters, *(name.removeprefix("blocks.") for name in self.state), *self.state]
        return [name for name in everything if re.search(pattern, name)]

    def differences(self, other):
        found = {name for name in ("parameters", "state", "training") if getattr(self, name) != getattr(other, name)}
        same_shape = self.output.shape == other.output.shape
        if not same_shape or (self.output - other.output).abs().max() > 1e-5:
            found.add("output")
        elif (self.streamed - other.streamed).abs().max() > 1e-5:
            found.add("streamed")
        if "parameters" not in found:
            if any(not torch.equal(self.initial[name], other.initial[name]) for name in self.initial):
                found.add("initial")
            if not found and self.memory != other.memory:
                found.add("memory")
        return found


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_what_it_claims_and_leaves_no_trace_when_it_is_off(make_config, tokens, name):
    option = OPTIONS[name]
    on, off = (Observed(make_config(overrides), tokens) for overrides in (option.on, option.off))
    assert on.differences(off) == set(option.changes.split()) <= FACETS.keys()
    if option.own:
        assert on.names(option.own) and not off.names(option.own)
        assert off.operations < on.operations or off.size < on.size, "what is off must not cost anything"
    if "training" in option.changes:
        assert not off.training


def test_gradient_checkpointing_keeps_less(make_config, tokens):
    option = OPTIONS["model.gradient_checkpointing"]
    on, off = (Observed(make_config(overrides), tokens) for overrides in (option.on, option.off))
    assert on.memory < off.memory / 3


def test_cross_window_state_changes_the_second_window_only(make_model, tokens):
    model, other = make_model({"cross_window_state": True}), make_model()
    logits = []
    for each in (model, other):
        state = each.new_state(2)
        with torch.no_grad():
            first = each(tokens[:, :24], state)
            each.begin_window(state)
            logits.append((first, each(tokens[:, 24:], state)))
    torch.testing.assert_close(logits[0][0], logits[1][0])
    assert (logits[0][1] - logits[1][1]).abs().max() > 1e-3


@pytest.mark.parametrize("length", [1, 2, 5, 48])
def test_the_context_length_is_what_the_policy_window_sees(make_model, tokens, length):
    model = make_model({"context_length": length})
    settings = parse(GenerationSettings, {"tokens": 1, "context": "window", "metrics": True})
    [token] = generate(model, [tokens[0].tolist()], settings, seeds=[0])
    with torch.no_grad():
        distributions = [model(tokens[:1, -seen:])[0, -1].log_softmax(-1) for seen in (1, 2, 5, 48)]
    seen = [distribution[token.token].item() for distribution in distributions]
    assert len({round(value, 3) for value in seen}) == 4, "the lengths must be told apart"
    assert token.log_probability == pytest.approx(seen[(1, 2, 5, 48).index(length)], abs=1e-5)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("gate", ["silu", "sigmoid", "gelu", "relu", None]),
        ("parametrization", ["direct", "spectral_norm", "exponential"]),
    ],
)
def test_every_choice_of_a_mixer_computes_something_else(make_config, tokens, field, values):
    outputs = [Observed(make_config(mixer(**{field: value})), tokens).output for value in values]
    for index, first in enumerate(outputs):
        assert all((first - second).abs().max() > 1e-4 for second in outputs[index + 1 :])


@pytest.mark.parametrize("kind", ["transform", "wavelet", "bypass"])
def test_every_component_computes_something_else(make_config, tokens, kind):
    outputs = [
        Observed(make_config({kind: name, "shared_wavelet": False, "width": 16}), tokens).output
        for name in registry.names(kind)
    ]
    for index, first in enumerate(outputs):
        assert all((first - second).abs().max() > 1e-4 for second in outputs[index + 1 :])


def test_every_initialization_starts_elsewhere(make_config, tokens):
    starts = [
        Observed(make_config(wavelet(initialization=name)), tokens).initial["blocks.0.wavelet.update.0.last.weight"]
        for name in ("haar", "zero", "random")
    ]
    assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])
    assert not torch.equal(starts[0], starts[2])
