"""What a sweep searches: `path=VALUES` arguments as lists of values and ranges of numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from wavelet_core.config import ConfigurationError
from wavelet_core.messages import shortened, shown

if TYPE_CHECKING:
    from optuna import Trial

RANGE = re.compile(r"(?P<log>log:)?(?P<low>[^:]+?)\.\.(?P<high>[^:]+)")
BRACKETS = {"{": "}", "[": "]"}


@dataclass(frozen=True)
class Choices:
    """One of several values, each as it would stand in `--set path=value`."""

    path: str
    values: tuple[str, ...]

    @property
    def samples(self) -> tuple[str, ...]:
        """Values that stand for all of them: each must fit the configuration."""
        return self.values

    def suggest(self, trial: Trial) -> str:
        """The trial's value."""
        return str(trial.suggest_categorical(self.path, self.values))

    def __str__(self) -> str:
        return f"{self.path}={','.join(self.values)}"


@dataclass(frozen=True)
class Range:
    """A number between two others, both included. log: its logarithm is drawn evenly. whole: no fractions."""

    path: str
    low: float
    high: float
    log: bool
    whole: bool

    @property
    def samples(self) -> tuple[str, ...]:
        """Values that stand for all of them: the ends must fit the configuration."""
        return repr(self.low), repr(self.high)

    def suggest(self, trial: Trial) -> str:
        """The trial's value, as it would stand in `--set path=value`."""
        if self.whole:
            return repr(trial.suggest_int(self.path, int(self.low), int(self.high), log=self.log))
        return repr(trial.suggest_float(self.path, self.low, self.high, log=self.log))

    def __str__(self) -> str:
        return f"{self.path}={'log:' if self.log else ''}{self.low!r}..{self.high!r}"


Dimension = Choices | Range


def parse_arguments(arguments: Sequence[str]) -> tuple[list[str], list[Dimension]]:
    """The plain overrides among `path=value` arguments, and what the others search.

    `a,b,c` is a list (commas inside brackets and quotes do not count), `LOW..HIGH` a range, whole numbers where both
    ends are, `log:LOW..HIGH` one on a logarithmic scale.

    Raises ConfigurationError for ranges that are none, values and paths given twice, and where nothing is searched.
    """
    overrides: list[str] = []
    dimensions: list[Dimension] = []
    for argument in arguments:
        path, _, text = argument.partition("=")
        values = split_list(text)
        if len(values) > 1:
            dimensions.append(_choices(path.strip(), values, argument))
        elif found := RANGE.fullmatch(text.strip()):
            dimensions.append(_range(path.strip(), found, argument))
        else:
            overrides.append(argument)
    paths = [dimension.path for dimension in dimensions]
    for argument in arguments:
        path = argument.partition("=")[0].strip()
        if path in paths and [*paths, *(override.partition("=")[0].strip() for override in overrides)].count(path) > 1:
            raise ConfigurationError(
                f"--set {shortened(argument)}: {path} is set more than once; give all values at once"
            )
    if not dimensions:
        raise ConfigurationError(
            "--set: nothing is searched; give at least one field several values, as in train.lr=0.003,0.01,0.03, or a "
            "range, as in train.lr=log:1e-3..3e-2"
        )
    return overrides, dimensions


def _choices(path: str, values: list[str], argument: str) -> Choices:
    for value in values:
        if not value or values.count(value) > 1:
            problem = f"{shown(value)} is given twice" if value else "a value is empty"
            raise ConfigurationError(f"--set {shortened(argument)}: {problem}; name every value once")
    return Choices(path, tuple(values))


def _range(path: str, found: re.Match[str], argument: str) -> Range:
    where = f"--set {shortened(argument)}"
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError:
        raise ConfigurationError(f"{where}: the ends of a range are numbers, as in log:1e-3..3e-2") from None
    if not -float("inf") < low < high < float("inf"):
        raise ConfigurationError(f"{where}: a range goes from a smaller to a larger number")
    log = found["log"] is not None
    if log and low <= 0:
        raise ConfigurationError(f"{where}: a logarithmic range starts above zero")
    whole = all(re.fullmatch(r"\s*-?\d+\s*", found[end]) for end in ("low", "high"))
    return Range(path, int(low) if whole else low, int(high) if whole else high, log, whole)


def split_list(text: str) -> list[str]:
    """The parts of a text between commas that no bracket and no quote holds together, without the space around them."""
    parts, quote = [""], ""
    closing: list[str] = []
    for character in text:
        if character == "," and not closing and not quote:
            parts.append("")
            continue
        parts[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in BRACKETS:
            closing.append(BRACKETS[character])
        elif closing and character == closing[-1]:
            closing.pop()
    return [part.strip() for part in parts]


def grid(dimensions: Sequence[Dimension]) -> list[dict[str, str]]:
    """Every combination of the values. Raises ConfigurationError for a range, which has no end of them."""
    lists = []
    for dimension in dimensions:
        if isinstance(dimension, Range):
            raise ConfigurationError(
                f"--search grid: {dimension} is a range, of which a grid cannot try every value; list the values, or "
                "use --search tpe"
            )
        lists.append([(dimension.path, value) for value in dimension.values])
    return [dict(combination) for combination in product(*lists)]
