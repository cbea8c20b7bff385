"""Bits per byte against the logarithm of training time: lines through finished runs, and where two of them meet.

Only finished runs count, whose rate has come down: what a run scores halfway is not what a shorter run would have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fit:
    """score = intercept + slope * ln(seconds), by least squares.

    residual: standard deviation of the points about the line; covariance: of intercept and slope. Both are None without
    more points than the two numbers that they decide. shortest, longest: seconds of the points.
    """

    intercept: float
    slope: float
    points: int
    residual: float | None
    covariance: tuple[tuple[float, float], tuple[float, float]] | None
    shortest: float
    longest: float

    def at(self, seconds: float) -> float:
        """Bits per byte that the line gives."""
        return self.intercept + self.slope * math.log(seconds)

    def error_at(self, seconds: float) -> float | None:
        """Standard error of the line there."""
        if self.covariance is None:
            return None
        place = np.array([1.0, math.log(seconds)])
        return math.sqrt(max(0.0, float(place @ np.array(self.covariance) @ place)))


@dataclass(frozen=True)
class Crossing:
    """Where two lines meet. seconds: None where they are parallel, or meet too far off to be a number of seconds.

    factor: by what the seconds may be larger or smaller (one standard error), None where that is not known. within:
    whether that lies among the points of both.
    """

    seconds: float | None
    factor: float | None
    within: bool


def fit(points: Sequence[tuple[float, float]]) -> Fit | None:
    """The line through (seconds, bits per byte); None with fewer than two different times."""
    if len({seconds for seconds, _ in points}) < 2:
        return None
    seconds, scores = np.array(points).T
    design = np.stack([np.ones(len(points)), np.log(seconds)], axis=1)
    (intercept, slope), *_ = np.linalg.lstsq(design, scores, rcond=None)
    free = len(points) - 2
    residual = covariance = None
    if free > 0:
        variance = float(((scores - design @ [intercept, slope]) ** 2).sum() / free)
        rows = variance * np.linalg.inv(design.T @ design)
        residual = math.sqrt(variance)
        covariance = ((float(rows[0, 0]), float(rows[0, 1])), (float(rows[1, 0]), float(rows[1, 1])))
    ends = (float(min(seconds)), float(max(seconds)))
    return Fit(float(intercept), float(slope), len(points), residual, covariance, *ends)


def crossing(first: Fit, second: Fit) -> Crossing:
    """Where the lines of two independent fits meet."""
    slope = first.slope - second.slope
    place = (second.intercept - first.intercept) / slope if slope else math.inf
    if not -700 < place < 700:
        return Crossing(None, None, False)
    factor = None
    if first.covariance is not None and second.covariance is not None:
        both = np.array(first.covariance) + np.array(second.covariance)
        error = math.sqrt(max(0.0, both[0, 0] + 2 * place * both[0, 1] + place * place * both[1, 1])) / abs(slope)
        factor = math.exp(error) if error < 700 else None
    seconds = math.exp(place)
    within = max(first.shortest, second.shortest) <= seconds <= min(first.longest, second.longest)
    return Crossing(seconds, factor, within)
