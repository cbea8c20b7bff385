"""Several lifting wavelets in parallel, blended scale by scale (docs/model.md, section 3)."""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wavelet_core.config import ComponentConfig, ModelConfig, ModelShape
from wavelet_core.lifting import LiftingWavelet
from wavelet_core.state import Tree


class MultiBasisWavelet(nn.Module):
    """Parallel lifting wavelets whose coefficients, and reconstructions, are blended by learned weights.

    Every basis decomposes the same rows; scale by scale the coefficients are blended with a softmax over the bases.
    Every basis then reconstructs from the same blended coefficients, and the results are blended with the
    approximation's weights. Shapes: decompose (B, T, P) -> (B, T, S, P), coarse to fine; reconstruct the other way
    round.
    """

    resets_at_documents = True

    class Config(ComponentConfig):
        kind: Literal["multi_basis"] = "multi_basis"
        bases: list[LiftingWavelet.Config] = Field(
            [LiftingWavelet.Config(initialization="haar"), LiftingWavelet.Config(initialization="random")],
            min_length=1,
            description="one lifting wavelet each",
        )
        untied_reconstruction: bool = Field(
            False, description="reconstruction has its own Update networks and its own blend"
        )

        def check(self, model: ModelConfig) -> None:
            if model.shared_wavelet:
                raise ValueError(
                    "a multi_basis wavelet cannot be shared across blocks; set model.shared_wavelet: false or use "
                    "model.wavelet.kind: lifting"
                )
            for index, basis in enumerate(self.bases):
                basis.check(model)
                if basis.untied_reconstruction:
                    raise ValueError(
                        f"bases[{index}].untied_reconstruction=true: a blend is untied as a whole; set "
                        "model.wavelet.untied_reconstruction instead"
                    )

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        untied = {"untied_reconstruction": config.untied_reconstruction}
        self.bases = nn.ModuleList([LiftingWavelet(basis.model_copy(update=untied), shape) for basis in config.bases])
        self.blend = _first_basis_favoured(len(config.bases), shape.scales)
        # Reconstruction reads the approximation's column alone, so its own blend has just that one.
        self.reconstruction_blend = (
            _first_basis_favoured(len(config.bases), 1) if config.untied_reconstruction else self.blend
        )
        # The spec's columns run from the approximation to the details fine to coarse; ours run coarse to fine.
        self.columns = [0, *range(shape.levels, 0, -1)]

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        return {str(index): basis.new_state(batch_size, device, dtype) for index, basis in enumerate(self.bases)}  # type: ignore[operator]

    def decompose(self, rows: Tensor, state: Tree | None = None) -> Tensor:
        weights = self.blend.softmax(0).to(rows.dtype)[:, self.columns]
        parts = (
            weights[index, :, None] * basis.decompose(rows, None if state is None else state[str(index)])  # type: ignore[operator]
            for index, basis in enumerate(self.bases)
        )
        return reduce(torch.add, parts)

    def reconstruct(self, coefficients: Tensor) -> Tensor:
        weights = self.reconstruction_blend[:, 0].softmax(0).to(coefficients.dtype)
        return torch.stack(
            [weight * basis.reconstruct(coefficients) for weight, basis in zip(weights, self.bases, strict=True)]  # type: ignore[operator]
        ).sum(0)


def _first_basis_favoured(bases: int, columns: int) -> nn.Parameter:
    blend = torch.zeros(bases, columns)
    blend[0] = 10.0
    return nn.Parameter(blend)
