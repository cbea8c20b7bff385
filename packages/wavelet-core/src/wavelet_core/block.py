"""One WaveletLM block (docs/model.md, section 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core.config import ComponentConfig, ModelConfig, ModelShape
from wavelet_core.diagnostics import Diagnostic, scale_names
from wavelet_core.linear import Linear
from wavelet_core.norms import LayerNorm, ScaleNorm
from wavelet_core.short_convolution import ShortConvolution
from wavelet_core.state import Tree, call, new_state_of

STATEFUL_PARTS = ("wavelet_convolution", "wavelet", "mixer", "bypass", "memory_convolution", "memories")


def _convolution(channels: int, width: int | None) -> ShortConvolution | None:
    return None if width is None else ShortConvolution(channels, width, residual=True)


class EmbeddingResidual(nn.Module):
    """x + gamma * E: every block sees the token embedding again. gamma (C,) starts at zero. Shapes: (B, T, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return torch.addcmul(x, self.gamma, embedding)


class Residual(nn.Module):
    """alpha * x + update, alpha a learned scalar starting at 1, or fixed there. Shapes: (B, T, C)."""

    def __init__(self, learned: bool):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(())) if learned else None

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        return x + update if self.alpha is None else torch.addcmul(update, self.alpha, x)


class MemorySum(nn.Module):
    """The sum of the memories, each with a learned scalar starting at 1; zero without any. Shapes: (B, T, C)."""

    resets_at_documents = True

    def __init__(self, memories: Sequence[nn.Module]):
        super().__init__()
        self.memories = nn.ModuleList(memories)
        self.alphas = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in memories)

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        return {str(i): new_state_of(memory, batch_size, device, dtype) for i, memory in enumerate(self.memories)}

    def forward(self, q: Tensor, state: Tree | None = None) -> Tensor:
        total = torch.zeros_like(q) if not self.memories else None
        history: Any = {} if state is None else state
        for index, (alpha, memory) in enumerate(zip(self.alphas, self.memories, strict=True)):
            read = call(memory, q, state=history.get(str(index)))
            total = alpha * read if total is None else torch.addcmul(total, alpha, read)
        assert total is not None
        return total


class WaveletBlock(nn.Module):
    """Multi-scale token mixing, then parallel memories (docs/model.md, section 2).

    The parts are handed in, so that they can be shared between blocks or replaced: `wavelet` (decompose and
    reconstruct), `transform`, `mixer`, `bypass` (or None) and `memories`. Options that are off are identities
    without parameters.

    Shapes: x and embedding (B, T, C); previous_mean (B, T, C), (B, 1, C) or None; value, the block's own embedding of
    the tokens, (B, T, C) or None. Returns the new x and the bypass mean, both (B, T, C); without a bypass the mean is
    None.
    """

    resets_at_documents = True

    class Config(ComponentConfig):
        kind: Literal["wavelet"] = "wavelet"
        embedding_residual: bool = Field(False, description="add gamma * embedding to every block's input")
        value_embedding: bool = Field(
            False,
            description="every block has a token embedding of its own, added to what its wavelet and memories read",
        )
        wavelet_convolution: int | None = Field(
            None, ge=2, le=64, description="positions that a short convolution before the wavelet spans; null: none"
        )
        memory_convolution: int | None = Field(
            None, ge=2, le=64, description="positions that a short convolution before the memories spans; null: none"
        )
        learned_residual: bool = Field(True, description="the two residual connections have a learned scalar")
        projection: bool = Field(True, description="Linear(P, C) after reconstruction; off needs a width equal to P")
        projection_scaling: bool = Field(False, description="divide the projection's initial weights by sqrt(C layers)")
        zero_projection: bool = Field(False, description="the projection's weights start at zero")
        mixer_dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability of the mixed coefficients")
        projection_dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability of the block's update")
        decomposition_norm: bool = Field(False, description="a LayerNorm per scale right after decomposition")
        reconstruction_norm: bool = Field(False, description="a LayerNorm per scale right after the inverse transform")

        def check(self, model: ModelConfig) -> None:
            shape = model.shape
            if self.zero_projection and not self.projection:
                raise ValueError("zero_projection=true is about a projection, but projection=false; set one of the two")
            if self.memory_convolution is not None and not model.memories:
                raise ValueError(
                    f"memory_convolution={self.memory_convolution} stands before the memories, but model.memories is "
                    "empty; give some, or memory_convolution: null"
                )
            if not self.projection and shape.padded_width != shape.width:
                raise ValueError(
                    f"projection=false needs model.width to equal the padded width, but model.width={shape.width} is "
                    f"padded to {shape.padded_width}; use a power of two or projection: true"
                )

    def __init__(
        self,
        config: Config,
        shape: ModelShape,
        wavelet: Any,
        transform: Any,
        mixer: nn.Module,
        bypass: nn.Module | None = None,
        memories: Sequence[nn.Module] = (),
    ):
        super().__init__()
        width, padded_width, scales = shape.width, shape.padded_width, shape.scales
        self.padding = padded_width - width
        self.wavelet = wavelet
        self.transform = transform
        self.mixer = mixer
        self.bypass = bypass
        self.embedding_residual = EmbeddingResidual(width) if config.embedding_residual else None
        # What the wavelet reads of the value embedding, and what the memories read.
        self.value_gains = nn.Parameter(torch.ones(2, width)) if config.value_embedding else None
        self.norm_in = LayerNorm(width)
        self.wavelet_convolution = _convolution(width, config.wavelet_convolution)
        self.decomposition_norm = ScaleNorm(scales, padded_width) if config.decomposition_norm else nn.Identity()
        self.reconstruction_norm = ScaleNorm(scales, padded_width) if config.reconstruction_norm else nn.Identity()
        self.mixer_dropout = nn.Dropout(config.mixer_dropout)
        self.scale_gains = nn.Parameter(torch.ones(scales, 1))
        self.project = self._projection(config, shape) if config.projection else nn.Identity()
        self.projection_dropout = nn.Dropout(config.projection_dropout)
        self.spectral_residual = Residual(config.learned_residual)
        self.norm_memory = LayerNorm(width)
        self.memory_convolution = _convolution(width, config.memory_convolution)
        self.memories = MemorySum(memories)
        self.memory_residual = Residual(config.learned_residual)

    @staticmethod
    def _projection(config: Config, shape: ModelShape) -> Linear:
        projection = Linear(shape.padded_width, shape.width)
        with torch.no_grad():
            projection.weight *= 0.0 if config.zero_projection else 1e-3
            if config.projection_scaling:
                projection.weight *= (shape.width * shape.layers) ** -0.5
            projection.bias.zero_()
        return projection

    @property
    def takes_value(self) -> bool:
        """Whether `forward` takes a value embedding."""
        return self.value_gains is not None

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        return {part: new_state_of(getattr(self, part), batch_size, device, dtype) for part in STATEFUL_PARTS}

    def diagnose(self, *inputs: Any) -> Iterator[Diagnostic]:
        yield Diagnostic(
            "Scale gains",
            self.scale_gains.squeeze(1),
            ("scale",),
            "gain",
            (scale_names(len(self.scale_gains)),),
            explanation="What each scale is multiplied by before it is reconstructed; they start at 1.",
        )
        scalars = {
            "after mixing": self.spectral_residual.alpha,
            "after memories": self.memory_residual.alpha,
            **{f"memory {index}": alpha for index, alpha in enumerate(self.memories.alphas)},
        }
        learned = {name: value for name, value in scalars.items() if value is not None}
        if learned:
            yield Diagnostic(
                "Residual scalars",
                torch.stack([value.detach() for value in learned.values()]),
                ("connection",),
                "scalar",
                (list(learned),),
                explanation="What the stream is multiplied by where a block's update is added, and each memory's read; "
                "they start at 1.",
            )

    def _with_value(self, rows: Tensor, value: Tensor | None, reader: int) -> Tensor:
        if self.value_gains is None or value is None:
            return rows
        return torch.addcmul(rows, self.value_gains[reader].to(rows.dtype), value.to(rows.dtype))

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.padding)) if self.padding else x

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        previous_mean: Tensor | None = None,
        state: Tree | None = None,
        value: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        history: Any = dict.fromkeys(STATEFUL_PARTS) if state is None else state
        bias = mean = None
        if self.bypass is not None:
            bias, mean = self.bypass(x, previous_mean, history["bypass"])
        if self.embedding_residual is not None:
            x = self.embedding_residual(x, embedding)

        rows = self._with_value(self.norm_in(x), value, 0)
        if self.wavelet_convolution is not None:
            rows = self.wavelet_convolution(rows, history["wavelet_convolution"])
        coefficients = self.wavelet.decompose(self._padded(rows), history["wavelet"])
        coefficients = self.decomposition_norm(coefficients)
        if bias is not None:
            coefficients = coefficients + self._padded(bias)
        mixed = call(self.mixer, self.transform(coefficients), state=history["mixer"])
        mixed = self.reconstruction_norm(self.transform.inverse(mixed))
        mixed = self.mixer_dropout(mixed) if self.training else mixed
        update = self.project(self.wavelet.reconstruct(self.scale_gains.to(mixed.dtype) * mixed))
        update = self.projection_dropout(update) if self.training else update

        x = self.spectral_residual(x, update)
        q = self._with_value(self.norm_memory(x), value, 1)
        if self.memory_convolution is not None:
            q = self.memory_convolution(q, history["memory_convolution"])
        return self.memory_residual(x, self.memories(q, history["memories"])), mean
