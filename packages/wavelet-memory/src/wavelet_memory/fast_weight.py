"""Fast-weight product-key memory: it goes on learning while it reads (docs/model.md, section 6)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wavelet_core.config import ConfigurationError, ModelShape, parse
from wavelet_core.state import Tree
from wavelet_memory.fast_weight_update import read_and_update
from wavelet_memory.product_key import ProductKeyConfig, ProductKeyTable


class FastWeightProductKeyMemory(ProductKeyTable):
    """A product-key memory whose values get deltas D at inference (docs/model.md, section 6).

    With `inference_updates` and a state, every `chunk_size` positions teach the memory to predict the next query:
    D <- D - lr * d/dD mean((read(q_t) - q_{t+1})^2), the mean over the chunk's position pairs and channels. A chunk is
    read with the deltas that it began with. Each batch row has its own deltas and its own chunk, so a row's output
    does not depend on the others; they start from zero and go back to it when the state is reset (per document). The
    original shares one D among the rows of a batch: after a chunk that is the mean of the rows' deltas here.

    Without a state, or without `inference_updates`, the module only reads and keeps no state. Deltas are constants to
    autograd. They are kept in float32 at least, whatever the model's type: single steps are far below a 16-bit value's
    resolution.

    Shapes: q (B, T, C) -> (B, T, C). A row's state holds h N C deltas and the pending chunk, 2 C + 2 R numbers a
    position with R values read at each.
    """

    resets_at_documents = True

    class Config(ProductKeyConfig):
        kind: Literal["fast_weight_product_key"] = "fast_weight_product_key"
        inference_updates: bool = Field(False, description="update the value deltas while a text is read with a state")
        update_learning_rate: float = Field(0.01, ge=0, allow_inf_nan=False, description="lr, size of an update step")
        chunk_size: int = Field(64, ge=2, le=65536, description="positions that make one update step")

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__(config, shape)
        self.inference_updates = config.inference_updates
        self.update_learning_rate = config.update_learning_rate
        self.chunk_size = config.chunk_size

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        """The deltas, the pending chunk and the positions in it; nothing when there are no updates."""
        if not self.inference_updates:
            return {}
        rows, width = self.values.num_embeddings, self.values.embedding_dim
        precise = torch.promote_types(dtype, torch.float32)
        positions = (batch_size, self.chunk_size)
        return {
            "deltas": torch.zeros(batch_size, rows, width, dtype=precise, device=device),
            "pending": {
                "query": torch.zeros(*positions, width, dtype=precise, device=device),
                "read": torch.zeros(*positions, width, dtype=precise, device=device),
                "row": torch.zeros(*positions, self.reads, dtype=torch.int64, device=device),
                "weight": torch.zeros(*positions, self.reads, dtype=precise, device=device),
            },
            "count": torch.zeros(batch_size, dtype=torch.int64, device=device),
        }

    def forward(self, q: Tensor, state: Tree | None = None) -> Tensor:
        row, weight = self.address(q)
        read = self.read(row, weight)
        if not state:
            return read
        learned = read_and_update(q, read, row, weight, state, self.update_learning_rate)
        return (read + learned).to(read.dtype)


def learn_while_reading(model: nn.Module, learning_rate: float | None = None, chunk_size: int | None = None) -> None:
    """Let a model's fast-weight memories learn from what they read, whatever its configuration says.

    learning_rate, chunk_size: take the place of `update_learning_rate` and `chunk_size` in the configuration.
    Raises ConfigurationError for a model without such memories, and naming the field for what `Config` refuses.
    """
    memories = [module for module in model.modules() if isinstance(module, FastWeightProductKeyMemory)]
    if not memories:
        raise ConfigurationError("the model has no fast_weight_product_key memory")
    given = (("update_learning_rate", learning_rate), ("chunk_size", chunk_size))
    changes = {name: value for name, value in given if value is not None}
    parse(FastWeightProductKeyMemory.Config, changes, "fast_weight_product_key")
    for memory in memories:
        memory.inference_updates = True
        for name, value in changes.items():
            setattr(memory, name, value)
