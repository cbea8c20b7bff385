"""A model and the layout of its state as `torch.export` takes them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from wavelet_core.computed import Computed
from wavelet_core.generation.session import DecodingSession, decoding_view
from wavelet_core.state import State, map_tree


class TracedModel(nn.Module):
    """What is traced is the `forward` of subclasses: a session's model, for a number of texts."""

    def __init__(self, session: DecodingSession, batch: int):
        super().__init__()
        self.model = decoding_view(session.model)
        for module in self.model.modules():
            if isinstance(module, Computed):  # as a buffer its value has a name
                module._buffers = {**module._buffers, "_frozen": module.__dict__.pop("_frozen")}
        self.tree, self.batch = session.new_state(batch).tree, batch

    def state_of(self, history: Iterable[Tensor]) -> State:
        """The state that is made of these tensors, in the order of `leaves`."""
        given = iter(history)
        return State(map_tree(lambda _: next(given), self.tree), self.batch)
