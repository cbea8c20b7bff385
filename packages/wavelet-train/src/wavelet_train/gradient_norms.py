"""The gradient's norm in every part of a model, by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import torch
from torch import Tensor, nn

from wavelet_core.registry import registry
from wavelet_train.parallel import whole

KINDS = ("model", "block", "transform", "wavelet", "mixer", "bypass", "memory")
REST = "rest"
# Where a parameter is: the part's name, and the number of its block, None for what belongs to no block or to several.
Place = tuple[str, "int | None"]
# By the part's name: one norm, or one for each block, None for a block without that part.
PartNorms = dict[str, "float | list[float | None]"]


def parts_of(model: nn.Module) -> dict[Place, list[nn.Parameter]]:
    """A model's parameters by their places, in the order of the model; each is in one of them.

    Inside of blocks, parts are their components by kind, memories by name, `norms`, and what is left as `block`.
    Outside of them they are called as the model calls its modules: `embedding`, `norm`, `head`. What several blocks
    have together is `shared`.
    """
    components = {registry.get(kind, name): (kind, name) for kind in KINDS for name in registry.names(kind)}
    numbers = count()

    def visit(module: nn.Module, part: str, block: int | None) -> Iterator[tuple[nn.Parameter, Place]]:
        # What is sharded has a class of its own, made of the component's.
        kind, name = next((components[each] for each in type(module).__mro__ if each in components), ("", ""))
        if kind == "block":
            block = next(numbers)
        if kind:
            part = name if kind == "memory" else kind
        elif part == "block" and "Norm" in type(module).__name__:
            part = "norms"
        for parameter in module.parameters(recurse=False):
            yield parameter, (part, block)
        for child_name, child in module.named_children():
            yield from visit(child, child_name if kind == "model" else part, block)

    places: dict[nn.Parameter, list[Place]] = {}
    for parameter, place in visit(model, REST, None):
        places.setdefault(parameter, []).append(place)
    parts: dict[Place, list[nn.Parameter]] = {}
    for parameter, found in places.items():
        part, block = found[0]
        shared = any(other != block for _, other in found)
        parts.setdefault((f"shared {part}", None) if shared else (part, block), []).append(parameter)
    return parts


@torch.no_grad()
def gradient_norms(parts: Mapping[Place, list[nn.Parameter]]) -> PartNorms:
    """The norms of the gradients that there are, over all parameters of a part, to four digits."""
    norms = torch.stack([_norm(group) for group in parts.values()]).tolist()
    blocks = 1 + max((block for _, block in parts if block is not None), default=-1)
    result: PartNorms = {}
    for (part, block), norm in zip(parts, norms, strict=True):
        value = float(f"{norm:.4g}")
        if block is None:
            result[part] = value
        else:
            result.setdefault(part, [None] * blocks)[block] = value  # type: ignore[index]
    return result


def _norm(group: list[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in group if parameter.grad is not None]
    return whole(nn.utils.get_total_norm(gradients)).float() if gradients else torch.zeros((), device=group[0].device)
