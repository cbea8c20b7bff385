"""A stack whose matrices are in several formats, as those of a mixer's scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wavelet_core.mixers import select_scales
from wavelet_quant.weight_format import StoredMatrix


class ScaleStack(StoredMatrix):
    """A stack (S, M, K) in parts, each of some of its matrices and in a format of its own.

    members: for each part, which matrices of the stack it has.
    """

    def __init__(self, parts: Sequence[StoredMatrix], members: Sequence[Sequence[int]]):
        count = sum(map(len, members))
        super().__init__((count, *parts[0].shape[1:]), parts[0].dtype, parts[0].read_as.device)
        self.parts = nn.ModuleList(parts)
        self.members = [list(own) for own in members]
        order = [place for own in self.members for place in own]
        self.restore = None if order == sorted(order) else [order.index(place) for place in range(count)]

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        return self._joined([part.matrix(dtype) for part in self.parts])  # type: ignore[operator]

    def forward(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        return self._joined([part(select_scales(x, own)) for part, own in zip(self.parts, self.members, strict=True)])

    def _joined(self, parts: list[Tensor]) -> Tensor:
        joined = torch.cat(parts)
        return joined if self.restore is None else joined[self.restore]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, in parts {self.members}"
