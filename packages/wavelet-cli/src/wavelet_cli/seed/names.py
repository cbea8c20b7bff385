"""Which tensor of ours is which of the original's, for every option (the layout that `tests/parity` checks).

The original stores shared lifting under every block and again under the reconstruction, one tensor a scale where we
stack scales, and some tensors that its forward never reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wavelet_core.config import ModelConfig
from wavelet_core.lifting import LiftingWavelet


@dataclass(frozen=True)
class SeedTensor:
    """One tensor of the original and its place in ours.

    names: the original's names for it, the first being the one that its gradients go by. ours, index: our tensor, and
    the entry along its first axis where we stack several. transposed, flat: how the original lays it out. columns:
    the leading columns that we keep, where the original never reads the others. neutral: what to assume when an old
    checkpoint lacks it, or None where it must be there.
    """

    ours: str
    names: tuple[str, ...]
    index: int | None = None
    transposed: bool = False
    flat: bool = False
    columns: int | None = None
    neutral: float | None = None

    def from_seed(self, tensor: Tensor) -> Tensor:
        """The original's tensor in our layout, before it is put in its place."""
        if self.columns is not None:
            tensor = tensor[:, : self.columns]
        return tensor.mT if self.transposed else tensor

    def to_seed(self, tensor: Tensor) -> Tensor:
        """The entry of our tensor in the original's layout."""
        entry = tensor if self.index is None else tensor[self.index]
        entry = entry.mT if self.transposed else entry
        return entry.flatten() if self.flat else entry


@dataclass(frozen=True)
class UnreadTensor:
    """A tensor that the original stores and never reads. On export it is a copy of another.

    copied: the original's name of the tensor that stands in for it.
    """

    names: tuple[str, ...]
    copied: str


@dataclass(frozen=True)
class LearnedDeltas:
    """What a fast-weight memory of the original had learned when it was saved: zeros, or to be added to its values.

    ours: our values (h N, C). On export they are zeros: our values hold what was learned, and a state what is.
    """

    names: tuple[str, ...]
    ours: str
    shape: tuple[int, int]


SeedEntry = SeedTensor | UnreadTensor | LearnedDeltas


def seed_layout(config: Any) -> list[SeedEntry]:
    """Every tensor of the original's checkpoint for the configuration of a model of a family that it has."""
    if config.kind != "multinodal":
        return list(_model(config, "", ""))
    entries: list[SeedEntry] = []
    for cell in range(config.cells):
        entries += _model(config.cell, f"cells.{cell}.", f"cells.{cell}.")
    # The original registers the first cell's head once more at the top.
    for position, entry in enumerate(entries):
        if "cells.0.lm_head.weight" in entry.names:
            assert isinstance(entry, SeedTensor)
            entries[position] = SeedTensor(entry.ours, (*entry.names, "lm_head.weight"))
    if config.cross_cell_gating:
        for gate in range(-(-config.layers // config.gate_interval)):
            entries.append(SeedTensor(f"gates.{gate}.proj.weight", (f"cross_cell_gates.{gate}.proj.weight",)))
    return entries


def _model(config: ModelConfig, ours: str, seed: str) -> Iterator[SeedEntry]:
    head = (f"{seed}lm_head.weight",)
    if config.tied_embedding:
        yield SeedTensor(f"{ours}embedding.weight", (f"{seed}token_embedding.weight", *head))
    else:
        yield SeedTensor(f"{ours}embedding.weight", (f"{seed}token_embedding.weight",))
        yield SeedTensor(f"{ours}head.weight", head)
    yield from _affine(f"{ours}norm", f"{seed}final_ln")
    blocks = 1 if config.shared_block else config.layers
    for block in range(blocks):
        yield from _block(config, f"{ours}blocks.{block}", f"{seed}layers.{block}")
    if config.wavelet.kind != "haar":
        yield from _wavelets(config, ours, seed, blocks)


def _affine(ours: str, seed: str, index: int | None = None) -> Iterator[SeedTensor]:
    for part in ("weight", "bias"):
        yield SeedTensor(f"{ours}.{part}", (f"{seed}.{part}",), index)


def _block(config: ModelConfig, ours: str, seed: str) -> Iterator[SeedEntry]:
    if config.bypass is not None:
        yield SeedTensor(f"{ours}.bypass.gains", (f"{seed}.history_gains",), neutral=0.0)
        yield SeedTensor(f"{ours}.bypass.cross_layer.weight", (f"{seed}.cross_layer_mix.weight",), neutral=0.0)
        if config.bypass.kind == "ema":
            yield from _affine(f"{ours}.bypass.gate", f"{seed}.ema_gate")
    yield SeedTensor(f"{ours}.scale_gains", (f"{seed}.scale_weights",), flat=True, neutral=1.0)
    if config.block.learned_residual:
        yield SeedTensor(f"{ours}.spectral_residual.alpha", (f"{seed}.residual_alpha_spectral",), neutral=1.0)
        yield SeedTensor(f"{ours}.memory_residual.alpha", (f"{seed}.residual_alpha_mlp",), neutral=1.0)
    if config.block.embedding_residual:
        yield SeedTensor(f"{ours}.embedding_residual.gamma", (f"{seed}.embedding_residual_gamma",), neutral=0.0)
    if config.block.projection:
        yield from _affine(f"{ours}.project", f"{seed}.proj_out")
    yield from _affine(f"{ours}.norm_in", f"{seed}.ln1")
    yield from _affine(f"{ours}.norm_memory", f"{seed}.ln2")
    norms = {"decomposition_norm": "wavelet_decomp_norms", "reconstruction_norm": "wavelet_recon_norms"}
    for option, name in norms.items():
        if getattr(config.block, option):
            for scale in range(config.levels + 1):
                yield from _affine(f"{ours}.{option}", f"{seed}.{name}.{scale}", scale)
    if config.transform.kind == "learned_butterfly":
        yield SeedTensor(f"{ours}.transform.angles", (f"{seed}.mixer_transform.angles",))
    yield from _mixers(config, ours, seed)
    yield from _memories(config, ours, seed)


def _mixers(config: ModelConfig, ours: str, seed: str) -> Iterator[SeedEntry]:
    scales = config.levels + 1
    if config.mixer.kind == "deep_gated_spectral":
        for step in range(config.mixer.depth):
            last = step == config.mixer.depth - 1
            for scale in range(scales):
                names = f"{seed}.scale_mixers_by_depth.{step}.{scale}"
                yield from _mixer(config, f"{ours}.mixer.banks.{step}", names, scale, bias=not last)
                if not last:
                    yield from _affine(f"{ours}.mixer.norms.{step}", f"{seed}.mixer_depth_norms.{step}.{scale}", scale)
            if config.mixer.stabilizers and not last:
                yield SeedTensor(f"{ours}.mixer.alpha", (f"{seed}.mixer_depth_alphas.{step}",), step)
                yield SeedTensor(f"{ours}.mixer.beta", (f"{seed}.mixer_depth_betas.{step}",), step)
        return
    if config.mixer.routing:
        yield SeedTensor(f"{ours}.mixer.routing.mix.weight", (f"{seed}.scale_routing",))
    shape = config.shape
    widths = config.mixer.resolved_widths(shape)
    banks = list(dict.fromkeys(widths))
    for scale, width in enumerate(widths):
        bank = f"{ours}.mixer.banks.{banks.index(width)}"
        position = widths[:scale].count(width)
        names = f"{seed}.scale_mixers.{scale}"
        if config.mixer.widths is None:
            yield from _mixer(config, bank, names, position)
            continue
        yield from _mixer(config, bank, f"{names}.mixer", position)
        if width != shape.padded_width:
            yield SeedTensor(f"{bank}.narrow.weight", (f"{names}.proj_in.weight",), position)
            yield SeedTensor(f"{bank}.widen.weight", (f"{names}.proj_out.weight",), position)


def _mixer(config: ModelConfig, ours: str, seed: str, index: int, bias: bool = False) -> Iterator[SeedTensor]:
    if config.mixer.parametrization == "spectral_norm":
        yield SeedTensor(f"{ours}.matrix.weight", (f"{seed}.mixer.weight_orig",), index)
        yield SeedTensor(f"{ours}.matrix.left", (f"{seed}.mixer.weight_u",), index)
        yield SeedTensor(f"{ours}.matrix.right", (f"{seed}.mixer.weight_v",), index)
    else:
        yield SeedTensor(f"{ours}.matrix.weight", (f"{seed}.mixer.weight",), index)
    if config.mixer.gate is not None:
        yield SeedTensor(f"{ours}.gate.weight", (f"{seed}.gate.weight",), index)
    if config.mixer.rank:
        yield SeedTensor(f"{ours}.up.weight", (f"{seed}.U",), index)
        yield SeedTensor(f"{ours}.down.weight", (f"{seed}.V",), index, transposed=True)
    if bias:
        yield SeedTensor(f"{ours}.bias", (f"{seed}.bias",), index, flat=True)


def _memories(config: ModelConfig, ours: str, seed: str) -> Iterator[SeedEntry]:
    for position, memory in enumerate(config.memories):
        name = {"mlp": "mlp", "product_key": "pkm", "fast_weight_product_key": "fwpkm"}[memory.kind]
        inner = f"{ours}.memories.memories.{position}"
        yield SeedTensor(f"{ours}.memories.alphas.{position}", (f"{seed}.alpha_{name}",), neutral=1.0)
        if memory.kind == "mlp":
            # Layer i of ours is layer i of the original's, GELUs counted in both.
            linear = [0, 1] if memory.layers == 1 else range(0, 2 * memory.layers - 1, 2)
            for layer in linear:
                yield from _affine(f"{inner}.layers.{layer}", f"{seed}.ffwd.net.{layer}")
            continue
        yield SeedTensor(f"{inner}.query.weight", (f"{seed}.{name}.query_proj.weight",))
        yield SeedTensor(f"{inner}.keys_a.weight", (f"{seed}.{name}.keys_a",))
        yield SeedTensor(f"{inner}.keys_b.weight", (f"{seed}.{name}.keys_b",))
        yield SeedTensor(f"{inner}.values.weight", (f"{seed}.{name}.values.weight",))
        if memory.kind == "fast_weight_product_key":
            rows = memory.num_keys * memory.heads
            yield LearnedDeltas((f"{seed}.{name}.value_deltas",), f"{inner}.values.weight", (rows, config.width))


def _wavelets(config: ModelConfig, ours: str, seed: str, blocks: int) -> Iterator[SeedEntry]:
    """The lifting networks. A wavelet that blocks share is one tensor of ours under the first block's name."""
    seeds = [f"{seed}layers.{block}" for block in range(blocks)]
    groups = [seeds] if config.shared_wavelet else [[name] for name in seeds]
    untied = config.wavelet.untied_reconstruction
    multi_basis = config.wavelet.kind == "multi_basis"
    bases = config.wavelet.bases if multi_basis else [config.wavelet]
    for first, group in enumerate(groups):
        block = f"{ours}blocks.{first}.wavelet"
        for index, basis in enumerate(bases):
            inner = f"{block}.bases.{index}" if multi_basis else block
            decompose = f".wavelets.{index}" if multi_basis else ""
            names = [f"{name}.lifting_wavelet{decompose}" for name in group]
            if not untied:
                names += [alias for name in group for alias in _reconstruction_names(name, index, multi_basis, False)]
            for net, part in _lifting_tensors(basis, config.levels):
                yield SeedTensor(f"{inner}.{part}", tuple(f"{name}.{net}" for name in names))
        if multi_basis:
            names = [f"{name}.lifting_wavelet" for name in group]
            names += [] if untied else [f"{name}.lifting_reconstruct.multi_basis" for name in group]
            yield SeedTensor(f"{block}.blend", tuple(f"{name}.basis_weights" for name in names))
    if untied:
        for number, name in enumerate(seeds):
            yield from _untied(config, f"{ours}blocks.{number}.wavelet", name, bases, multi_basis)


def _reconstruction_names(seed: str, index: int, multi_basis: bool, untied: bool) -> list[str]:
    """The original's names of the lifting that block `seed` reconstructs with."""
    own = [f"{seed}.lifting_reconstruct_wavelet"] if untied else []
    if not multi_basis:
        return [*own, f"{seed}.lifting_reconstruct.decompose"]
    return [
        *(f"{name}.wavelets.{index}" for name in own),
        f"{seed}.lifting_reconstruct.multi_basis.wavelets.{index}",
        f"{seed}.lifting_reconstruct.reconstructs.{index}.decompose",
    ]


def _untied(config: ModelConfig, ours: str, seed: str, bases: list, multi_basis: bool) -> Iterator[SeedEntry]:
    for index, basis in enumerate(bases):
        inner = f"{ours}.bases.{index}" if multi_basis else ours
        source = f"{seed}.lifting_wavelet.wavelets.{index}" if multi_basis else f"{seed}.lifting_wavelet"
        names = _reconstruction_names(seed, index, multi_basis, True)
        for net, part in _lifting_tensors(basis, config.levels):
            aliases = tuple(f"{name}.{net}" for name in names)
            if part.startswith("update."):
                yield SeedTensor(f"{inner}.reconstruction_{part}", aliases)
            else:
                yield UnreadTensor(aliases, copied=f"{source}.{net}")
    if multi_basis:
        reconstructions = ("lifting_reconstruct_wavelet", "lifting_reconstruct.multi_basis")
        aliases = tuple(f"{seed}.{name}.basis_weights" for name in reconstructions)
        yield UnreadTensor(aliases, copied=f"{seed}.lifting_wavelet.basis_weights")
        yield SeedTensor(f"{ours}.reconstruction_blend", aliases, columns=1)


def _lifting_tensors(basis: LiftingWavelet.Config, levels: int) -> Iterator[tuple[str, str]]:
    """(the original's name, ours) for the tensors of one lifting wavelet."""
    for level in range(levels):
        for theirs, part in (("predict_nets", "predict"), ("update_nets", "update")):
            if basis.network == "linear":
                pairs = [(f"{theirs}.{level}", f"{part}.{level}.last")]
            else:
                pairs = [
                    (f"{theirs}.{level}.0", f"{part}.{level}.first"),
                    (f"{theirs}.{level}.3", f"{part}.{level}.last"),
                ]
            for their_layer, layer in pairs:
                yield f"{their_layer}.weight", f"{layer}.weight"
                yield f"{their_layer}.bias", f"{layer}.bias"
    if basis.crawl is not None:
        yield "dilation_logits", "delay.theta"


def place(target: Tensor, entry: SeedTensor, tensor: Tensor) -> None:
    """Copy an original tensor into its place in ours. Shapes must fit, but for axes of size one."""
    slot = target if entry.index is None else target[entry.index]
    with torch.no_grad():
        slot.copy_(entry.from_seed(tensor).reshape(slot.shape))
