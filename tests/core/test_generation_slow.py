"""Long texts: streaming is exact over 10,000 tokens, and neither memory nor state grows. Run with `pytest -m slow`."""

import itertools
import random
import subprocess
import sys

import pytest
import torch

from wavelet_core import State
from wavelet_core.config import parse
from wavelet_core.generation import GenerationSettings, generate

LENGTH = 10_000

pytestmark = pytest.mark.slow

MEMORY_GROWTH = """
import itertools, pathlib, torch
from wavelet_core import ModelConfig, build_model
from wavelet_core.config import parse
from wavelet_core.generation import GenerationSettings, NgramDrafts, generate

torch.set_num_threads(1)
content = {"vocabulary_size": 64, "width": 32, "levels": 4, "layers": 1, "wavelet": {"crawl": 3}}
model = build_model(parse(ModelConfig, content))
samplers = ["repetition_penalty", "wavelet_coherence", {"kind": "top_p", "p": 0.9}]
draft = NgramDrafts(history=500) if DRAFT else None
tokens = generate(model, [[1]], parse(GenerationSettings, {"tokens": None, "samplers": samplers}), draft=draft)

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

def go_on(count):
    for _ in itertools.islice(tokens, count):
        pass

go_on(1000)
before = resident()
go_on(9000)
print(resident() - before)
"""


@torch.inference_mode()
def read(model, tokens, lengths, moved=lambda state: state):
    """Logits of tokens read in chunks; `moved` replaces the state after each of them."""
    state, logits = model.new_state(len(tokens)), []
    for chunk in tokens.split(lengths, 1):
        logits.append(model(chunk, state))
        state = moved(state)
    return torch.cat(logits, dim=1)


def test_streaming_matches_parallel_over_10000_tokens(make_model, architecture, tmp_path):
    """In chunks of any size, and with a state that is cloned, saved, loaded and picked out of a batch on the way."""

    def saved_and_loaded(state):
        state.save(tmp_path / "state.safetensors")
        return model.new_state(1).load(tmp_path / "state.safetensors")

    def picked(state):
        return State.join([model.new_state(1), state, model.new_state(1)])[[1]]

    moves = itertools.cycle([lambda state: state, State.clone, saved_and_loaded, picked])
    model = make_model(architecture)
    tokens = torch.randint(29, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    cuts = random.Random(3)
    places = sorted({0, LENGTH, *range(5000, 5040), *cuts.sample(range(1, LENGTH), 30)})
    chunks = [stop - start for start, stop in itertools.pairwise(places)]
    streamed = read(model, tokens, chunks, lambda state: next(moves)(state))
    torch.testing.assert_close(streamed, read(model, tokens, [LENGTH]), atol=1e-4, rtol=0)


def test_one_token_at_a_time_matches_parallel_over_10000_tokens(make_model, headline):
    model = make_model(headline)
    settings = parse(GenerationSettings, {"tokens": LENGTH, "metrics": True})
    events = list(generate(model, [[1, 2, 3]], settings))
    text = torch.tensor([[1, 2, 3, *(event.token for event in events)]])
    with torch.inference_mode():
        parallel = model(text)[0, 2:-1].log_softmax(-1)
    chosen = parallel.gather(-1, text[0, 3:, None]).squeeze(-1)
    streamed = torch.tensor([event.log_probability for event in events])
    torch.testing.assert_close(streamed, chosen, atol=1e-4, rtol=0)


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads resident memory from /proc")
def test_memory_does_not_grow_with_the_text(draft):
    program = f"DRAFT = {draft}\n{MEMORY_GROWTH}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 2_000_000
