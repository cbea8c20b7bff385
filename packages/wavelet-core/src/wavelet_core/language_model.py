"""What every model family is: the protocol that generation, training, evaluation and formats are written against."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core.config import ConfigurationError, LanguageModelConfig
from wavelet_core.linear import are_plain
from wavelet_core.linear_cross_entropy import IGNORED, linear_cross_entropy
from wavelet_core.registry import build
from wavelet_core.soft_cap import SoftCappedHead
from wavelet_core.state import State

# How torch says that a tensor is too large.
TOO_LARGE = re.compile("overflow|allocate memory|out of memory", re.IGNORECASE)


class LanguageModel(Protocol):
    """A causal language model, a component of kind `model`: an `nn.Module` made as `(config)`.

    `forward(tokens, state)` is `head(hidden(tokens, state))`. With a state the model goes on with the text that the
    state has read, in any chunking, and moves the state on in place; without one it starts from silence.
    `wavelet_core.testing.check_model` proves all of it.

    A family whose training windows carry something from one to the next sets `carries_window` and has
    `begin_window(state)`, which starts the next window of the same text. One that can keep documents apart inside a
    window has `resets_at_documents = True` (see `wavelet_core.state`).

    Shapes: tokens and targets (B, T), hidden (B, T, C), logits (B, T, V).
    """

    @property
    def config(self) -> LanguageModelConfig:
        """How the model was made."""

    def new_state(
        self, batch_size: int = 1, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """A silent state for `batch_size` independent texts, on the model's device and in its type by default."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (B, T, C)."""

    def hidden(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """What the head reads, (B, T, C)."""

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Hidden vectors (..., C) to logits (..., V)."""

    def loss(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> Tensor:
        """The training loss in nats per token, a scalar; targets of -100 do not count."""

    def __call__(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """Logits (B, T, V)."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of nn.Module."""


def build_model(config: LanguageModelConfig) -> Any:
    """The model that a configuration describes, freshly initialised: a LanguageModel that is an nn.Module.

    Raises ConfigurationError for sizes that no memory has room for, naming the largest.
    """
    try:
        return build("model", config)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search(
            "overflow|allocate memory|out of memory", str(error), re.I
        ):
            raise
        size, path = max(_sizes("model", config.model_dump()))
        raise ConfigurationError(
            f"{path}={size}: the model is too large for this machine; choose smaller sizes"
        ) from error


def _sizes(path: str, value: Any) -> Iterator[tuple[int, str]]:
    """The whole numbers of a configuration, with their paths."""
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _sizes(f"{path}.{key}", entry)
    elif type(value) is int:
        yield value, path


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats per token of logits (B, T, V) against targets (B, T), computed in float32.

    Positions with the target -100 do not count, and where none does it is 0.
    """
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def head_cross_entropy(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy(head(hidden), targets)`, by chunks of the logits where the head is a linear map, capped or not.

    A quantized head, one with hooks and any other callable is called. Shapes: hidden (B, T, C), targets (B, T) -> ().
    """
    linear, cap = (head.linear, head.cap) if isinstance(head, SoftCappedHead) else (head, None)
    if isinstance(linear, nn.Linear) and are_plain(head, linear):
        return linear_cross_entropy(hidden, linear.weight, targets, linear.bias, cap)
    return cross_entropy(head(hidden), targets)
