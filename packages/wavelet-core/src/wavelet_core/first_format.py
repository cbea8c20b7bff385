"""Checkpoints of format version 1, before weight matrices became modules and model families components."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# What the tensors of version 1 are called since.
RENAMED: tuple[tuple[str, str], ...] = (
    (r"\.embedding\.embedding\.weight$", ".embedding.weight"),
    (r"(\.banks\.\d+\.(?:gate|down|up|narrow|widen))$", r"\1.weight"),
    (r"\.mixer\.routing\.weight$", ".mixer.routing.mix.weight"),
    (r"(\.keys_[ab])$", r"\1.weight"),
)


def convert_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of version 1 with the model section of today."""
    model = dict(data["model"])
    multinodal = model.pop("multinodal", None)
    if isinstance(multinodal, Mapping):
        model |= {"kind": "multinodal", **multinodal}
    return {**data, "model": model}


def convert_tensors(tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The tensors of a version 1 checkpoint under the names of today, with what it did not hold yet."""
    converted = {}
    for name, tensor in tensors.items():
        for old, new in RENAMED:
            name = re.sub(old, new, name)
        converted[name] = tensor
    if config.kind == "multinodal" and config.features_per_cell is not None:
        # Version 1 read a constant in these columns, drawn otherwise, whatever the table held.
        for cell, seed in enumerate(config.seeds[: config.cells]):
            order = torch.randperm(config.width, generator=torch.Generator().manual_seed(seed))
            table = converted[f"cells.{cell}.embedding.weight"]
            bagged = torch.zeros(config.width, dtype=torch.bool).index_fill(0, order[config.features_per_cell :], True)
            converted[f"cells.{cell}.embedding.weight"] = table.masked_fill(bagged, config.bagged_value)
    if config.stochastic_depth:
        prefixes = [f"cells.{cell}." for cell in range(config.cells)] if config.kind == "multinodal" else [""]
        for prefix in prefixes:
            converted |= {
                f"{prefix}stochastic_depth.{name}": torch.zeros((), dtype=torch.int64) for name in ("seed", "passes")
            }
    return converted
