"""The type that products are computed in."""

from __future__ import annotations

import pytest
import torch

from wavelet_train import precision
from wavelet_train.precision import autocast, has_native_bfloat16, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True, "avx512_bf16": False}, False)],
)
def test_automatic_precision_follows_the_processor(
    capabilities: dict[str, bool], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_native_bfloat16(CPU) is native
    assert resolve_precision("auto", CPU) == (torch.bfloat16 if native else torch.float32)
    assert resolve_precision("float32", CPU) == torch.float32


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_autocast_computes_products_in_the_type(name: precision.Precision) -> None:
    dtype = resolve_precision(name, CPU)
    layer = torch.nn.Linear(2, 2)
    with autocast(CPU, dtype):
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32
