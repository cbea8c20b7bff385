"""Diagnostics of every shape have figures: alike ones together, and whatever the numbers are."""

from __future__ import annotations

import re

import pytest
import torch

from wavelet_core.diagnostics import Diagnostic
from wavelet_train.diagnostic_figures import MOST_MAPS, add_diagnostics
from wavelet_train.maps import short
from wavelet_train.page import Page

pytest.importorskip("matplotlib", reason="figures need the extra wavelet-train[plot]")


def figures(*found: tuple[str, Diagnostic]) -> list[str]:
    page = Page("page")
    add_diagnostics(page, found)
    return re.findall("<figure.*?</figure>", page.html(), re.DOTALL)


def a_map(values: torch.Tensor, **fields) -> Diagnostic:
    return Diagnostic("A map", values, ("row", "column"), "unit", **fields)


def test_one_title_is_one_figure_with_every_place():
    found = [(f"block {n}", Diagnostic("Gains", torch.ones(3), ("scale",), "gain", (["a", "b", "c"],))) for n in (0, 1)]
    curves = [
        (f"block {n}", Diagnostic("Reads", torch.arange(9.0), ("slot",), "reads", logarithmic=True)) for n in (0, 1)
    ]
    maps = [(f"block {n}", a_map(torch.rand(2, 2))) for n in (0, 1)]
    drawn = figures(*found, *curves, *maps)
    assert len(drawn) == 3 and all("block 0" in each and "block 1" in each for each in drawn)


def test_of_many_blocks_some_are_shown_from_the_first_to_the_last():
    [drawn] = figures(*((f"block {n}", a_map(torch.rand(2, 2))) for n in range(20)))
    assert set(re.findall(r">(block \d+)<", drawn)) >= {"block 0", "block 19"}
    assert len(set(re.findall(r">(block \d+)<", drawn))) == MOST_MAPS and "6 of 20 blocks are shown." in drawn


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        torch.full((2, 3), torch.nan),
        torch.zeros(2, 3),
        torch.ones(2, 30),
        -torch.ones(2, 3),
        torch.tensor([[1e-30, torch.inf]]),
    ],
    ids=["nan", "zeros", "the same", "negative", "far apart"],
)
def test_all_numbers_can_be_drawn(values, logarithmic):
    assert len(figures(("block 0", a_map(values, logarithmic=logarithmic)))) == 1
    row = Diagnostic("A row", values[0], ("column",), "unit", logarithmic=logarithmic)
    named = Diagnostic("Names", values[0], ("column",), "unit", (["$x$"] * len(values[0]),), logarithmic)
    assert len(figures(("block 0", row), ("block 0", named))) == 2


def test_nothing_is_no_figure():
    assert not figures() and not figures(("block 0", a_map(torch.empty(0, 3))))


def test_numbers_in_maps_are_short():
    assert [short(value) for value in (0, 0.5, -99.4, 0.001, 12345, -0.0004)] == [
        "0.00",
        "0.50",
        "-99.40",
        "1e-3",
        "1e4",
        "-4e-4",
    ]
