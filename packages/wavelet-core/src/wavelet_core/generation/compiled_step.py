"""One token for a fixed number of texts, compiled ahead of time by AOTInductor into a library that holds no weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core.computed import Computed
from wavelet_core.generation.session import DecodingSession
from wavelet_core.generation.traced_model import TracedModel
from wavelet_core.state import State, leaves
from wavelet_core.tensor_files import CheckpointError

LARGEST_LOOP = 1 << 20  # entries of a matrix that generated loops multiply with one row; torch multiplies larger ones


class CompiledStepError(CheckpointError):
    """A step that cannot be compiled, or a compiled one that does not fit; the message says what would help."""


class CompiledStep:
    """A compiled library at work on a session's own weights, which may change in place but not be replaced.

    path: written by `compile_step` for the same model. batch: the number of texts.
    """

    def __init__(self, path: Path, session: DecodingSession, batch: int):
        # Not single-threaded, one at work at a time, on no numbered device.
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        known = _constants(session.model)
        self._constants = {name: known[name].detach() for name in self._loader.get_constant_fqns()}
        # As they are: neither for a later swap nor some of them, and not copied.
        self._loader.load_constants(self._constants, False, True, True)
        self._layout = _layout(session.new_state(batch))
        self._state: State | None = None
        self._history: list[Tensor] = []

    def __call__(self, tokens: Tensor, state: State) -> Tensor:
        """Logits (B, V) of tokens (B,); moves the state, one of the session's own, on."""
        if state is not self._state:
            # The library trusts what it is given, so a state is looked at when it first comes.
            if _layout(state) != self._layout:
                raise ValueError("the state is none of the session that the step was compiled for")
            self._state, self._history = state, [tensor for _, tensor in leaves(state.tree)]
        (logits,) = self._loader.run([tokens, *self._history])
        return logits


def compile_step(session: DecodingSession, batch: int, path: Path) -> None:
    """Write the step of a session for `batch` texts to `path`, which ends in .pt2; takes a minute or so.

    Raises CompiledStepError where there is no C++ compiler, and for a model that cannot be compiled.
    """
    from torch._inductor import aoti_compile_and_package

    _require_compiler(session.device)
    step = _Step(session, batch)
    tokens = torch.zeros(batch, dtype=torch.long, device=session.device)
    history = [tensor for _, tensor in leaves(session.new_state(batch).tree)]
    options = {
        # No weight goes into the library, not even a scalar as a number.
        "aot_inductor.package_constants_in_so": False,
        "always_keep_tensor_constants": True,
        # What lies between large products is too little work for threads; the products themselves have their own.
        "cpp.threads": 1,
    }
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            program = torch.export.export(step, (tokens, *history)).run_decompositions(_LOOPS)
            if unnamed := program.graph_signature.lifted_tensor_constants:
                raise ValueError(f"{', '.join(unnamed)}: tensors that are neither parameters nor buffers")
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CompiledStepError(f"the model's step cannot be compiled: {type(error).__name__}: {reason}") from error


class _Step(TracedModel):
    """What is compiled: tokens (B,) and the state's tensors in, logits (B, V) out; the tensors move on in place."""

    def forward(self, tokens: Tensor, *history: Tensor) -> Tensor:
        logits: Tensor = self.model.head(self.model.hidden(tokens.unsqueeze(1), self.state_of(history))[:, 0])
        return logits


def _constants(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a decoding view under every name that they have in a `_Step`."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **{
            f"{name}._frozen": module._frozen
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, Computed) and module._frozen is not None
        },
    }
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def _layout(state: State) -> list[Any]:
    return [
        (name, tensor.shape, tensor.dtype, tensor.device, tensor.is_contiguous()) for name, tensor in leaves(state.tree)
    ]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.numel() != x.shape[-1] or weight.numel() > LARGEST_LOOP:
        return NotImplemented
    out = _sum_of_products(x.reshape(1, -1), weight)
    out = out if bias is None else out + bias
    return out.to(x.dtype).reshape(*x.shape[:-1], -1)


def _bmm(x: Tensor, matrices: Tensor) -> Tensor:
    if x.shape[1] != 1 or matrices.numel() > LARGEST_LOOP:
        return NotImplemented
    return _sum_of_products(x, matrices.mT).to(x.dtype).unsqueeze(1)


def _sum_of_products(x: Tensor, weight: Tensor) -> Tensor:
    """Sums over the last dimension, in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * weight.to(dtype)).sum(-1)


# Products of one row as sums, which become loops of the generated code, one with what comes before and after. Calling a
# library for each of them would take longer than the small ones themselves.
_LOOPS = {torch.ops.aten.linear.default: _linear, torch.ops.aten.bmm.default: _bmm}


def _require_compiler(device: torch.device) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if device.type != "cpu":
        raise CompiledStepError(f"steps can be compiled for processors, not for {device.type}; use the device cpu")
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise CompiledStepError(
            "compiling needs a C++ compiler, and none was found; install one (g++ or clang), or name one in CXX"
        ) from None
