"""The memory and the arithmetic of a training step, told without making one."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from wavelet_core import build_model
from wavelet_core.config import ConfigurationError
from wavelet_core.kernels import use_kernel
from wavelet_train.training_loss import TrainingLoss
from wavelet_train.training_memory import training_memory


@pytest.fixture
def run(tiny_run):
    def make(*overrides: str):
        return tiny_run("model.vocabulary_size=256", "train.batch_size=8", *overrides)

    return make


@pytest.fixture
def torch_alone():
    """torch computes everything: what kernels compute is not counted."""
    use_kernel("torch")
    yield
    use_kernel(None)


def test_what_is_told_is_what_a_real_step_keeps(run, torch_alone):
    configured = run("model.layers=2")
    told = training_memory(configured)
    model = build_model(configured.model)
    loss = TrainingLoss(model).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    tokens = torch.zeros(8, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            value = loss(tokens, tokens)
        value.backward()
    activations = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert told.parameters == numbers and told.weights == told.gradients == 4 * numbers
    assert told.optimizer == pytest.approx(8 * numbers, rel=0.01)  # AdamW's two means
    assert told.activations == pytest.approx(activations, rel=0.05)
    assert told.flops_per_token == counter.get_total_flops() // (8 * 16)
    assert told.total == told.weights + told.gradients + told.optimizer + told.activations


def test_shards_divide_what_is_kept_and_batches_what_is_computed(run):
    whole, shards = training_memory(run()), training_memory(run("train.parallel=fsdp"), processes=4)
    assert shards.weights == whole.weights // 4 and shards.optimizer == whole.optimizer // 4
    assert shards.windows == 2 and shards.activations == pytest.approx(whole.activations / 4, rel=0.2)
    assert 0 < shards.gathered <= whole.weights and "4 processes (fsdp)" in str(shards)
    replicas = training_memory(run(), processes=4)
    assert replicas.weights == whole.weights and not replicas.gathered


def test_checkpointing_keeps_less_and_averaging_more(run):
    plain = training_memory(run("model.layers=3"))
    checkpointed = training_memory(run("model.layers=3", "model.gradient_checkpointing=true"))
    assert checkpointed.activations < plain.activations / 2
    assert (
        training_memory(run("train.weight_average.decay=0.9")).average == plain.average + training_memory(run()).weights
    )


def test_a_batch_that_does_not_divide_is_refused(run):
    with pytest.raises(ConfigurationError, match=r"train\.batch_size=8.*3 processes"):
        training_memory(run(), processes=3)
