"""Tables whose rows lie together: they are what the same codes are as a packed matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wavelet_quant import quantize
from wavelet_quant.packed import PackedMatrix, rounded_to_nearest
from wavelet_quant.packed_table import PackedTable


@settings(max_examples=30, deadline=None)
@given(
    bits=st.sampled_from([8, 4, 2]),
    height=st.integers(1, 40),
    groups=st.integers(1, 3),
    group=st.sampled_from([32, 64, None]),
    odd=st.integers(1, 37),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_table_is_the_packed_matrix_of_the_same_codes(bits, height, groups, group, odd, dtype):
    weight = torch.randn(height, groups * group if group else odd, generator=torch.Generator().manual_seed(0))
    codes, scales = rounded_to_nearest(weight, bits, group)
    table, matrix = PackedTable(codes, scales, bits, dtype), PackedMatrix(codes, scales, bits, dtype)
    assert torch.equal(table.matrix(torch.float32), matrix.matrix(torch.float32))
    index = torch.tensor([[0, height - 1], [height // 2, 0]])
    assert torch.equal(table.rows(index), table.matrix()[index])
    assert table.rows(index).dtype is dtype


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_multiplied_with_is_no_table(tied):
    model = nn.ModuleDict({"embedding": nn.Embedding(20, 64), "head": nn.Linear(64, 20, bias=False)})
    if tied:
        model["head"].weight = model["embedding"].weight
    quantize(model, "int4")
    assert isinstance(model["embedding"].weight, PackedMatrix if tied else PackedTable)
    assert (model["head"].weight is model["embedding"].weight) == tied
