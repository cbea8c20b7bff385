"""The contract of a learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

from wavelet_core.testing.subject import Subject

PEAK = 0.5
LENGTHS = (1, 2, 3, 10, 1000)
# Who compares the schedules of two lengths, as when a run is extended, asks past the end of the shorter one.
BEYOND = 5


def _rates(subject: Subject, steps: int, peak: float = PEAK) -> tuple[Any, list[float]]:
    """A schedule and what it gives for every step of a run of `steps`, and a few beyond."""
    with subject.expecting(
        f"being made as {subject.component.__name__}(config, {peak}, {steps}) and called with the steps done",
        "give __init__ the parameters (config, peak, steps) and __call__ the step, for a run of one step as well",
    ):
        schedule = subject.component(subject.config, peak, steps)
        return schedule, [schedule(step) for step in range(steps + BEYOND)]


def _check_rates(subject: Subject) -> None:
    for steps in LENGTHS:
        schedule, rates = _rates(subject, steps)
        for step, rate in enumerate(rates):
            place = f"at step {step} of {steps}"
            if not isinstance(rate, (int, float)):
                subject.fail(f"gives a {type(rate).__name__} {place}", "return a Python float, as JSON has it")
            if not math.isfinite(rate) or rate < 0:
                subject.fail(f"gives the rate {rate} {place}", "return a number from 0 to `peak`, past the end too")
            if rate > PEAK * (1 + 1e-9):
                subject.fail(f"gives the rate {rate} {place}, above the peak {PEAK}", "never exceed train.lr")
        if not any(rates[:steps]):
            subject.fail(f"gives the rate 0 in all of {steps} steps", "let a run of any length learn")
        if rates != [schedule(step) for step in reversed(range(len(rates)))][::-1]:
            subject.fail(
                "gives other rates when it is asked again, in another order",
                "compute from `step` alone and count no calls: a resumed run asks from the middle on",
            )
        if rates != _rates(subject, steps)[1]:
            subject.fail("gives other rates when it is made again", "use nothing random: a resumed run makes it anew")
    if _rates(subject, 100)[1] == _rates(subject, 100, PEAK / 2)[1]:
        subject.fail("gives the same rates for half the peak", "scale the rates by `peak`: it is train.lr")


SCHEDULE_CHECKS = (_check_rates,)
