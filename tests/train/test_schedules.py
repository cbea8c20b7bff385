"""Learning-rate schedules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavelet_core import build
from wavelet_train.schedules import Constant, Cosine, Linear, WarmupStableDecay


@pytest.mark.parametrize("kind", [Constant, Linear, Cosine, WarmupStableDecay])
def test_warmup_rises_in_a_straight_line_to_the_peak(kind: type) -> None:
    schedule = build("schedule", kind.Config(warmup=0.3), 2.0, 100)
    rises = [schedule(step + 1) - schedule(step) for step in range(30)]
    assert all(rise == pytest.approx(2.0 / 31) for rise in rises)
    assert schedule(0) == pytest.approx(2.0 / 31)
    assert schedule(30) == 2.0


@pytest.mark.parametrize("kind", [Linear, Cosine, WarmupStableDecay])
def test_last_step_has_the_final_learning_rate(kind: type) -> None:
    schedule = build("schedule", kind.Config(warmup=0.1, final_lr=0.25), 1.0, 50)
    assert schedule(49) == pytest.approx(0.25)
    assert schedule(48) > 0.25
    assert schedule(1000) == pytest.approx(0.25)


def test_cosine_and_line_are_half_way_in_the_middle_and_apart_elsewhere() -> None:
    cosine = build("schedule", Cosine.Config(final_lr=0.2), 1.0, 101)
    line = build("schedule", Linear.Config(final_lr=0.2), 1.0, 101)
    assert cosine(50) == pytest.approx(0.6) == line(50)
    assert cosine(25) == pytest.approx(0.6 + 0.4 * 0.5**0.5)
    assert line(25) == pytest.approx(0.8)


def test_constant_stays_at_the_peak() -> None:
    schedule = build("schedule", Constant.Config(), 0.1, 10)
    assert {schedule(step) for step in range(20)} == {0.1}


@pytest.mark.parametrize(("shape", "half_way"), [("linear", 0.6), ("square_root", 0.2 + 0.8 * (1 - 0.5**0.5))])
def test_stable_rate_falls_in_the_last_steps(shape: str, half_way: float) -> None:
    config = WarmupStableDecay.Config(warmup=0.1, decay=0.4, final_lr=0.2, shape=shape)
    schedule = build("schedule", config, 1.0, 1001)
    assert {schedule(step) for step in range(101, 600)} == {1.0}
    assert schedule(800) == pytest.approx(half_way, abs=2e-3)
    assert schedule(1000) == pytest.approx(0.2)


def test_more_steps_only_move_the_fall() -> None:
    short, long = (build("schedule", WarmupStableDecay.Config(decay=0.5), 1.0, steps) for steps in (100, 200))
    assert [short(step) for step in range(50)] == [long(step) for step in range(50)]


def test_warmup_and_fall_fit_into_the_run() -> None:
    with pytest.raises(ValueError, match=r"warmup=0.4 and decay=0.7 are more than the whole run"):
        WarmupStableDecay.Config(warmup=0.4, decay=0.7)


@given(
    kind=st.sampled_from([Constant, Linear, Cosine, WarmupStableDecay]),
    warmup=st.floats(0, 0.79),
    steps=st.integers(1, 500),
    share=st.floats(0, 1),
)
def test_learning_rate_rises_and_then_never_rises_again(kind: type, warmup: float, steps: int, share: float) -> None:
    options = {} if kind is Constant else {"final_lr": share}
    schedule = build("schedule", kind.Config(warmup=warmup, **options), 1.0, steps)
    rates = [schedule(step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates[:-1])
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
