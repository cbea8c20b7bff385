"""The training loss as a module, so that what wraps modules (`torch.compile`, DistributedDataParallel) sees it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wavelet_core import State


class TrainingLoss(nn.Module):
    """Tokens and targets (B, T), and a state where the model carries one, to the model's loss, a scalar."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> Tensor:
        loss: Tensor = self.model.loss(tokens, targets, state)
        return loss
