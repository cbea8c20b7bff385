"""Models for comparing formats: sizes and types as `quantize` makes them, with random numbers."""

import copy

import pytest
import torch

from wavelet_core import ModelConfig, build_model
from wavelet_quant import quantize, weight_bytes
from wavelet_quant.format_benchmark import model_in_format


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    fields = {"vocabulary_size": 300, "width": 128, "layers": 2, "levels": 7, "tied_embedding": True}
    return build_model(ModelConfig.model_validate(fields)).eval()


@pytest.mark.parametrize("recipe", ["int8", "int4", "mixed-8-4-2", "mixed-conservative"])
def test_a_model_in_a_format_has_what_quantizing_gives(model, recipe):
    made, quantized = model_in_format(model, recipe), quantize(copy.deepcopy(model), recipe).float()
    tensors = [
        {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in either.state_dict().items()}
        for either in (made, quantized)
    ]
    assert tensors[0] == tensors[1]
    assert weight_bytes(made) == weight_bytes(quantized)
    with torch.no_grad():
        assert made(torch.arange(20)[None]).isfinite().all()


def test_dequantized_matrices_are_those_of_int8(model):
    torch.manual_seed(1)
    made = model_in_format(model, "dequantize")
    torch.manual_seed(1)
    packed = model_in_format(model, "int8")
    tokens = torch.arange(8)[None]  # the library rounds more rows to 8 bits
    with torch.no_grad():
        torch.testing.assert_close(made(tokens), packed(tokens), atol=2e-3, rtol=2e-3)
    assert next(model.parameters()).dtype is torch.float32 and not hasattr(model, "quantization")
