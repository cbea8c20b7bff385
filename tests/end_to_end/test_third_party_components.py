"""A bypass and a sampler from outside: registered as any plugin's, checked, configured by name and used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from wavelet_core import ComponentConfig, ConfigurationError, ModelConfig, ModelShape, WaveletLM, hookimpl, registry
from wavelet_core.config import parse
from wavelet_core.generation import GenerationSettings, Sampler, collect, generate
from wavelet_core.state import Tree
from wavelet_core.testing import check_component


class PreviousPositionBypass(nn.Module):
    """Gives every scale the position before, with a gain per scale: the shortest memory there is."""

    class Config(ComponentConfig):
        kind: Literal["previous_position"] = "previous_position"
        initial_gain: float = Field(0.1, description="gain of every channel before training")

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        self.gains = nn.Parameter(torch.full((shape.scales, shape.width), config.initial_gain))

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        return {"last": torch.zeros(batch_size, 1, self.gains.shape[1], device=device, dtype=dtype)}

    def forward(self, x: Tensor, previous_mean: Tensor | None = None, state: Any = None) -> tuple[Tensor, Tensor]:
        last = torch.zeros_like(x[:, :1]) if state is None else state["last"].to(x.dtype)
        before = torch.cat([last, x[:, :-1]], dim=1)
        if state is not None:
            state["last"].copy_(x[:, -1:].detach())
        return before.unsqueeze(2) * self.gains, before


class EveryNthToken(Sampler):
    """Lets only every n-th token through."""

    class Config(ComponentConfig):
        kind: Literal["every_nth_token"] = "every_nth_token"
        n: int = Field(2, ge=1, description="ids that are multiples of n stay")

    config: Config

    def __call__(self, logits: Tensor, state: Tree) -> Tensor:
        forbidden = torch.arange(logits.shape[-1]) % self.config.n != 0
        return logits.masked_fill(forbidden, -torch.inf)


@hookimpl
def register_components(register: Callable[[str, type], None]) -> None:
    register("bypass", PreviousPositionBypass)
    register("sampler", EveryNthToken)


@pytest.fixture(scope="module", autouse=True)
def plugin() -> None:
    """This module is the plugin."""
    plugin = registry.add_plugin(sys.modules[__name__], "third_party")
    assert plugin.error is None


def model(**options: Any) -> WaveletLM:
    sizes = {"vocabulary_size": 32, "width": 16, "levels": 2}
    torch.manual_seed(0)
    return WaveletLM(parse(ModelConfig, {**sizes, "bypass": {"kind": "previous_position", **options}})).eval()


def test_they_keep_the_contract_of_their_kind():
    check_component(PreviousPositionBypass)
    check_component(EveryNthToken)


def test_the_bypass_is_configured_and_changes_the_model(tmp_path):
    tokens = torch.arange(20).reshape(1, -1)
    with torch.no_grad():
        small, large = model(), model(initial_gain=2.0)
        assert not torch.allclose(small(tokens), large(tokens))
        large.save_pretrained(tmp_path / "checkpoint")
        loaded = WaveletLM.from_pretrained(tmp_path / "checkpoint")
        torch.testing.assert_close(loaded(tokens), large(tokens))
    with pytest.raises(ConfigurationError, match=r"bypass\.gain: unknown field"):
        model(gain=1.0)


def test_the_sampler_is_configured_and_reshapes_what_is_drawn():
    settings = GenerationSettings(tokens=30, samplers=[{"kind": "every_nth_token", "n": 4}])
    [completion] = collect(generate(model(), [[1, 2, 3]], settings, seeds=[0]))
    assert len(completion.tokens) == 30
    assert all(token % 4 == 0 for token in completion.tokens)
    assert len(set(completion.tokens)) > 1
