"""What a model carries from one training window to the next, and what it is told of the documents in a window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wavelet_core.config import ConfigurationError
from wavelet_core.state import State, leaves, without_reset
from wavelet_train.run_config import TrainConfig
from wavelet_train.windows import Windows


class CarriedState:
    """The streaming state of a run's model, made ready for every batch of windows; none where nothing needs one.

    Contiguous windows go on with the whole state: truncated backpropagation through time. A model that carries a mean
    across windows begins each with nothing else. Other windows begin with silence, and have a state only to be told
    where documents begin.

    Raises ConfigurationError for an order that contradicts what the model carries, and for a model with a part that
    cannot reset at documents if it is to.
    """

    def __init__(self, model: Any, config: TrainConfig, batch_size: int, device: torch.device):
        self.model, self.device = model, device
        self.mean_only = bool(getattr(model, "carries_window", False))
        if self.mean_only and config.order is not None:
            raise ConfigurationError(
                f"train.order={config.order}: the model carries a mean from window to window "
                "(model.cross_window_state), for which its windows follow each other; leave train.order null"
            )
        self.contiguous = self.mean_only or config.order == "contiguous"
        self.isolated = config.reset_at_documents
        if self.isolated and (parts := without_reset(model)):
            name, part = next(iter(parts.items()))
            raise ConfigurationError(
                f"train.reset_at_documents: {name or 'the model'} ({type(part).__name__}) cannot reset its state "
                "inside a window: it has no resets_at_documents; leave that off, or use another part"
            )
        self.state: State | None = None
        if self.contiguous or self.isolated:
            self.state = model.new_state(batch_size, device)

    def before(self, batch: Windows) -> State | None:
        """The state to read a batch with."""
        state = self.state
        if state is None:
            return None
        if batch.continues is None:
            state.reset()
        else:
            if self.mean_only:
                self.model.begin_window(state)
            state.reset((~batch.continues).nonzero().flatten())
        if batch.document_positions is not None:
            state.document_positions = batch.document_positions.to(self.device)
        return state

    def forget(self) -> None:
        """Go on from silence, whatever the next windows continue."""
        if self.state is not None:
            self.state.reset()

    def tensors(self) -> dict[str, Tensor]:
        """What is carried into the next batch, by name."""
        return dict(leaves(self.state.tree)) if self.state is not None and self.contiguous else {}
