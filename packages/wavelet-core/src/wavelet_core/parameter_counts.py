"""Where a model's parameters are: counted by component."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from wavelet_core.mixers import ScaleRouting
from wavelet_core.registry import KINDS, registry

REST = "rest"
EMBEDDINGS_AND_HEAD = ("embedding", "bigram_embedding", "value_embeddings", "head")


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

    Parts are those of `module_parts`. Works on the `meta` device.
    """
    parts = {REST: ParameterPart(REST, [0], 1)}
    counted: set[int] = set()
    for module, name, begins in module_parts(model):
        part = parts.setdefault(name, ParameterPart(name))
        if begins:
            part.uses += 1
            part.copies.append(0)
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in counted:
                counted.add(id(parameter))
                part.copies[-1] += parameter.numel()
    for part in parts.values():
        part.copies = [copy for copy in part.copies if copy]
    rest = parts.pop(REST)
    return [*parts.values(), rest]


def module_parts(model: nn.Module) -> Iterator[tuple[nn.Module, str, bool]]:
    """Every module in every place of a model, with the name of the part it belongs to and whether a part begins there.

    Parts are the components of the blocks, the embeddings and the head. Cross-scale routing is told from its mixer.
    What a block holds besides its components (norms, projection, residual scalars) is the block's, and what no block
    holds (the final LayerNorm) is the "rest".
    """
    kinds_of_parts = [kind for kind in KINDS if kind != "model"]
    names = {registry.get(kind, name): f"{kind} {name}" for kind in kinds_of_parts for name in registry.names(kind)}
    families = [registry.get("model", name) for name in registry.names("model")]
    blocks = {f"block {name}" for name in registry.names("block")}
    names[ScaleRouting] = "mixer routing"

    def visit(module: nn.Module, outer: str, name: str | None) -> Iterator[tuple[nn.Module, str, bool]]:
        name = name or names.get(type(module))
        inside_component = outer != REST and outer not in blocks
        begins = name is not None and (not inside_component or name == names[ScaleRouting])
        part = name if name is not None and begins else outer
        yield module, part, begins
        for child_name, child in module.named_children():
            named = type(module) in families and child_name in EMBEDDINGS_AND_HEAD
            yield from visit(child, part, child_name if named else None)

    yield from visit(model, REST, None)
