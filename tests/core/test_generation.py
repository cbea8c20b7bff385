"""The engine: prompts in, tokens and text out, whatever else is in the batch."""

import itertools

import pytest
import torch
from torch import nn

from wavelet_core.config import ConfigurationError, LanguageModelConfig, parse
from wavelet_core.generation import GenerationSettings, collect, generate
from wavelet_core.state import State
from wavelet_core.tokenizers import BytesTokenizer

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7], [3, 1, 4, 1, 5], [7, 7, 7]]
GREEDY = [{"kind": "temperature", "temperature": 0}]
EVERYTHING = [
    {"kind": "repetition_penalty"},
    {"kind": "wavelet_coherence", "window": 8},
    {"kind": "entropy_adaptive"},
    {"kind": "top_k", "k": 25},
    {"kind": "top_p", "p": 0.95},
    {"kind": "min_p", "p": 0.001},
]


def settings_of(**fields):
    return parse(GenerationSettings, {"tokens": 20, **fields})


def run(model, prompts, seeds=None, tokenizer=None, draft=None, **fields):
    return collect(generate(model, prompts, settings_of(**fields), seeds=seeds, tokenizer=tokenizer, draft=draft))


@pytest.fixture(scope="module")
def model(make_model, headline):
    return make_model(headline | {"context_length": 6})


class CountingModel(nn.Module):
    """Passes everything on to a model and remembers the shapes of the tokens that it read."""

    def __init__(self, model):
        super().__init__()
        self.model, self.read = model, []
        self.config, self.new_state, self.head, self.embed = model.config, model.new_state, model.head, model.embed

    def hidden(self, tokens, state=None):
        self.read.append(tuple(tokens.shape))
        return self.model.hidden(tokens, state)


class ScriptedModel(nn.Module):
    """Writes a given text, one byte after the other, whatever it reads."""

    def __init__(self, script):
        super().__init__()
        self.script = nn.Parameter(torch.tensor(list(script.encode()), dtype=torch.float))
        self.config = LanguageModelConfig(kind="scripted", vocabulary_size=256, context_length=8)

    def new_state(self, batch_size):
        return State({"written": torch.full((batch_size, 1), -1)}, batch_size)

    def hidden(self, tokens, state):
        state.tree["written"] += 1
        return state.tree["written"].unsqueeze(1).float().expand(-1, tokens.shape[1], -1)

    def head(self, hidden):
        following = self.script[hidden.long() % len(self.script)].long().squeeze(-1)
        return 50 * nn.functional.one_hot(following, 256).float()


def test_greedy_text_is_the_argmax_of_the_whole_text(model):
    text = list(PROMPTS[0])
    with torch.no_grad():
        for _ in range(20):
            text.append(model(torch.tensor([text]))[0, -1].argmax().item())
    assert run(model, PROMPTS[:1], samplers=GREEDY)[0].tokens == text[len(PROMPTS[0]) :]


@pytest.mark.parametrize("fields", [{}, {"context": "hop:3"}, {"context": "window"}, {"lookahead": {"depth": 2}}])
def test_a_row_does_not_depend_on_the_others(model, fields):
    together = run(model, PROMPTS, seeds=[1, 2, 3, 4, 1], samplers=EVERYTHING, **fields)
    for prompt, seed, row in zip(PROMPTS, [1, 2, 3, 4, 1], together, strict=True):
        assert run(model, [prompt], seeds=[seed], samplers=EVERYTHING, **fields)[0] == row


def test_seeds_decide_the_text(model):
    first, second, again = run(model, [PROMPTS[0]] * 3, seeds=[1, 2, 1])
    assert first.tokens == again.tokens != second.tokens


def test_rows_may_end_at_different_times(model):
    alone = run(model, PROMPTS, samplers=EVERYTHING)
    stop = alone[2].tokens[4]
    ended = run(model, PROMPTS, samplers=EVERYTHING, stop_tokens=[stop])
    for whole, row in zip(alone, ended, strict=True):
        length = whole.tokens.index(stop) + 1 if stop in whole.tokens else 20
        assert row.tokens == whole.tokens[:length]
        assert row.finish == ("stop_token" if stop in whole.tokens else "length")


def test_tokens_come_as_they_are_decoded(model):
    counting = CountingModel(model)
    events = generate(counting, PROMPTS[:2], settings_of(tokens=4))
    order = []
    for event in itertools.islice(events, 6):
        order.append((event.position, event.row, len(counting.read)))
    # Two prompts of different lengths are read in two passes; after that one pass of two rows precedes each position.
    assert order == [(0, 0, 2), (0, 1, 2), (1, 0, 3), (1, 1, 3), (2, 0, 4), (2, 1, 4)]
    assert counting.read[2:] == [(2, 1), (2, 1)]


def test_nothing_is_read_after_the_last_token(model):
    counting = CountingModel(model)
    collect(generate(counting, PROMPTS[:1], settings_of(tokens=5)))
    assert counting.read == [(1, 5), (1, 1), (1, 1), (1, 1), (1, 1)]


def test_prompts_are_read_in_chunks_and_equal_ones_once(model):
    counting = CountingModel(model)
    chunked = collect(generate(counting, PROMPTS, settings_of(tokens=1), prefill_tokens=3))
    assert counting.read == [(1, 3), (1, 2), (1, 1), (1, 3), (1, 3), (1, 2), (1, 3)]
    assert chunked == run(model, PROMPTS, tokens=1)


def test_prompts_of_equal_length_are_read_together(model):
    counting = CountingModel(model)
    both = collect(generate(counting, [[1, 2, 3], [4, 5, 6]], settings_of(tokens=2)))
    assert counting.read == [(2, 3), (2, 1)]
    assert both == run(model, [[1, 2, 3]], tokens=2) + run(model, [[4, 5, 6]], seeds=[1], tokens=2)


def test_endless_generation_goes_on(model):
    tokens = generate(model, PROMPTS[:1], settings_of(tokens=None))
    assert [event.position for event in itertools.islice(tokens, 300)] == list(range(300))


@pytest.mark.parametrize("every", [1, 4])
def test_hop_rebuilds_the_state_from_the_last_window(model, every):
    context = "window" if every == 1 else f"hop:{every}"
    generated = run(model, PROMPTS[2:3], samplers=GREEDY, context=context)[0].tokens
    text, since = list(PROMPTS[2]), 0
    start = len(text) - 6
    with torch.no_grad():
        for token in generated:
            assert model(torch.tensor([text[start:]]))[0, -1].argmax().item() == token
            text.append(token)
            since += 1
            if since % every == 0:
                start = len(text) - 6


def test_window_forgets_what_stream_remembers(model):
    long = [5] * 30 + PROMPTS[2]
    texts = {context: run(model, [long], context=context)[0].tokens for context in ("stream", "window")}
    assert texts["window"] == run(model, [PROMPTS[2]], context="window")[0].tokens
    assert texts["stream"] != run(model, [PROMPTS[2]])[0].tokens


def test_statistics_are_the_models_own(model):
    row = run(model, PROMPTS[:1], samplers=EVERYTHING, metrics=True)[0]
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0] + row.tokens]))[0, 4:-1]
    distribution = logits.log_softmax(-1)
    expected = distribution[range(20), row.tokens]
    torch.testing.assert_close(torch.tensor(row.log_probabilities), expected, atol=1e-4, rtol=0)
    entropies = -(distribution.exp() * distribution).sum(-1)
    torch.testing.assert_close(torch.tensor(row.entropies), entropies, atol=1e-4, rtol=0)
    assert run(model, PROMPTS[:1])[0].log_probabilities == []


def test_text_comes_with_the_tokens_and_ends_before_a_stop_string():
    model = ScriptedModel("the cat sät on the mat. ")
    texts = run(model, ["x"], tokenizer=BytesTokenizer(), tokens=60, stop_strings=["on the mat", "dog"])
    assert (texts[0].text, texts[0].finish) == ("the cat sät ", "stop_string")
    assert bytes(texts[0].tokens).decode() == "the cat sät on the mat"


def test_text_that_was_held_back_comes_with_the_last_token():
    model = ScriptedModel("a stop sign")
    row = run(model, ["x"], tokenizer=BytesTokenizer(), tokens=5, stop_strings=["stopping"])[0]
    assert (row.text, row.finish) == ("a sto", "length")


def test_a_stop_string_ends_one_row_only():
    model = ScriptedModel("abcdefgh")
    rows = run(model, ["x", "yz"], tokenizer=BytesTokenizer(), tokens=6, stop_strings=["d"])
    assert [row.text for row in rows] == ["abc", "abc"]
    assert [row.finish for row in rows] == ["stop_string"] * 2


def test_a_stop_token_is_no_text():
    row = run(ScriptedModel("abc."), ["x"], tokenizer=BytesTokenizer(), tokens=9, stop_tokens=[ord(".")])[0]
    assert (row.text, row.tokens[-1], row.finish) == ("abc", ord("."), "stop_token")


def test_an_empty_prompt_starts_from_the_end_of_text(model):
    class WithEnd(BytesTokenizer):
        vocabulary_size, end_of_text = 29, 28

    assert run(model, [""], tokenizer=WithEnd()) == run(model, [[28]], tokenizer=WithEnd())


def test_generation_leaves_the_model_as_it_was(make_model):
    model = make_model()
    model.train()
    run(model, PROMPTS[:1])
    assert model.training
    events = generate(model, PROMPTS[:1], settings_of())
    next(events)
    assert not torch.is_inference_mode_enabled()
    events.close()
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompt"),
        ({"prompts": [[]]}, "prompt is empty"),
        ({"prompts": ["text"]}, "needs a tokenizer"),
        ({"prompts": [[29]]}, "token 29 is outside"),
        ({"prompts": [[-1]]}, "token -1 is outside"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"tokenizer": BytesTokenizer()}, "tokenizer has 256 tokens, but model.vocabulary_size=29"),
        ({"stop_strings": ["x"]}, "stop_strings need a tokenizer"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(model, arguments, message):
    counting = CountingModel(model)
    with pytest.raises(ConfigurationError, match=message):
        run(counting, **({"prompts": [[1]]} | arguments))
    assert counting.read == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens"),
        ({"context": "hop:0"}, "hop:N"),
        ({"context": "streams"}, "stream, window or hop:N"),
        ({"stop_strings": [""]}, "empty stop string"),
        ({"best_of": 2, "tokens": None}, "best_of=2 compares finished texts"),
        ({"best_of": 2, "lookahead": {}}, "leave out one"),
        ({"lookahead": {}, "samplers": GREEDY}, "temperature=0 leaves a single one"),
        ({"lookahead": {"candidates": 1}}, "candidates"),
        ({"token": 5}, "unknown field"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        settings_of(**fields)
