"""Where a model's parameters are: counted by component."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from wavelet_core.mixers import ScaleRouting
from wavelet_core.registry import KINDS, registry


@dataclass
class ParameterPart:
    """One kind of part of a model, such as "mixer gated_spectral", with the parameters of each of its copies.

    uses: how many places of the model hold the part; more than there are copies when places share one.
    """

    name: str
    copies: list[int] = field(default_factory=list)
    uses: int = 0

    @property
    def total(self) -> int:
        """Parameters of all copies together."""
        return sum(self.copies)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, shared and tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_parts(model: nn.Module) -> list[ParameterPart]:
    """The parts that own a model's parameters, in the order of the model; every parameter is counted in one of them.

    Parts are the components of the blocks, the embedding and the head. Cross-scale routing is listed apart from its
    mixer. What a block holds besides its components (norms, projection, residual scalars) counts as the block's, and
    what no block holds (the final LayerNorm) as "rest". Works on the `meta` device.
    """
    parts_of_models = [kind for kind in KINDS if kind != "model"]
    names = {registry.get(kind, name): f"{kind} {name}" for kind in parts_of_models for name in registry.names(kind)}
    families = [registry.get("model", name) for name in registry.names("model")]
    blocks = {f"block {name}" for name in registry.names("block")}
    names[ScaleRouting] = "mixer routing"
    rest = ParameterPart("rest", [0], 1)
    parts = {rest.name: rest}
    counted: set[int] = set()

    def visit(module: nn.Module, outer: ParameterPart, name: str | None) -> None:
        name = name or names.get(type(module))
        inside_component = outer is not rest and outer.name not in blocks
        if name and (not inside_component or name == names[ScaleRouting]):
            outer = parts.setdefault(name, ParameterPart(name))
            outer.uses += 1
            outer.copies.append(0)
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in counted:
                counted.add(id(parameter))
                outer.copies[-1] += parameter.numel()
        for child_name, child in module.named_children():
            named = type(module) in families and child_name in ("embedding", "head")
            visit(child, outer, child_name if named else None)

    visit(model, rest, None)
    for part in parts.values():
        part.copies = [copy for copy in part.copies if copy]
    return [part for part in parts.values() if part is not rest] + [rest]
