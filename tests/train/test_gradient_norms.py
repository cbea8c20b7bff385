"""The gradient's norms by part: every parameter in one of them, before clipping, in the steps that are recorded."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wavelet_core import ModelConfig, build_model
from wavelet_core.multinodal import MultinodalConfig
from wavelet_train import trainer as trainer_module
from wavelet_train.gradient_norms import gradient_norms, parts_of
from wavelet_train.trainer import train

SIZES = {"vocabulary_size": 20, "width": 8, "levels": 2, "context_length": 8}


def squares(norms) -> float:
    values = [value for entry in norms.values() for value in (entry if isinstance(entry, list) else [entry])]
    return sum(value**2 for value in values if value is not None)


@settings(max_examples=8, deadline=None)
@given(
    layers=st.integers(1, 3),
    shared_block=st.booleans(),
    shared_wavelet=st.booleans(),
    tied=st.booleans(),
    cells=st.integers(0, 2),
)
def test_the_parts_make_up_the_whole_gradient(layers, shared_block, shared_wavelet, tied, cells):
    fields = {
        **SIZES,
        "layers": layers,
        "shared_block": shared_block,
        "shared_wavelet": shared_wavelet,
        "tied_embedding": tied,
        "memories": [{"kind": "mlp"}, {"kind": "product_key", "num_keys": 16, "top_k": 2}],
    }
    model = build_model(MultinodalConfig(cells=cells, **fields) if cells else ModelConfig(**fields))
    parts = parts_of(model)
    assert sorted(id(each) for group in parts.values() for each in group) == sorted(map(id, model.parameters()))
    tokens = torch.randint(20, (2, 8))
    model.loss(tokens, tokens).backward()
    total = math.sqrt(sum(float(each.grad.square().sum()) for each in model.parameters() if each.grad is not None))
    assert math.sqrt(squares(gradient_norms(parts))) == pytest.approx(total, rel=2e-3)


def test_parts_have_the_names_of_the_architecture_and_stand_by_block():
    model = build_model(ModelConfig(**SIZES, layers=2, shared_wavelet=True, memories=[{"kind": "mlp"}]))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norms = gradient_norms(parts_of(model))
    in_blocks = {"mixer", "bypass", "norms", "block", "mlp"}
    assert {name for name, value in norms.items() if isinstance(value, list)} == in_blocks
    assert norms.keys() - in_blocks == {"embedding", "shared wavelet", "norm", "head"}
    assert norms["head"] == pytest.approx(math.sqrt(20 * 8), rel=1e-3)
    model.blocks[1].memories.zero_grad()
    assert gradient_norms(parts_of(model))["mlp"] == [pytest.approx(norms["mlp"][0]), 0.0]


def test_what_is_no_block_is_called_as_the_model_calls_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert {place: len(group) for place, group in parts_of(model).items()} == {("rest", None): 4}


def test_recorded_steps_have_the_norms_before_clipping(tiny_run, tmp_path, read_metrics):
    run = tiny_run("train.gradient_clipping=0.001", "train.log_every=2", "model.shared_wavelet=false", "train.steps=5")
    train(run, tmp_path / "run")
    records = read_metrics(tmp_path / "run", "train")
    assert [record["step"] for record in records] == [2, 4, 5]
    for record in records:
        assert math.sqrt(squares(record["gradient_norms"])) == pytest.approx(record["gradient_norm"], rel=2e-3)


def test_switched_off_they_are_not_computed(tiny_run, tmp_path, read_metrics, monkeypatch):
    monkeypatch.setattr(trainer_module, "gradient_norms", None)
    monkeypatch.setattr(trainer_module, "parts_of", None)
    train(tiny_run("train.log_gradient_norms=false", "train.steps=2"), tmp_path / "run")
    assert all("gradient_norms" not in record for record in read_metrics(tmp_path / "run"))
