"""What a run says while it is trained: on stderr to people, in metrics.jsonl to programs."""

from __future__ import annotations

import sys
import time

import torch
from torch import nn

from wavelet_train.data import PreparedData
from wavelet_train.evaluation import Evaluation
from wavelet_train.progress import Progress
from wavelet_train.run_directory import MetricsFile
from wavelet_train.training_state import Counters


class RunLog(Progress):
    """Progress of a run in tokens, and its lines of metrics."""

    def __init__(self, metrics: MetricsFile, counters: Counters, steps: int, tokens_per_step: int):
        super().__init__("training", steps * tokens_per_step, " tokens", counters.step * tokens_per_step)
        self.metrics, self.counters, self.tokens_per_step = metrics, counters, tokens_per_step
        self.restart_clock()

    def restart_clock(self) -> None:
        """Whatever was done since the last line does not count in the rate of the steps."""
        self._since_step, self._since = self.counters.step, time.monotonic()

    def step(self, lr: float, gradient_norm: float) -> None:
        """A line of metrics about the steps since the last one."""
        counters = self.counters
        tokens = (counters.step - self._since_step) * self.tokens_per_step
        self.metrics.write(
            event="train",
            step=counters.step,
            tokens=counters.step * self.tokens_per_step,
            loss=counters.loss_sum / counters.loss_steps,
            lr=lr,
            gradient_norm=gradient_norm,
            tokens_per_second=tokens / (time.monotonic() - self._since),
        )
        counters.loss_sum, counters.loss_steps = 0.0, 0
        self.restart_clock()

    def validation(self, result: Evaluation, seconds: float, best: bool) -> None:
        """A line of metrics and one for people."""
        step = self.counters.step
        self.metrics.write(event="validation", step=step, **result.as_dict(), seconds=seconds)
        self.message(
            f"step {step:,}: validation {result.bits_per_byte:.4f} bits per byte, "
            f"perplexity per token {result.perplexity_per_token:.2f}{' (best so far)' if best else ''}"
        )


def announce(
    model: nn.Module, data: PreparedData, steps: int, tokens_per_step: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Say what is going to be trained, on what and for how long. Reads both splits, and so refuses what lacks one."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    train, validation = data.split("train"), data.split("validation")
    print(
        f"{parameters:,} parameters, {len(train.tokens):,} training tokens ({train.byte_count:,} bytes), "
        f"{len(validation.tokens):,} validation tokens, vocabulary {model.config.vocabulary:,}; "  # type: ignore[union-attr]
        f"{steps:,} steps of {tokens_per_step:,} tokens on {device} in {str(dtype).removeprefix('torch.')}, "
        f"{torch.get_num_threads()} processor thread{'s' if torch.get_num_threads() > 1 else ''}",
        file=sys.stderr,
    )
