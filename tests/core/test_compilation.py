"""torch.compile takes whole models as one graph, for training and for streaming, and changes no number."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from wavelet_core.state import leaves

FAST_WEIGHTS = {"kind": "fast_weight_product_key", "num_keys": 16, "top_k": 3}
CASES = {
    "everything_else": {
        "bypass": "ema",
        "shared_wavelet": False,
        "wavelet": {"kind": "multi_basis", "bases": [{"crawl": 3}, {}]},
        "mixer": {"kind": "deep_gated_spectral", "parametrization": "spectral_norm"},
        "transform": "learned_butterfly",
        "block": {"decomposition_norm": True, "reconstruction_norm": True},
        "cross_window_state": True,
        "loop_iterations": 2,
        "layers": 1,
        "levels": 1,
    },
    "learning_while_reading": {
        "memories": [FAST_WEIGHTS | {"inference_updates": True, "chunk_size": 4, "update_learning_rate": 2.0}],
        "layers": 1,
    },
}


@pytest.fixture(scope="module")
def small_headline(headline):
    """Tracing takes long: everything that the headline switches on, with few levels."""
    return headline | {"levels": 1, "mixer": {"routing": True, "widths": [1, 0.5]}}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def compiled(function, backend="eager"):
    """The function as one graph: traced alone, or with its backward pass ("aot_eager")."""
    return torch.compile(function, fullgraph=True, backend=backend)


def test_the_headline_block_compiles_for_training(make_model, small_headline):
    block = make_model(small_headline).blocks[1].train()
    x, embedding, mean = torch.randn(3, 2, 20, 12).unbind(0)
    results = []
    for run in (block, compiled(block, "aot_eager")):
        block.zero_grad()
        out, new_mean = run(x, embedding, mean)
        (out.square().mean() + new_mean.square().mean()).backward()
        results.append([out, new_mean, *(parameter.grad.clone() for parameter in block.parameters())])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)


def test_the_headline_block_compiles_for_inference(make_model, small_headline):
    block = make_model(small_headline).blocks[1]
    x, embedding, mean = torch.randn(3, 2, 20, 12).unbind(0)
    states = [block.new_state(2, torch.device("cpu"), torch.float32) for _ in range(2)]
    results = []
    with torch.no_grad():
        for run, state in zip((block, compiled(block)), states, strict=True):
            results.append([run(x[:, a:b], embedding[:, a:b], mean[:, a:b], state) for a, b in ((0, 10), (10, 20))])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dict(leaves(states[1])), dict(leaves(states[0])), atol=1e-5, rtol=1e-4)


def test_the_headline_model_compiles_with_its_loss(make_model, small_headline, tokens):
    model = make_model(small_headline).train()
    losses = []
    for function in (model.loss, compiled(model.loss)):
        model.zero_grad()
        loss = function(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        losses.append([loss, model.embedding.weight.grad.clone()])
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-4)


def test_recomputed_levels_compile(make_model, small_headline, tokens):
    model = make_model(small_headline | {"gradient_checkpointing": "lifting"}).train()
    gradients = []
    for function in (model.loss, compiled(model.loss, "aot_eager")):
        model.zero_grad()
        function(tokens[:, :-1], tokens[:, 1:]).backward()
        gradients.append(model.embedding.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_stochastic_depth_is_one_graph_and_skips_what_it_skips_without_the_compiler(make_model, tokens):
    losses = []
    for compile_it in (False, True):
        model = make_model({"layers": 3, "levels": 1, "stochastic_depth": 0.9}).train()
        function = compiled(model.loss, "aot_eager") if compile_it else model.loss
        losses.append([])
        for _ in range(6):
            loss = function(tokens[:, :-1], tokens[:, 1:])
            model.zero_grad()
            loss.backward()
            losses[-1].append((loss.detach(), model.embedding.weight.grad.clone()))
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-4)
    assert len({round(loss.item(), 4) for loss, _ in losses[0]}) > 1, "nothing was ever skipped"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_streaming_compiles_with_every_stateful_option(make_model, tokens, options):
    model = make_model(options)
    states = [model.new_state(2) for _ in range(2)]
    results = []
    with torch.no_grad():
        for run, state in zip((model, compiled(model)), states, strict=True):
            results.append([run(part, state) for part in (tokens[:, :24], tokens[:, 24:])])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)


HIDING = re.compile(r"\b(compiler|_dynamo)\b.*\b(disable|graph_break|allow_in_graph)\b|suppress_errors")


@pytest.mark.parametrize("package", ["wavelet_core", "wavelet_memory", "wavelet_quant", "wavelet_train"])
def test_nothing_is_hidden_from_the_compiler(package):
    sources = list(Path(importlib.import_module(package).__file__).parent.rglob("*.py"))
    assert any("import torch" in file.read_text("utf-8") for file in sources)
    hidden = [
        f"{file}: {line}" for file in sources for line in file.read_text("utf-8").splitlines() if HIDING.search(line)
    ]
    assert not hidden, "\n".join(hidden)


@pytest.mark.parametrize(
    "line",
    [
        "@torch.compiler.disable",
        "from torch.compiler import disable",
        "torch._dynamo.graph_break()",
        "torch.compiler.allow_in_graph(function)",
    ],
)
def test_what_hides_from_the_compiler_would_be_seen(line):
    assert HIDING.search(line)
