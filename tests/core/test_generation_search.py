"""Search strategies: lookahead and best-of-n."""

import pytest
import torch

from wavelet_core.config import parse
from wavelet_core.generation import GenerationSettings, collect, generate
from wavelet_core.generation.generate import mean_log_probability

PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]
PENALTY = [{"kind": "repetition_penalty", "penalty": 1.5}]


@pytest.fixture(scope="module")
def model(make_model, headline):
    return make_model(headline)


def tokens_of(model, prompts, seeds=None, **fields):
    return list(generate(model, prompts, parse(GenerationSettings, {"tokens": 12, **fields}), seeds=seeds))


def run(model, prompts, seeds=None, **fields):
    return collect(tokens_of(model, prompts, seeds, **fields))


@torch.no_grad()
def lookahead_by_hand(model, text, candidates, depth, penalty):
    """The next token, by whole forwards over every candidate's whole continuation."""

    def distribution(text):
        logits = model(torch.tensor([text]))[0, -1]
        seen = sorted(set(text))
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        return logits.log_softmax(-1)

    best, choices = distribution(text).topk(candidates)
    scores = []
    for score, choice in zip(best, choices.tolist(), strict=True):
        rollout = [*text, choice]
        for _ in range(depth):
            value, token = distribution(rollout).max(-1)
            rollout.append(token.item())
            score = score + value
        scores.append(score.item())
    return choices[torch.tensor(scores).argmax()].item()


@pytest.mark.parametrize(("candidates", "depth"), [(2, 1), (3, 4)])
def test_lookahead_takes_the_candidate_with_the_best_future(model, candidates, depth):
    search = {"candidates": candidates, "depth": depth}
    for prompt, row in zip(PROMPTS, run(model, PROMPTS, lookahead=search, samplers=PENALTY), strict=True):
        text = list(prompt)
        for token in row.tokens:
            assert lookahead_by_hand(model, text, candidates, depth, 1.5) == token
            text.append(token)


def test_lookahead_is_not_greedy_and_not_random(model):
    search = run(model, PROMPTS, seeds=[1, 2], lookahead={}, samplers=PENALTY)
    assert search == run(model, PROMPTS, seeds=[3, 4], lookahead={}, samplers=PENALTY)
    assert search != run(model, PROMPTS, samplers=[*PENALTY, {"kind": "temperature", "temperature": 0}])


def test_lookahead_runs_all_candidates_of_all_rows_in_one_batch(model, monkeypatch):
    shapes = []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda tokens, state: shapes.append(tuple(tokens.shape)) or hidden(tokens, state)
    )
    run(model, PROMPTS, lookahead={"candidates": 3, "depth": 2}, tokens=2)
    assert shapes == [(1, 5), (1, 2), (6, 1), (6, 1), (6, 1), (6, 1)]


def test_lookahead_rows_end_alone(model):
    whole = run(model, PROMPTS, lookahead={}, samplers=PENALTY)
    stop = next(token for token in whole[0].tokens[:-1] if token not in whole[1].tokens)
    ended = run(model, PROMPTS, lookahead={}, samplers=PENALTY, stop_tokens=[stop])
    assert ended[0].tokens == whole[0].tokens[: whole[0].tokens.index(stop) + 1]
    assert ended[1].tokens == whole[1].tokens


def test_best_of_keeps_the_text_of_highest_mean_log_probability(model):
    best = run(model, PROMPTS, seeds=[5, 6], best_of=4, metrics=True)
    single = run(model, PROMPTS, seeds=[5, 6], metrics=True)
    # The first of the texts drawn is the one that is drawn without best_of.
    for one, kept in zip(single, best, strict=True):
        assert sum(kept.log_probabilities) > sum(one.log_probabilities) - 1e-4
    assert [row.tokens for row in best] != [row.tokens for row in single]
    alone = [run(model, [prompt], [seed], best_of=4)[0] for prompt, seed in zip(PROMPTS, [5, 6], strict=True)]
    assert [row.tokens for row in best] == [row.tokens for row in alone]


def test_best_of_draws_all_texts_in_one_batch(model, monkeypatch):
    shapes = []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda tokens, state: shapes.append(tuple(tokens.shape)) or hidden(tokens, state)
    )
    tokens = tokens_of(model, PROMPTS, best_of=3, tokens=3)
    assert shapes == [(1, 5), (1, 2), (6, 1), (6, 1)]
    assert [token.row for token in tokens] == [0, 0, 0, 1, 1, 1]


def test_best_of_compares_means_not_sums(model):
    texts = [tokens_of(model, PROMPTS[:1], metrics=True, tokens=length) for length in (2, 9)]
    expected = sum(token.log_probability for token in texts[1]) / 9
    assert mean_log_probability(texts[1]) == pytest.approx(expected)
