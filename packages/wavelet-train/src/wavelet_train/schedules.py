"""Learning-rate schedules: components of kind `schedule`.

A schedule is built as `(config, peak, steps)` and called with the number of optimizer steps done so far; it returns
the learning rate of the next one. Plugins add their own in the same way.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from wavelet_core.config import ComponentConfig


class WarmupConfig(ComponentConfig):
    """What every schedule of ours has: a linear warm-up."""

    warmup: float = Field(
        0.0, ge=0, lt=1, description="fraction of all optimizer steps in which the learning rate rises to train.lr"
    )


class DecayConfig(WarmupConfig):
    """A warm-up and a learning rate to end at."""

    final_lr: float = Field(0.0, ge=0, description="learning rate of the last optimizer step")


class Constant:
    """Linear warm-up, then the peak learning rate for ever."""

    class Config(WarmupConfig):
        kind: Literal["constant"] = "constant"

    def __init__(self, config: WarmupConfig, peak: float, steps: int):
        self.config, self.peak = config, peak
        self.warmup_steps = round(config.warmup * steps)
        self.last_step = steps - 1

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        return self.after_warmup((step - self.warmup_steps) / max(1, self.last_step - self.warmup_steps))

    def after_warmup(self, progress: float) -> float:
        """The learning rate when a fraction (0 to 1, more when training goes on) of what follows warm-up is done."""
        return self.peak


class Linear(Constant):
    """Linear warm-up, then a straight line from the peak to `final_lr`."""

    class Config(DecayConfig):
        kind: Literal["linear"] = "linear"

    config: DecayConfig

    def after_warmup(self, progress: float) -> float:
        return self.peak + (self.config.final_lr - self.peak) * min(1.0, progress)


class Cosine(Linear):
    """Linear warm-up, then half a cosine from the peak to `final_lr` (docs/model.md, section 8)."""

    class Config(DecayConfig):
        kind: Literal["cosine"] = "cosine"

    def after_warmup(self, progress: float) -> float:
        final = self.config.final_lr
        return final + (self.peak - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class WarmupStableDecay(Constant):
    """Linear warm-up, the peak, and in the last steps a fall to `final_lr` (Hu et al. 2024, "MiniCPM").

    Between warm-up and fall the number of steps makes no difference: a run that is resumed there with more of them has
    lost nothing.
    """

    class Config(DecayConfig):
        kind: Literal["warmup_stable_decay"] = "warmup_stable_decay"
        decay: float = Field(0.2, gt=0, le=1, description="fraction of all optimizer steps in which the rate falls")
        shape: Literal["linear", "square_root"] = Field(
            "linear",
            description="what is left of the peak above final_lr after a share x of the fall: 1 - x, or 1 - sqrt(x)",
        )

        @model_validator(mode="after")
        def _check_fractions(self) -> WarmupStableDecay.Config:
            if self.warmup + self.decay > 1:
                raise ValueError(
                    f"warmup={self.warmup:g} and decay={self.decay:g} are more than the whole run together; lower one"
                )
            return self

    config: Config

    def after_warmup(self, progress: float) -> float:
        stable = 1 - self.config.decay / (1 - self.config.warmup)
        if progress <= stable:
            return self.peak
        fall = min(1.0, (progress - stable) / (1 - stable))
        left = 1 - (fall if self.config.shape == "linear" else math.sqrt(fall))
        return self.config.final_lr + (self.peak - self.config.final_lr) * left
