"""One token for the texts of one state, recorded operation by operation and then replayed without Python between them.

A small model's token costs mostly what starts its operations: modules that are called, choices that come out the same
every time, views and results that are made anew. A record keeps the operations alone, on tensors that stay where they
are. They are the same operations in the same order, so a replayed step gives the same numbers bit by bit, which is
checked against steps as they are before the record is used. No compiler takes part.
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wavelet_core.computed import Computed
from wavelet_core.kernels import active_kernels
from wavelet_core.state import State, is_recorded, leaves

if TYPE_CHECKING:
    from wavelet_core.generation.session import DecodingSession

PLAIN_STEPS = 4  # that a state takes before it is worth recording one
CHECKED_STEPS = 2
STEPS_BEFORE_REPLAY = PLAIN_STEPS + 1 + CHECKED_STEPS
MOST_STATES = 4  # that have a record at the same time
MOST_BYTES = 64 << 20  # of what a step computes in between, which a record keeps; steps of that size start quickly
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
REFUSED = {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class NotReplayableError(RuntimeError):
    """A step whose operations depend on numbers, or draw random ones."""


@functools.cache
def _is_composite(operator: Any) -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return operator.namespace == "aten" and has_kernel(operator.name(), COMPOSITE.name)


def _is_refused(operator: Any, given: Sequence[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation may draw random numbers, or its results' shapes or whereabouts depend on numbers."""
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in given):
        return True
    if operator is torch.ops.aten.index.Tensor:  # only masks give as many entries as their numbers say
        return any(index.dtype in (torch.bool, torch.uint8) for index in given[1:])
    values = {argument.name: argument.default_value for argument in operator._schema.arguments}
    values |= dict(zip(values, args, strict=False)) | kwargs
    chance = values.get("dropout_p", 1.0)
    tags = REFUSED if chance else REFUSED - {torch.Tag.nondeterministic_seeded}
    return bool(tags.intersection(operator.tags))


@functools.cache
def _variant_with_out(operator: Any) -> tuple[Any, list[str]] | None:
    """The overload that writes its results to given tensors, and the names of these, where there is one."""
    wanted = [(argument.name, str(argument.type)) for argument in operator._schema.arguments]
    for name in operator.overloadpacket.overloads():
        overload = getattr(operator.overloadpacket, name)
        arguments = overload._schema.arguments
        given = [(argument.name, str(argument.type)) for argument in arguments if not argument.is_out]
        out = [argument.name for argument in arguments if argument.is_out]
        if given == wanted and len(out) == len(operator._schema.returns):
            return overload, out
    return None


class _Record(TorchDispatchMode):
    """Collects the operations that run in it as functions without arguments, which write where they wrote before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []
        self.kept: list[Tensor] = []  # a kernel's bound functions know addresses, not tensors
        self.made: list[Tensor] = []

    @property
    def result_bytes(self) -> int:
        """Memory that the kept tensors hold only because they are kept: all that operations made."""
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.made}.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if _is_composite(func):
            with self:  # not by `decompose`, which has other ways to the same result up to rounding
                return func._op_dk(COMPOSITE, *args, **kwargs)
        if _is_refused(func, given, args, kwargs):
            raise NotReplayableError(str(func))
        with torch._C.DisableTorchFunction():  # what an operator does inside is its own affair
            result = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.kept += [*given, *results]
        writes = any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)
        returns_new = any(each.alias_info is None for each in func._schema.returns)
        if writes and not (results and returns_new):
            method = getattr(Tensor, func.overloadpacket.__name__, None) if func.namespace == "aten" else None
            self.calls.append(partial(method or func, *args, **kwargs))
        elif results and returns_new:
            self.made += results
            self.calls.append(self._again(func, results, args, kwargs))
        elif given and not results:
            raise NotReplayableError(str(func))
        return result

    def _again(self, func: Any, results: list[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The operation once more, into the tensors that it gave."""
        if func.namespace != "aten":
            for kernel in active_kernels():
                if (bound := kernel.bound(func, results[0], *args, **kwargs)) is not None:
                    return bound
        elif (variant := _variant_with_out(func)) is not None:
            overload, names = variant
            out = dict(zip(names, results, strict=True))
            # torch's own functions take half as long to start as the overloads that they choose.
            if (function := getattr(torch, func.overloadpacket.__name__, None)) is not None:
                call = partial(function, *args, **kwargs, out=results[0] if len(results) == 1 else tuple(results))
                try:
                    call()
                except (TypeError, RuntimeError):
                    pass
                else:
                    return call
            return partial(overload, *args, **kwargs, **out)

        def again() -> None:
            for target, source in zip(results, tree_leaves(func(*args, **kwargs)), strict=True):
                target.copy_(source)

        return again


class _NoReads(TorchFunctionMode):
    """Refuses what takes numbers out of tensors without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise NotReplayableError(func.__name__)
        return func(*args, **(kwargs or {}))


class ReplayedStep:
    """The step of a session for the texts of one state, as it was computed when this was made: once more, and kept.

    logits: (B, V), of the step that was recorded. result_bytes: memory that it keeps.

    Raises NotReplayableError for a step that cannot be recorded; the state has moved on by an unknown part of it then.
    """

    def __init__(self, session: DecodingSession, tokens: Tensor, state: State):
        self._tokens = tokens.to(torch.int64, copy=True)
        self._history = [tensor for _, tensor in leaves(state.tree)]
        self._weights = [
            (tensors, name)
            for module in session.model.modules()
            for tensors in (module._parameters, module._buffers)
            for name in tensors
        ]
        self._computed = [module for module in session.model.modules() if isinstance(module, Computed)]
        self._hooks = [
            hooks for module in session.model.modules() for hooks in (module._forward_pre_hooks, module._forward_hooks)
        ]
        with _NoReads(), _Record() as record:
            self.logits = session.step_as_it_is(self._tokens, state)
        self._calls, self._kept = record.calls, record.kept
        self.result_bytes = record.result_bytes
        self._circumstances = self._now()

    def _now(self) -> list[Any]:
        """What the recorded operations depend on besides their tensors' numbers."""
        weights = [tensors[name] for tensors, name in self._weights]
        return [
            torch.get_num_threads(),
            active_kernels(),
            *[id(module._frozen) for module in self._computed],
            *[weight if weight is None else weight.data_ptr() for weight in weights],
        ]

    def fits(self) -> bool:
        """Whether threads, kernels and the places of the weights are those that were recorded, and nobody looks on."""
        return not any(self._hooks) and self._now() == self._circumstances

    def holds(self, state: State) -> bool:
        """Whether the state's tensors are those that were recorded."""
        tensors = [tensor for _, tensor in leaves(state.tree)]
        return len(tensors) == len(self._history) and all(map(lambda a, b: a is b, tensors, self._history))

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) of tokens (B,), valid until the next call; moves the state on."""
        self._tokens.copy_(tokens)
        for call in self._calls:
            call()
        return self.logits


class _State:
    """One state's way to a record: how many steps it took as they are, and how many agreed with the record."""

    def __init__(self, state: State):
        self.state = weakref.ref(state)
        self.plain = self.checked = 0
        self.is_too_large = False
        self.step: ReplayedStep | None = None


class ReplayedSteps:
    """The replayed steps of a session, for the states that it has lately moved on."""

    def __init__(self, session: DecodingSession):
        self._session = weakref.proxy(session)
        self._known: OrderedDict[int, _State] = OrderedDict()
        self._possible = session.device.type == "cpu"

    def apply(self, state: State) -> bool:
        """Whether steps may be recorded and replayed now: without gradients, and while nobody looks at operators."""
        return (
            self._possible
            and torch.is_inference_mode_enabled()
            and state.document_positions is None
            and not is_recorded()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
            and torch._C._len_torch_dispatch_stack() == 0
            and torch._C._len_torch_function_stack() == 0
            and not torch._C._autograd._profiler_enabled()
            and not nn.modules.module._has_any_global_hook()
        )

    def next_logits(self, tokens: Tensor, state: State) -> Tensor:
        """The logits (B, V) after one more token of every text; the state moves on."""
        known = self._of(state)
        if known.step is not None and known.step.fits():
            if known.checked == CHECKED_STEPS:
                return known.step(tokens).clone()
            return self._check(known, known.step, tokens, state)
        known.step, known.checked = None, 0
        known.plain += 1
        if known.plain <= PLAIN_STEPS or known.is_too_large:
            return self._session.step_as_it_is(tokens, state)
        return self._record(known, tokens, state)

    def is_ready(self, state: State) -> bool:
        """Whether the next step of a state will be a replayed one."""
        known = self._known.get(id(state))
        if known is None or known.state() is not state or known.step is None:
            return False
        return known.checked == CHECKED_STEPS and known.step.fits() and self.apply(state)

    def _of(self, state: State) -> _State:
        known = self._known.get(id(state))
        if known is None or known.state() is not state:
            known = self._known[id(state)] = _State(state)
            if len(self._known) > MOST_STATES:
                self._known.popitem(last=False)
        self._known.move_to_end(id(state))
        return known

    def _record(self, known: _State, tokens: Tensor, state: State) -> Tensor:
        before = state.clone()
        try:
            known.step = ReplayedStep(self._session, tokens, state)
        except Exception:  # whatever a part does not bear, it may bear when nobody looks on
            self._give_up()
            return self._session.step_as_it_is(tokens, state.copy_(before))
        logits = known.step.logits.clone()
        if known.step.result_bytes > MOST_BYTES:
            known.step, known.is_too_large = None, True
        return logits

    def _check(self, known: _State, step: ReplayedStep, tokens: Tensor, state: State) -> Tensor:
        """Replay a step and compute it as it is; what the latter gives counts, and decides whether the record stays."""
        before = state.clone()
        try:
            replayed = step(tokens).clone()
        except Exception:  # as in `_record`
            self._give_up()
            return self._session.step_as_it_is(tokens, state.copy_(before))
        after = state.clone()
        logits = self._session.step_as_it_is(tokens, state.copy_(before))
        same = [torch.equal(logits, replayed)]
        same += [torch.equal(a, b) for (_, a), (_, b) in zip(leaves(state.tree), leaves(after.tree), strict=True)]
        if all(same) and step.holds(state):
            known.checked += 1
        else:
            self._give_up()
        return logits

    def _give_up(self) -> None:
        self._known.clear()
        self._possible = False
