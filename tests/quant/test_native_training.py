"""What the library computes in training is what torch gives, and whole models train as without it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from wavelet_core import ModelConfig, activations, build_model, kernels
from wavelet_core.kernels import use_kernel
from wavelet_quant.native_kernel import Native
from wavelet_quant.native_library import instruction_sets, library

pytestmark = pytest.mark.skipif(not library(), reason="the native library is not installed here")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
names = st.sampled_from(instruction_sets() or ("portable",))
types = st.sampled_from(list(TOLERANCE))
seeds = st.integers(0, 1000)
threads = st.sampled_from([1, 2, 3])


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    use_kernel(None)


def kernel_of(name):
    return Native(Native.Config(instruction_set=name))


def numbers(seed, *shapes, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]


def assert_near(found, expected, dtype, scale=1.0):
    torch.testing.assert_close(found.double(), expected.double(), atol=scale * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@settings(max_examples=60, deadline=None)
@given(name=names, dtype=types, count=st.integers(1, 3000), seed=seeds, threads=threads)
def test_activations_and_their_gradients_are_torchs(name, dtype, count, seed, threads):
    torch.set_num_threads(threads)
    kernel = kernel_of(name)
    x, gate, gradient = numbers(seed, count, count, count, dtype=dtype, scale=2.0)
    exact, factor = (each.double().requires_grad_() for each in (gate, x))
    F.gelu(exact).backward(gradient.double())
    assert_near(kernel.gelu(gate), F.gelu(gate.double()), dtype)
    assert_near(kernel.gelu_gradient(gradient, gate), exact.grad, dtype, 4)
    exact.grad = None
    (factor * F.silu(exact)).backward(gradient.double())
    assert_near(kernel.silu_product(x, gate), x.double() * F.silu(gate.double()), dtype, 4)
    squared = x.double().requires_grad_()
    squared.relu().square().backward(gradient.double())
    assert_near(kernel.relu_squared(x), x.double().relu().square(), dtype, 4)
    assert_near(kernel.relu_squared_gradient(gradient, x), squared.grad, dtype, 4)
    to_x, to_gate = kernel.silu_product_gradients(gradient, x, gate)
    assert_near(to_x, factor.grad, dtype, 8)
    assert_near(to_gate, exact.grad, dtype, 8)


@pytest.mark.parametrize("name", instruction_sets())
def test_numbers_that_are_not_finite_stay_so(name):
    kernel = kernel_of(name)
    x = torch.tensor([torch.nan, torch.inf, 100.0, -100.0, 0.0])
    one = torch.ones(5)
    assert kernel.gelu(x).isnan().tolist() == [True, False, False, False, False]
    torch.testing.assert_close(kernel.silu_product(one, x), F.silu(x), equal_nan=True)
    assert kernel.gelu_gradient(one, x)[0].isnan() and kernel.gelu_gradient(one, x)[2:].tolist() == [1, 0, 0.5]
    logits = torch.tensor([[0.0, torch.nan, 1.0], [1.0, torch.inf, 0.0], [-torch.inf, 0.0, 0.0]])
    losses = kernel.cross_entropy(logits, torch.tensor([0, 1, 1]), None)
    assert losses.isnan().tolist() == [True, True, False]
    assert losses[2].item() == pytest.approx(0.6931472)
    assert logits[2].tolist() == pytest.approx([0, -0.5, 0.5])


@settings(max_examples=60, deadline=None)
@given(
    name=names, dtype=types, rows=st.integers(1, 40), width=st.integers(1, 900), scale=st.sampled_from([1, 30]),
    soft_cap=st.sampled_from([None, 2.0, 30.0]), seed=seeds, threads=threads,
)  # fmt: skip
def test_cross_entropy_and_its_gradient_are_torchs(name, dtype, rows, width, scale, soft_cap, seed, threads):
    torch.set_num_threads(threads)
    (logits,) = numbers(seed, (rows, width), dtype=dtype, scale=scale)
    targets = torch.randint(width, (rows,), generator=torch.Generator().manual_seed(seed))
    exact = logits.double().requires_grad_()
    capped = exact if soft_cap is None else soft_cap * torch.tanh(exact / soft_cap)
    expected = F.cross_entropy(capped, targets, reduction="none")
    expected.sum().backward()
    losses = kernel_of(name).cross_entropy(logits, targets, soft_cap)
    assert_near(losses, expected, torch.float32)
    assert_near(logits, exact.grad, dtype)


@settings(max_examples=60, deadline=None)
@given(
    name=names, dtype=types, rows=st.integers(1, 40), side=st.integers(1, 140), best=st.integers(1, 40), seed=seeds,
    threads=threads,
)  # fmt: skip
def test_the_best_pairs_are_the_best_of_all_pairs(name, dtype, rows, side, best, seed, threads):
    torch.set_num_threads(threads)
    scores_a, scores_b = numbers(seed, (2, rows, side), (2, rows, side), dtype=dtype)
    halves = min(best, side)
    best = min(best, halves**2)
    ranks = [(i, j) for i in range(halves) for j in range(halves) if (i + 1) * (j + 1) <= best]
    key_a, key_b = kernel_of(name).best_pairs(scores_a, scores_b, torch.tensor(ranks).T, halves, best)
    found = scores_a.float().gather(-1, key_a) + scores_b.float().gather(-1, key_b)
    everything = (scores_a.float().unsqueeze(-1) + scores_b.float().unsqueeze(-2)).flatten(-2)
    torch.testing.assert_close(found.sort(-1, descending=True).values, everything.topk(best).values, atol=0, rtol=0)
    keys = (key_a * side + key_b).sort(-1).values
    assert (keys[..., 1:] != keys[..., :-1]).all(), "a pair was chosen twice"


@settings(max_examples=40, deadline=None)
@given(
    name=names, vectors=st.integers(1, 50), reads=st.integers(1, 9), rows=st.integers(1, 30), width=st.integers(1, 70),
    seed=seeds,
)  # fmt: skip
def test_the_gradients_of_reads_are_torchs_whatever_the_threads(name, vectors, reads, rows, width, seed):
    table, weight, gradient = numbers(seed, (rows, width), (vectors, reads), (vectors, width))
    row = torch.randint(rows, (vectors, reads), generator=torch.Generator().manual_seed(seed))
    exact_table, exact_weight = (each.double().requires_grad_() for each in (table, weight))
    F.embedding_bag(row, exact_table, per_sample_weights=exact_weight, mode="sum").backward(gradient.double())
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(kernel_of(name).read_gradients(gradient, table, row, weight))
    assert_near(found[0][0], exact_weight.grad, torch.float32, 4)
    assert_near(found[0][1], exact_table.grad, torch.float32, 4)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_what_lies_outside_is_refused():
    kernel = kernel_of(None)
    with pytest.raises(ValueError, match="targets from 0 to 5: they have to be from 0 to 4"):
        kernel.cross_entropy(torch.zeros(2, 5), torch.tensor([0, 5]), None)
    with pytest.raises(ValueError, match="rows from -1 to 0: they have to be from 0 to 2"):
        kernel.read_gradients(torch.zeros(1, 4), torch.zeros(3, 4), torch.tensor([[0, -1]]), torch.zeros(1, 2))


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_model_trains_as_without_it(monkeypatch, precision):
    """Every function is asked for, and loss and gradients are those of torch's functions."""
    torch.manual_seed(0)
    options = {"vocabulary_size": 97, "width": 32, "levels": 2, "layers": 1, "logit_soft_cap": 20}
    memories = [
        "mlp",
        {"kind": "mlp", "activation": "relu_squared"},
        {"kind": "product_key", "num_keys": 64, "top_k": 8},
    ]
    model = build_model(ModelConfig.model_validate({**options, "memories": memories}))
    tokens, targets = torch.randint(97, (2, 2, 65))
    monkeypatch.setattr(activations, "SMALLEST", 1)
    functions = {
        "gelu", "gelu_gradient", "silu_product", "silu_product_gradients", "relu_squared", "relu_squared_gradient",
        "cross_entropy", "best_pairs", "read_gradients",
    }  # fmt: skip
    asked = set()
    kernel = kernel_of(None)
    for function in functions:
        own = getattr(kernel, function)
        monkeypatch.setattr(
            kernel, function, lambda *given, own=own, function=function: asked.add(function) or own(*given)
        )
    results = []
    for chosen in ((), (kernel,)):
        monkeypatch.setattr(kernels, "_chosen", [chosen])
        model.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            loss = model.loss(tokens, targets)
        loss.backward()
        results.append({"loss": loss.detach(), **gradients_of(model)})
        assert asked == (set() if chosen == () else functions)
    tolerance = 1e-5 if precision is torch.float32 else 3e-2
    scale = max(expected.abs().max().item() for expected in results[0].values())
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, atol=tolerance * scale, rtol=tolerance, msg=name)
