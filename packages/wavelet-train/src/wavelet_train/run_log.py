"""What a run says while it is trained: on stderr to people, in records to programs."""

from __future__ import annotations

import time
from typing import Any

from wavelet_train.evaluation import Evaluation
from wavelet_train.gradient_norms import PartNorms
from wavelet_train.progress import Progress
from wavelet_train.quantities import duration
from wavelet_train.run_records import RunRecords
from wavelet_train.training_state import Counters

# What the time that a run will take is told from.
FIRST_STEPS, FIRST_SECONDS = 3, 2.0


class RunLog(Progress):
    """Progress of a run in tokens, and its records."""

    def __init__(self, records: RunRecords, counters: Counters, tokens_per_step: int):
        left = (counters.steps - counters.step) * tokens_per_step
        super().__init__("training", counters.tokens + left, " tokens", counters.tokens)
        self.records, self.counters = records, counters
        self._first_step: tuple[int, float] | None = None
        self._told_time = False
        self.restart_clock()

    def restart_clock(self) -> None:
        """Whatever was done since the last line does not count in the rate of the steps."""
        self._since_tokens, self._since = self.counters.tokens, time.monotonic()

    def stepped(self, tokens: int, note: str) -> None:
        """One more step of so many tokens is done."""
        skipped = f", {self.counters.skipped:,} skipped" if self.counters.skipped else ""
        self.advance(tokens, f"step {self.counters.step:,} of {self.counters.steps:,}, {note}{skipped}")
        self._tell_time()

    def _tell_time(self) -> None:
        """Once the first steps have shown it, say how long the others will take; the very first also sets things up."""
        step, now = self.counters.step, time.monotonic()
        if self._first_step is None:
            self._first_step = step, now
        steps, seconds = step - self._first_step[0], now - self._first_step[1]
        left = self.counters.steps - step
        if not self._told_time and left and steps >= FIRST_STEPS and seconds >= FIRST_SECONDS:
            self._told_time = True
            time_left = duration(left * seconds / steps)
            self.message(f"The {left:,} steps that are left will take about {time_left}, validations not counted")

    def step(self, lr: float, gradient_norm: float, part_norms: PartNorms | None) -> None:
        """A record of the steps since the last one; part_norms: None leaves them out."""
        counters = self.counters
        self.records.write(
            event="train",
            step=counters.step,
            tokens=counters.tokens,
            loss=counters.loss_sum / counters.loss_steps if counters.loss_steps else None,
            lr=lr,
            gradient_norm=gradient_norm,
            skipped=counters.skipped,
            tokens_per_second=(counters.tokens - self._since_tokens) / (time.monotonic() - self._since),
            **({} if part_norms is None else {"gradient_norms": part_norms}),
        )
        counters.loss_sum, counters.loss_steps = 0.0, 0
        self.restart_clock()

    def validation(self, result: Evaluation, seconds: float, sources: list[dict[str, Any]]) -> None:
        """A record of a validation. sources: the scores of each data set of a mix."""
        self._first_step = None
        more = {"sources": sources} if sources else {}
        self.records.write(event="validation", step=self.counters.step, **result.as_dict(), **more, seconds=seconds)

    def validated(self, result: Evaluation, best: bool, sources: list[dict[str, Any]]) -> None:
        """A line for people, once its checkpoints are there, and one for each data set of a mix."""
        self.message(
            f"step {self.counters.step:,}: validation {result.bits_per_byte:.4f} bits per byte, "
            f"perplexity per token {result.perplexity_per_token:.2f}, accuracy {result.accuracy:.1%}"
            f"{' (best so far)' if best else ''}"
        )
        for source in sources:
            self.message(f"    {source['bits_per_byte']:.4f} bits per byte of {source['name']}")
