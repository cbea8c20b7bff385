"""The contract of a component, as a test that its author can run: `check_component`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from wavelet_core.bypass import RunningMeanBypass
from wavelet_core.checkpoint import materialize, named_tensors
from wavelet_core.config import ComponentConfig, ModelShape
from wavelet_core.lifting import LiftingWavelet
from wavelet_core.mixers import GatedSpectralMixer
from wavelet_core.mlp import MLP
from wavelet_core.registry import KINDS, registry
from wavelet_core.state import State, Tree, call, is_stateful, leaves, new_state_of
from wavelet_core.transforms import WalshHadamard

BATCH, LENGTH = 5, 40
TOLERANCE = 1e-4
CPU = torch.device("cpu")

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Contract:
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
    return list(block(x, x.flip(-1), x.roll(1, -1), state))


CONTRACTS = {
    "transform": Contract(lambda s: ((s.scales, s.padded_width), [(s.scales, s.padded_width)] * 2), _run_transform),
    "wavelet": Contract(lambda s: ((s.padded_width,), [(s.scales, s.padded_width), (s.padded_width,)]), _run_wavelet),
    "mixer": Contract(lambda s: ((s.scales, s.padded_width), [(s.scales, s.padded_width)]), _run_alone),
    "bypass": Contract(lambda s: ((s.width,), [(s.scales, s.width), (s.width,)]), _run_bypass),
    "memory": Contract(lambda s: ((s.width,), [(s.width,)]), _run_alone),
    "block": Contract(lambda s: ((s.width,), [(s.width,), (s.width,)]), _run_block),
}


@dataclass(frozen=True)
class Subject:
    """The component under test."""

    component: type
    config: Any
    kind: str
    shape: ModelShape

    @property
    def contract(self) -> Contract:
        return CONTRACTS[self.kind]

    def fail(self, found: str, remedy: str) -> NoReturn:
        raise AssertionError(f"{self.component.__qualname__} ({self.kind} {self.config.kind!r}) {found}\n  -> {remedy}")

    @contextmanager
    def expecting(self, doing: str, remedy: str) -> Iterator[None]:
        """Turn an exception into a failure that says what was being done and what to change."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:3])
            self.fail(f"failed {doing}: {type(error).__name__}: {reason}", remedy)

    def construct(self) -> nn.Module:
        parts: dict[str, Any] = {}
        if self.kind == "block":
            parts = {
                "wavelet": LiftingWavelet(LiftingWavelet.Config(), self.shape),
                "transform": WalshHadamard(WalshHadamard.Config(), self.shape),
                "mixer": GatedSpectralMixer(GatedSpectralMixer.Config(), self.shape),
                "bypass": RunningMeanBypass(RunningMeanBypass.Config(), self.shape),
                "memories": [MLP(MLP.Config(), self.shape)],
            }
        module: nn.Module = self.component(self.config, self.shape, **parts)
        return module

    def build(self) -> nn.Module:
        """A component in evaluation mode away from its initial weights, which are often zero or the identity."""
        module = self.construct()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return module.eval()

    def input(self, length: int = LENGTH, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(BATCH, length, *self.contract.sizes(self.shape)[0], dtype=dtype)

    def state(self, module: nn.Module, dtype: torch.dtype = torch.float32, batch: int = BATCH) -> State:
        return State(new_state_of(module, batch, CPU, dtype), batch)

    def run(self, module: nn.Module, x: Tensor, state: State | None = None) -> Tensor:
        """All outputs side by side, (B, T, -1); an empty state is as good as none."""
        tree = state.tree if state is not None and is_stateful(module) else None
        return torch.cat([output.flatten(2) for output in self.contract.run(module, x, tree)], dim=-1)

    def stream(self, module: nn.Module, x: Tensor, state: State, lengths: list[int]) -> Tensor:
        return torch.cat([self.run(module, part, state) for part in x.split(lengths, 1)], dim=1)


def check_component(
    component: type, config: ComponentConfig | None = None, *, kind: str | None = None, shape: ModelShape | None = None
) -> None:
    """Assert that a component keeps the contract of its kind, so that it works in every model and command.

    It must be causal, stream (any chunking of a text, also with selected and joined batch rows, gives what one pass
    over all of it gives; a state that is zero at the start and keeps its size), pass gradients to its input and to
    every parameter, survive a state dict and construction on the `meta` device, work in float32 and bfloat16, and
    compile without graph breaks. Its parameters are moved away from their initial values for this.

    config: the options to check; the defaults if left out. kind: transform, wavelet, mixer, bypass, memory or block;
    looked up in the registry if left out. shape: sizes to build it for; by default C = 24, P = 32 (what a transform's
    own `padded_width` makes of C) and S = 3.

    Raises AssertionError that says what was found and what to change, ValueError for a kind without such a contract.
    """
    config = component.Config() if config is None else config  # type: ignore[attr-defined]
    kind = kind or _kind_of(component)
    if kind not in CONTRACTS:
        raise ValueError(f"check_component knows the kinds {', '.join(CONTRACTS)}, not {kind!r}")
    if shape is None:
        padded_width = component.padded_width(24) if hasattr(component, "padded_width") else 0
        shape = ModelShape(width=24, levels=2, padded_width=padded_width)
    subject = Subject(component, config, kind, shape)
    with torch.random.fork_rng(devices=[]):
        for check in CHECKS:
            torch.manual_seed(0)
            check(subject)


def _kind_of(component: type) -> str:
    for kind in KINDS:
        if any(registry.get(kind, name) is component for name in registry.names(kind)):
            return kind
    raise ValueError(
        f"{component.__qualname__} is not registered; register it, or pass kind=, one of {list(CONTRACTS)}"
    )


def _difference(first: Tensor, second: Tensor) -> float:
    """The largest difference, relative to the values where these are above 1."""
    first, second = first.detach(), second.detach()
    return float((first - second).abs().max() / second.abs().max().clamp(min=1))


def _check_shapes(subject: Subject) -> None:
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
        f"a {subject.kind} takes (B, T, {_written(size)}); see the {subject.kind} components of wavelet_core",
    ):
        outputs = subject.contract.run(module, x, None)
        again = subject.contract.run(module, x, None)
        if subject.kind == "bypass":
            subject.contract.run(lambda x, mean, state: module(x, None, state), x, None)  # type: ignore[arg-type]
    for output, repeated, wanted in zip(outputs, again, sizes, strict=True):
        if output.shape != (BATCH, LENGTH, *wanted):
            subject.fail(
                f"gave an output of shape {list(output.shape)} for an input of shape {list(x.shape)}",
                f"return (B, T, {_written(wanted)}), here {[BATCH, LENGTH, *wanted]}",
            )
        if not output.equal(repeated):
            subject.fail(
                "gives another output when it is called again in evaluation mode, or one that is no number",
                "keep nothing on the module between calls, draw no random numbers when not training, divide by no zero",
            )
    if subject.kind == "transform":
        norms = [tensor.flatten(2).norm(dim=2) for tensor in (x, outputs[0])]
        if _difference(outputs[1], x) > TOLERANCE or _difference(norms[1], norms[0]) > TOLERANCE:
            subject.fail(
                "is not orthogonal: inverse(forward(x)) is not x, or norms change",
                "scale it to keep norms, and let `inverse` undo `forward`",
            )


def _written(sizes: Sizes) -> str:
    return ", ".join(str(size) for size in sizes)


def _check_causality(subject: Subject) -> None:
    module, x = subject.build(), subject.input()
    with torch.no_grad():
        before = subject.run(module, x)
        for position in (1, LENGTH // 2, LENGTH - 1):
            changed = x.clone()
            changed[:, position] = torch.randn_like(changed[:, position])
            leak = (subject.run(module, changed) - before)[:, :position].abs().amax((0, 2))
            if leak.max() > TOLERANCE:
                subject.fail(
                    f"is not causal: changing position {position} changed the output at position {int(leak.argmax())}",
                    "let a position read itself and earlier ones only; no mean, norm or softmax over the T axis",
                )
        other_row = x.clone()
        other_row[1] = torch.randn_like(other_row[1])
        if _difference(subject.run(module, other_row)[0], before[0]) > TOLERANCE:
            subject.fail(
                "mixes the rows of a batch: changing row 1 changed the output of row 0",
                "treat batch rows as independent texts; no statistics over the B axis",
            )


def _check_state(subject: Subject) -> None:
    module = subject.build()
    if not is_stateful(module):
        return
    with subject.expecting(
        "making a state with new_state(batch_size, device, dtype)",
        "return a dictionary of zero tensors with the batch as the first axis",
    ):
        state = subject.state(module)
        start = {name: (tensor, tensor.shape, tensor.data_ptr()) for name, tensor in leaves(state.tree)}
    for name, (tensor, sizes, _) in start.items():
        if not sizes or sizes[0] != BATCH:
            subject.fail(
                f"has a state {name!r} of shape {list(sizes)} for a batch of {BATCH}",
                "put the batch first, so that rows can be selected, joined and reset",
            )
        if tensor.any():
            subject.fail(
                f"has a state {name!r} that is not zero at the start",
                "let zeros mean silence: states are reset by zeroing them",
            )
    with subject.expecting("reading a text with a state", "take `state` as the last argument, None for silence"):
        subject.stream(module, subject.input(), state, [LENGTH - 1, 1])
    after = dict(leaves(state.tree))
    for name in start.keys() | after.keys():
        if name not in start or name not in after or after[name].shape != start[name][1]:
            subject.fail(
                f"changed the size of its state {name!r} while reading",
                "allocate all of it in new_state; cost and memory per token must not grow with the position",
            )
        if after[name].data_ptr() != start[name][2]:
            subject.fail(
                f"replaced its state {name!r} by another tensor",
                "overwrite it in place, with copy_ or add_, so that a state can be shared and compiled",
            )
        if after[name].requires_grad:
            subject.fail(
                f"keeps the graph of its gradients in its state {name!r}", "store history detached: copy_(x.detach())"
            )


def _check_streaming(subject: Subject) -> None:
    module, x = subject.build(), subject.input()
    stateful = is_stateful(module)
    remedy = (
        "read the history from `state` and move it on in place: positions before the chunk are in the state, not zero"
        if stateful
        else "its output depends on earlier positions: give it new_state(batch_size, device, dtype) and let forward "
        "take a state, or make it read its own position only"
    )
    cuts = sorted(random.Random(0).sample(range(1, LENGTH), 6))
    chunkings = [
        [1] * LENGTH,
        [end - start for start, end in zip([0, *cuts], [*cuts, LENGTH], strict=True)],
        [LENGTH - 1, 1],
    ]
    with torch.no_grad(), subject.expecting("reading a text chunk by chunk", remedy):
        parallel = subject.run(module, x, subject.state(module))
        # A memory may learn only while it keeps a state; everything else must do without one what it does with it.
        if subject.kind != "memory" and _difference(subject.run(module, x), parallel) > TOLERANCE:
            subject.fail("gives other outputs with a fresh state than without one", "let no state mean silence: zeros")
        for lengths in chunkings:
            if _difference(subject.stream(module, x, subject.state(module), lengths), parallel) > TOLERANCE:
                chunks = "single positions" if max(lengths) == 1 else f"chunks of {lengths} positions"
                subject.fail(f"does not stream: {chunks} give other outputs than one pass over all of them", remedy)
        read = (5, 12, 19)
        states = [subject.state(module, batch=1) for _ in read]
        for row, length in enumerate(read):
            subject.run(module, x[row : row + 1, :length], states[row])
        order = [2, 0, 1]
        following = torch.stack([x[row, read[row] : read[row] + 10] for row in order])
        wanted = torch.stack([parallel[row, read[row] : read[row] + 10] for row in order])
        if _difference(subject.run(module, following, State.join(states)[order]), wanted) > TOLERANCE:
            subject.fail(
                f"mixes up rows: joined and selected states that have read {read} positions go on wrongly",
                "keep everything that differs between texts, counters included, in batch-first state tensors",
            )


def _check_gradients(subject: Subject) -> None:
    module = subject.build().train()
    x = subject.input().requires_grad_()
    remedy = "use differentiable operations, none in place on what a gradient needs: clone() a history before using it"
    with subject.expecting("in a forward and backward pass", remedy):
        output = torch.cat([subject.run(module, x), subject.run(module, x, subject.state(module))], dim=-1)
        if output.requires_grad:
            (output * torch.randn_like(output)).sum().backward()
    if x.grad is None or not x.grad.any():
        subject.fail("passes no gradient to its input", "do not detach or round what flows through")
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    dead = [name for name, parameter in trained if parameter.grad is None or not parameter.grad.any()]
    if dead:
        subject.fail(
            f"gives no gradient to {', '.join(dead)}",
            "use each parameter in forward without detaching it, or do not create it where an option is off",
        )
    if not all(parameter.grad.isfinite().all() for _, parameter in trained if parameter.grad is not None):
        subject.fail("gives gradients that are not finite", "look for divisions by zero and square roots at zero")


def _check_state_dict(subject: Subject) -> None:
    module, x = subject.build(), subject.input()
    with torch.no_grad():
        wanted = subject.run(module, x)
        torch.manual_seed(1)
        again = subject.build()
        with subject.expecting("loading its own state dict", "keep the default state_dict and load_state_dict"):
            again.load_state_dict(module.state_dict())
        if _difference(subject.run(again, x), wanted) > TOLERANCE:
            subject.fail(
                "gives other outputs after its state dict was loaded into a second instance",
                "keep every number that is drawn at random or learned in a parameter or a persistent buffer",
            )


def _check_meta_device(subject: Subject) -> None:
    module, x = subject.build(), subject.input()
    remedy = (
        "checkpoints are loaded into a model made on the meta device: keep every tensor in a parameter or buffer, read "
        "no values in __init__, and refill buffers that are not persistent in a method reset_buffers()"
    )
    with torch.no_grad(), subject.expecting("being made on the meta device and filled afterwards", remedy):
        with torch.device("meta"):
            loaded = subject.construct().eval()
        materialize(loaded, named_tensors(module))
        same = _difference(subject.run(loaded, x), subject.run(module, x)) <= TOLERANCE
    if not same:
        subject.fail("gives other outputs when it was made on the meta device and filled afterwards", remedy)


def _check_types(subject: Subject) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = subject.build().to(dtype)
        x = subject.input(dtype=dtype)
        remedy = (
            "make constants in the input's dtype, and cast back with .to(x.dtype) what is computed in another: outputs "
            f"must be {dtype} when weights and inputs are"
        )
        with subject.expecting(f"in {dtype}", remedy):
            for tree in (None, subject.state(module, dtype).tree if is_stateful(module) else None):
                outputs = subject.contract.run(module, x, tree)
                if any(output.dtype != dtype for output in outputs):
                    subject.fail(f"gave {outputs[0].dtype} outputs for {dtype} inputs", remedy)
                if not all(output.isfinite().all() for output in outputs):
                    subject.fail(f"gave outputs in {dtype} that are not finite", "compute in float32 what overflows")


def _check_compilation(subject: Subject) -> None:
    module, x = subject.build(), subject.input()
    remedy = "let no Python branch, print or .item() depend on a tensor's values; prefer torch.where and masks"
    torch.compiler.reset()
    # Tracing alone decides about graph breaks; what a compiler makes of the graph afterwards does not matter here.
    compiled = torch.compile(subject.run, fullgraph=True, backend="eager", dynamic=False)
    with subject.expecting("under torch.compile(fullgraph=True)", remedy):
        with torch.no_grad():
            state, wanted = subject.state(module), subject.state(module)
            for part in x.split(LENGTH // 2, 1):
                if _difference(compiled(module, part, state), subject.run(module, part, wanted)) > TOLERANCE:
                    subject.fail("gives other outputs when compiled", "keep no state on the module between calls")
        compiled(module.train(), x.requires_grad_()).square().mean().backward()


CHECKS = (
    _check_shapes,
    _check_causality,
    _check_state,
    _check_streaming,
    _check_gradients,
    _check_state_dict,
    _check_meta_device,
    _check_types,
    _check_compilation,
)
