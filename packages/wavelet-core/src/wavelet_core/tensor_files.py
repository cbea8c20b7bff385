"""Tensors by name in safetensors files: written atomically, read strictly, never unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wavelet_core.atomic_files import write_atomically

SHOWN = 20  # mistakes that a message lists


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or saved; the message names the file and what is wrong with it."""


def first_lines(mistakes: Sequence[str]) -> str:
    """The first mistakes, one a line, and how many more there are."""
    more = [f"and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
    return "\n  ".join([*mistakes[:SHOWN], *more])


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write named tensors to a safetensors file, atomically."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda file: save_file(contiguous, file, metadata=metadata))


def open_tensors(path: Path) -> Any:
    """An open safetensors file, memory-mapped. Raises CheckpointError when it is missing, truncated or damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); it was probably cut off while being copied: copy it again"
        ) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name. Raises CheckpointError when it is missing or damaged."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def check_names(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError that lists the first tensors that are missing, unexpected, of another shape, or of another
    type unless both are floating point.
    """
    mistakes = [f"missing {name} {list(wanted[name].shape)}" for name in wanted if name not in found]
    mistakes += [f"unexpected {name} {list(found[name].shape)}" for name in found if name not in wanted]
    mistakes += [
        f"{name} has shape {list(found[name].shape)}, but the configuration makes it {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    mistakes += [
        f"{name} is {found[name].dtype}, but the configuration makes it {wanted[name].dtype}"
        for name in wanted
        if name in found
        and found[name].dtype != wanted[name].dtype
        and not (found[name].is_floating_point() and wanted[name].is_floating_point())
    ]
    if mistakes:
        raise CheckpointError(f"{path} does not fit its configuration:\n  {first_lines(mistakes)}")


def non_finite(tensor: Tensor) -> int:
    """How many values of a tensor are infinite or not a number."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    tensor = tensor.detach()
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # torch adds no 8-bit numbers
    # Where all are finite so is their sum, unless it is too large; it takes a fiftieth of the time of isfinite.
    return 0 if tensor.sum().isfinite() else int((~tensor.isfinite()).sum())


def check_finite(where: object, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError that names the tensors with values that are infinite or not a number."""
    counts = {name: non_finite(tensor) for name, tensor in tensors.items()}
    mistakes = [f"{name}: {count:,} of {tensors[name].numel():,} values" for name, count in counts.items() if count]
    if mistakes:
        raise CheckpointError(f"{where}: weights that are infinite or not a number:\n  {first_lines(mistakes)}")


def check_fit(path: Path, targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless the tensors of a file have the names, shapes and dtypes of the targets."""
    check_names(path, targets, tensors)
    for name, target in targets.items():
        if tensors[name].dtype != target.dtype:
            raise CheckpointError(f"{path}: {name} is {tensors[name].dtype}, but {target.dtype} is needed")


def load_tensors_into(targets: Mapping[str, Tensor], path: Path) -> None:
    """Copy a safetensors file into existing tensors of the same names, shapes and dtypes."""
    tensors = load_tensors(path)
    check_fit(path, targets, tensors)
    for name, target in targets.items():
        target.copy_(tensors[name])
