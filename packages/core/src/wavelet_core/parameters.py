"""Where a model's parameters are: counted by component."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from wavelet_core.mixers import ScaleRouting
from wavelet_core.model import WaveletLM
from wavelet_core.registry import KINDS, registry


@dataclass
class ParameterPart:
    """One kind of part of a model, such as "mixer gated_spectral", with the parameters of each of its copies.

    uses: how often the model's structure contains the part; more than there are copies when copies are shared.
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
    """The parts that own a model's parameters, each parameter counted in one of them, in the order of the model.

    A parameter belongs to the innermost registered component that holds it. Cross-scale routing is listed apart from
    the mixer that it is in; "rest" is what belongs to no component, such as the final LayerNorm.
    """
    names = {registry.get(kind, name): f"{kind} {name}" for kind in KINDS for name in registry.names(kind)}
    names[ScaleRouting] = "mixer routing"
    parts: dict[str, ParameterPart] = {}
    counted: set[int] = set()

    def visit(module: nn.Module, name: str, outer: str, index: int) -> None:
        """Add a module's parameters to copy `index` of part `outer`, or to a new copy of its own part."""
        own = names.get(type(module), name)
        if own and own != outer:
            part = parts.setdefault(own, ParameterPart(own))
            part.uses += 1
            part.copies.append(0)
            outer, index = own, len(part.copies) - 1
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in counted:
                counted.add(id(parameter))
                parts.setdefault(outer, ParameterPart(outer, [0], 1)).copies[index] += parameter.numel()
        for child_name, child in module.named_children():
            top = isinstance(module, WaveletLM) and child_name in ("embedding", "head")
            visit(child, child_name if top else "", outer, index)

    visit(model, "", "rest", 0)
    for part in parts.values():
        part.copies = [copy for copy in part.copies if copy]
    return list(parts.values())
