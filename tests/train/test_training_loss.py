"""The loss as a module: what wraps modules sees every training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from wavelet_train.trainer import Trainer

NewTrainer = Callable[..., Trainer]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """This process alone is the whole group."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available() or not distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("overrides", [[], ["model.cross_window_state=true"]], ids=["random windows", "carried state"])
def test_distributed_data_parallel_sees_the_loss_and_reduces_its_gradients(
    overrides: list[str], new_trainer: NewTrainer, process_group: None
) -> None:
    plain, wrapped = new_trainer(*overrides), new_trainer(*overrides)
    forwards: list[Any] = []
    reduced: list[torch.Tensor] = []

    def reduce(state, bucket):
        reduced.extend(bucket.parameters())
        future: Any = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    # The first block's bypass has no block before it to take a mean from.
    parallel = DistributedDataParallel(wrapped.loss, find_unused_parameters=True)
    parallel.register_forward_hook(lambda module, arguments, output: forwards.append(output))
    parallel.register_comm_hook(None, reduce)
    wrapped.loss = parallel
    for trainer in (plain, wrapped):
        trainer.loss_of(next(trainer.windows), trainer.loss).backward()
    assert len(forwards) == 1 and forwards[0].shape == ()
    assert {id(parameter) for parameter in reduced} == {id(parameter) for parameter in wrapped.parameters.values()}
    assert sum(parameter.grad is None for parameter in plain.parameters.values()) <= 1
    for name, parameter in plain.parameters.items():
        other = wrapped.parameters[name].grad
        assert other is None if parameter.grad is None else torch.equal(parameter.grad, other), name
    assert plain.take_step(0.01) == wrapped.take_step(0.01)
    assert len(forwards) == 2
    for name, parameter in plain.parameters.items():
        assert torch.equal(parameter, wrapped.parameters[name]), name
