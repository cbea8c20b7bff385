"""Batches: requests join and leave between tokens, and no text depends on what else is in the batch."""

import random

import pytest
import torch
from torch import nn

from wavelet_core.config import ConfigurationError, parse
from wavelet_core.generation import (
    Batch,
    DecodingSession,
    GenerationError,
    GenerationSettings,
    ModelDrafts,
    NgramDrafts,
    Request,
    generate,
)
from wavelet_core.state import leaves
from wavelet_core.tokenizers import BytesTokenizer

SLOTS = 16
SAMPLERS = [
    {"kind": "temperature", "temperature": 0},
    {"kind": "temperature", "temperature": 0.8},
    {"kind": "repetition_penalty"},
    {"kind": "wavelet_coherence", "window": 8},
    {"kind": "entropy_adaptive"},
    {"kind": "top_k", "k": 9},
    {"kind": "top_p", "p": 0.9},
    {"kind": "min_p", "p": 0.01},
]


def settings_of(**fields):
    return parse(GenerationSettings, {"tokens": 20, **fields})


@pytest.fixture(scope="module")
def model(make_model, headline):
    return make_model(headline | {"context_length": 6})


@pytest.fixture(scope="module")
def learning(make_model):
    """A model whose memories learn while it reads, each row by itself."""
    memory = {"kind": "fast_weight_product_key", "num_keys": 16, "top_k": 3, "chunk_size": 4}
    return make_model({"memories": [memory | {"inference_updates": True, "update_learning_rate": 2.0}], "layers": 1})


def random_request(chance, model):
    """A request like those of many different users."""
    fields = {
        "tokens": chance.randint(1, 25),
        "samplers": chance.sample(SAMPLERS, chance.randint(0, 3)),
        "context": chance.choice(["stream"] * 4 + ["hop:3", "window"]),
        "stop_tokens": chance.sample(range(29), chance.randint(0, 1)),
        "metrics": chance.random() < 0.3,
    }
    draft = None
    kind = chance.random()
    greedy = any(sampler == SAMPLERS[0] for sampler in fields["samplers"])
    if kind < 0.15 and not greedy:
        fields["lookahead"] = {"candidates": chance.randint(2, 3), "depth": chance.randint(1, 2)}
    elif kind < 0.35 and fields["context"] == "stream":
        draft = NgramDrafts() if kind < 0.25 else ModelDrafts(model)
    prompt = [chance.randrange(29) for _ in range(chance.randint(1, 12))]
    return Request(prompt, settings_of(**fields), seed=chance.randrange(1000), draft=draft)


def alone(model, request):
    """A request's text in a batch of its own with as many slots."""
    batch = Batch(model, SLOTS)
    batch.add(request)
    tokens = []
    while batch.requests:
        tokens += [(token.position, token.token, token.finish) for token in batch.step()]
    return tokens


@pytest.mark.parametrize(("name", "count"), [("model", 200), ("learning", 40)])
def test_requests_that_join_and_leave_at_random_write_what_they_write_alone(request, name, count):
    model, chance = request.getfixturevalue(name), random.Random(5)
    wanted = [random_request(chance, model) for _ in range(count)]
    batch, texts, places, cancelled = Batch(model, SLOTS), {}, {}, set()
    waiting = list(range(count))
    while waiting or batch.requests:
        while waiting and batch.free and chance.random() < 0.7:
            place = waiting.pop(0)
            places[batch.add(wanted[place])] = place
        if batch.requests and chance.random() < 0.1:
            number = chance.choice(list(batch.requests))
            assert batch.cancel(number) and not batch.cancel(number)
            cancelled.add(places[number])
        for token in batch.step():
            texts.setdefault(places[token.row], []).append((token.position, token.token, token.finish))
    assert len(cancelled) > count / 40
    for place, single in enumerate(wanted):
        text, whole = texts.get(place, []), alone(model, single)
        assert text == (whole[: len(text)] if place in cancelled else whole), (place, single)


def test_slots_are_filled_and_given_back(model):
    batch = Batch(model, 2)
    first, second = batch.add(Request([1], settings_of(tokens=1))), batch.add(Request([2], settings_of(tokens=None)))
    assert (batch.slots, batch.free, list(batch.requests)) == (2, 0, [first, second])
    with pytest.raises(GenerationError, match="all 2 slots are taken"):
        batch.add(Request([3]))
    assert [token.finish for token in batch.step()] == ["length", None]
    assert batch.free == 1 and batch.requests.keys() == {second}
    assert batch.cancel(second) and not batch.cancel(first)
    assert batch.step() == [] and batch.free == 2


def test_joining_and_leaving_allocates_no_state(model):
    batch = Batch(model, 3)
    for prompt in ([1], [2, 3], [4, 5, 6]):
        batch.add(Request(prompt, settings_of(tokens=None)))
    batch.step()
    places = {name: tensor.data_ptr() for name, tensor in leaves(batch._contexts.state.tree)}
    for _ in range(4):
        batch.cancel(next(iter(batch.requests)))
        batch.step()
        batch.add(Request([7, 8], settings_of(tokens=None)))
        batch.step()
    assert {name: tensor.data_ptr() for name, tensor in leaves(batch._contexts.state.tree)} == places


def test_shrinking_gives_the_free_slots_up_and_changes_no_text(model):
    texts = []
    for shrink in (False, True):
        batch = Batch(model, 8)
        lengths = [3, 9, 4, 12, 5, 2, 20, 7]
        for seed, length in enumerate(lengths):
            samplers = [SAMPLERS[2 + seed % 3]]
            context = "hop:2" if seed % 2 else "stream"
            batch.add(Request([seed, 1], settings_of(tokens=length, samplers=samplers, context=context), seed=seed))
        tokens = []
        while batch.requests:
            tokens += batch.step()
            if shrink:
                batch.shrink()
        texts.append(sorted((token.row, token.position, token.token) for token in tokens))
        assert len(tokens) == sum(lengths) and batch.slots == (1 if shrink else 8)
    assert texts[0] == texts[1]


def test_waiting_prompts_take_the_slots_of_those_that_end(model):
    prompts = [[token] for token in range(10)]
    wide, narrow = (list(generate(model, prompts, settings_of(tokens=4), slots=slots)) for slots in (None, 3))
    key = lambda token: (token.row, token.position)  # noqa: E731
    assert [(*key(t), t.token) for t in sorted(narrow, key=key)] == [(*key(t), t.token) for t in sorted(wide, key=key)]
    assert [token.row for token in narrow[:3]] == [0, 1, 2] and narrow[12].row == 3


class Overflowing(nn.Module):
    """Passes a model on, but the logits of a text with a certain token in it are no numbers."""

    def __init__(self, model, token):
        super().__init__()
        self.model, self.token = model, token
        self.config, self.new_state, self.head, self.embed = model.config, model.new_state, model.head, model.embed

    def hidden(self, tokens, state=None):
        hidden = self.model.hidden(tokens, state)
        return hidden.masked_fill((tokens == self.token).unsqueeze(-1), torch.nan)


@pytest.mark.parametrize("fields", [{}, {"lookahead": {"candidates": 2, "depth": 1}}, {"draft": NgramDrafts()}])
def test_a_row_without_finite_logits_ends_and_the_others_go_on(model, fields):
    fields = dict(fields)
    draft = fields.pop("draft", None)
    broken, samplers = Overflowing(model, 28), [{"kind": "top_k", "k": 29}]
    batch = Batch(broken, 2)
    batch.add(Request([28], settings_of(samplers=samplers, **fields), draft=draft))
    batch.add(Request([5], settings_of(tokens=3, samplers=samplers), seed=4))
    tokens = []
    while batch.requests:
        tokens += batch.step()
    (failed,) = [token for token in tokens if token.row == 0]
    assert (failed.token, failed.finish) == (-1, "failed")
    assert [token.finish for token in tokens if token.row == 1] in ([None, None, "length"], [None, "failed"])
    with pytest.raises(GenerationError, match=r"not finite.*float32"):
        list(generate(broken, [[28]], settings_of()))


def test_decoding_training_and_abandoned_sessions_do_not_see_each_other(make_model, headline):
    """Two generations in turn, a third one dropped, training steps in between: all give what they give alone."""
    options = headline | {
        "embedding_dropout": 0.2,
        "stochastic_depth": 0.3,
        "wavelet": {"crawl": 3, "dropout": 0.2},
    }
    tokens = torch.randint(29, (2, 9), generator=torch.Generator().manual_seed(0))

    def texts(model):
        return [generate(model, [[seed, 1, 2]], settings_of(tokens=12), seeds=[seed]) for seed in (1, 2)]

    def train(model):
        model.zero_grad()
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    model = make_model(options)
    wanted = [[token.token for token in text] for text in texts(model)]
    torch.manual_seed(3)
    alone = [train(model.train()) for _ in range(4)]

    model = make_model(options).train()
    torch.manual_seed(3)
    first, second = texts(model)
    dropped = generate(model, [[3]], settings_of(tokens=None))
    together, written = [], [[], []]
    for step in range(4):
        for text, stream in zip(written, (first, second), strict=True):
            text += [next(stream).token for _ in range(3)]
            next(dropped)
        together.append(train(model))
        if step == 1:
            del dropped
            dropped = generate(model, [[4]], settings_of(tokens=None))
        assert model.training and all(module.training for module in model.modules())
    assert list(first) == list(second) == []
    torch.testing.assert_close(together, alone, atol=0, rtol=0)
    assert written == wanted


def test_decoding_does_not_care_about_the_models_mode(make_model):
    model = make_model({"embedding_dropout": 0.5, "mixer": {"parametrization": "exponential"}})
    evaluated = list(generate(model.eval(), [[1, 2]], settings_of()))
    first = generate(model.train(), [[1, 2]], settings_of())
    second = generate(model, [[1, 2]], settings_of())
    pairs = list(zip(first, second, strict=True))
    assert [pair[0] for pair in pairs] == [pair[1] for pair in pairs] == evaluated
    assert model.training


@pytest.mark.parametrize("parametrization", ["exponential", "spectral_norm"])
def test_a_session_follows_weights_that_change(make_model, parametrization):
    model = make_model({"wavelet": {"crawl": 3}, "mixer": {"parametrization": parametrization}})
    session, text = DecodingSession(model), torch.tensor([[1, 2, 3, 4]])
    computed = []
    for module in model.modules():
        if hasattr(module, "compute"):
            computed.append(type(module).__name__)
    with torch.inference_mode():
        before = session.hidden(text)
        torch.testing.assert_close(before, model.hidden(text))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05
    with torch.inference_mode():
        after = session.hidden(text)
        torch.testing.assert_close(after, model.hidden(text))
    assert computed and not torch.allclose(before, after)


def test_a_session_follows_a_model_to_another_type(make_model):
    model = make_model({"wavelet": {"crawl": 3}, "mixer": {"parametrization": "exponential"}})
    session = DecodingSession(model)
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        with torch.inference_mode():
            torch.testing.assert_close(session.hidden(torch.tensor([[1, 2]])), model.hidden(torch.tensor([[1, 2]])))


def test_values_that_the_weights_decide_are_computed_once(make_model, monkeypatch):
    model = make_model({"mixer": {"parametrization": "exponential"}, "layers": 1})
    calls = []
    exponential = torch.matrix_exp
    monkeypatch.setattr(torch, "matrix_exp", lambda matrix: calls.append(1) or exponential(matrix))
    list(generate(model, [[1]], settings_of(tokens=10)))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("text"), "needs a tokenizer"),
        (Request([29]), "token 29 is outside"),
        (Request([1], settings_of(best_of=2)), "best_of=2 compares several requests"),
        (Request([1], settings_of(stop_strings=["x"])), "stop_strings need a tokenizer"),
        (Request([1], settings_of(context="window"), draft=NgramDrafts()), "context=window"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_and_takes_no_slot(model, request_, message):
    batch = Batch(model, 1)
    with pytest.raises(ConfigurationError, match=message):
        batch.add(request_)
    assert batch.free == 1


def test_a_batch_that_cannot_be_is_refused(model):
    with pytest.raises(ConfigurationError, match="slots=0"):
        Batch(model, 0)
    with pytest.raises(ConfigurationError, match="tokenizer has 256 tokens"):
        Batch(model, 1, tokenizer=BytesTokenizer())
