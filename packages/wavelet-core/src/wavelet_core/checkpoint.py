"""Checkpoint directories: `config.json`, `model.safetensors`, `tokenizer/`, `digests.json`.

Everything is written to a temporary sibling, flushed to disk and renamed, so that a kill at any moment leaves the old
files or the new ones whole. Loading is strict and never unpickles.
"""

from __future__ import annotations

import json
import reprlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core.atomic_files import recover, write_atomically
from wavelet_core.config import ComponentConfig, LanguageModelConfig, parse, parse_model
from wavelet_core.digests import DIGESTS_FILE, Verified, files_below, verify_digests, write_digests
from wavelet_core.first_format import convert_config, convert_tensors
from wavelet_core.hub import add_hub_files, require_hub, upload
from wavelet_core.language_model import build_model
from wavelet_core.model_card import model_card
from wavelet_core.registry import RegistryError, registry
from wavelet_core.tensor_files import CheckpointError, check_finite, check_names, load_tensors, save_tensors
from wavelet_core.verified_files import check_once

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_DIRECTORY = "tokenizer"
MODEL_PARTS = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_DIRECTORY)
FORMAT_VERSION = 3
# What the transformers library looks for in config.json; wavelet-ecosystem registers the classes.
HUB_TYPE = {"model_type": "wavelet_lm", "architectures": ["WaveletForCausalLM"]}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied and shared ones once, under their first name."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def materialize(model: nn.Module, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
    """Put `tensors` (by the names of `named_tensors`) in the place of a model's tensors, without a copy.

    A tied or shared tensor is replaced everywhere. Buffers that no checkpoint holds are made anew.
    """
    replaced = named_tensors(model)
    new = {
        id(old): nn.Parameter(tensors[name], old.requires_grad) if isinstance(old, nn.Parameter) else tensors[name]
        for name, old in replaced.items()
    }
    for module in model.modules():
        for attribute, old in [*module._parameters.items(), *module._buffers.items()]:
            if id(old) in new:
                setattr(module, attribute, new[id(old)])
    _fill_buffers(model, device)


def load_weights(model: Any, path: Path, device: torch.device | str, version: int = FORMAT_VERSION) -> None:
    """Give a model made on the `meta` device the tensors of a safetensors file, memory-mapped, in their stored types.

    Raises CheckpointError that lists what is missing, unexpected or mis-shaped.
    """
    tensors = load_tensors(path)
    if version == 1:
        tensors = convert_tensors(tensors, model.config)
    check_names(path, named_tensors(model), tensors)
    materialize(model, {name: tensor.to(device) for name, tensor in tensors.items()}, device)


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


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed config.json of a checkpoint directory, in the form of today's format."""
    path = directory / CONFIG_FILE
    if not directory.exists():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a checkpoint directory: it has no {CONFIG_FILE}")
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict) or "model" not in data:
        raise CheckpointError(
            f"{path}: has no `model` section; a checkpoint of the original code needs `wavelet import` first"
        )
    version = data.get("format_version", 1)
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version={reprlib.repr(version)} is newer than {FORMAT_VERSION}, the newest that this "
            "wavelet-core reads, or damaged; upgrade it: pip install --upgrade wavelet-core"
        )
    if "format" in data:
        raise CheckpointError(
            f"{path}: was quantized by an early wavelet-quant, in a format that is no longer read; "
            "quantize the original checkpoint again with `wavelet quantize`"
        )
    for section in ("model", "components", "quantization"):
        if not isinstance(data.get(section, {}), dict):
            raise CheckpointError(
                f"{path}: `{section}` is not a section: {reprlib.repr(data[section])}; it is damaged, copy it again"
            )
    return convert_config(data) if version == 1 else data


def read_model_config(directory: Path) -> LanguageModelConfig:
    """The model section of a checkpoint, validated. Raises CheckpointError where a component is not installed."""
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
    return parse_model(data["model"], f"{directory / CONFIG_FILE}: model")


def save_checkpoint(
    model: Any,
    directory: str | Path,
    tokenizer: Any = None,
    extra: Mapping[str, Any] | None = None,
    write_more: Callable[[Path], None] = lambda directory: None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model of any family as a checkpoint directory, atomically; an existing one is replaced whole.

    A quantized model carries the configuration of the `quantizer` that made it as `quantization`.
    tokenizer: saved under `tokenizer/`. extra: further sections of config.json (`data`, `train`). write_more: puts what
    else belongs to the checkpoint into the new directory. tensors: the weights by name, instead of the model's own.
    Raises CheckpointError for a directory that holds files but no checkpoint, and for weights that are not finite.
    """
    path = Path(directory)
    if path.is_dir() and any(path.iterdir()) and not (path / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{path} holds files that are no checkpoint, and saving replaces the directory whole; name another one"
        )
    weights = named_tensors(model) if tensors is None else tensors
    check_finite(f"{path} is not saved", weights)

    def write(fresh: Path) -> None:
        fresh.mkdir()
        config = json.dumps(config_content(model, extra or {}), indent=2) + "\n"
        (fresh / CONFIG_FILE).write_text(config, "utf-8")
        save_tensors(weights, fresh / WEIGHTS_FILE, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(fresh / TOKENIZER_DIRECTORY)
        write_more(fresh)
        write_digests(fresh)

    write_atomically(path, write)


def config_content(model: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a model's config.json. extra: further sections."""
    config: LanguageModelConfig = model.config
    components = [("model", config.kind), *((kind, component.kind) for _, kind, component in config.components())]
    content = {**HUB_TYPE, "format_version": FORMAT_VERSION, "model": config.model_dump(mode="json")}
    quantization: ComponentConfig | None = getattr(model, "quantization", None)
    if quantization is not None:
        content["quantization"] = quantization.model_dump(mode="json")
        components.append(("quantizer", quantization.kind))
        components += [(kind, component.kind) for _, kind, component in quantization.components()]
    # The package and version behind every component, for the error when one is missing later.
    owners = {f"{kind} {name}": str(registry.owner(kind, name)) for kind, name in components}
    return {**content, "components": owners, **extra}


def verify_checkpoint(directory: Path, parts: Collection[str] | None = None) -> Verified | None:
    """Read a checkpoint directory and check that it is what was saved, and that its weights are finite.

    parts: only these files and folders of it. None where there are no digests, as before format version 3.
    Raises CheckpointError that names what is damaged, changed, missing or not finite.
    """
    version = read_config(directory).get("format_version", 1)
    verified = None
    if version >= 3 or (directory / DIGESTS_FILE).exists():
        verified = verify_digests(directory, parts)
    check_finite(directory / WEIGHTS_FILE, load_tensors(directory / WEIGHTS_FILE))
    return verified


def accept_checkpoint(directory: Path) -> None:
    """Write new digests of a checkpoint that was changed on purpose. Raises CheckpointError unless it can be loaded."""
    check_finite(directory / WEIGHTS_FILE, named_tensors(load_checkpoint(directory, verify=False)))
    write_digests(directory)


def load_checkpoint(
    source: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", verify: bool = True
) -> Any:
    """Load a checkpoint directory, or a model of the Hugging Face hub (`owner/name`), in evaluation mode.

    The model is of the family that its configuration names. dtype: of the floating tensors; as stored by default. The
    weights are memory-mapped, not copied. verify: check that the files are what was saved, as `verify_checkpoint` does,
    unless it did before and they have not been written to since.
    Raises CheckpointError for what is missing, damaged or does not fit, and ConfigurationError for its configuration.
    """
    directory = locate_checkpoint(source)
    while True:
        before = _identity(directory)
        try:
            return _load_from(directory, dtype, device, verify)
        except (CheckpointError, OSError):
            # A run may have put a newer one there meanwhile, so that old and new files were read.
            if _identity(directory) == before:
                raise


def _identity(directory: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = directory.stat()
        return status.st_ino, status.st_ctime_ns
    return None


def _load_from(directory: Path, dtype: torch.dtype | None, device: torch.device | str, verify: bool) -> Any:
    data = read_config(directory)
    config = read_model_config(directory)
    with torch.device("meta"):
        model = build_model(config)
        if "quantization" in data:
            quantizer: Any = registry.get("quantizer", str(data["quantization"].get("kind")))
            where = f"{directory / CONFIG_FILE}: quantization"
            quantizer(parse(quantizer.Config, data["quantization"], where)).apply(model)
    load_weights(model, directory / WEIGHTS_FILE, device, data.get("format_version", 1))
    if verify:
        files = [*files_below(directory, MODEL_PARTS).values(), *directory.glob(DIGESTS_FILE)]
        check_once(files, lambda: verify_checkpoint(directory, MODEL_PARTS))
    return model.to(dtype).eval() if dtype is not None else model.eval()


class Pretrained:
    """Saving and loading as methods, for the model families that want them."""

    def save_pretrained(
        self, directory: str | Path, tokenizer: Any = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        """As `save_checkpoint`."""
        save_checkpoint(self, directory, tokenizer, extra)

    @staticmethod
    def from_pretrained(
        source: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", verify: bool = True
    ) -> Any:
        """As `load_checkpoint`: a model of whatever family the checkpoint holds."""
        return load_checkpoint(source, dtype, device, verify)

    def push_to_hub(self, name: str, tokenizer: Any = None, private: bool = False, license: str | None = None) -> str:
        """Upload the checkpoint, with a model card, to the Hugging Face hub as `owner/name`; the commit's address.

        license: the hub's name of one, such as `apache-2.0`. `wavelet push` uploads a trained checkpoint with what its
        run has measured.
        """
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "checkpoint"
            self.save_pretrained(directory, tokenizer)
            card = model_card(name, read_config(directory), _parameters(directory), license)
            add_hub_files(directory, tokenizer, card)
            return upload(directory, name, private)


def write_hub_layout(
    checkpoint: Path, directory: Path, tokenizer: Any, card: Callable[[dict[str, Any], int], str]
) -> None:
    """Write a checkpoint, verified, with what the hub's readers look for, as a new directory, atomically.

    card: makes the model card from the content of config.json and the number of parameters.
    """
    verify_checkpoint(checkpoint, MODEL_PARTS)

    def write(fresh: Path) -> None:
        fresh.mkdir()
        for name, path in files_below(checkpoint, MODEL_PARTS).items():
            (fresh / name).parent.mkdir(exist_ok=True)
            shutil.copy2(path, fresh / name)
        # Of checkpoints that were made before config.json told what transformers asks for.
        config = {**HUB_TYPE, **json.loads((fresh / CONFIG_FILE).read_text("utf-8"))}
        (fresh / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        add_hub_files(fresh, tokenizer, card(config, _parameters(fresh)))
        write_digests(fresh)

    write_atomically(directory, write)


def _parameters(directory: Path) -> int:
    """How many parameters the model of a checkpoint has."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(read_model_config(directory)).parameters())


def locate_checkpoint(source: str | Path, **hub_options: Any) -> Path:
    """The checkpoint directory that `source` stands for.

    A checkpoint directory is one itself. A run directory stands for its `best/`, or else its `last/`. What exists
    nowhere here and reads `owner/name` is downloaded from the Hugging Face hub. hub_options: how, as of
    `huggingface_hub.snapshot_download`.
    """
    path = Path(source)
    places = (path, path / "best", path / "last")
    for place in places:
        recover(place)
    if (path / CONFIG_FILE).exists():
        return path
    for place in places[1:]:
        if place.exists():  # whole or not: the other one would be a surprise
            return place
    if path.exists() or not _is_hub_name(str(source)):
        return path
    wanted = [CONFIG_FILE, WEIGHTS_FILE, f"{TOKENIZER_DIRECTORY}/*", DIGESTS_FILE]
    try:
        return Path(require_hub().snapshot_download(str(source), allow_patterns=wanted, **hub_options))
    except CheckpointError:
        raise CheckpointError(
            f"{source}: no such directory here; to load it from the Hugging Face hub: pip install 'wavelet-core[hub]'"
        ) from None
    except Exception as error:
        raise CheckpointError(f"{source}: no such directory here, and the hub did not give it: {error}") from None


def _is_hub_name(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and all(source.split("/"))
