"""The Hessians that are collected are those of the inputs, whatever the passes."""

import numpy as np
import pytest
import torch
from torch import nn

from wavelet_core.linear import Linear, StackedLinear
from wavelet_quant import calibration
from wavelet_quant.calibration import collect_hessians, draw_windows, hessian_shape


class Tree(nn.Module):
    """One map used twice, one that shares its weight, a stack, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.twice, self.sharing = nn.Linear(6, 6), Linear(6, 6)
        self.sharing.weight = self.twice.weight
        self.stack, self.unused = StackedLinear(2, 6, 3), nn.Linear(6, 4)
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, x):
        first = self.twice(self.dropout(x))
        second = self.twice(first)
        third = self.sharing(second, gelu=True)
        pair = torch.stack([second, third]).flatten(1, -2)
        self.seen.append((x, first, second, pair))
        return self.stack(pair)


@pytest.fixture
def tree():
    torch.manual_seed(0)
    return Tree()


@pytest.fixture
def windows():
    return torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(1)).unbind()


def collected(model, windows, **options):
    hessians = {}
    for group in collect_hessians(model, windows, **options):
        hessians |= group
    return hessians


def test_they_are_the_means_over_all_uses(tree, windows):
    hessians = collected(tree, windows)
    x = torch.cat([part.reshape(-1, 6) for run in tree.seen for part in run[:3]])
    pair = torch.cat([run[3] for run in tree.seen], 1)
    assert set(hessians) == {tree.twice, tree.sharing, tree.stack}
    assert hessians[tree.twice] is hessians[tree.sharing]
    torch.testing.assert_close(hessians[tree.twice], (x.mT @ x / len(x))[None])
    torch.testing.assert_close(hessians[tree.stack], (pair.mT @ pair / pair.shape[1])[:, None])


def test_several_passes_give_what_one_gives(tree, windows):
    whole = collected(tree, windows)
    calls = []
    groups = list(collect_hessians(tree, windows, memory=1, progress=lambda done, total: calls.append((done, total))))
    assert [set(group) for group in groups] == [{tree.twice, tree.sharing}, {tree.stack}, set()]
    assert calls == [(done, 9) for done in range(1, 10)]
    for group in groups:
        for module, hessian in group.items():
            assert torch.equal(hessian, whole[module])


def test_a_group_is_collected_behind_what_replaced_the_group_before(tree, windows):
    for group in collect_hessians(tree, windows, memory=1):
        if tree.twice in group:
            with torch.no_grad():
                tree.twice.weight.zero_()
        elif tree.stack in group:
            assert group[tree.stack][0, 0].diagonal().allclose(tree.twice.bias.square())


def test_only_the_modules_asked_for(tree, windows):
    assert set(collected(tree, windows, modules=[tree.stack])) == {tree.stack}
    assert collected(tree, windows, modules=[]) == {}


def test_the_model_is_left_as_it_was(tree, windows):
    tree.stack.eval()
    collected(tree, windows)
    assert tree.training
    assert tree.dropout.training
    assert not tree.stack.training
    next(groups := collect_hessians(tree, windows))
    groups.close()
    with pytest.raises(RuntimeError):
        collected(tree, [torch.zeros(2, 7)])
    assert tree.dropout.training
    assert not any(module._forward_pre_hooks for module in tree.modules())


def test_wide_inputs_get_blocks(monkeypatch):
    monkeypatch.setattr(calibration, "WIDEST", 5)
    monkeypatch.setattr(calibration, "ALIGNMENT", 2)
    assert hessian_shape((3, 12)) == (3, 4, 4)
    assert hessian_shape((7, 3, 11)) == (7, 3, 4, 4)
    assert hessian_shape((3, 5)) == (1, 5, 5)
    layer, x = nn.Linear(11, 2), torch.randn(9, 11)
    hessian = collected(layer, [x])[layer]
    whole = torch.zeros(12, 12)
    whole[:11, :11] = x.T @ x / 9
    for block in range(3):
        own = slice(4 * block, 4 * block + 4)
        torch.testing.assert_close(hessian[block], whole[own, own])


def test_half_precision_is_added_up_in_single(tree):
    layer = nn.Linear(6, 2).bfloat16()
    x = torch.randn(4, 1000, 6).bfloat16()
    hessian = collected(layer, x.unbind())[layer]
    assert hessian.dtype is torch.float32
    flat = x.float().flatten(0, 1)
    torch.testing.assert_close(hessian[0], flat.T @ flat / 4000)


@pytest.mark.parametrize("stream", [np.arange(50, dtype=np.uint16), torch.arange(50)])
def test_windows_depend_on_the_seed_alone(stream):
    windows = draw_windows(stream, 8, 20, seed=3)
    assert windows.shape == (20, 8)
    assert windows.dtype is torch.int64
    assert (windows.diff() == 1).all()
    assert torch.equal(windows, draw_windows(stream, 8, 20, seed=3))
    assert not torch.equal(windows, draw_windows(stream, 8, 20, seed=4))
    assert draw_windows(stream, 50, 1).tolist() == [list(range(50))]
    with pytest.raises(ValueError, match="50 tokens is too short to calibrate with: a window takes 51"):
        draw_windows(stream, 51, 1)
