"""A whole model in the formats of a recipe: `quantize`, and the quantizer by which checkpoints make it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core import ComponentConfig, ConfigurationError
from wavelet_core.linear import StackedLinear
from wavelet_core.messages import shown
from wavelet_core.registry import build
from wavelet_quant.dense_format import Dense
from wavelet_quant.drop_ins import DropIn, drop_in_of
from wavelet_quant.recipe import Recipe, Rule, load_recipe
from wavelet_quant.scale_stack import ScaleStack
from wavelet_quant.weight_format import StoredMatrix, WeightFormat

SHOWN = 8  # names of modules that a message lists

Model = TypeVar("Model", bound=nn.Module)
Hessians = Iterable[Mapping[nn.Module, Tensor]]


@dataclass(frozen=True)
class QuantizedMatrix:
    """What became of the matrix of one module.

    formats: which, as "int4 (group 64)", one for all its matrices or several by scale. squared_error, squared_norm: of
    what it gives for the calibration's inputs where it was `calibrated`, and else of its weights.
    """

    name: str
    formats: tuple[str, ...]
    weights: int
    bytes_before: int
    bytes_after: int
    squared_error: float
    squared_norm: float
    calibrated: bool


Progress = Callable[[QuantizedMatrix, int], None]


class RecipeQuantizer:
    """Stores every matrix in the format that a recipe names for it."""

    class Config(ComponentConfig):
        kind: Literal["recipe"] = "recipe"
        recipe: Recipe = Field(description="which matrices are stored in which format")
        made_by: dict[str, str] = Field({}, description="the packages that did it, with their versions")
        calibration: dict[str, int | str] | None = Field(
            None, description="the text by whose inputs the weights were rounded; null where they were by themselves"
        )

        def components(self) -> Iterator[tuple[tuple[str | int, ...], str, ComponentConfig]]:
            for place, config in self.recipe.formats():
                yield ("recipe", *place), "format", config

    def __init__(self, config: Config):
        self.config = config

    def apply(self, model: Model, hessians: Hessians = (), progress: Progress | None = None) -> Model:
        """Replace the matrices of a model, in place; see `quantize`."""
        pending = _assignments(model, self.config.recipe)
        total = len({assignment.module.weight for assignment in pending.values()})
        stored: dict[Any, StoredMatrix] = {}
        replaced: list[tuple[nn.Module, str, nn.Module]] = []

        def put(assignment: _Assignment, hessian: Tensor | None) -> nn.Module:
            weight, is_new = assignment.store(stored, hessian)
            if progress is not None and is_new:
                progress(assignment.outcome(weight, hessian), total)
            drop_in: nn.Module = assignment.drop_in(assignment.module, weight)
            for parent, name in assignment.homes:
                replaced.append((parent, name, assignment.module))
                setattr(parent, name, drop_in)
            return drop_in

        try:
            result: Any = model
            for group in hessians:
                for module in [module for module in group if module in pending]:
                    put(pending.pop(module), group[module])
            for module, assignment in pending.items():
                drop_in = put(assignment, None)
                result = drop_in if module is model else result
        except BaseException:
            for parent, name, module in replaced:
                setattr(parent, name, module)
            raise
        result.quantization = self.config
        return cast(Model, result)


def quantize(
    model: Model,
    recipe: str | Mapping[str, Any] | Recipe,
    hessians: Hessians = (),
    progress: Progress | None = None,
    calibration: dict[str, int | str] | None = None,
) -> Model:
    """Store the matrices of any module tree in the formats of a recipe, in place, and return it.

    recipe: a preset's name, a YAML or JSON file, the content of one, or a Recipe. hessians: what `WeightFormat.store`
    rounds by, group by group of modules, as `collect_hessians` gives it; when the next group is asked for, the modules
    of those before it are replaced. progress: called after each matrix with what became of it and with how many there
    are. calibration: what a checkpoint is to say about the text behind the hessians.

    The model (its drop-in, if it is a matrix itself) can be run, moved, saved and loaded as before; its matrices can no
    longer be trained. It says what made it in `quantization`. Without weights yet, on the `meta` device, it gets empty
    drop-ins.

    Raises ConfigurationError for a recipe that cannot be read, has a rule that is for nothing or a format that does not
    fit, and for a model that is quantized already; ValueError that names a weight with entries that are not finite. The
    model is unchanged then.
    """
    resolved = load_recipe(recipe)
    made_by = {package: version(package) for package in ("wavelet-quant", "torch")}
    config = RecipeQuantizer.Config(recipe=resolved, made_by=made_by, calibration=calibration)
    return RecipeQuantizer(config).apply(model, hessians, progress)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, shared ones counted once."""
    tensors = {tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    return sum(tensor.nbytes for tensor in tensors)


@dataclass
class _Assignment:
    """What one module is replaced by: the format of each of its matrices, and where the drop-in goes."""

    name: str
    module: Any
    drop_in: type[DropIn]
    formats: list[ComponentConfig | None]
    homes: list[tuple[nn.Module, str]]
    is_table: bool

    @torch.no_grad()
    def store(self, stored: dict[Any, StoredMatrix], hessian: Tensor | None) -> tuple[StoredMatrix, bool]:
        """Its stored matrix, and whether it is new: modules that share a weight share what is stored."""
        matrix = _matrix(self.module)
        shared = self.module.weight if matrix is self.module.weight else self.module
        if shared in stored:
            return stored[shared], False
        try:
            weight = stored[shared] = _store(matrix.detach(), self.formats, hessian, self.is_table)
        except ValueError as error:
            raise ValueError(f"{self.name}.weight {error}".lstrip(".")) from None
        return weight, True

    @torch.no_grad()
    def outcome(self, stored: StoredMatrix, hessian: Tensor | None) -> QuantizedMatrix:
        matrix = _matrix(self.module)
        squared_error = squared_norm = 0.0
        if not matrix.is_meta:
            squared_error = _squared_norm(stored.matrix(torch.float32) - matrix.float(), hessian)
            squared_norm = _squared_norm(matrix.float(), hessian)
        return QuantizedMatrix(
            name=self.name,
            formats=tuple(dict.fromkeys(map(label, self.formats))),
            weights=matrix.numel(),
            bytes_before=matrix.nbytes,
            bytes_after=weight_bytes(stored),
            squared_error=squared_error,
            squared_norm=squared_norm,
            calibrated=hessian is not None,
        )


def _matrix(module: Any) -> Tensor:
    """The weight of a module as it multiplies with it."""
    matrix: Tensor = module.matrix() if hasattr(module, "matrix") else module.weight
    return matrix


def _assignments(model: nn.Module, recipe: Recipe) -> dict[nn.Module, _Assignment]:
    """The modules to replace. The first in the model of those that share a weight decides for all of them.

    Raises ConfigurationError for a recipe that does not fit the model.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, DropIn):
            raise ConfigurationError(f"the model is quantized already ({name} is); quantize the original")
        if drop_in_of(module) is not None:
            names.setdefault(module, []).append(name)
    homes: dict[nn.Module, list[tuple[nn.Module, str]]] = {module: [] for module in names}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child in names:
                homes[child].append((parent, name))
    unused = [rule for rule in recipe.rules if not rule.optional]
    decided: dict[Tensor, list[ComponentConfig | None]] = {}
    multiplied = {module.weight for module in names if isinstance(module, nn.Linear | StackedLinear)}
    assignments = {}
    for module, own in names.items():
        formats = []
        for scale in _scales(own[0], module):
            rules = [rule for rule in recipe.rules if rule.has_scale(scale) and any(map(rule.matches, own))]
            unused = [rule for rule in unused if rule not in rules]
            formats.append(_fitting_format(own[0], module, rules[0]) if rules else None)
        formats = decided.setdefault(module.weight, formats)  # type: ignore[arg-type]
        if any(formats):
            drop_in: Any = drop_in_of(module)
            assignments[module] = _Assignment(
                own[0], module, drop_in, formats, homes[module], module.weight not in multiplied
            )
    if unused:
        raise ConfigurationError(_unused_message(unused[0], recipe, [own[0] for own in names.values()]))
    return assignments


def _scales(name: str, module: nn.Module) -> Sequence[int | None]:
    """The scale of each matrix of a module, None for one that belongs to none."""
    if not isinstance(module, StackedLinear):
        return [None]
    count = len(module.weight)
    scales = [None] * count if module.scales is None else module.scales
    if len(scales) != count:
        raise ConfigurationError(f"{name}.scales names {len(scales)} scales for {count} matrices; give one for each")
    return scales


def _unused_message(rule: Rule, recipe: Recipe, names: list[str]) -> str:
    what = f"modules={shown(rule.modules)}" + (f" with scales={rule.scales}" if rule.scales else "")
    some = [name for name in names[:: max(1, len(names) // SHOWN)] if name][:SHOWN]
    return (
        f"recipe {shown(recipe.name)}: rules[{recipe.rules.index(rule)}]: {what} is for no matrix of this model; mend "
        f"the pattern, or say `optional: true`. {len(names)} modules have matrices: {', '.join(some)}, ..."
    )


def _fitting_format(name: str, module: Any, rule: Rule) -> ComponentConfig | None:
    """The format that a rule has for a matrix. Raises ConfigurationError where none fits."""
    shape = module.weight.shape
    configs = [config for config in (rule.format, rule.otherwise) if config is not None]
    fitting = next((config for config in configs if _format(config).fits(shape)), None)
    if configs and fitting is None:
        raise ConfigurationError(
            f"{name}.weight {tuple(shape)} does not fit {label(configs[0])}; choose another group, or say in the rule "
            f"for modules={shown(rule.modules)} what to use `otherwise`"
        )
    return fitting


def _format(config: ComponentConfig | None) -> WeightFormat:
    """The format that a configuration makes; None is for the matrices of a stack that are left as they are."""
    made: WeightFormat = build("format", config or Dense.Config())
    return made


def label(config: ComponentConfig | None) -> str:
    """A format for people: "int4 (group 64)"."""
    if config is None:
        return "as it was"
    options = ", ".join(f"{field} {value}" for field, value in config if field != "kind" and value is not None)
    return f"{config.kind} ({options})" if options else config.kind


def _store(
    matrix: Tensor, formats: list[ComponentConfig | None], hessian: Tensor | None, is_table: bool
) -> StoredMatrix:
    """A matrix, a table of which only rows are read, or a stack by the formats of its matrices."""
    if is_table:
        return _format(formats[0]).store_table(matrix)
    members: list[list[int]] = []
    for place, config in enumerate(formats):
        own = next((own for own in members if formats[own[0]] == config), None)
        if own is None:
            members.append([place])
        else:
            own.append(place)
    if len(members) == 1:
        return _format(formats[0]).store(matrix, hessian)
    return ScaleStack(
        [_format(formats[own[0]]).store(matrix[own], None if hessian is None else hessian[own]) for own in members],
        members,
    )


def _squared_norm(matrix: Tensor, hessian: Tensor | None) -> float:
    """The squared entries of a matrix, summed, or of what it gives for the inputs behind a hessian."""
    if hessian is None:
        return matrix.square().sum(dtype=torch.float64).item()
    blocks, size = hessian.shape[-3:-1]
    padded = F.pad(matrix, (0, blocks * size - matrix.shape[-1]))
    parts = padded.unflatten(-1, (blocks, size)).transpose(-2, -3)  # (..., blocks, M, size)
    return (parts @ hessian.float() * parts).sum(dtype=torch.float64).item()
