"""Speculative decoding: the same text as plain decoding, in fewer passes."""

from collections import Counter

import pytest
import torch

from wavelet_core.config import ConfigurationError, parse
from wavelet_core.generation import GenerationSettings, ModelDrafts, NgramDrafts, collect, generate
from wavelet_core.generation.drafts import Draft, DraftSource, NgramDraft
from wavelet_core.generation.speculative import Pace

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [9], [1, 2, 3, 4] * 4]
GREEDY = [{"kind": "temperature", "temperature": 0}]
SAMPLED = [
    {"kind": "repetition_penalty"},
    {"kind": "wavelet_coherence", "window": 8},
    {"kind": "entropy_adaptive"},
    {"kind": "top_p", "p": 0.95},
]


def run(model, prompts=PROMPTS, seeds=None, draft=None, **fields):
    settings = parse(GenerationSettings, {"tokens": 40, **fields})
    return collect(generate(model, prompts, settings, seeds=seeds, draft=draft))


@pytest.fixture(scope="module")
def model(make_model, headline):
    return make_model(headline)


@pytest.fixture(scope="module")
def updating(make_model):
    memory = {"kind": "fast_weight_product_key", "num_keys": 16, "top_k": 3, "chunk_size": 4}
    return make_model({"memories": [memory | {"inference_updates": True, "update_learning_rate": 2.0}]})


class RandomDrafts(DraftSource, Draft):
    """Guesses that are mostly wrong, and sometimes right by chance."""

    def __init__(self, size=29):
        self.size, self.generator = size, torch.Generator().manual_seed(0)

    def start(self, prompt):
        return self

    def extend(self, tokens):
        pass

    def propose(self, count, sampler):
        return torch.randint(self.size, (count,), generator=self.generator).tolist()


@pytest.mark.parametrize("samplers", [GREEDY, SAMPLED, []], ids=["greedy", "samplers", "plain"])
@pytest.mark.parametrize("kind", ["ngram", "itself", "smaller", "random"])
def test_the_text_is_that_of_plain_decoding(make_model, model, kind, samplers):
    draft = {
        "ngram": lambda: NgramDrafts(shortest=1),
        "itself": lambda: ModelDrafts(model),
        "smaller": lambda: ModelDrafts(make_model(seed=1)),
        "random": RandomDrafts,
    }[kind]()
    plain = run(model, seeds=[4, 5, 6], samplers=samplers, metrics=True)
    speculative = run(model, seeds=[4, 5, 6], samplers=samplers, metrics=True, draft=draft)
    for one, other in zip(plain, speculative, strict=True):
        assert one.tokens == other.tokens
        assert one.finish == other.finish
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


def test_the_text_is_that_of_plain_decoding_with_fast_weight_updates(updating):
    for draft in (NgramDrafts(shortest=1), RandomDrafts()):
        assert run(updating, samplers=SAMPLED, draft=draft) == run(updating, samplers=SAMPLED)


def test_a_text_ends_in_the_middle_of_a_guess(model):
    plain = run(model, [PROMPTS[2]], samplers=GREEDY)[0].tokens
    stop = plain[20]
    ended = run(model, [PROMPTS[2]], samplers=GREEDY, stop_tokens=[stop], draft=ModelDrafts(model))[0]
    assert ended.tokens == plain[: plain.index(stop) + 1]


def test_sampled_tokens_have_the_models_distribution(make_model):
    """Chi-square over the second and third tokens of texts that are drawn under seeds of their own."""
    model = make_model({"vocabulary_size": 3, "width": 4, "layers": 1, "levels": 1})
    texts = torch.cartesian_prod(*[torch.arange(3)] * 3)
    with torch.no_grad():
        model.head.weight.mul_(0.5)
        logits = model(torch.cat([torch.tensor([[1, 2]]).expand(27, -1), texts], dim=1))
    probabilities = logits[:, 1:4].log_softmax(-1).gather(-1, texts.unsqueeze(-1)).sum((1, 2)).exp()
    expected = probabilities.view(3, 9).sum(0)
    count = 600
    rows = run(model, [[1, 2]] * count, seeds=range(count), tokens=3, draft=RandomDrafts(3))
    pairs = Counter(row.tokens[1] * 3 + row.tokens[2] for row in rows)
    statistic = sum((pairs[pair] - count * p) ** 2 / (count * p) for pair, p in enumerate(expected.tolist()))
    assert expected.min() * count > 5
    assert statistic < 26.1  # 8 degrees of freedom, p = 0.001


def test_right_guesses_save_passes(model, monkeypatch):
    passes = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens, state: passes.append(tokens.shape[1]) or hidden(tokens, state))
    plain = run(model, PROMPTS[:1], samplers=GREEDY, tokens=200)
    passes.clear()
    assert run(model, PROMPTS[:1], samplers=GREEDY, tokens=200, draft=NgramDrafts()) == plain
    # Greedy decoding of a small model soon repeats itself.
    assert len(passes) < 200 / 3


def measured_pace(cost, lengths=range(1, 17)):
    """A pace that knows what chunks cost: the first pass of a length does not count."""
    pace = Pace()
    for length in lengths:
        for _ in range(2):
            pace.passed(length, cost(length))
    return pace


def test_pace_does_not_guess_before_plain_passes_are_measured_or_without_evidence():
    pace = Pace()
    assert pace.next_length(evidence=5) == 0
    pace.passed(1, 60.0)  # compiling, say
    assert pace.next_length(evidence=5) == 0
    pace.passed(1, 1.0)
    assert pace.next_length(evidence=5) == 1
    assert pace.next_length(evidence=0) == 0


def test_pace_goes_on_to_longer_chunks_while_guesses_are_right():
    pace = Pace()
    lengths = []
    for _ in range(40):
        guessed = pace.next_length(evidence=5)
        pace.passed(1 + guessed, 1 + 0.05 * guessed)
        if guessed:
            pace.verified(5, guessed, accepted=guessed)
        lengths.append(guessed)
    assert lengths == sorted(lengths)
    assert lengths[-1] == Pace.longest_chunk - 1


@pytest.mark.parametrize(("cost_of_two", "worth_it"), [(1.4, True), (1.6, False)])
def test_pace_goes_by_the_clock(cost_of_two, worth_it):
    pace = measured_pace(lambda length: 1.0 if length == 1 else 10.0 if length > 2 else cost_of_two)
    # An even chance of one more token: 1.5 tokens a pass.
    assert pace.next_length(evidence=1) == int(worth_it)


def test_pace_guesses_less_on_weaker_evidence():
    pace = measured_pace(lambda length: 1 + 0.1 * length)
    for _ in range(50):
        pace.verified(evidence=1, guessed=1, accepted=0)
        pace.verified(evidence=5, guessed=1, accepted=1)
    assert pace.next_length(evidence=1) == 0
    assert pace.next_length(evidence=5) == Pace.longest_chunk - 1


def test_pace_leaves_room_for_tokens_that_are_read_anyway():
    pace = measured_pace(lambda length: 1.0)
    assert pace.next_length(5, unread=10) == Pace.longest_chunk - 10
    assert pace.next_length(5, unread=20) == 0


def test_a_text_that_cannot_be_guessed_is_hardly_guessed_at():
    pace = measured_pace(lambda length: 1 + 0.2 * (length - 1))
    seconds = 0.0
    for _ in range(1000):
        guessed = pace.next_length(evidence=1)
        seconds += 1 + 0.2 * guessed
        if guessed:
            pace.verified(1, guessed, accepted=0)
    assert seconds < 1.1 * 1000


@pytest.mark.parametrize("goes_back", [True, False])
def test_accepted_tokens_are_read_again_only_by_a_state_that_cannot_go_back(model, updating, monkeypatch, goes_back):
    unread = []
    next_length = Pace.next_length
    monkeypatch.setattr(Pace, "next_length", lambda pace, *given: unread.append(given[1]) or next_length(pace, *given))
    run(model if goes_back else updating, PROMPTS[:1], tokens=60, draft=RandomDrafts())
    assert len(unread) > 30
    assert (max(unread) == 1) == goes_back


def test_ngram_draft_continues_as_before():
    draft = NgramDraft(longest=3, shortest=2, history=100)
    draft.extend([1, 2, 3, 4, 5, 9, 1, 2, 3])
    assert draft.propose(3, None) == [4, 5, 9]
    draft.extend([7])
    assert draft.propose(3, None) == []
    draft.extend([2, 3])
    assert draft.propose(1, None) == [7]


def test_ngram_draft_prefers_long_matches_and_then_recent_ones():
    draft = NgramDraft(longest=3, shortest=1, history=100)
    draft.extend([1, 2, 3, 8, 2, 3, 9, 1, 2, 3])
    assert draft.propose(1, None) == [8]
    draft.extend([5, 3])
    assert draft.propose(1, None) == [5]


def test_ngram_draft_guesses_a_loop_at_any_length():
    draft = NgramDraft(longest=2, shortest=2, history=100)
    draft.extend([5, 6, 7, 5, 6])
    assert draft.propose(8, None) == [7, 5, 6, 7, 5, 6, 7, 5]


def test_ngram_draft_remembers_a_bounded_history():
    draft = NgramDraft(longest=2, shortest=1, history=50)
    for token in range(1000):
        draft.extend([token])
    assert len(draft.tokens) <= 100 and len(draft.continuations) <= 200
    draft.extend([990])
    assert draft.propose(2, None) == [991, 992]


@pytest.mark.parametrize(
    ("fields", "draft", "message"),
    [
        ({"context": "window"}, NgramDrafts(), "context=window"),
        ({"lookahead": {}}, NgramDrafts(), "lookahead"),
        ({}, 30, "draft model has model.vocabulary_size=30"),
    ],
)
def test_what_cannot_be_verified_is_refused(make_model, model, fields, draft, message):
    if isinstance(draft, int):
        draft = ModelDrafts(make_model({"vocabulary_size": draft}))
    with pytest.raises(ConfigurationError, match=message):
        run(model, draft=draft, **fields)


def test_ngram_sizes_are_checked():
    with pytest.raises(ConfigurationError, match="shortest=4 <= longest=3"):
        NgramDrafts(longest=3, shortest=4)
