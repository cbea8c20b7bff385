"""The contract of a component that is a part of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core.config import ModelConfig, ModelShape
from wavelet_core.registry import build
from wavelet_core.state import State, Tree, call, is_stateful, new_state_of
from wavelet_core.testing.module_subject import BATCH, CPU, LENGTH, TOLERANCE, ModuleSubject, difference
from wavelet_core.testing.shared_checks import COMPILE_REMEDY, SHARED_CHECKS

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class PartContract:
    """How components of one kind are called.

    sizes: from a shape, what follows (B, T) in the input and in every output. run: all outputs for an input, on the
    way on which a block uses the component; whatever else it takes is derived from the same position's input.
    """

    sizes: Callable[[ModelShape], tuple[Sizes, list[Sizes]]]
    run: Callable[[nn.Module, Tensor, Tree | None], list[Tensor]]


def _run_transform(transform: Any, z: Tensor, state: Tree | None) -> list[Tensor]:
    transformed = transform(z)
    return [transformed, transform.inverse(transformed)]


def _run_wavelet(wavelet: Any, rows: Tensor, state: Tree | None) -> list[Tensor]:
    coefficients = wavelet.decompose(rows, state)
    # Untouched coefficients may be reconstructed whatever the parameters are: weigh the scales differently.
    weights = torch.linspace(0.5, 1.5, coefficients.shape[2], device=rows.device).to(rows.dtype)
    return [coefficients, wavelet.reconstruct(coefficients * weights[:, None])]


def _run_bypass(bypass: Any, x: Tensor, state: Tree | None) -> list[Tensor]:
    return list(bypass(x, x.flip(-1), state))


def _run_alone(module: nn.Module, x: Tensor, state: Tree | None) -> list[Tensor]:
    return [call(module, x, state=state)]


def _run_block(block: Any, x: Tensor, state: Tree | None) -> list[Tensor]:
    named = {"value": x.roll(2, -1)} if getattr(block, "takes_value", False) else {}
    return list(block(x, x.flip(-1), x.roll(1, -1), state, **named))


PART_CONTRACTS = {
    "transform": PartContract(lambda s: ((s.scales, s.padded_width), [(s.scales, s.padded_width)] * 2), _run_transform),
    "wavelet": PartContract(
        lambda s: ((s.padded_width,), [(s.scales, s.padded_width), (s.padded_width,)]), _run_wavelet
    ),
    "mixer": PartContract(lambda s: ((s.scales, s.padded_width), [(s.scales, s.padded_width)]), _run_alone),
    "bypass": PartContract(lambda s: ((s.width,), [(s.scales, s.width), (s.width,)]), _run_bypass),
    "memory": PartContract(lambda s: ((s.width,), [(s.width,)]), _run_alone),
    "block": PartContract(lambda s: ((s.width,), [(s.width,), (s.width,)]), _run_block),
}


@dataclass(frozen=True)
class PartSubject(ModuleSubject):
    """A part of a model under test."""

    shape: ModelShape

    @property
    def contract(self) -> PartContract:
        return PART_CONTRACTS[self.kind]

    def construct(self) -> nn.Module:
        parts: dict[str, Any] = {}
        if self.kind == "block":
            model = ModelConfig()
            for kind in ("wavelet", "transform", "mixer", "bypass"):
                parts[kind] = build(kind, getattr(model, kind), self.shape)
            parts["memories"] = [build("memory", memory, self.shape) for memory in model.memories]
        return self.component(self.config, self.shape, **parts)

    def input(self, length: int = LENGTH, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(BATCH, length, *self.contract.sizes(self.shape)[0], dtype=dtype)

    def altered(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)

    def state(self, module: Any, dtype: torch.dtype = torch.float32, batch: int = BATCH) -> State:
        return State(new_state_of(module, batch, CPU, dtype), batch)

    def outputs(self, module: Any, x: Tensor, state: State | None = None) -> list[Tensor]:
        return self.contract.run(module, x, state.chunk_tree if state is not None and is_stateful(module) else None)

    def backward(self, module: Any) -> None:
        x = self.input().requires_grad_()
        output = torch.cat([self.run(module, x), self.run(module, x, self.state(module))], dim=-1)
        if output.requires_grad:
            (output * torch.randn_like(output)).sum().backward()
        if x.grad is None or not x.grad.any():
            self.fail("passes no gradient to its input", "do not detach or round what flows through")

    def may_learn(self, module: nn.Module) -> bool:
        return self.kind == "memory"


def _check_shapes(subject: PartSubject) -> None:
    with subject.expecting(
        f"being built as {subject.component.__name__}(config, shape)",
        "give __init__ these two parameters (a block also takes wavelet, transform, mixer, bypass and memories) and "
        "build for shape.width, shape.padded_width and shape.scales",
    ):
        module = subject.build()
    if subject.kind == "transform" and not hasattr(module, "padded_width"):
        subject.fail(
            "has no padded_width", "add a static method padded_width(width) that says how wide channels must be"
        )
    x = subject.input()
    size, sizes = subject.contract.sizes(subject.shape)
    with subject.expecting(
        f"on an input of shape {list(x.shape)}",
        f"a {subject.kind} takes (B, T, {', '.join(map(str, size))}); see wavelet_core's {subject.kind} components",
    ):
        outputs = subject.contract.run(module, x, None)
        if subject.kind == "bypass":
            subject.contract.run(lambda x, mean, state: module(x, None, state), x, None)  # type: ignore[arg-type]
    for output, wanted in zip(outputs, sizes, strict=True):
        if output.shape != (BATCH, LENGTH, *wanted):
            subject.fail(
                f"gave an output of shape {list(output.shape)} for an input of shape {list(x.shape)}",
                f"return (B, T, {', '.join(map(str, wanted))}), here {[BATCH, LENGTH, *wanted]}",
            )
    if subject.kind == "transform":
        norms = [tensor.flatten(2).norm(dim=2) for tensor in (x, outputs[0])]
        if difference(outputs[1], x) > TOLERANCE or difference(norms[1], norms[0]) > TOLERANCE:
            subject.fail(
                "is not orthogonal: inverse(forward(x)) is not x, or norms change",
                "scale it to keep norms, and let `inverse` undo `forward`",
            )


def _check_compiled_training(subject: PartSubject) -> None:
    module, x = subject.build().train(), subject.input().requires_grad_()
    compiled = torch.compile(subject.run, fullgraph=True, backend="eager", dynamic=False)
    with subject.expecting("under torch.compile(fullgraph=True)", COMPILE_REMEDY):
        compiled(module, x).square().mean().backward()


PART_CHECKS = (_check_shapes, *SHARED_CHECKS, _check_compiled_training)
