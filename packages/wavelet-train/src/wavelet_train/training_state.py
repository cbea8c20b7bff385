"""The resumable half of a checkpoint: what training needs to go on as if it had never stopped.

A checkpoint directory's `trainer/` holds `state.safetensors` (optimizer state, random generators, window positions,
carried model state) and `state.json` (counters). Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavelet_core.tensor_files import CheckpointError, load_tensors, save_tensors

DIRECTORY = "trainer"
TENSORS_FILE = "state.safetensors"
COUNTERS_FILE = "state.json"


@dataclass
class Counters:
    """Where a run is.

    step: optimizer steps done. validated_step: at which of them the last validation was. best_nats: the lowest
    validation loss so far, in nats per token. loss_sum, loss_steps: of the steps since the last line of metrics.
    metrics_size: bytes of metrics.jsonl.
    """

    step: int = 0
    validated_step: int = 0
    best_nats: float | None = None
    loss_sum: float = 0.0
    loss_steps: int = 0
    metrics_size: int = 0


def write_state(directory: Path, counters: Counters, tensors: Mapping[str, Tensor], scaler: Mapping[str, Any]) -> None:
    """Write `trainer/` into a checkpoint directory that is being made."""
    folder = directory / DIRECTORY
    folder.mkdir()
    save_tensors(tensors, folder / TENSORS_FILE)
    content = {"counters": asdict(counters), "loss_scaler": dict(scaler)}
    (folder / COUNTERS_FILE).write_text(json.dumps(content) + "\n", "utf-8")


def read_state(directory: Path) -> tuple[Counters, dict[str, Tensor], dict[str, Any]]:
    """Counters, tensors and loss-scaler state of a checkpoint.

    Raises CheckpointError when they are missing or damaged.
    """
    path = directory / DIRECTORY / COUNTERS_FILE
    tensors = load_tensors(directory / DIRECTORY / TENSORS_FILE)
    try:
        content = json.loads(path.read_text("utf-8"))
        return Counters(**content["counters"]), tensors, content["loss_scaler"]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; this checkpoint cannot be resumed") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors: "<parameter's number>.<name>". Numbers in it become float64 scalars."""
    return {
        f"{number}.{name}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` made. Its options stay those of the configuration.

    Raises CheckpointError when the state is another model's.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for place, value in tensors.items():
        number, _, name = place.partition(".")
        state.setdefault(int(number), {})[name] = value.clone()
    groups = optimizer.state_dict()["param_groups"]
    known = {number for group in groups for number in group["params"]}
    if not set(state) <= known:
        raise CheckpointError(f"the optimizer state is of {max(state) + 1} tensors, but the model has {len(known)}")
    optimizer.load_state_dict({"state": state, "param_groups": groups})
