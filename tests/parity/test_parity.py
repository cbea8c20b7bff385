"""Our numbers are the original's: logits, loss, gradient norms, second windows and fast-weight updates."""

import json

import pytest
import torch
from safetensors.torch import load_file

from wavelet_cli.seed.configuration import model_config_from_seed
from wavelet_cli.seed.conversion import model_from_seed, read_seed_checkpoint
from wavelet_cli.seed.names import SeedTensor, seed_layout
from wavelet_core.checkpoint import named_tensors
from wavelet_core.state import leaves


@pytest.fixture
def expected(directory):
    return load_file(directory / "expected.safetensors")


def load(directory):
    state, _ = read_seed_checkpoint(directory / "best_model.pt")
    flat = json.loads((directory / "config.json").read_text())
    config = model_config_from_seed(flat, vocabulary_size=61)
    return model_from_seed(config, state, directory.name)


def test_logits_and_loss_match_the_original(directory, expected):
    model = load(directory)
    with torch.no_grad():
        torch.testing.assert_close(model(expected["input_ids"]), expected["logits"], atol=1e-4, rtol=0)
        loss = model.loss(expected["input_ids"], expected["targets"])
    torch.testing.assert_close(loss, expected["loss"], atol=1e-4, rtol=0)


def test_gradient_norms_match_the_original(directory, expected):
    model = load(directory)
    model.loss(expected["input_ids"], expected["targets"]).backward()
    norms = json.loads((directory / "grad_norms.json").read_text())
    tensors = named_tensors(model)
    compared = 0
    for entry in seed_layout(model.config):
        name = entry.names[0] if isinstance(entry, SeedTensor) else None
        if name not in norms:
            continue
        gradient = tensors[entry.ours].grad
        norm = (gradient if entry.index is None else gradient[entry.index]).norm().item()
        assert norm == pytest.approx(norms[name], rel=1e-3, abs=1e-7), name
        compared += 1
    assert compared == len(norms)


def test_second_window_carries_the_mean_of_the_first(named_case):
    directory = named_case("bypass_cross_window")
    expected = load_file(directory / "expected.safetensors")
    model = load(directory)
    state = model.new_state(2)
    with torch.no_grad():
        torch.testing.assert_close(model(expected["input_ids"], state), expected["logits"], atol=1e-4, rtol=0)
        model.begin_window(state)
        second = model(expected["second_window_ids"], state)
    torch.testing.assert_close(second, expected["second_window_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case_name", ["fwpkm_updates", "fwpkm_heads2_updates"])
def test_fast_weight_updates_match_the_original(named_case, case_name):
    """The original shares the deltas among the rows of a batch: the mean of what each row learns by itself."""
    directory = named_case(case_name)
    expected = load_file(directory / "expected.safetensors")
    model = load(directory)
    for block in model.blocks:
        block.memories.memories[1].update_learning_rate = 0.5
        assert block.memories.memories[1].chunk_size == 8
    tokens = expected["input_ids"]
    learned = model.new_state(2)
    for start in (0, 8):
        # The original reads each chunk from silence, with nothing but the deltas carried over.
        state = model.new_state(2)
        copy_deltas(learned, state)
        with torch.no_grad():
            model(tokens[:, start : start + 8], state)
        copy_deltas(state, learned)
    state = model.new_state(2)
    copy_deltas(learned, state)
    with torch.no_grad():
        for block in model.blocks:
            block.memories.memories[1].update_learning_rate = 0.0
        logits = model(tokens, state)
    name = "logits_after_two_updates_lr0.5_chunks_0_8_and_8_16"
    torch.testing.assert_close(logits, expected[name], atol=1e-4, rtol=0)


def copy_deltas(source, target):
    """Copy the deltas, averaged over the batch rows."""
    for (name, old), (_, new) in zip(leaves(source.tree), leaves(target.tree), strict=True):
        if name.endswith("deltas"):
            new.copy_(old.mean(0, keepdim=True).expand_as(old))
