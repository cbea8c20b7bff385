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

    def slot(self, tensor: Tensor) -> Tensor:
        """The entry of our tensor."""
        return tensor if self.index is None else tensor[self.index]

    def to_seed(self, tensor: Tensor) -> Tensor:
        """The entry of our tensor in the original's layout."""
        entry = self.slot(tensor)
        entry = entry.mT if self.transposed else entry
        return entry.flatten() if self.flat else entry


@dataclass(frozen=True)
class UnreadTensor:
    """A tensor that the original stores and never reads. On export it is a copy of another.

    copied: the original's name of the tensor that stands in for it.
    """

    names: tuple[str, ...]
    copied: str


class LearnedDeltas(SeedTensor):
    """What a fast-weight memory of the original had learned when it was saved: zeros, or to be added to its values.

    ours: our values (h N, C). On export they are zeros: our values hold what was learned, and a state what is.
    """

    def to_seed(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor)


SeedEntry = SeedTensor | UnreadTensor


def seed_layout(config: Any) -> list[SeedEntry]:
    """Every tensor of the original's checkpoint for the configuration of a model of a family that it has."""
    if config.kind != "multinodal":
        return list(_model(config, ""))
    entries = [entry for cell in range(config.cells) for entry in _model(config.cell, f"cells.{cell}.")]
    if config.cross_cell_gating:
        for gate in range(-(-config.layers // config.gate_interval)):
            entries.append(SeedTensor(f"gates.{gate}.proj.weight", (f"cross_cell_gates.{gate}.proj.weight",)))
    return entries


def _model(config: ModelConfig, prefix: str) -> Iterator[SeedEntry]:
    """The tensors of one model; prefix: of its names, ours and the original's."""
    # The original registers the first cell's head once more at the top.
    head = (f"{prefix}lm_head.weight", *(["lm_head.weight"] if prefix == "cells.0." else []))
    tied = head if config.tied_embedding else ()
    yield SeedTensor(f"{prefix}embedding.weight", (f"{prefix}token_embedding.weight", *tied))
    if not config.tied_embedding:
        yield SeedTensor(f"{prefix}head.weight", head)
    yield from _affine(f"{prefix}norm", f"{prefix}final_ln")
    blocks = 1 if config.shared_block else config.layers
    for block in range(blocks):
        yield from _block(config, f"{prefix}blocks.{block}", f"{prefix}layers.{block}")
    if config.wavelet.kind != "haar":
        yield from _wavelets(config, prefix, blocks)


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
            yield LearnedDeltas(f"{inner}.values.weight", (f"{seed}.{name}.value_deltas",))


def _wavelets(config: ModelConfig, prefix: str, blocks: int) -> Iterator[SeedEntry]:
    """The lifting networks. A wavelet that blocks share is one tensor of ours under the first block's name."""
    seeds = [f"{prefix}layers.{block}" for block in range(blocks)]
    groups = [seeds] if config.shared_wavelet else [[name] for name in seeds]
    untied = config.wavelet.untied_reconstruction
    for first, group in enumerate(groups):
        block = f"{prefix}blocks.{first}.wavelet"
        for basis in _bases(config.wavelet):
            names = [f"{name}.lifting_wavelet{basis.seed}" for name in group]
            if not untied:
                names += [f"{name}.lifting_reconstruct{copy}" for name in group for copy in basis.copies]
            for net, part in _lifting_tensors(basis.config, config.levels):
                yield SeedTensor(f"{block}{basis.ours}.{part}", tuple(f"{name}.{net}" for name in names))
        if config.wavelet.kind == "multi_basis":
            names = [f"{name}.lifting_wavelet" for name in group]
            names += [] if untied else [f"{name}.lifting_reconstruct.multi_basis" for name in group]
            yield SeedTensor(f"{block}.blend", tuple(f"{name}.basis_weights" for name in names))
    if untied:
        for number, name in enumerate(seeds):
            yield from _untied(config, f"{prefix}blocks.{number}.wavelet", name)


@dataclass(frozen=True)
class Basis:
    """A lifting in a wavelet: where it is in ours and in the original's, and its copies in the reconstruction there."""

    config: LiftingWavelet.Config
    ours: str
    seed: str
    copies: tuple[str, ...]


def _bases(wavelet: Any) -> list[Basis]:
    if wavelet.kind == "lifting":
        return [Basis(wavelet, "", "", (".decompose",))]
    return [
        Basis(
            basis,
            f".bases.{index}",
            f".wavelets.{index}",
            (f".multi_basis.wavelets.{index}", f".reconstructs.{index}.decompose"),
        )
        for index, basis in enumerate(wavelet.bases)
    ]


def _untied(config: ModelConfig, ours: str, seed: str) -> Iterator[SeedEntry]:
    for basis in _bases(config.wavelet):
        names = [f"_wavelet{basis.seed}", *basis.copies]
        for net, part in _lifting_tensors(basis.config, config.levels):
            aliases = tuple(f"{seed}.lifting_reconstruct{name}.{net}" for name in names)
            if part.startswith("update."):
                yield SeedTensor(f"{ours}{basis.ours}.reconstruction_{part}", aliases)
            else:
                yield UnreadTensor(aliases, copied=f"{seed}.lifting_wavelet{basis.seed}.{net}")
    if config.wavelet.kind == "multi_basis":
        reconstructions = ("lifting_reconstruct_wavelet", "lifting_reconstruct.multi_basis")
        aliases = tuple(f"{seed}.{name}.basis_weights" for name in reconstructions)
        yield UnreadTensor(aliases, copied=f"{seed}.lifting_wavelet.basis_weights")
        yield SeedTensor(f"{ours}.reconstruction_blend", aliases, columns=1)


def _lifting_tensors(basis: LiftingWavelet.Config, levels: int) -> Iterator[tuple[str, str]]:
    """(the original's name, ours) for the tensors of one lifting wavelet."""
    layers = {"": "last"} if basis.network == "linear" else {".0": "first", ".3": "last"}
    for level in range(levels):
        for part in ("predict", "update"):
            for theirs, layer in layers.items():
                for kind in ("weight", "bias"):
                    yield f"{part}_nets.{level}{theirs}.{kind}", f"{part}.{level}.{layer}.{kind}"
    if basis.crawl is not None:
        yield "dilation_logits", "delay.theta"
