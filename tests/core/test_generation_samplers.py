"""Samplers: the original's numbers, what each keeps, and draws that follow the distribution."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wavelet_core import build
from wavelet_core.config import ConfigurationError, parse
from wavelet_core.generation import (
    GenerationSettings,
    clean_spacing,
    text_drift,
    text_metrics,
)
from wavelet_core.generation.samplers.coherence import signature
from wavelet_core.generation.samplers.temperature import entropy_of
from wavelet_core.generation.sampling import RowSeed, SamplerChain, draw
from wavelet_core.tokenizers import TokenIds

ORIGINAL = Path(__file__).parents[1] / "parity" / "cases" / "samplers.json"


@pytest.fixture(scope="session")
def original():
    return json.loads(ORIGINAL.read_text())


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def sampler_of(model, kind, **fields):
    settings = parse(GenerationSettings, {"samplers": [{"kind": kind, **fields}]})
    return build("sampler", settings.samplers[0], model)


def apply(model, logits, kind, prompts=None, **fields):
    sampler = sampler_of(model, kind, **fields)
    prompts = [torch.tensor([0])] * len(logits) if prompts is None else prompts
    return sampler(logits, sampler.start(prompts))


def random_logits(seed, rows=2, size=29, spread=3.0):
    return spread * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def test_repetition_penalty_matches_the_original(make_model, original):
    model = make_model({"vocabulary_size": len(original["logits"][0])})
    logits = torch.tensor(original["logits"])
    prompts = [torch.tensor(ids) for ids in original["ids"]]
    for penalty, expected in original["repetition_penalty"].items():
        shaped = apply(model, logits, "repetition_penalty", prompts, penalty=float(penalty))
        torch.testing.assert_close(shaped, torch.tensor(expected))


def test_top_p_keeps_what_the_original_keeps(model, original):
    logits = torch.tensor(original["logits"])
    for p, kept in original["top_p_kept"].items():
        shaped = apply(model, logits, "top_p", p=float(p))
        assert shaped.isfinite().int().tolist() == kept


def test_entropy_adaptive_temperature_matches_the_original(model, original):
    logits = torch.tensor(original["logits"][:1])
    for case in original["entropy_adaptive"]:
        sampler = sampler_of(model, "entropy_adaptive", minimum=case["t_min"], maximum=case["t_max"])
        assert entropy_of(logits).item() == pytest.approx(case["entropy_nats"], abs=1e-6)
        assert sampler.temperature(logits).item() == pytest.approx(case["temperature"], abs=1e-6)
        torch.testing.assert_close(sampler(logits, {}), logits / case["temperature"])


def test_metrics_match_the_original(original):
    case = original["metrics"]
    measured = text_metrics(case["token_ids"], case["log_probs"], case["entropies"])
    assert measured == pytest.approx(case["expected"])


def test_spacing_cleanup_matches_the_original(original):
    for case in original["clean_spacing"]:
        assert clean_spacing(case["before"]) == case["after"]


def test_drift_matches_the_original(original):
    case = original["wavelet_coherence"]
    embedding = torch.tensor(case["embedding"])
    prompt, recent = (embedding[torch.tensor(case[ids])].flatten(0, -2) for ids in ("prompt_ids", "recent_ids"))
    measured = text_drift(prompt, recent, case["levels"])
    assert measured == pytest.approx(case["drift"], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(model, temperature):
    logits = random_logits(0)
    torch.testing.assert_close(apply(model, logits, "temperature", temperature=temperature), logits / temperature)


def test_temperature_zero_leaves_the_best_token(model):
    logits = random_logits(1)
    shaped = apply(model, logits, "temperature", temperature=0)
    assert shaped.isfinite().sum(-1).tolist() == [1, 1]
    assert torch.equal(shaped.argmax(-1), logits.argmax(-1))


def test_top_k_keeps_the_best_k(model):
    logits = random_logits(2)
    shaped = apply(model, logits, "top_k", k=5)
    kept = shaped.isfinite()
    assert kept.sum(-1).tolist() == [5, 5]
    assert (logits.masked_fill(~kept, torch.inf).amin(-1) > logits.masked_fill(kept, -torch.inf).amax(-1)).all()
    assert torch.equal(shaped[kept], logits[kept])
    assert torch.equal(apply(model, logits, "top_k", k=1000), logits)


@given(seed=st.integers(0, 1000), p=st.floats(0.01, 1.0), size=st.sampled_from([2, 29, 70, 3000]), flat=st.booleans())
def test_top_p_keeps_the_smallest_set_that_reaches_p(model, seed, p, size, flat):
    logits = random_logits(seed, size=size, spread=0.1 if flat else 3.0)
    kept = apply(model, logits, "top_p", p=p).isfinite()
    for row, mask in zip(logits.double().softmax(-1), kept, strict=True):
        chosen = row[mask].sort(descending=True).values
        assert chosen.min() >= row[~mask].max() if (~mask).any() else True
        assert chosen.sum() >= p - 1e-5
        assert chosen[:-1].sum() < p + 1e-5


def test_min_p_keeps_what_is_close_to_the_best(model):
    logits = random_logits(3)
    probabilities = logits.softmax(-1)
    kept = apply(model, logits, "min_p", p=0.1).isfinite()
    assert torch.equal(kept, probabilities >= 0.1 * probabilities.amax(-1, keepdim=True))


def test_repetition_penalty_remembers_the_tokens_that_were_given(model):
    sampler = sampler_of(model, "repetition_penalty", penalty=2.0)
    memory = sampler.start([torch.tensor([3]), torch.tensor([4, 5])])
    seen = memory["seen"]
    sampler.observe(torch.tensor([7, 4]), memory)
    assert memory["seen"] is seen
    assert [row.nonzero().flatten().tolist() for row in seen] == [[3, 7], [4, 5]]
    logits = random_logits(4)
    shaped = sampler(logits, memory)
    assert torch.equal(shaped[~seen], logits[~seen])
    assert (shaped[seen] < logits[seen]).all()


@given(length=st.integers(1, 70), levels=st.integers(1, 7), seed=st.integers(0, 100))
def test_signature_is_the_mean_of_the_haar_approximation(length, levels, seed):
    rows = torch.randn(1, length, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    approximation = rows
    for level in range(levels):
        delayed = torch.cat([torch.zeros(1, 2**level, 4), approximation], dim=1)[:, :length]
        approximation = (approximation + delayed) / math.sqrt(2)
    expected = approximation.mean(1).float()
    measured = signature(rows, torch.tensor([length]), levels)
    assert torch.cosine_similarity(measured, expected).item() == pytest.approx(1, abs=1e-4)


def test_coherence_sharpens_only_a_text_that_has_drifted(model):
    sampler = sampler_of(model, "wavelet_coherence", window=4, threshold=0.2, strength=2.0)
    prompt = torch.tensor([1, 2, 3])
    memory = sampler.start([prompt, prompt])
    logits = random_logits(5)
    assert sampler.drift(memory).tolist() == pytest.approx([0, 0], abs=1e-5)
    torch.testing.assert_close(sampler(logits, memory), logits)
    for same, other in [(1, 20), (2, 21), (3, 22), (3, 23)]:
        sampler.observe(torch.tensor([same, other]), memory)
    drift = sampler.drift(memory)
    assert drift[1] > 0.2
    expected = logits * (1 + 2 * (drift - 0.2).clamp(min=0)).unsqueeze(-1)
    torch.testing.assert_close(sampler(logits, memory), expected)
    embeddings = model.embed(torch.tensor([[20, 21, 22, 23], [1, 2, 3, 0]])).detach()
    assert drift[1].item() == pytest.approx(text_drift(embeddings[1, :3], embeddings[0]), abs=1e-5)


def test_samplers_apply_in_the_order_of_the_list(model):
    logits = torch.tensor([[2.0, 1.0, 0.0] + [-50.0] * 26])
    hot, narrow = {"kind": "temperature", "temperature": 4.0}, {"kind": "top_p", "p": 0.6}
    kept = []
    for order in ([hot, narrow], [narrow, hot]):
        chain = SamplerChain(parse(GenerationSettings, {"samplers": order}).samplers, model)
        kept.append(chain(logits, chain.start([torch.tensor([0])])).isfinite().sum().item())
    assert kept == [2, 1]


@pytest.mark.parametrize(
    "sampler",
    [
        {"kind": "temperature", "temperature": -1},
        {"kind": "temperature", "temperature": float("nan")},
        {"kind": "top_p", "p": 0},
        {"kind": "top_p", "p": 1.5},
        {"kind": "top_k", "k": 0},
        {"kind": "min_p", "p": -0.1},
        {"kind": "repetition_penalty", "penalty": 0},
        {"kind": "entropy_adaptive", "minimum": 2, "maximum": 1},
        {"kind": "top_q"},
        {"kind": "top_k", "p": 1},
    ],
)
def test_nonsense_is_refused(sampler):
    with pytest.raises(ConfigurationError, match="samplers"):
        parse(GenerationSettings, {"samplers": [sampler]})


def test_draws_follow_the_distribution():
    logits = random_logits(6, rows=1, size=8, spread=1.5)
    count = 4000
    tokens = draw(logits.expand(count, -1), [(index + 0.5) / count for index in range(count)])
    frequencies = torch.bincount(torch.tensor(tokens), minlength=8) / count
    torch.testing.assert_close(frequencies, logits[0].softmax(-1), atol=1.5 / count, rtol=0)


def test_a_token_without_probability_is_never_drawn():
    logits = torch.full((3, 6), -torch.inf)
    logits[:, 2] = 0.0
    assert draw(logits, [0.0, 0.5, 1 - 2**-52]) == [2, 2, 2]


def test_a_row_of_logits_that_are_not_finite_draws_nothing_and_disturbs_no_other():
    rows = torch.tensor([[0.0, torch.nan], [0.0, 50.0], [-torch.inf, -torch.inf]])
    assert draw(rows, [0.5] * 3) == [-1, 1, -1]


def test_padding_of_the_vocabulary_is_never_drawn(model):
    chain = SamplerChain([], model, TokenIds(TokenIds.Config(vocabulary_size=20)))
    logits = torch.zeros(1, 29)
    logits[0, 25] = 100.0
    shaped = chain(logits, chain.start([torch.tensor([0])]))
    assert shaped.isfinite().sum() == 20 and not shaped[0, 20:].isfinite().any()


def test_row_numbers_are_uniform_and_their_own():
    numbers = torch.tensor([[RowSeed(seed).uniform(position) for position in range(2000)] for seed in (0, 1)])
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers[0], bins=20, min=0, max=1)
    assert ((counts - 100) ** 2 / 100).sum() < 44  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(torch.corrcoef(numbers)[0, 1]) < 0.08
    assert RowSeed(0).uniform(5) == RowSeed(0).uniform(5) != RowSeed(0, stream=1).uniform(5)
