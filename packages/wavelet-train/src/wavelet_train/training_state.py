"""The resumable half of a checkpoint: what training needs to go on as if it had never stopped.

A checkpoint directory's `trainer/` holds `state.safetensors` (optimizer state by parameter name, random generators,
window positions, carried model state) and `state.json` (counters). Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core.tensor_files import CheckpointError, load_tensors, save_tensors

DIRECTORY = "trainer"
TENSORS_FILE = "state.safetensors"
COUNTERS_FILE = "state.json"
FORMAT_VERSION = 2


@dataclass
class Counters:
    """Where a run is.

    step: optimizer steps done. validated_step: at which of them the last validation was. best_nats: the lowest
    validation loss so far, in nats per token. loss_sum, loss_steps: of the steps since the last line of metrics.
    metrics_size: bytes of metrics.jsonl. threads: processor threads that the run computes with.
    """

    step: int = 0
    validated_step: int = 0
    best_nats: float | None = None
    loss_sum: float = 0.0
    loss_steps: int = 0
    metrics_size: int = 0
    threads: int | None = None


def write_state(directory: Path, counters: Counters, tensors: Mapping[str, Tensor], scaler: Mapping[str, Any]) -> None:
    """Write `trainer/` into a checkpoint directory that is being made."""
    folder = directory / DIRECTORY
    folder.mkdir()
    save_tensors(tensors, folder / TENSORS_FILE)
    content = {"format_version": FORMAT_VERSION, "counters": asdict(counters), "loss_scaler": dict(scaler)}
    (folder / COUNTERS_FILE).write_text(json.dumps(content) + "\n", "utf-8")


def read_state(directory: Path) -> tuple[Counters, dict[str, Tensor], dict[str, Any]]:
    """Counters, tensors and loss-scaler state of a checkpoint.

    Raises CheckpointError when they are missing, damaged or of another format.
    """
    path = directory / DIRECTORY / COUNTERS_FILE
    tensors = load_tensors(directory / DIRECTORY / TENSORS_FILE)
    try:
        content = json.loads(path.read_text("utf-8"))
        version = content.get("format_version", 1)
        if version == FORMAT_VERSION:
            return Counters(**content["counters"]), tensors, content["loss_scaler"]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; this checkpoint cannot be resumed") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    raise CheckpointError(
        f"{path}: this wavelet-train resumes format_version={FORMAT_VERSION}, not {version!r}: finish the run with the "
        f"version that began it, or start anew with --overwrite; {directory} itself can be evaluated and generate text"
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state: "optimizer.<parameter's name>.<state's name>". Numbers in it become float64 scalars."""
    return {
        f"optimizer.{name}.{key}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def make_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor], step: int
) -> None:
    """Let a new optimizer make all the state that it keeps, as it would in its first step; no parameter changes.

    saved, step: of a checkpoint. Parameters that it has no state of because they never had a gradient get none.
    """
    made_at_once = set(optimizer_tensors(optimizer, parameters))
    values = {parameter: parameter.data for parameter in parameters.values() if parameter.requires_grad}
    for parameter in values:
        parameter.data, parameter.grad = torch.zeros_like(parameter), torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter, value in values.items():
        parameter.data = value
    some_saved = step == 0 or any(name.startswith("optimizer.") for name in saved)
    for name, parameter in parameters.items():
        own = set(optimizer_tensors(optimizer, {name: parameter}))
        if some_saved and not own & (made_at_once | set(saved)):
            optimizer.state.pop(parameter, None)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]
) -> None:
    """Overwrite the optimizer's state, which fits, by a saved one. Its options stay those of the configuration."""
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            new = saved[f"optimizer.{name}.{key}"]
            if isinstance(value, Tensor):
                value.copy_(new)
            else:
                optimizer.state[parameter][key] = type(value)(new.item())
