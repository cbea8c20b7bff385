"""Confidence intervals by bootstrap over documents."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wavelet_core.tokenizers import BytesTokenizer
from wavelet_train.bootstrap import confidence_intervals, document_word_counts
from wavelet_train.evaluation import Evaluation, TextScores
from wavelet_train.loss_by_position import LossByPosition
from wavelet_train.token_split import TokenSplit


def scores_of(rates: np.ndarray, sizes: np.ndarray, words: int | None = None) -> TextScores:
    """Documents of so many tokens, two bytes each, with so many nats a token."""
    nats = rates * sizes
    total = Evaluation(nats.sum(), int(sizes.sum()), 2 * int(sizes.sum()), words, 8, 8, correct=0)
    return TextScores(total, nats, sizes, 2 * sizes, LossByPosition(np.zeros(1), np.zeros(1)))


def test_intervals_hold_the_true_rate_about_as_often_as_they_say() -> None:
    generator, held = np.random.default_rng(1), 0
    for seed in range(200):
        sizes = generator.integers(20, 60, size=60).astype(float)
        scores = scores_of(3 + generator.normal(size=60) * 0.5, sizes)
        low, high = confidence_intervals(scores, resamples=200, seed=seed)["nats_per_token"]
        held += low <= 3 <= high
    assert 0.88 * 200 <= held <= 0.99 * 200


def test_intervals_are_the_same_for_the_same_seed_and_hold_every_unit() -> None:
    rates, sizes = np.linspace(2, 4, 30), np.full(30, 10.0)
    scores = scores_of(rates, sizes, words=150)
    words = np.full(30, 4)  # of which the field counts 5
    first, again, other = (confidence_intervals(scores, words, 300, seed) for seed in (3, 3, 4))
    assert first == again != other
    low, high = first["nats_per_token"]
    assert low < 3 < high
    assert first["perplexity_per_token"] == pytest.approx((math.exp(low), math.exp(high)))
    assert first["bits_per_byte"] == pytest.approx((low / 2 / math.log(2), high / 2 / math.log(2)))
    assert first["perplexity_per_word"] == pytest.approx((math.exp(2 * low), math.exp(2 * high)))
    assert "perplexity_per_word" not in confidence_intervals(scores_of(rates, sizes), words)


def test_one_document_has_no_interval() -> None:
    assert not confidence_intervals(scores_of(np.array([3.0]), np.array([10.0])))


def test_words_of_documents_are_counted() -> None:
    tokens = np.frombuffer(b"one two\nthree four five six", np.uint8)
    split = TokenSplit("test", tokens, np.array([0, 8]), len(tokens), 6)
    assert document_word_counts(split, BytesTokenizer()).tolist() == [2, 4]
