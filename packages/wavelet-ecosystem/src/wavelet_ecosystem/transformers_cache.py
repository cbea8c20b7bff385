"""The streaming state of a model as the cache that transformers hands from one forward pass to the next."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from wavelet_core.generation.session import DecodingSession
from wavelet_core.state import State


class StateCache(Cache):
    """A state of fixed size for a batch of texts, and the model made ready for decoding.

    What a state has read it cannot forget: its rows can be reordered, repeated and selected, but it cannot be cropped.
    """

    is_compileable = False
    is_croppable = False
    is_initialized = True
    is_linear = (False,)
    is_sliding = (False,)

    def __init__(self, model: Any, batch_size: int):
        self.layers: list[Any] = []
        self._session = DecodingSession(model)
        self.state: State = model.new_state(batch_size)
        self.length = 0

    @property
    def model(self) -> Any:
        """The model, in evaluation mode, with what its weights decide computed once."""
        self._session.compute()
        return self._session.model

    def advance(self, positions: int) -> State:
        """The state, for so many positions to be read."""
        self.length += positions
        return self.state

    def __repr__(self) -> str:
        return f"StateCache(texts={self.state.batch_size}, tokens={self.length}, bytes={self.state.nbytes})"

    def __len__(self) -> int:
        return 0

    @property
    def batch_size(self) -> int:
        """How many texts."""
        return self.state.batch_size

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many positions were read, padding included."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no limit."""
        return -1

    def reset(self) -> None:
        """Back to silence."""
        self.state.reset()
        self.length = 0

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        self.state = self.state[indices.cpu()]

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.state = self.state.repeat(repeats)

    def crop(self, tokens_to_remove: int) -> None:
        """Refused."""
        raise ValueError("a streaming state cannot forget what it has read; keep a copy.deepcopy of the cache instead")
