"""What a comparison is of: the specification that `wavelet compare` reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from wavelet_core.config import ConfigurationError, Section, parse
from wavelet_core.configuration_files import locate, read_file
from wavelet_core.registry import nearest
from wavelet_train import PRESETS
from wavelet_train.run_config import RunConfig, apply_override, run_config

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Exactly one of them is a budget; how much of it a step takes is measured.
UNITS = ("seconds", "flops", "tokens")

Rate = Annotated[float, Field(gt=0)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Arm(Section):
    """One configuration that takes part: its fields, laid over those of `run`."""

    like: str | None = Field(None, description="the arm whose fields take the place of `run`, for an ablation of it")
    preset: str | None = Field(
        None, description="a preset or configuration file, over whose sections model and train those of `run` are laid"
    )
    model: dict[str, Any] = Field({}, description="fields of the model section")
    train: dict[str, Any] = Field({}, description="fields of the train section")
    fit: str | None = Field(
        None, description="the field, such as model.width, that is varied until `match` is met; null: none is"
    )


class Budget(Section):
    """How long runs are: one of seconds, flops and tokens."""

    name: str = Field(description="what the budget is called, in tables and directories")
    seconds: float | None = Field(None, gt=0, description="training time in seconds, at the speed that was measured")
    flops: float | None = Field(None, gt=0, description="floating-point operations of matrix products in training")
    tokens: float | None = Field(None, gt=0, description="tokens trained on")
    arms: list[str] | None = Field(None, description="the arms that get it; null: all")
    seeds: Seeds = Field([1, 2, 3], description="of the runs that are compared; tuning has `tuning.seed`")
    data: dict[str, Any] | None = Field(
        None, description="another data section, such as that of a recall probe, instead of run.data; needs tokens"
    )
    tuned_at: str | None = Field(
        None, description="the budget whose learning rates are taken; null: rates are tuned for this one"
    )

    @property
    def unit(self) -> str:
        """Which of the units it is given in."""
        return next(unit for unit in UNITS if getattr(self, unit) is not None)

    @property
    def amount(self) -> float:
        """How much of its unit."""
        amount: float = getattr(self, self.unit)
        return amount

    @model_validator(mode="after")
    def _one_unit(self) -> Budget:
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(UNITS)}, not {' and '.join(given) or 'none'}")
        if self.data is not None and self.tokens is None:
            raise ValueError(f"{self.unit} are of runs with run.data; with data of its own a budget needs tokens")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is given twice; name every seed once")
        return self


class Tuning(Section):
    """How the learning rate of every arm is found: shorter runs with the same rates, the best of which is kept."""

    rates: Annotated[list[Rate], Field(min_length=1)] = Field(
        [0.001, 0.002, 0.004, 0.008], description="values of train.lr; with a single one nothing is tuned"
    )
    share: float = Field(0.2, gt=0, le=1, description="length of a tuning run as a share of the budget")
    extend: int = Field(
        2, ge=0, le=10, description="further rates that are tried, one by one, while the best is the first or last"
    )
    prune: bool = Field(True, description="give up runs that are worse than the median of the others was there")
    seed: int = Field(0, ge=0, description="train.seed of the tuning runs")

    @field_validator("rates")
    @classmethod
    def _sorted(cls, rates: list[float]) -> list[float]:
        if len(set(rates)) < len(rates):
            raise ValueError("a rate is given twice; name every rate once")
        return sorted(rates)


class Match(Section):
    """Equal numbers of parameters."""

    parameters: int = Field(gt=0, description="how many an arm has")
    tolerance: float = Field(0.03, gt=0, lt=1, description="by what share the number may be missed")
    multiple: int = Field(8, ge=1, description="what the values of an arm's `fit` are multiples of")


class Variant(Section):
    """An arm that is measured once more with a state that grows, such as a Transformer's that keeps all it has read."""

    like: str = Field(description="the arm")
    grows: str = Field(description="the field that is set to the context length, such as model.capacity")


class Decoding(Section):
    """Speed and state against context length, measured once all training is done, the arms in turns."""

    positions: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = Field(
        [100, 1_000, 10_000, 100_000], description="context lengths in tokens"
    )
    tokens: int = Field(32, ge=1, description="decoded tokens that are timed at each of them")
    variants: dict[str, Variant] = Field({}, description="what is measured besides the arms, by name")


class Comparison(Section):
    """A whole comparison, as in a file for `wavelet compare`."""

    description: str = Field("", description="what is compared, in a sentence")
    run: dict[str, Any] = Field({}, description="what all arms share: the sections of a run's configuration")
    arms: dict[str, Arm] = Field(description="what is compared, by name")
    budgets: Annotated[list[Budget], Field(min_length=1)] = Field(description="the lengths of the runs")
    tuning: Tuning = Field(Tuning(), description="how learning rates are found")
    match: Match | None = Field(None, description="how many parameters the arms have; null: as many as they have")
    validations: int = Field(8, ge=1, description="validations of a run, evenly spaced; the points of its curve")
    decoding: Decoding | None = Field(Decoding(), description="decoding speed and state; null leaves them out")

    @model_validator(mode="after")
    def _check_names(self) -> Comparison:
        budgets = [budget.name for budget in self.budgets]
        for what, names in (("arms", list(self.arms)), ("budgets", budgets)):
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(f"{what}: {name!r} becomes a directory: use letters, digits, '.', '_' and '-'")
                if names.count(name) > 1:
                    raise ValueError(f"{what}: {name!r} is given twice; name every one once")
        if not self.arms:
            raise ValueError("arms: none is given; name at least one")
        for name, arm in self.arms.items():
            self._known(f"arms.{name}.like", arm.like, [other for other in self.arms if other != name])
            if arm.fit is not None and self.match is None:
                raise ValueError(f"arms.{name}.fit: there is no match.parameters that it could meet; give one")
        for name, variant in (self.decoding.variants if self.decoding else {}).items():
            self._known(f"decoding.variants.{name}.like", variant.like, list(self.arms))
            if name in self.arms:
                raise ValueError(f"decoding.variants: {name!r} is an arm; choose another name")
        for budget in self.budgets:
            for name in budget.arms or ():
                self._known(f"budget {budget.name}: arms", name, list(self.arms))
            others = [other.name for other in self.budgets if other.tuned_at is None and other is not budget]
            self._known(f"budget {budget.name}: tuned_at", budget.tuned_at, others)
        return self

    @staticmethod
    def _known(where: str, name: str | None, names: list[str]) -> None:
        if name is not None and name not in names:
            raise ValueError(f"{where}: unknown {name!r}{nearest(name, names)} Known: {', '.join(names) or 'none'}")

    def arms_of(self, budget: Budget) -> list[str]:
        """The names of the arms that get a budget."""
        return [name for name in self.arms if budget.arms is None or name in budget.arms]

    def tuning_budget(self, budget: Budget, arm: str) -> Budget:
        """The budget whose learning rate an arm takes: that of `tuned_at` where the arm is among its arms."""
        for other in self.budgets:
            if other.name == budget.tuned_at and arm in self.arms_of(other):
                return other
        return budget


def load_comparison(source: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """The comparison in a YAML or JSON file, with overrides like `run.data.dataset.path=book.txt` applied.

    Raises ConfigurationError for a missing or unreadable file and for fields that are unknown or do not fit.
    """
    path = Path(source)
    if not path.is_file():
        raise ConfigurationError(
            f"no comparison at {source}; name a YAML file, such as benchmarks/comparisons/quick.yaml"
        )
    data = read_file(path)
    for override in overrides:
        apply_override(data, override)
    return parse(Comparison, data, str(source))


def run_of(comparison: Comparison, name: str) -> RunConfig:
    """The configuration of an arm's runs, but for their length, rate and seed. Raises ConfigurationError."""
    return run_config(_fields(comparison, name, ()), (), f"arms.{name}")


def _fields(comparison: Comparison, name: str, below: tuple[str, ...]) -> dict[str, Any]:
    if name in below:
        raise ConfigurationError(
            f"arms.{name}.like: {' and '.join(below)} are like each other; give one its own fields"
        )
    arm = comparison.arms[name]
    data = comparison.run if arm.like is None else _fields(comparison, arm.like, (*below, name))
    if arm.preset is not None:
        preset = read_file(locate(arm.preset, PRESETS))
        data = _laid_over({section: preset.get(section, {}) for section in ("model", "train")}, data)
    return _laid_over(data, {"model": arm.model, "train": arm.train})


def _laid_over(below: Any, above: Any) -> Any:
    """Mappings joined field by field; a component of another kind takes the place of the one below it."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if "kind" in above and above["kind"] != below.get("kind", above["kind"]):
        return above
    joined = dict(below)
    for key, value in above.items():
        joined[key] = _laid_over(below[key], value) if key in below else value
    return joined
