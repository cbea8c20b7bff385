"""Speculative decoding of quantized models: plain decoding's text, though kernels may round many rows more coarsely."""

import pytest
import torch

from wavelet_core import ModelConfig, WaveletLM, kernels
from wavelet_core.config import parse
from wavelet_core.generation import GenerationSettings, ModelDrafts, collect, generate
from wavelet_core.generation.speculative import Pace
from wavelet_core.kernels import want_single_rows
from wavelet_quant import quantize
from wavelet_quant.native_kernel import Native
from wavelet_quant.native_library import instruction_sets
from wavelet_quant.reference_kernel import Reference
from wavelet_quant.testing.kernel_contract import EXACT_ROWS


class Coarse(Reference):
    """Rounds many rows as kernels may, and more."""

    def packed_linear(self, x, values, scales, bias, bits, height, gelu):
        if x.shape[-2] > EXACT_ROWS and not want_single_rows():
            x = (8 * x).round() / 8
        return super().packed_linear(x, values, scales, bias, bits, height, gelu)


@pytest.fixture(params=["coarse", *instruction_sets()])
def kernel(request, monkeypatch):
    made = (
        Coarse(Reference.Config())
        if request.param == "coarse"
        else Native(Native.Config(instruction_set=request.param))
    )
    monkeypatch.setattr(kernels, "_chosen", [(made,)])


def test_long_guesses_change_no_number(kernel, monkeypatch):
    torch.manual_seed(0)
    model = WaveletLM(parse(ModelConfig, {"vocabulary_size": 29, "width": 32, "layers": 2, "levels": 2})).eval()
    settings = parse(GenerationSettings, {"tokens": 60, "samplers": [], "metrics": True})
    quantized = quantize(model, "int8")
    [plain] = collect(generate(quantized, [[1, 2, 3]], settings, seeds=[4]))
    lengths = []

    def longest(pace, evidence, unread):
        lengths.append(Pace.longest_chunk - unread)
        return lengths[-1]

    monkeypatch.setattr(Pace, "next_length", longest)
    [guessed] = collect(generate(quantized, [[1, 2, 3]], settings, seeds=[4], draft=ModelDrafts(quantized)))
    assert min(lengths) > EXACT_ROWS
    assert guessed.tokens == plain.tokens
    assert guessed.log_probabilities == pytest.approx(plain.log_probabilities, abs=2e-5)
