"""Product-key memory: what it reads, in which types, and what it refuses."""

import itertools

import pytest
import torch
from torch import nn

from wavelet_core.config import ConfigurationError, ModelConfig, ModelShape, parse
from wavelet_core.testing import check_component
from wavelet_memory import FastWeightProductKeyMemory, ProductKeyMemory

WIDTH = 24
SHAPE = ModelShape(width=WIDTH, levels=2)


def memory_of(num_keys=25, top_k=4, heads=2, width=WIDTH):
    torch.manual_seed(0)
    config = ProductKeyMemory.Config(num_keys=num_keys, top_k=top_k, heads=heads)
    return ProductKeyMemory(config, ModelShape(width=width, levels=2))


def read_by_scoring_every_key(memory, q, top_k):
    """The same read with all N pair scores written out, one position and head at a time."""
    queries = (q @ memory.query.weight.T).unflatten(-1, (memory.heads, -1))
    out = torch.zeros_like(q)
    for batch, place, head in itertools.product(range(q.shape[0]), range(q.shape[1]), range(memory.heads)):
        half_a, half_b = queries[batch, place, head].chunk(2)
        scores = (memory.keys_a.weight[head] @ half_a)[:, None] + (memory.keys_b.weight[head] @ half_b)[None, :]
        best, key = scores.flatten().topk(top_k)
        out[batch, place] += best.softmax(0) @ memory.values.weight[head * memory.num_keys + key]
    return out


@pytest.mark.parametrize(("top_k", "heads"), [(1, 1), (4, 1), (4, 2), (5, 3), (9, 2), (25, 1)])
def test_reads_the_best_of_all_keys(top_k, heads):
    memory = memory_of(top_k=top_k, heads=heads)
    nn.init.normal_(memory.keys_a.weight)
    nn.init.normal_(memory.keys_b.weight)
    q = torch.randn(2, 3, WIDTH)
    torch.testing.assert_close(memory(q), read_by_scoring_every_key(memory, q, top_k), atol=1e-6, rtol=1e-5)


def test_initial_weights_follow_the_specification():
    memory = memory_of(num_keys=1024, width=256)
    for weights in (memory.keys_a.weight, memory.keys_b.weight, memory.values.weight):
        assert abs(weights.mean()) < 0.001
        assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert {name: tuple(p.shape) for name, p in memory.named_parameters()} == {
        "query.weight": (256, 256),
        "keys_a.weight": (2, 32, 64),
        "keys_b.weight": (2, 32, 64),
        "values.weight": (2048, 256),
    }


def test_every_parameter_and_the_input_get_the_right_gradient():
    memory = memory_of().double()
    q = torch.randn(1, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, *_: memory(q), (q, *memory.parameters()))


@pytest.mark.parametrize(("bags", "reads"), [(1, 1), (3, 2), (40, 5)])
def test_the_table_gets_the_gradient_of_the_rows_that_were_read(bags, reads):
    memory = memory_of(num_keys=16, heads=1)
    row = torch.randint(12, (1, bags, reads))
    weight = torch.randn(1, bags, reads, requires_grad=True)
    plain = nn.functional.embedding_bag(
        row[0], memory.values.weight, per_sample_weights=weight[0], mode="sum"
    ).unsqueeze(0)
    read = memory.read(row, weight)
    torch.testing.assert_close(read, plain)
    outer = torch.randn_like(read)
    found, expected = (torch.autograd.grad(out, (memory.values.weight, weight), outer) for out in (read, plain))
    torch.testing.assert_close(found, expected)
    assert (found[0][12:] == 0).all()


def test_frozen_values_leave_gradients_to_keys():
    memory = memory_of()
    memory.values.weight.requires_grad_(False)
    memory(torch.randn(1, 3, WIDTH)).sum().backward()
    assert memory.values.weight.grad is None and memory.keys_a.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_reads_and_learns_in_every_type(dtype):
    memory = memory_of().to(dtype)
    out = memory(torch.randn(2, 5, WIDTH, dtype=dtype))
    out.sum().backward()
    assert out.dtype == dtype
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in memory.parameters())


def test_autocast_keeps_float32_values():
    memory = memory_of()
    q = torch.randn(2, 5, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        out = memory(q)
        out.sum().backward()
    assert out.dtype == torch.float32
    assert memory.values.weight.grad.dtype == torch.float32


def test_meta_device_needs_no_memory():
    with torch.device("meta"):
        memory = ProductKeyMemory(ProductKeyMemory.Config(num_keys=65536), ModelShape(width=4096, levels=2))
        assert memory(torch.empty(2, 5, 4096)).shape == (2, 5, 4096)


def test_headline_size():
    with torch.device("meta"):
        memory = ProductKeyMemory(ProductKeyMemory.Config(), ModelShape(width=2048, levels=5))
    assert sum(parameter.numel() for parameter in memory.parameters()) == 38_010_880


@pytest.mark.parametrize("options", [{}, {"heads": 2, "num_keys": 25, "top_k": 9}])
def test_keeps_the_contract_of_a_memory(options):
    check_component(ProductKeyMemory, ProductKeyMemory.Config(**{"num_keys": 64, "top_k": 4} | options))


@pytest.mark.parametrize("kind", ["product_key", "fast_weight_product_key"])
@pytest.mark.parametrize(
    ("fields", "width", "named"),
    [
        ({"num_keys": 26}, 24, ["num_keys=26", "25 or 36"]),
        ({"num_keys": 25, "top_k": 26}, 24, ["top_k=26", "num_keys=25"]),
        ({"top_k": 0}, 24, ["top_k"]),
        ({"heads": 0}, 24, ["heads"]),
        ({"heads": 5}, 24, ["heads=5", "model.width=24"]),
        ({"heads": 8}, 24, ["heads=8", "model.width=24", "odd"]),
        ({"heads": 1}, 25, ["heads=1", "model.width=25", "odd"]),
    ],
)
def test_refused_when_the_configuration_is_read(kind, fields, width, named):
    data = {"vocabulary_size": 11, "width": width, "memories": [{"kind": kind, "num_keys": 1024} | fields]}
    with pytest.raises(ConfigurationError) as refused:
        parse(ModelConfig, data)
    assert all(part in str(refused.value) for part in ["memories[0]", *named]), refused.value


@pytest.mark.parametrize("component", [ProductKeyMemory, FastWeightProductKeyMemory])
def test_more_reads_than_keys_a_codebook_are_allowed(component):
    memory = component(component.Config(num_keys=25, top_k=9), SHAPE)
    assert memory.reads == 9
