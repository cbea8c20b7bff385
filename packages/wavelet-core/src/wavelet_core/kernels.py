"""Kernels: components of kind `kernel`, matrix products that are faster than torch's where they can compute them.

Every registered one that this machine can run is asked for a product in turn; with none torch multiplies. One alone is
chosen by `use_kernel`, or else by the environment variable WAVELET_KERNEL, which names it; `torch` there means none.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor

from wavelet_core.config import ComponentConfig, ComponentOf, ConfigurationError, describe
from wavelet_core.registry import RegistryError, registry

VARIABLE = "WAVELET_KERNEL"
NO_KERNEL = "torch"


class Kernel(ABC):
    """Products x W^T for inference, made as `(config)`. They give what torch gives, up to rounding.

    priority: kernels of higher priority are asked first, those of one priority in the order of their names. needs: what
    `available` looks for, as a message says it.
    """

    priority: ClassVar[int] = 0
    needs: ClassVar[str] = ""

    def __init__(self, config: ComponentConfig):
        self.config = config

    @abstractmethod
    def available(self) -> bool:
        """Whether this machine can run it."""

    @abstractmethod
    def accepts(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
        """Whether it computes this product, of `linear` for a weight (M, K), of `stacked_linear` for (S, M, K).

        Asked for every product of a matrix worth it while no gradients are wanted, also of shapes that do not fit,
        which are torch's to refuse.
        """

    @abstractmethod
    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        """x W^T + b, then GELU where asked. Shapes: x (..., K), weight (M, K), bias (M) or None -> (..., M)."""

    @abstractmethod
    def stacked_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x_s W_s^T for every s. Shapes: x (S, N, K), weight (S, M, K) -> (S, N, M)."""

    def accepts_walsh_hadamard(self, x: Tensor) -> bool:
        """Whether it computes the Walsh-Hadamard transforms of rows (..., P), P a power of two, also in training."""
        return False

    def walsh_hadamard(self, x: Tensor) -> Tensor:
        """The transforms in the order of Sylvester, divided by sqrt(P). Shapes: (..., P) -> (..., P).

        Called only where `accepts_walsh_hadamard`; a kernel without it has nothing here.
        """
        raise NotImplementedError

    def bound(self, operator: Any, out: Tensor, *arguments: Any, **keywords: Any) -> Callable[[], Any] | None:
        """An operator of the kernel on fixed tensors: a function that writes to `out` what it gives for their numbers.

        None, unless the operator is the kernel's and `out`, which it has given for these arguments, stays its result's
        place. Steps of decoding call it again and again, without starting the operator.
        """
        return None


_chosen: list[tuple[Kernel, ...]] = []
_single_rows: ContextVar[bool] = ContextVar("single_rows", default=False)


def active_kernels() -> tuple[Kernel, ...]:
    """The kernels that are asked, in turn, for a product; chosen at the first call, which loads the plugins.

    Raises ConfigurationError where WAVELET_KERNEL names one that is not registered or that this machine cannot run.
    """
    if not _chosen:
        if torch.compiler.is_compiling():
            return ()  # nothing that a compiler could trace; the graph is compiled anew once there are kernels
        name = os.environ.get(VARIABLE)
        _chosen.append(_only(name, f"{VARIABLE}={name}") if name else _all_available())
    return _chosen[0]


def use_kernel(kernel: ComponentConfig | Mapping[str, Any] | str | None) -> None:
    """Let one kernel alone multiply from now on, in the whole process, whatever the environment says.

    kernel: its name, its configuration, such as {"kind": "native", "instruction_set": "avx2"}, "torch" for torch's own
    products, or None for what the environment says.

    Raises ConfigurationError for one that is not registered, that this machine cannot run, or whose configuration is
    wrong; nothing changes then.
    """
    _chosen[:] = [] if kernel is None else [_only(kernel, "kernel")]


@contextmanager
def torch_alone() -> Iterator[None]:
    """Let torch multiply in the whole process while this lasts, whatever kernel is chosen."""
    chosen = list(_chosen)
    _chosen[:] = [()]
    try:
        yield
    finally:
        _chosen[:] = chosen


@contextmanager
def as_single_rows() -> Iterator[None]:
    """Let kernels that round many rows more coarsely than one compute each row as if it were alone while this lasts."""
    token = _single_rows.set(True)
    try:
        yield
    finally:
        _single_rows.reset(token)


def want_single_rows() -> bool:
    """Whether `as_single_rows` holds here; for kernels."""
    return _single_rows.get()


def _all_available() -> tuple[Kernel, ...]:
    components: Any = [registry.get("kernel", name) for name in registry.names("kernel")]
    kernels: list[Kernel] = [component(component.Config()) for component in components]
    return tuple(sorted((kernel for kernel in kernels if kernel.available()), key=lambda kernel: -kernel.priority))


def _only(choice: Any, source: str) -> tuple[Kernel, ...]:
    if choice == NO_KERNEL:
        return ()
    try:
        config = ComponentOf("kernel").resolve(choice)
        component: Any = registry.get("kernel", config.kind)
        kernel: Kernel = component(config)
    except RegistryError as error:
        raise ConfigurationError(f"{source}: {error}; {NO_KERNEL!r} is for torch's own products") from None
    except ValidationError as error:
        raise ConfigurationError(describe(error, source)) from None
    except ConfigurationError:
        raise
    except ValueError as error:
        raise ConfigurationError(f"{source}: {error}") from None
    if not kernel.available():
        needs = f": it needs {kernel.needs}" if kernel.needs else ""
        raise ConfigurationError(
            f"{source}: this machine cannot run the kernel {config.kind!r}{needs}; "
            f"{NO_KERNEL!r} is for torch's own products"
        )
    return (kernel,)
