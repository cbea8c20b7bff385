"""The fixed causal Haar wavelet (docs/model.md, section 3)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from wavelet_core.config import ComponentConfig, ModelShape
from wavelet_core.lifting import SQRT_HALF, DelayWavelet, FixedDelay, scales_apart, scales_together
from wavelet_core.state import Tree, document_positions


class HaarWavelet(DelayWavelet):
    """The undecimated causal Haar wavelet; it has no parameters (docs/model.md, section 3).

    c_{k+1} and d_k are (c_k plus, minus its copy 2^k positions ago) / sqrt(2); reconstruction is
    (c_{k+1} + d_k) / sqrt(2). Shapes as of DelayWavelet.
    """

    resets_at_documents = True

    class Config(ComponentConfig):
        kind: Literal["haar"] = "haar"

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__(shape, FixedDelay())

    def decompose(self, rows: Tensor, state: Tree | None = None) -> Tensor:
        details = []
        positions = document_positions(state)
        for level in range(self.shape.levels):
            past = self.delay(rows, level, None if state is None else state[f"level{level}"], positions)
            details.append((rows - past) * SQRT_HALF)
            rows = (rows + past) * SQRT_HALF
        return scales_together([rows, *reversed(details)])

    def reconstruct(self, coefficients: Tensor) -> Tensor:
        rows, *details = scales_apart(coefficients)
        for detail in details:
            rows = (rows + detail) * SQRT_HALF
        return rows
