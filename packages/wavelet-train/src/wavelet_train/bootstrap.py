"""How sure the numbers of an evaluation are: confidence intervals by bootstrap over documents."""

from __future__ import annotations

import math

import numpy as np

from wavelet_core.tokenizers import Tokenizer
from wavelet_train.evaluation import TextScores
from wavelet_train.token_split import TokenSplit

LEVEL = 0.95

Interval = tuple[float, float]


def document_word_counts(split: TokenSplit, tokenizer: Tokenizer) -> np.ndarray:
    """Whitespace-separated words of every document, (documents,) int64."""
    documents = np.split(split.tokens, split.document_starts[1:])
    return np.array([len(tokenizer.decode(document.tolist()).split()) for document in documents])


def confidence_intervals(
    scores: TextScores, word_counts: np.ndarray | None = None, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """The percentile interval (Efron 1979) at LEVEL of every unit of the total, by its name; empty for one document.

    What is drawn, `resamples` times as many as there are, is documents: tokens of one are not independent of each
    other. word_counts: of every document, where there is to be an interval of the perplexity per word.
    """
    documents = np.flatnonzero(scores.byte_counts)
    if len(documents) < 2:
        return {}
    columns = [scores.nats, scores.tokens, scores.byte_counts]
    words = scores.total.word_count
    if word_counts is not None and words and word_counts.any():
        # The field may count words otherwise, so that theirs are as many altogether.
        columns.append(word_counts * (words / word_counts.sum()))
    drawn_from = np.stack(columns)[:, documents]
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, len(columns)))
    for resample in sums:
        drawn = generator.integers(len(documents), size=len(documents))
        resample[:] = drawn_from @ np.bincount(drawn, minlength=len(documents))
    with np.errstate(divide="ignore"):
        rates = sums[:, :1] / sums[:, 1:]
    low, high = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    (per_token, per_byte, *per_word) = zip(low, high, strict=True)
    intervals = {
        "nats_per_token": per_token,
        "perplexity_per_token": np.exp(per_token),
        "bits_per_token": np.divide(per_token, math.log(2)),
        "bits_per_byte": np.divide(per_byte, math.log(2)),
        **({"perplexity_per_word": np.exp(per_word[0])} if per_word else {}),
    }
    return {unit: (float(ends[0]), float(ends[1])) for unit, ends in intervals.items()}
