"""The whole model: initial weights, loss, looping, stochastic depth, gradient checkpointing, tying, cells."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wavelet_core import ConfigurationError, ModelConfig, MultinodalLM, build_model
from wavelet_core.parametrizations import SpectralNormMatrices
from wavelet_core.state import leaves


@pytest.fixture(scope="module")
def targets():
    return torch.randint(29, (2, 48), generator=torch.Generator().manual_seed(6))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_is_the_cross_entropy_in_nats_per_token(make_model, tokens, targets):
    model = make_model()
    expected = F.cross_entropy(model(tokens).reshape(-1, 29), targets.reshape(-1))
    torch.testing.assert_close(model.loss(tokens, targets), expected)


def test_the_loss_of_a_looped_stack_is_the_mean_over_its_passes(make_model, make_config, tokens, targets):
    model = make_model({"loop_iterations": 3})
    losses = []
    for passes in (1, 2, 3):
        shorter = build_model(make_config({"loop_iterations": passes})).eval()
        shorter.load_state_dict(model.state_dict())
        losses.append(
            shorter.loss(tokens, targets)
            if passes == 1
            else F.cross_entropy(shorter(tokens).flatten(0, 1), targets.flatten())
        )
    torch.testing.assert_close(model.loss(tokens, targets), torch.stack(losses).mean())
    assert len({round(loss.item(), 4) for loss in losses}) == 3


def test_hidden_and_head_together_are_the_model(make_model, architecture, tokens):
    model = make_model(architecture)
    torch.testing.assert_close(model.head(model.hidden(tokens)), model(tokens))


def test_training_sees_the_history_of_a_state(make_model, architecture, tokens, targets):
    """The losses of a text's parts, each in continuation of the one before, add up to the loss of the whole."""
    model = make_model(architecture)
    state = model.new_state(2)
    with torch.no_grad():
        first = model.loss(tokens[:, :20], targets[:, :20], state)
        whole = model.loss(tokens, targets, model.new_state(2))
        silent = model.loss(tokens[:, 20:], targets[:, 20:])
    second = model.loss(tokens[:, 20:], targets[:, 20:], state)
    torch.testing.assert_close(20 * first + 28 * second.detach(), 48 * whole, atol=1e-3, rtol=1e-5)
    assert abs(second - silent) > 1e-5
    second.backward()
    assert gradients(model) and all(gradient.isfinite().all() for gradient in gradients(model).values())
    assert not any(tensor.requires_grad for _, tensor in leaves(state.tree))


CHECKPOINTED = {
    "headline": {},
    "dropouts": {"block": {"mixer_dropout": 0.3, "projection_dropout": 0.3}},
    "spectral_norm": {"mixer": {"parametrization": "spectral_norm"}},
    "spectral_norm_in_a_shared_block": {"mixer": {"parametrization": "spectral_norm"}, "shared_block": True},
    "loops": {"loop_iterations": 2},
    "cross_window": {"cross_window_state": True, "bypass": "ema"},
    "gated_cells": {"kind": "multinodal", "cells": 2, "width": 8, "cross_cell_gating": True},
    "bases": {"shared_wavelet": False, "wavelet": {"kind": "multi_basis", "bases": [{"crawl": 3, "dropout": 0.3}, {}]}},
    "untied": {"wavelet": {"crawl": 5, "dropout": 0.3, "untied_reconstruction": True}},
}


@pytest.mark.parametrize("options", CHECKPOINTED.values(), ids=CHECKPOINTED.keys())
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("kind", [True, "lifting"])
def test_gradient_checkpointing_gives_the_same_numbers(make_model, tokens, targets, options, with_state, kind):
    results = []
    for checkpointing in (False, kind):
        model = make_model(options | {"gradient_checkpointing": checkpointing}).train()
        state = model.new_state(2) if with_state else None
        torch.manual_seed(7)
        loss = model.loss(tokens, targets, state)
        loss.backward()
        buffers = dict(model.named_buffers())
        memory = {} if state is None else dict(leaves(state.tree))
        results.append({"loss": loss.detach(), **gradients(model), **buffers, **memory})
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_keeps_fewer_activations(make_model, tokens, targets):
    kept = {}
    for checkpointing in (False, True, "lifting"):
        model = make_model({"gradient_checkpointing": checkpointing, "layers": 4}).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            model.loss(tokens, targets)
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 5
    assert kept["lifting"] < kept[False] * 0.7


def test_recomputed_levels_need_a_lifting_wavelet(make_model):
    with pytest.raises(ConfigurationError, match=r"gradient_checkpointing=lifting .* model\.wavelet\.kind=haar"):
        make_model({"wavelet": "haar", "gradient_checkpointing": "lifting"})


def test_stochastic_depth_skips_deeper_blocks_more_often_and_never_in_evaluation(make_model):
    model = make_model({"layers": 4, "levels": 1, "bypass": None, "stochastic_depth": 0.8}).train()
    calls = [0] * 4
    for layer, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, layer=layer: calls.__setitem__(layer, calls[layer] + 1))
    tokens = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(400):
            model(tokens)
        rates = [1 - count / 400 for count in calls]
        assert rates == pytest.approx([0, 0.2, 0.4, 0.6], abs=0.1) and rates[0] == 0
        calls[:] = [0] * 4
        model.eval()
        for _ in range(20):
            model(tokens)
    assert calls == [20] * 4


def test_a_skipped_block_passes_its_input_and_the_mean_on(make_model, tokens, monkeypatch):
    model = make_model({"layers": 2, "stochastic_depth": 0.9}).train()
    monkeypatch.setattr(model, "draw_depth", lambda: torch.tensor([True, False]))
    with torch.no_grad():
        first, _ = model.blocks[0](model.embed(tokens), model.embed(tokens))
        torch.testing.assert_close(model(tokens), model.head(model.norm(first)))


def test_every_token_embedding_starts_with_the_norm_of_one(make_config):
    torch.manual_seed(0)
    model = build_model(make_config({"vocabulary_size": 400, "width": 64}))
    assert model.embedding.weight.std().item() == pytest.approx(1 / 8, rel=0.05)


def test_embedding_scaling_multiplies_by_the_root_of_the_width(make_model, tokens):
    plain, scaled = make_model(), make_model({"embedding_scaling": True})
    torch.testing.assert_close(scaled.embed(tokens), plain.embed(tokens) * 12**0.5)


def test_every_block_sees_the_scaled_embedding_before_dropout(make_model, tokens):
    model = make_model({"embedding_scaling": True, "embedding_dropout": 0.5, "block": {"embedding_residual": True}})
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model.train()(tokens)
    assert len(seen) == 2 and all(torch.equal(embedding, model.embed(tokens)) for embedding in seen)


def test_a_tied_head_is_the_embedding(make_model, tokens):
    model = make_model({"tied_embedding": True})
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.data_ptr() == model.embedding.weight.data_ptr()
    assert "head.weight" not in dict(model.named_parameters())


def test_shared_wavelets_are_one_module_and_unshared_ones_are_not(make_model):
    shared, unshared = make_model({"layers": 3}), make_model({"layers": 3, "shared_wavelet": False})
    assert len({id(block.wavelet) for block in shared.blocks}) == 1
    assert len({id(block.wavelet) for block in unshared.blocks}) == 3
    assert not torch.equal(
        unshared.blocks[0].wavelet.predict[0].first.bias, unshared.blocks[1].wavelet.predict[0].first.bias
    )


def test_a_looped_block_is_the_same_block_again(make_model, make_config, tokens):
    looped = make_model({"shared_block": True, "layers": 3})
    assert len(looped.blocks) == 1 and len(looped.applications) == 3
    stacked = build_model(make_config({"layers": 3})).eval()
    for block in stacked.blocks:
        block.load_state_dict(looped.blocks[0].state_dict())
    rest = {name: tensor for name, tensor in looped.state_dict().items() if not name.startswith("blocks.")}
    stacked.load_state_dict(rest, strict=False)
    torch.testing.assert_close(looped(tokens), stacked(tokens))
    assert len(looped.new_state(1).tree["blocks"]) == 3


def test_the_bypass_mean_goes_from_block_to_block(make_model, tokens):
    model = make_model()
    received = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, outputs: received.append((inputs[2], outputs[1])))
    model(tokens)
    assert received[0][0] is None and received[1][0] is received[0][1]


def test_without_memories_the_block_returns_the_scaled_residual(make_model):
    block = make_model().blocks[0]
    x = torch.randn(2, 5, 12)
    captured = []
    block.memory_residual.register_forward_pre_hook(lambda _, inputs: captured.append(inputs))
    out, _ = block(x, x)
    residual, memories = captured[0]
    assert not memories.any()
    torch.testing.assert_close(out, block.memory_residual.alpha * residual)


def test_stable_parametrization_switches_six_options_on(make_config, make_model):
    config = make_config({"stable_parametrization": True, "memories": ["mlp"]})
    assert config.embedding_scaling and config.block.projection_scaling and config.wavelet.level_scaling
    assert config.mixer.noise_scaling and config.mixer.parametrization == "spectral_norm"
    assert config.memories[0].output_scaling
    assert isinstance(
        make_model({"stable_parametrization": True}).blocks[0].mixer.banks[0].matrix, SpectralNormMatrices
    )


def test_stable_parametrization_reaches_every_basis(make_config):
    config = make_config({"stable_parametrization": True, "shared_wavelet": False, "wavelet": "multi_basis"})
    assert all(basis.level_scaling for basis in config.wavelet.bases)


def test_stable_parametrization_needs_not_fit_every_component(make_config):
    config = make_config({"stable_parametrization": True, "wavelet": "haar", "memories": []})
    assert config.wavelet.kind == "haar" and config.embedding_scaling


def cells(**options):
    return {"kind": "multinodal", "cells": 2, **options}


def test_cells_are_built_from_their_seeds_and_leave_the_callers_random_numbers_alone(make_config):
    config = make_config(cells(seeds=[5, 6]))
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    first = build_model(config)
    assert torch.rand(1) == wanted
    second = build_model(config)
    assert isinstance(first, MultinodalLM)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(first.cells[0].embedding.weight, first.cells[1].embedding.weight)
    swapped = build_model(make_config(cells(seeds=[6, 5])))
    assert torch.equal(swapped.cells[0].embedding.weight, first.cells[1].embedding.weight)


@pytest.mark.parametrize("combination", ["average", "sum"])
def test_logits_of_cells_are_combined_and_the_loss_scaled(make_model, tokens, targets, combination):
    model = make_model(cells(combination=combination))
    parts = torch.stack([cell(tokens) for cell in model.cells])
    expected = parts.mean(0) if combination == "average" else parts.sum(0)
    torch.testing.assert_close(model(tokens), expected)
    loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten()) / 2**0.5
    torch.testing.assert_close(model.loss(tokens, targets), loss)


def test_bagging_sets_the_first_shuffled_columns_once_and_they_train_on(make_config, tokens):
    model = build_model(make_config(cells(seeds=[42, 137], features_per_cell=5, bagged_value=0.25)))
    whole = build_model(make_config(cells(seeds=[42, 137])))
    for cell, plain, seed in zip(model.cells, whole.cells, [42, 137], strict=True):
        order = list(range(12))
        random.Random(seed).shuffle(order)
        assert (cell.embedding.weight[:, order[:7]] == 0.25).all()
        assert torch.equal(cell.embedding.weight[:, order[7:]], plain.embedding.weight[:, order[7:]])
        assert torch.equal(cell.embed(tokens), cell.embedding.weight[tokens]), "the forward reads the weight as it is"
        cell.embed(tokens).sum().backward()
        assert cell.embedding.weight.grad[:, order[:7]].any()


@pytest.mark.parametrize("gating", [False, True])
def test_the_loss_of_looped_cells_averages_the_losses_of_their_passes(make_model, tokens, targets, gating):
    losses = []
    for passes in (1, 2):
        model = make_model(cells(loop_iterations=passes, cross_cell_gating=gating))
        logits = model(tokens)
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / 2**0.5)
    torch.testing.assert_close(model.loss(tokens, targets), (losses[0] + losses[1]) / 2)


def test_gates_between_cells_follow_the_specification(make_model, tokens):
    model = make_model({"layers": 3, **cells(cross_cell_gating=True, gate_interval=2)})
    assert len(model.gates) == 2
    gate = model.gates[0]
    hidden = [torch.randn(2, 5, 12) for _ in range(2)]
    for index, out in enumerate(gate(hidden)):
        other = hidden[1 - index]
        torch.testing.assert_close(out, hidden[index] * (1 + torch.tanh(other @ gate.proj.weight.T)))
    for gate in model.gates:
        nn.init.zeros_(gate.proj.weight)
    torch.testing.assert_close(model(tokens), torch.stack([cell(tokens) for cell in model.cells]).mean(0))


@pytest.mark.parametrize("family", ["wavelet", "multinodal"])
def test_a_model_without_a_vocabulary_names_the_field(make_config, family):
    with pytest.raises(ConfigurationError, match=r"model\.vocabulary_size is not set"):
        build_model(make_config({"kind": family, "vocabulary_size": None}))


def test_the_headline_configuration_has_the_published_number_of_parameters():
    config = ModelConfig(
        vocabulary_size=50257,
        width=2048,
        layers=2,
        levels=5,
        block={"embedding_residual": True},
        wavelet={"crawl": 3},
        mixer={"routing": True, "widths": [1, 1, 1, 0.5, 0.5, 0.5]},
        memories=[
            {"kind": "mlp", "expansion": 20},
            {"kind": "product_key"},
            {"kind": "fast_weight_product_key"},
        ],
    )
    with torch.device("meta"):
        model = build_model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 882_511_981


@pytest.mark.parametrize(("device", "size"), [("cpu", 2**40), ("cpu", 2**63 - 1), ("meta", 2**63 - 1)])
def test_sizes_that_no_memory_has_room_for_are_named(device, size):
    config = ModelConfig(vocabulary_size=256, width=256, memories=[{"kind": "mlp", "expansion": size}])
    with torch.device(device), pytest.raises(ConfigurationError, match=rf"model\.memories\.0\.expansion={size}"):
        build_model(config)
