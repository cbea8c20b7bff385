"""A lifting wavelet whose levels are one node of the graph is the one that is computed operation by operation."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_core import ModelConfig, haar, kernels, lifting
from wavelet_core.registry import build
from wavelet_quant.native_kernel import Native
from wavelet_quant.native_library import instruction_sets, library

pytestmark = pytest.mark.skipif(not library(), reason="the native library is not installed here")


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(lifting, "SMALLEST_FUSED", 1)
    monkeypatch.setattr(haar, "SMALLEST_FUSED", 1)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernels.use_kernel(None)


def wavelet_of(seed, width=24, levels=3, **options):
    torch.manual_seed(seed)
    config = {"vocabulary_size": 5, "width": width, "levels": levels, "transform": "identity"}
    model = ModelConfig.model_validate({**config, "wavelet": {"kind": "lifting", **options}})
    wavelet = build("wavelet", model.wavelet, model.shape)
    with torch.no_grad():
        for parameter in wavelet.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return wavelet


def computed(wavelet, rows, dtype, weights):
    """Coefficients, what is reconstructed of some others, and all gradients."""
    rows = rows.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        coefficients = wavelet.decompose(rows)
        reconstructed = wavelet.reconstruct(coefficients * weights[:, None].to(coefficients.dtype))
    loss = (coefficients.double().sin() * weights[:, None]).sum() + reconstructed.double().square().sum()
    wavelet.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in wavelet.named_parameters()}
    return {"coefficients": coefficients, "rows": reconstructed, "to rows": rows.grad, **gradients}


def fused(wavelet, rows, dtype, weights, name=None):
    kernel = Native(Native.Config(instruction_set=name))
    asked = []
    blend = kernel.blend
    kernel.blend = lambda *given: asked.append(1) or blend(*given)
    kernels._chosen[:] = [(kernel,)]
    results = computed(wavelet, rows, dtype, weights)
    kernels._chosen[:] = [()]
    return results, bool(asked)


def assert_near(found, expected, tolerance):
    for name, value in expected.items():
        error = (found[name].double() - value).norm() / value.norm().clamp(min=1e-9)
        assert error < tolerance, f"{name} is off by {error:.2g}"


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(instruction_sets() or ("portable",)), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    crawl=st.sampled_from([None, 1, 3, 5]), multiplier=st.integers(1, 2), untied=st.booleans(),
    width=st.integers(1, 41), levels=st.integers(1, 4), batch=st.integers(1, 3), length=st.integers(1, 40),
    seed=st.integers(0, 100), threads=st.integers(1, 3),
)  # fmt: skip
def test_it_gives_the_same_numbers_and_gradients(
    name, dtype, crawl, multiplier, untied, width, levels, batch, length, seed, threads
):
    torch.set_num_threads(threads)
    options = {"hidden_multiplier": multiplier, "untied_reconstruction": untied, "initialization": "random"}
    wavelet = wavelet_of(seed, width, levels, crawl=crawl, **options)
    rows, weights = torch.randn(batch, length, width).to(dtype), torch.rand(levels + 1) + 0.5
    exact = copy.deepcopy(wavelet).double()
    kernels._chosen[:] = [()]
    expected = computed(exact, rows.double(), torch.float64, weights.double())
    found, was_fused = fused(wavelet, rows, dtype, weights, name)
    assert was_fused
    assert_near(found, expected, 1e-4 if dtype is torch.float32 else 5e-2)


def test_threads_change_no_number():
    rows = torch.randn(4, 600, 80)
    sums = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        kernel = Native(Native.Config())
        blended = kernel.blend_gradients(rows, rows + 1, torch.rand(3, generator=torch.manual_seed(0)), 2, rows, 0.5)
        sums.append([*blended, *kernel.gelu_gradients(rows.flatten(0, 1), rows.flatten(0, 1), 0.5)])
    assert all(torch.equal(a, b) for other in sums[1:] for a, b in zip(sums[0], other, strict=True))


def test_what_it_does_not_compute_is_left_to_torch():
    rows, weights = torch.randn(2, 9, 24), torch.ones(4)
    dropping = wavelet_of(0, dropout=0.5)
    watched = wavelet_of(0)
    seen = []
    watched.predict[0].first.register_forward_hook(lambda *_: seen.append(1))
    selective = wavelet_of(0, crawl=3, crawl_groups=2)
    linear = wavelet_of(0, network="linear")
    recomputing = wavelet_of(0)
    recomputing.recompute_levels = True
    for wavelet in (dropping, watched, selective, linear, recomputing):
        assert not fused(wavelet, rows, torch.float32, weights)[1]
    assert seen
    assert fused(dropping.eval(), rows, torch.float32, weights)[1]


@settings(max_examples=10, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), width=st.integers(1, 41), levels=st.integers(1, 4),
    batch=st.integers(1, 3), length=st.integers(1, 40), threads=st.integers(1, 3),
)  # fmt: skip
def test_the_haar_wavelet_is_fused_too(dtype, width, levels, batch, length, threads):
    torch.set_num_threads(threads)
    config = {"vocabulary_size": 5, "width": width, "levels": levels, "transform": "identity", "wavelet": "haar"}
    model = ModelConfig.model_validate(config)
    wavelet = build("wavelet", model.wavelet, model.shape)
    rows, weights = torch.randn(batch, length, width).to(dtype), torch.rand(levels + 1) + 0.5
    kernels._chosen[:] = [()]
    expected = computed(wavelet, rows.double(), torch.float64, weights.double())
    found, was_fused = fused(wavelet, rows, dtype, weights)
    assert was_fused
    assert_near(found, expected, 1e-5 if dtype is torch.float32 else 2e-2)
