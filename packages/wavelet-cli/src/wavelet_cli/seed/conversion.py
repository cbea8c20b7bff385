"""`wavelet import` and `wavelet export --format seed`: whole checkpoints of the original, both ways."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_cli.seed.configuration import model_config_from_seed, reads_routing, seed_from_model_config
from wavelet_cli.seed.names import LearnedDeltas, UnreadTensor, seed_layout
from wavelet_cli.seed.tokenizer import seed_tokenizer, tokenizer_files
from wavelet_core.atomic_files import write_atomically
from wavelet_core.checkpoint import (
    TOKENIZER_DIRECTORY,
    load_checkpoint,
    materialize,
    named_tensors,
    save_checkpoint,
    verify_checkpoint,
)
from wavelet_core.config import LanguageModelConfig
from wavelet_core.configuration_files import read_file
from wavelet_core.language_model import build_model
from wavelet_core.tensor_files import CheckpointError, check_finite, first_lines

COMPILE_PREFIX = "_orig_mod."


@dataclass
class ImportReport:
    """What an import did: the tensors and parameters taken over and remarks a person should read."""

    tensors: int = 0
    parameters: int = 0
    remarks: list[str] = field(default_factory=list)


def read_seed_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of an original `.pt` (bare or in a wrapper) without compile prefixes, and the wrapper's rest."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the original's best_model.pt")
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise CheckpointError(f"{path}: not a whole PyTorch checkpoint of plain tensors ({reason})") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    wrapper = dict(content) if isinstance(content.get("model_state"), Mapping) else {}
    state = wrapper.pop("model_state", content)
    strangers = [str(name) for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if strangers or not state:
        raise CheckpointError(f"{path}: not a state dict; no tensors under {', '.join(strangers[:5]) or 'any name'}")
    check_finite(path, state)
    return {name.replace(COMPILE_PREFIX, ""): tensor for name, tensor in state.items()}, wrapper


def _check_archive(path: Path) -> None:
    """Compare a `.pt` with its checksums, which torch.load does not; one of before torch 1.6 has none."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} in it does not have its checksum; copy it again")


def import_seed(checkpoint: Path, config: Path | None, out: Path) -> ImportReport:
    """Turn an original `best_model.pt` into a checkpoint directory of ours.

    config: the flat `config.json`; the one beside the checkpoint by default. Strict: every tensor of the original is
    used, or known never to be read. Raises CheckpointError that lists what does not fit by name and shape, and
    ConfigurationError for the configuration.
    """
    report = ImportReport()
    state, wrapper = read_seed_checkpoint(checkpoint)
    path = config or checkpoint.parent / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the original's config.json with --config")
    flat = read_file(path)
    flat |= _options_seen(flat, state)
    embedding = state.get("token_embedding.weight", state.get("cells.0.token_embedding.weight"))
    if embedding is None:
        raise CheckpointError(f"{checkpoint}: has no token_embedding.weight; it is no checkpoint of the original")
    vocabulary = len(embedding)
    model_config = model_config_from_seed(flat, vocabulary, str(path))
    if not reads_routing(flat):
        for name in [name for name in state if name.endswith(".scale_routing")]:
            del state[name]
            report.remarks.append(f"{name} is left out: without a gate, or above depth 1, nothing reads it")
    model = model_from_seed(model_config, state, str(checkpoint), report)
    save_checkpoint(model, out, tokenizer_files(wrapper, vocabulary, report.remarks))
    return report


def _options_seen(flat: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options that the configuration does not mention, but that the tensors show."""
    marks = {
        "learned_residual": "residual_alpha_spectral",
        "per_layer_embedding": "embedding_residual_gamma",
        "decompose_bypass": "history_gains",
        "decompose_bypass_ema": "ema_gate",
        "cross_scale_gating": "scale_routing",
        "wavelet_crawl": "dilation_logits",
        "use_mixer_gate": ".gate.weight",
        "pkm_enabled": ".pkm.keys_a",
        "fwpkm_enabled": ".fwpkm.keys_a",
    }
    seen: dict[str, Any] = {
        option: any(mark in name for name in state) for option, mark in marks.items() if option not in flat
    }
    if "wavelet_crawl_k" not in flat:
        sizes = [tensor.shape[1] for name, tensor in state.items() if name.endswith("dilation_logits")]
        seen |= {"wavelet_crawl_k": sizes[0]} if sizes else {}
    if "skip_proj_out" not in flat:
        seen["skip_proj_out"] = not any(".proj_out.weight" in n and "scale_mixers" not in n for n in state)
    if "shared_lifting_weights" not in flat:
        names = [f"layers.{block}.lifting_wavelet.predict_nets.0.0.weight" for block in (0, 1)]
        seen["shared_lifting_weights"] = all(n in state for n in names) and torch.equal(*(state[n] for n in names))
    return seen


def model_from_seed(
    config: LanguageModelConfig, state: Mapping[str, Tensor], source: str, report: ImportReport | None = None
) -> Any:
    """A model of ours with the original's weights, in evaluation mode; see `import_seed` for what it refuses."""
    report = report or ImportReport()
    floating = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    dtype = floating.pop() if len(floating) == 1 else torch.float32
    with torch.device("meta"):
        model = build_model(config)
    try:
        tensors = {name: torch.empty_like(t, dtype=dtype, device="cpu") for name, t in named_tensors(model).items()}
    except RuntimeError:
        ours, seeds = (sum(t.numel() for t in every.values()) for every in (named_tensors(model), state))
        raise CheckpointError(
            f"{source} does not fit its configuration: that makes {ours:,} weights, the checkpoint has {seeds:,}"
        ) from None
    materialize(model, tensors)
    mistakes = _fill(config, tensors, dict(state), report)
    if mistakes:
        raise CheckpointError(f"{source} does not fit its configuration:\n  {first_lines(mistakes)}")
    report.tensors = len(tensors)
    report.parameters = sum(parameter.numel() for parameter in model.parameters())
    return model.eval()


@torch.no_grad()
def _fill(
    config: LanguageModelConfig, targets: Mapping[str, Tensor], state: dict[str, Tensor], report: ImportReport
) -> list[str]:
    """Copy every tensor into its place; what does not fit comes back as one line each."""
    mistakes = []
    used: set[str] = set()
    filled: set[str] = set()
    for entry in seed_layout(config):
        present = [name for name in entry.names if name in state]
        used.update(present)
        if isinstance(entry, UnreadTensor):
            continue
        if isinstance(entry, LearnedDeltas) and not present:
            continue
        filled.add(entry.ours)
        slot, wanted = entry.slot(targets[entry.ours]), entry.to_seed(targets[entry.ours]).shape
        if not present:
            if entry.neutral is None:
                mistakes.append(f"missing {entry.names[0]} {list(wanted)}")
            else:
                slot.fill_(entry.neutral)
                report.remarks.append(f"{entry.names[0]} is not in this checkpoint: taken as {entry.neutral:g}")
            continue
        tensor = state[present[0]]
        if entry.columns is not None:
            tensor = tensor[:, : entry.columns]
        if tensor.shape != wanted:
            mistakes.append(
                f"{present[0]} has shape {list(tensor.shape)}, but the configuration makes it {list(wanted)}"
            )
            continue
        for alias in present[1:]:
            if entry.columns is None and not torch.equal(state[alias], tensor):
                mistakes.append(f"{alias} differs from {present[0]}, but the configuration shares them")
        if not isinstance(entry, LearnedDeltas):
            slot.copy_((tensor.mT if entry.transposed else tensor).reshape(slot.shape))
        elif tensor.any():
            slot.add_(tensor)
            report.remarks.append(f"{present[0]}, learned at inference, is added to the memory's values")
    mistakes += [f"unexpected {name} {list(state[name].shape)}" for name in state if name not in used]
    assert filled == set(targets), f"tensors without a seed name: {set(targets) - filled}"
    return mistakes


def seed_state(model: nn.Module, config: LanguageModelConfig) -> dict[str, Tensor]:
    """The original's state dict for a model of ours, every alias and unread tensor included."""
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    state: dict[str, Tensor] = {}
    for entry in seed_layout(config):
        if isinstance(entry, UnreadTensor):
            state |= dict.fromkeys(entry.names, state[entry.copied].clone())
        elif entry.columns is None:
            state |= dict.fromkeys(entry.names, entry.to_seed(tensors[entry.ours]).contiguous())
        else:
            state[entry.names[0]][:, : entry.columns] = tensors[entry.ours]
    return state


def export_seed(checkpoint: Path, out: Path) -> None:
    """Write a checkpoint of ours as the original's `best_model.pt` and `config.json` into the directory `out`.

    Raises CheckpointError for a damaged checkpoint, ConfigurationError naming the first option that the original does
    not have.
    """
    model = load_checkpoint(checkpoint, verify=False)
    verify_checkpoint(checkpoint)
    flat = seed_from_model_config(model.config)
    tokenizer = seed_tokenizer(checkpoint / TOKENIZER_DIRECTORY)
    content = {"model_state": seed_state(model, model.config), **tokenizer}
    if tokenizer["tokenizer_name"] is not None:
        flat["tokenizer"] = tokenizer["tokenizer_name"]

    def write(fresh: Path) -> None:
        fresh.mkdir()
        torch.save(content, fresh / "best_model.pt")
        (fresh / "config.json").write_text(json.dumps(flat, indent=1) + "\n", "utf-8")

    write_atomically(out, write)
