"""Cross entropy of a linear map's outputs, in chunks: neither all logits (N, V) nor their gradient are ever there.

What a chunk of logits gives to the gradients is computed while the chunk is there, in the forward pass, as in Liger
Kernel (Hsu et al. 2024) and Cut Cross-Entropy (Wijmans et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from wavelet_core.training_kernel import training_kernel

IGNORED = -100
# Entries of a chunk of logits, its most rows (sums over more could leave the range of float16), and entries that become
# probabilities at once on a processor, so that they stay in its cache.
CHUNK, CHUNK_ROWS, CACHED = 1 << 23, 1 << 12, 1 << 18


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, soft_cap: float | None = None
) -> Tensor:
    """Mean cross entropy in nats of logits hidden W^T + b against targets.

    Positions with the target -100 do not count, and where none does it is 0. soft_cap: c, logits z become
    c tanh(z / c).

    Products are computed in autocast's type where there is one, all else in float32 at least. There are no gradients of
    the gradients. Shapes: hidden (..., C), weight (V, C), targets (...), bias (V) -> ().
    """
    kind = hidden.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if casts else weight.dtype
    arguments = (hidden.reshape(-1, hidden.shape[-1]), weight, bias, targets.flatten(), dtype, soft_cap)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in arguments[:3]):
        loss: Tensor = _LinearCrossEntropy.apply(*arguments)
        return loss
    return _loss_and_gradients(*arguments, (False, False, False))[0]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        soft_cap: float | None,
    ) -> Tensor:
        loss, *gradients = _loss_and_gradients(hidden, weight, bias, targets, dtype, soft_cap, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        count, *gradients = ctx.saved_tensors
        factor = scale / count
        # In place, which autograd notices should the graph be walked again.
        return (*(None if gradient is None else gradient.mul_(factor) for gradient in gradients), None, None, None)


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    dtype: torch.dtype,
    soft_cap: float | None,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss, how many positions count, and that number times the gradients that are needed."""
    precise = torch.promote_types(dtype, torch.float32)
    matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
    counts = targets != IGNORED
    places = torch.where(counts, targets, 0).unsqueeze(-1)
    mask = counts.unsqueeze(-1).to(dtype)
    hidden_gradient = torch.empty_like(hidden) if needed[0] else None
    weight_gradient = torch.zeros_like(weight, dtype=precise) if needed[1] else None
    bias_gradient = torch.zeros_like(bias, dtype=precise) if bias is not None and needed[2] else None
    total = torch.zeros((), dtype=precise, device=hidden.device)
    rows = max(1, min(CHUNK // len(weight), CHUNK_ROWS, (len(hidden) + 1) // 2))
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        x = hidden[part].to(dtype)
        logits = F.linear(x, matrix, offset)
        losses = _differentiate(logits, places[part], precise, soft_cap)
        total += torch.where(counts[part], losses.squeeze(-1), 0).sum()
        if hidden_gradient is not None:
            hidden_gradient[part] = (logits @ matrix) * mask[part]
        if weight_gradient is not None:
            weight_gradient += logits.T @ (x * mask[part])
        if bias_gradient is not None:
            bias_gradient += (logits.T @ mask[part]).squeeze(-1)
    count = counts.sum().clamp(min=1)
    return total / count, count, hidden_gradient, weight_gradient, bias_gradient


def _differentiate(logits: Tensor, places: Tensor, precise: torch.dtype, soft_cap: float | None) -> Tensor:
    """Losses (n, 1) of logits (n, V), capped where asked, for targets (n, 1); turns the logits into their gradient, in
    place."""
    if (kernel := training_kernel(logits)) is not None:
        return kernel.cross_entropy(logits, places.squeeze(-1), soft_cap).unsqueeze(-1)
    at_once = len(logits)
    if logits.is_cpu and not torch.compiler.is_compiling():
        at_once = max(1, CACHED // logits.shape[-1])
    losses = []
    for part, place in zip(logits.split(at_once), places.split(at_once), strict=True):
        values = part.to(precise)
        if soft_cap is not None:
            capped = (values / soft_cap).tanh_()
            values = capped * soft_cap
        probabilities = values.softmax(-1)
        # The largest probability is one over the sum of exponentials, all of them relative to the largest value.
        normalizers = values.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()
        losses.append(normalizers - values.gather(-1, place))
        gradient = probabilities.scatter_add_(-1, place, torch.full_like(losses[-1], -1))
        part.copy_(gradient if soft_cap is None else gradient.addcmul_(gradient * capped, capped, value=-1))
    return torch.cat(losses)
