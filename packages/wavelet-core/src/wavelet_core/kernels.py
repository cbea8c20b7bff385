"""Kernels: components of kind `kernel`, matrix products that are faster than torch's where they can compute them.

The environment variable WAVELET_KERNEL names the one that is used, or `torch` for none; without it the first registered
one that this machine can run is used. With nothing registered torch multiplies.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_core.registry import RegistryError, registry

VARIABLE = "WAVELET_KERNEL"
NO_KERNEL = "torch"


class Kernel(ABC):
    """Products x W^T for inference, made as `(config)`. They give what torch gives, up to rounding."""

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


_chosen: list[Kernel | None] = []


def active_kernel() -> Kernel | None:
    """The kernel that multiplies, or None for torch; chosen at the first call, which loads the plugins.

    Raises ConfigurationError where WAVELET_KERNEL names one that is not registered or that this machine cannot run.
    """
    if not _chosen:
        if torch.compiler.is_compiling():
            return None  # nothing that a compiler could trace; the graph is compiled anew once there is a kernel
        _chosen.append(_choose(os.environ.get(VARIABLE, "")))
    return _chosen[0]


def _choose(name: str) -> Kernel | None:
    if name == NO_KERNEL:
        return None
    if not name:
        kernels = (_make(registered) for registered in registry.names("kernel"))
        return next((kernel for kernel in kernels if kernel.available()), None)
    try:
        kernel = _make(name)
    except RegistryError as error:
        raise ConfigurationError(f"{VARIABLE}={name}: {error}; {NO_KERNEL!r} is for torch's own products") from None
    if not kernel.available():
        raise ConfigurationError(
            f"{VARIABLE}={name}: this machine cannot run the kernel, or it was not built with its package; "
            f"unset {VARIABLE}, or set it to {NO_KERNEL!r} for torch's own products"
        )
    return kernel


def _make(name: str) -> Kernel:
    component = registry.get("kernel", name)
    kernel: Kernel = component(component.Config())  # type: ignore[attr-defined]
    return kernel
