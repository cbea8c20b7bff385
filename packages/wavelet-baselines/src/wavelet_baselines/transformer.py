"""A modern decoder-only Transformer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_baselines.feed_forward import Activation
from wavelet_baselines.mixer_block import MixerBlock
from wavelet_baselines.residual_stack import ResidualStack, ResidualStackConfig, output_projection
from wavelet_core.linear import Linear
from wavelet_core.state import Tree

ROTARY_BASE = 10_000.0


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021). Shapes: x (B, T, H, D), positions (B, T) or (1, T).

    Channels i and i + D/2 are turned by the angle position * base^(-2i/D), in float32.
    """
    half = x.shape[-1] // 2
    exponents = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angles = positions.float().unsqueeze(-1) * ROTARY_BASE**-exponents
    cosine, sine = angles.cos().unsqueeze(2), angles.sin().unsqueeze(2)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head attention over the last `capacity` positions, rotary positions, normed queries and keys.

    Queries and keys are divided by their root mean square (QK-norm: Henry et al. 2020), so that logits cannot grow. The
    state is a ring of the last `capacity` keys and values and the number of positions read. Shapes: (B, T, C) ->
    (B, T, C).
    """

    def __init__(self, config: Transformer.Config):
        super().__init__()
        self.heads, self.capacity, self.norm = config.heads, config.capacity or config.context_length, config.qk_norm
        self.head_width = config.width // config.heads
        self.project = Linear(config.width, 3 * config.width, bias=False)
        self.out = output_projection(config.width, config.width, config.zero_outputs)

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        ring = (batch_size, self.capacity, self.heads, self.head_width)
        return {
            "keys": torch.zeros(ring, device=device, dtype=dtype),
            "values": torch.zeros(ring, device=device, dtype=dtype),
            "read": torch.zeros(batch_size, 1, device=device, dtype=torch.int64),
        }

    def forward(self, x: Tensor, state: Tree | None = None) -> Tensor:
        length = x.shape[1]
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, self.head_width)).unbind(2)
        if self.norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        positions = torch.arange(length, device=x.device).unsqueeze(0)
        history: Any = state
        if history is not None:
            positions = positions + history["read"]
        q, k = rotate(q, positions), rotate(k, positions)
        if history is None:
            out = self._attend(q, k, v, None if length <= self.capacity else self._mask(positions, positions))
        else:
            out = self._continue(history, q, k, v, positions)
        mixed: Tensor = self.out(out.flatten(2))
        return mixed

    def _mask(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Which keys a query sees: those of its own position and of the capacity - 1 before it. (B, 1, T, keys)."""
        distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
        return ((distance >= 0) & (distance < self.capacity) & (keys >= 0).unsqueeze(-2)).unsqueeze(1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2).to(q.dtype), v.transpose(1, 2).to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return out.transpose(1, 2)

    def _continue(self, history: Any, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """Attend to the ring and the chunk; then the chunk's last positions go into the ring."""
        keys, values, read = history["keys"], history["values"], history["read"]
        length = q.shape[1]
        slots = torch.arange(self.capacity, device=q.device)
        # The last position below `read` that lies in the slot; negative where there was none yet.
        held = (read - 1) - (read - 1 - slots) % self.capacity
        mask = self._mask(positions, torch.cat([held, positions], dim=1))
        seen_keys = torch.cat([keys.clone().to(k.dtype), k], dim=1)
        seen_values = torch.cat([values.clone().to(v.dtype), v], dim=1)
        out = self._attend(q, seen_keys, seen_values, mask)
        kept = min(length, self.capacity)
        places = (positions[:, -kept:] % self.capacity)[..., None, None].expand(-1, -1, self.heads, self.head_width)
        keys.scatter_(1, places, k[:, -kept:].detach().to(keys.dtype))
        values.scatter_(1, places, v[:, -kept:].detach().to(values.dtype))
        read += length
        return out


class Transformer(ResidualStack):
    """A decoder-only Transformer (Vaswani et al. 2017) as it is built now: pre-norm RMS norms, rotary positions, normed
    queries and keys, squared ReLU or SwiGLU, no biases, outputs that start at zero.

    Attention reaches `capacity` positions back, in training as in decoding; its state has room for as many, and a
    decoded token costs as many products however many positions were read.
    """

    class Config(ResidualStackConfig):
        kind: Literal["transformer"] = "transformer"
        heads: int = Field(6, ge=1, description="attention heads; they share model.width evenly")
        capacity: int | None = Field(
            None, ge=1, description="positions that attention reaches back, itself included; null: context_length"
        )
        qk_norm: bool = Field(True, description="divide queries and keys by their root mean square")
        expansion: float = Field(4.0, gt=0, description="hidden width of the feed-forward network in multiples of C")
        activation: Activation = Field("relu_squared", description="of the feed-forward network")

        @model_validator(mode="after")
        def _check_heads(self) -> Transformer.Config:
            if self.width % (2 * self.heads):
                raise ValueError(
                    f"heads={self.heads} does not give every head an even number of width={self.width} channels, which "
                    "rotary positions need; choose a width that is a multiple of 2 * heads"
                )
            return self

    def __init__(self, config: Config):
        super().__init__(config, (MixerBlock(config, Attention(config)) for _ in range(config.layers)))
