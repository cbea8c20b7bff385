"""Checkpoint directories: `config.json`, `model.safetensors`, `tokenizer/`.

Everything is written to a temporary sibling, flushed to disk and renamed, so that a kill at any moment leaves the old
files or the new ones whole. Loading is strict and never unpickles.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wavelet_core.atomic_files import write_atomically
from wavelet_core.config import ModelConfig, parse
from wavelet_core.registry import RegistryError, registry
from wavelet_core.tensor_files import CheckpointError, check_names, open_tensors, save_tensors

if TYPE_CHECKING:
    from wavelet_core.model import WaveletLM
    from wavelet_core.multinodal import MultinodalLM

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_DIRECTORY = "tokenizer"
FORMAT_VERSION = 1


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied and shared ones once, under their first name."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every (module, attribute) that holds a tensor, by the tensor's identity."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                places.setdefault(id(tensor), []).append((module, name))
    return places


def materialize(model: nn.Module, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
    """Put `tensors` (by the names of `named_tensors`) in the place of a model's tensors, without a copy.

    A tied or shared tensor is replaced everywhere. Buffers that no checkpoint holds are made anew.
    """
    places = _places(model)
    for name, old in named_tensors(model).items():
        tensor = tensors[name]
        new = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        for module, attribute in places[id(old)]:
            setattr(module, attribute, new)
    _fill_buffers(model, device)


def load_weights(model: nn.Module, path: Path, dtype: torch.dtype | None, device: torch.device | str) -> None:
    """Give a model made on the `meta` device the tensors of a safetensors file, memory-mapped.

    A dtype applies to floating tensors. Raises CheckpointError that lists what is missing, unexpected or mis-shaped.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    tensors = {}
    with open_tensors(path) as file:
        check_names(path, wanted, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        for name in wanted:
            tensor = file.get_tensor(name)
            tensors[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    materialize(model, tensors, device)


def _fill_buffers(model: nn.Module, device: torch.device | str) -> None:
    """Make the buffers that no checkpoint holds: modules that have such refill them in `reset_buffers`."""
    for name, module in model.named_modules():
        empty = [buffer for buffer, tensor in module._buffers.items() if tensor is not None and tensor.is_meta]
        if not empty:
            continue
        if not hasattr(module, "reset_buffers"):
            raise CheckpointError(
                f"{name} ({type(module).__qualname__}) keeps {', '.join(empty)} out of the checkpoint; its class needs "
                "a method reset_buffers() that fills them in, or register_buffer(..., persistent=True)"
            )
        for buffer in empty:
            module._buffers[buffer] = torch.empty_like(module._buffers[buffer], device=device)
        module.reset_buffers()


def _owners(config: ModelConfig) -> dict[str, str]:
    """The package and version behind every component, for the error when one is missing later."""
    return {f"{kind} {c.kind}": str(registry.owner(kind, c.kind)) for _, kind, c in config.components()}


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed config.json of a checkpoint directory."""
    path = directory / CONFIG_FILE
    if not directory.exists():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a checkpoint directory: it has no {CONFIG_FILE}")
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict) or "model" not in data:
        raise CheckpointError(
            f"{path}: has no `model` section; a checkpoint of the original code needs `wavelet import` first"
        )
    return data


def read_model_config(directory: Path) -> ModelConfig:
    """The model section of a checkpoint, validated."""
    data = read_config(directory)
    for component, owner in data.get("components", {}).items():
        kind, _, name = component.partition(" ")
        try:
            registry.get(kind, name)
        except RegistryError as error:
            raise CheckpointError(
                f"{directory / CONFIG_FILE}: the model uses the {component!r} of {owner}, which is not installed or "
                f"failed to load; install it (see `wavelet plugins`): {error}"
            ) from None
    return parse(ModelConfig, data["model"], f"{directory / CONFIG_FILE}: model")


class Pretrained:
    """Saving and loading of a model as a checkpoint directory."""

    config: ModelConfig

    def save_pretrained(
        self, directory: str | Path, tokenizer: Any = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        """Write a checkpoint directory, atomically; an existing one is replaced whole.

        tokenizer: saved under `tokenizer/`. extra: further sections of config.json (`data`, `train`).
        Raises CheckpointError for a directory that holds files but no checkpoint.
        """
        path = Path(directory)
        if path.is_dir() and any(path.iterdir()) and not (path / CONFIG_FILE).is_file():
            raise CheckpointError(
                f"{path} holds files that are no checkpoint, and saving replaces the directory whole; name another one"
            )

        def write(fresh: Path) -> None:
            fresh.mkdir()
            self.write_into(fresh, tokenizer, extra)

        write_atomically(path, write)

    def write_into(self, directory: Path, tokenizer: Any = None, extra: Mapping[str, Any] | None = None) -> None:
        """Write the checkpoint's files into an existing, empty directory."""
        content = {
            "format_version": FORMAT_VERSION,
            "model": self.config.model_dump(mode="json"),
            "components": _owners(self.config),
            **(extra or {}),
        }
        (directory / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        assert isinstance(self, nn.Module)
        save_tensors(named_tensors(self), directory / WEIGHTS_FILE, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(directory / TOKENIZER_DIRECTORY)

    @staticmethod
    def from_pretrained(
        source: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> WaveletLM | MultinodalLM:
        """Load a checkpoint directory, or a model of the Hugging Face hub (`owner/name`), in evaluation mode.

        A multinodal configuration gives a MultinodalLM, any other a WaveletLM.

        dtype: of the floating tensors; as stored by default. The weights are memory-mapped, not copied.
        Raises CheckpointError for what is missing, damaged or does not fit, and ConfigurationError for its
        configuration.
        """
        from wavelet_core.multinodal import build_model

        directory = locate_checkpoint(source)
        config = read_model_config(directory)
        with torch.device("meta"):
            model = build_model(config)
        load_weights(model, directory / WEIGHTS_FILE, dtype, device)
        model.eval()
        return model

    def push_to_hub(self, name: str, tokenizer: Any = None, private: bool = False) -> str:
        """Upload the checkpoint to the Hugging Face hub as `owner/name`; returns the commit's address."""
        hub = _hub()
        hub.create_repo(name, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "checkpoint", tokenizer)
            return str(hub.upload_folder(repo_id=name, folder_path=Path(folder) / "checkpoint"))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError("the Hugging Face hub needs an extra package: pip install 'wavelet-core[hub]'") from None
    return huggingface_hub


def locate_checkpoint(source: str | Path) -> Path:
    """The checkpoint directory that `source` stands for.

    A checkpoint directory is one itself. A run directory stands for its `best/`, or else its `last/`. What exists
    nowhere here and reads `owner/name` is downloaded from the Hugging Face hub.
    """
    path = Path(source)
    if not (path / CONFIG_FILE).exists():
        for name in ("best", "last"):
            if (path / name / CONFIG_FILE).exists():
                return path / name
    if path.exists() or not _is_hub_name(str(source)):
        return path
    wanted: Iterable[str] = (CONFIG_FILE, WEIGHTS_FILE, f"{TOKENIZER_DIRECTORY}/*")
    try:
        return Path(_hub().snapshot_download(str(source), allow_patterns=list(wanted)))
    except CheckpointError:
        raise CheckpointError(
            f"{source}: no such directory here; to load it from the Hugging Face hub: pip install 'wavelet-core[hub]'"
        ) from None
    except Exception as error:
        raise CheckpointError(f"{source}: no such directory here, and the hub did not give it: {error}") from None


def _is_hub_name(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and all(source.split("/"))
