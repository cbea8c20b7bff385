"""Muon: what it takes, and how it moves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wavelet_core import ModelConfig, build, build_model
from wavelet_train import orthogonalization
from wavelet_train.muon import Muon
from wavelet_train.optimizers import AdamW
from wavelet_train.run_plan import make_plan
from wavelet_train.trainer import Trainer


def names_of_matrices(config: ModelConfig) -> set[str]:
    """What Muon takes of a model, without the numbers of blocks, memories and so on."""
    muon = Muon.Config()
    named = build_model(config).named_parameters()
    return {
        ".".join(part for part in name.split(".") if not part.isdigit())
        for name, parameter in named
        if muon.is_hidden_matrix(name, parameter)
    }


def test_hidden_matrices_are_muons_and_nothing_else() -> None:
    config = ModelConfig(
        vocabulary_size=100,
        width=24,
        mixer={"kind": "gated_spectral", "routing": True, "widths": [1, 1, 1, 0.5, 0.5, 0.5]},
        block={"kind": "wavelet", "decomposition_norm": True, "embedding_residual": True},
        wavelet={"kind": "lifting", "crawl": 3},
        bypass="ema",
        memories=["mlp", {"kind": "product_key", "num_keys": 16, "top_k": 2}],
    )
    mixer = {f"blocks.mixer.banks.{part}.weight" for part in ("matrix", "gate", "down", "up", "narrow", "widen")}
    wavelet = {f"blocks.wavelet.{step}.{part}.weight" for step in ("predict", "update") for part in ("first", "last")}
    block = {f"blocks.{part}.weight" for part in ("bypass.cross_layer", "bypass.gate", "project")}
    memories = {"blocks.memories.memories.layers.weight", "blocks.memories.memories.query.weight"}
    assert names_of_matrices(config) == mixer | wavelet | block | memories


def test_patterns_choose_others() -> None:
    parameter = nn.Parameter(torch.zeros(2, 3))
    config = Muon.Config(matrices=["*.kernel", "head.*"], adamw=["*.last.*"])
    chosen = {name: config.is_hidden_matrix(name, parameter) for name in ("a.kernel", "a.last.kernel", "head.weight")}
    assert chosen == {"a.kernel": True, "a.last.kernel": False, "head.weight": True}
    assert not config.is_hidden_matrix("a.kernel", nn.Parameter(torch.zeros(3)))


def moved(config: Any, parameters: dict[str, Tensor], gradients: list[float], lr: float = 0.1) -> dict[str, Tensor]:
    """The parameters after a step for each factor of one gradient."""
    generator = torch.Generator().manual_seed(1)
    named = [(name, nn.Parameter(value.clone())) for name, value in parameters.items()]
    directions = [torch.randn(value.shape, generator=generator) for value in parameters.values()]
    optimizer = build("optimizer", config, named, lr)
    for factor in gradients:
        for (_, parameter), direction in zip(named, directions, strict=True):
            parameter.grad = factor * direction
        optimizer.step()
    return {name: parameter.detach() for name, parameter in named}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has its own Muon since 2.9")
@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_move_as_by_torchs_muon(nesterov: bool) -> None:
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    ours = moved(Muon.Config(nesterov=nesterov, weight_decay=0.5), {"weight": weight}, [1.0, -0.5, 2.0])["weight"]
    parameter = nn.Parameter(weight.clone())
    theirs = torch.optim.Muon([parameter], lr=0.1, weight_decay=0.5, nesterov=nesterov, adjust_lr_fn="match_rms_adamw")
    direction = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    for factor in (1.0, -0.5, 2.0):
        parameter.grad = factor * direction
        theirs.step()
    # Torch's computes in bfloat16, whatever the device.
    torch.testing.assert_close(ours, parameter.detach(), atol=5e-3, rtol=0)
    assert (ours - weight).abs().max() > 0.1


def test_the_rest_moves_as_by_adamw() -> None:
    parameters = {"embedding.weight": torch.ones(5, 4), "bias": torch.ones(4), "scalar": torch.ones(())}
    options = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3}
    ours, adamw = (moved(kind.Config(**options), parameters, [1.0, -0.5, 2.0]) for kind in (Muon, AdamW))
    assert all(ours[name].equal(adamw[name]) for name in parameters)


def test_steps_have_the_root_mean_square_of_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        orthogonalization, "orthogonalized", lambda matrices, iterations: torch.eye(8, 32).expand(1, 8, 32)
    )
    step = moved(Muon.Config(weight_decay=0.0), {"weight": torch.zeros(8, 32)}, [1.0])["weight"]
    assert step.square().mean().sqrt() == pytest.approx(0.1 * 0.2)


@pytest.mark.parametrize("option", [{"momentum": 0.5}, {"nesterov": False}, {"iterations": 2}])
def test_options_change_steps(option: dict[str, Any]) -> None:
    weight = {"weight": torch.zeros(4, 6)}
    generator = torch.Generator().manual_seed(3)

    def after(config: Muon.Config) -> Tensor:
        parameter = nn.Parameter(weight["weight"].clone())
        optimizer = Muon(config, [("weight", parameter)], 0.1)
        for gradient in gradients:
            parameter.grad = gradient
            optimizer.step()
        return parameter.detach()

    gradients = [torch.randn(4, 6, generator=generator) for _ in range(3)]
    assert not after(Muon.Config(**option)).equal(after(Muon.Config()))


def test_matrices_have_a_rate_of_their_own() -> None:
    named = [(name, nn.Parameter(torch.ones(3, 3))) for name in ("a.weight", "b.weight", "embedding.weight")]
    rules = [{"match": "a.*", "lr_factor": 0.5}]
    optimizer = Muon(Muon.Config(matrix_lr_factor=0.2, groups=rules), named, 0.1)
    factors = [(group["lr_factor"], group["muon"], len(group["params"])) for group in optimizer.param_groups]
    assert factors == [(0.1, True, 1), (0.2, True, 1), (1.0, False, 1)]


def test_plan_tells_the_split(new_trainer: Callable[..., Trainer]) -> None:
    trainer = new_trainer("train.optimizer=muon")
    plan = make_plan(trainer)
    matrices = [
        parameter
        for name, parameter in trainer.parameters.items()
        if trainer.config.optimizer.is_hidden_matrix(name, parameter)
    ]
    count = sum(1 if parameter.dim() == 2 else len(parameter) for parameter in matrices)
    size = sum(parameter.numel() for parameter in matrices)
    rest = plan.parameters - size
    assert plan.optimizer == f"Muon: {count} matrices, {size:,} parameters; AdamW: {rest:,} parameters"
    assert plan.optimizer in str(plan)
    assert plan.last_bytes is not None
    assert make_plan(new_trainer()).optimizer == "adamw"
