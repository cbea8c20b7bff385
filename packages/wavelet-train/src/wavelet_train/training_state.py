"""The resumable half of a checkpoint: what training needs to go on as if it had never stopped.

A checkpoint directory's `trainer/` holds `state.safetensors` (optimizer state by parameter name, random generators,
window positions, carried model state) and `state.json` (counters). Processes that share a model in shards write their
parts of the optimizer's state into `shards/` instead (`shards.py`). Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from wavelet_core.config import ConfigurationError, parse
from wavelet_core.registry import build
from wavelet_core.tensor_files import CheckpointError, load_tensors, save_tensors
from wavelet_core.threads import MOST_THREADS
from wavelet_train.parallel import assign

DIRECTORY = "trainer"
TENSORS_FILE = "state.safetensors"
STATE_FILE = "state.json"
SHARDS = "shards"
FORMAT_VERSION = 3


class _Record(BaseModel):
    """All fields must be there, and nothing else; JSON of another type is refused and not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Counters(_Record):
    """Where a run is.

    step: optimizer steps done. steps: all that the run is to do. tokens: trained on so far. validated_step: at which
    step the last validation was. best_nats, best_step: the lowest validation loss so far, in nats per token, and its
    step. loss_sum, loss_steps: of the steps since the last line of metrics. metrics_size: bytes of metrics.jsonl.
    threads, compiled: how the run computes; another number, or steps compiled or not, would round differently.
    skipped, skipped_in_row: steps so far, and up to the present one, whose loss or gradient was not finite.
    """

    step: int = Field(ge=0)
    steps: int = Field(ge=1)
    tokens: int = Field(ge=0)
    validated_step: int = Field(ge=0)
    best_nats: float | None = Field(ge=0)
    best_step: int | None = Field(ge=1)
    loss_sum: float
    loss_steps: int = Field(ge=0)
    metrics_size: int = Field(ge=0)
    threads: int = Field(ge=1, le=MOST_THREADS)
    compiled: bool = False
    skipped: int = Field(0, ge=0)
    skipped_in_row: int = Field(0, ge=0)

    @classmethod
    def start(cls, steps: int, threads: int) -> Counters:
        """Those of a run that has done nothing of so many steps."""
        return cls(
            step=0,
            steps=steps,
            tokens=0,
            validated_step=0,
            best_nats=None,
            best_step=None,
            loss_sum=0.0,
            loss_steps=0,
            metrics_size=0,
            threads=threads,
        )

    @model_validator(mode="after")
    def _check_together(self) -> Counters:
        if self.step > self.steps:
            raise ValueError(f"step={self.step} is beyond steps={self.steps}")
        for name in ("validated_step", "best_step", "loss_steps", "skipped"):
            if (getattr(self, name) or 0) > self.step:
                raise ValueError(f"{name}={getattr(self, name)} is beyond step={self.step}")
        if self.skipped_in_row > self.skipped:
            raise ValueError(f"skipped_in_row={self.skipped_in_row} is beyond skipped={self.skipped}")
        if (self.best_nats is None) != (self.best_step is None):
            raise ValueError(f"best_nats={self.best_nats} and best_step={self.best_step} do not belong together")
        return self


class LossScaler(_Record):
    """What changes in a loss scaler: its factor, and the steps since it last changed."""

    scale: float = Field(gt=0)
    growth_tracker: int = Field(ge=0)


class DataIdentity(_Record):
    """The data set that a run is trained on: its fingerprint, and a description for people."""

    fingerprint: str
    description: str


class TrainingState(_Record):
    """The content of `state.json`. loss_scaler: of runs in float16."""

    format_version: int = FORMAT_VERSION
    counters: Counters
    loss_scaler: LossScaler | None
    data: DataIdentity


def write_state(directory: Path, state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    """Write `trainer/` into a checkpoint directory that is being made."""
    folder = directory / DIRECTORY
    folder.mkdir()
    save_tensors(tensors, folder / TENSORS_FILE)
    (folder / STATE_FILE).write_text(state.model_dump_json(indent=1) + "\n", "utf-8")


def read_state(directory: Path) -> TrainingState:
    """The state of a checkpoint without its tensors.

    Raises CheckpointError when it is missing, damaged or of another format.
    """
    path = directory / DIRECTORY / STATE_FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        version = content.get("format_version", 1)
        if version == FORMAT_VERSION or not isinstance(version, int):
            return parse(TrainingState, content, str(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; this checkpoint cannot be resumed") from None
    except ConfigurationError as error:
        raise CheckpointError(
            f"{error}\nThe file is damaged: put back an undamaged copy of {directory}, or start anew with --overwrite"
        ) from None
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{path} is damaged, it is no JSON object: put back an undamaged copy of {directory}, or start anew with "
            "--overwrite"
        ) from None
    raise CheckpointError(
        f"{path}: this wavelet-train resumes format_version={FORMAT_VERSION}, not {version!r}: finish the run with the "
        f"version that began it, or start anew with --overwrite; {directory} itself can be evaluated and generate text"
    )


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's state. Raises CheckpointError when they are missing, damaged, or not numbers."""
    path = directory / DIRECTORY / TENSORS_FILE
    tensors = load_tensors(path)
    for name, tensor in tensors.items():
        if tensor.isnan().any():
            raise CheckpointError(
                f"{path}: {name} holds values that are not a number; put back an undamaged copy of {directory}"
            )
    return tensors


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
    """Overwrite the optimizer's state, which fits, by what is there of a saved one.

    Its options stay those of the configuration.
    """
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            new = saved.get(f"optimizer.{name}.{key}")
            if new is None:
                continue
            if isinstance(value, Tensor):
                assign(value, new)
            else:
                optimizer.state[parameter][key] = type(value)(new.item())


def optimizer_bytes(config: Any, parameters: Mapping[str, nn.Parameter], lr: float) -> int | None:
    """Bytes of the state that an optimizer will keep, found without memory; None where it needs real numbers."""
    stand_ins = {
        name: nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"), parameter.requires_grad)
        for name, parameter in parameters.items()
    }
    try:
        optimizer = build("optimizer", config, list(stand_ins.items()), lr)
        make_optimizer_state(optimizer, stand_ins, {}, step=1)
    except Exception:  # whatever another's optimizer does with tensors that have no content
        return None
    return sum(tensor.nbytes for tensor in optimizer_tensors(optimizer, stand_ins).values())
