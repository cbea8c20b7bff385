"""Tensors that several processes hold parts of, in a folder: each process writes its own parts, any number read them.

They are written and read by `torch.distributed.checkpoint`, in its safetensors form: every file's header says where in
the whole tensors its parts lie, and nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavelet_core.tensor_files import CheckpointError


def save_shards(tensors: Mapping[str, Tensor], folder: Path, group: Any) -> None:
    """Write a folder with this process's parts of tensors, together with all processes of a group.

    Raises CheckpointError, in all of them, where one cannot.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        rank, (reason, _) = next(iter(error.failures.items()))
        raise CheckpointError(f"{folder.parent} cannot be written: {reason} (process {rank})") from None


def shard_shapes(folder: Path) -> dict[str, Tensor]:
    """The whole tensors in a folder by name, without their values; none where there is no folder.

    Raises CheckpointError where a part is missing or a file is damaged.
    """
    if not folder.is_dir():
        return {}
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    try:
        found: dict[str, Any] = dict(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
    except Exception as error:  # whatever is wrong with a header
        raise CheckpointError(f"{folder} is damaged ({error}); put back an undamaged copy of it") from None
    for name, tensor in found.items():
        if sum(part.sizes.numel() for part in tensor.chunks) != tensor.size.numel():
            raise CheckpointError(f"{folder}: parts of {name} are missing; put back an undamaged copy of it")
    return {
        name: torch.empty(tensor.size, dtype=tensor.properties.dtype, device="meta") for name, tensor in found.items()
    }


def load_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Overwrite tensors, or the parts that this process has of them, which fit, by those in a folder."""
    if not tensors:
        return
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
