"""How well a model predicts a text, in every unit that the field uses (docs/model.md, section 9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wavelet_core.language_model import LanguageModel
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.loss_by_position import POSITION_EDGES, LossByPosition
from wavelet_train.ranks import ALONE, Ranks
from wavelet_train.reading import Reading, token_scores
from wavelet_train.token_split import TokenSplit, token_byte_lengths
from wavelet_train.windows import Passage


@dataclass(frozen=True)
class Evaluation:
    """The negative log-likelihood of a text and the sizes that it is divided by.

    nats: of all scored tokens together. tokens: scored ones. byte_count: UTF-8 bytes of the text that they decode to.
    word_count: its words, None when only a part of a split was scored. window, stride: in tokens, None for a text that
    streamed. correct: tokens that the model held to be the likeliest.
    """

    nats: float
    tokens: int
    byte_count: int
    word_count: int | None
    window: int | None
    stride: int | None
    correct: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def bits_per_token(self) -> float:
        return self.nats_per_token / math.log(2)

    @property
    def perplexity_per_token(self) -> float:
        """Depends on the vocabulary: compare it only among models with the same tokenizer."""
        return exponential(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """The unit that compares models whatever their tokenizers are."""
        return self.nats / math.log(2) / self.byte_count

    @property
    def perplexity_per_word(self) -> float | None:
        """exp(total nats / words), or None where the number of words is not known or there are none."""
        return exponential(self.nats / self.word_count) if self.word_count else None

    @property
    def accuracy(self) -> float:
        """The share of tokens that the model held to be the likeliest."""
        return self.correct / self.tokens

    def as_dict(self) -> dict[str, Any]:
        """All units by name, for JSON."""
        return {
            "nats_per_token": self.nats_per_token,
            "perplexity_per_token": self.perplexity_per_token,
            "bits_per_token": self.bits_per_token,
            "bits_per_byte": self.bits_per_byte,
            "perplexity_per_word": self.perplexity_per_word,
            "accuracy": self.accuracy,
            "tokens": self.tokens,
            "bytes": self.byte_count,
            "words": self.word_count,
            "window": self.window,
            "stride": self.stride,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Evaluation:
        """The evaluation that `as_dict` gave. Raises KeyError, TypeError or ValueError where it did not."""
        words, tokens = content["words"], int(content["tokens"])
        return cls(
            nats=float(content["nats_per_token"]) * tokens,
            tokens=tokens,
            byte_count=int(content["bytes"]),
            word_count=None if words is None else int(words),
            window=int(content["window"]),
            stride=int(content["stride"]),
            correct=round(float(content["accuracy"]) * tokens),
        )


def exponential(nats: float) -> float:
    """exp(nats), infinity where that is beyond a float."""
    return math.exp(nats) if nats < 700 else math.inf


@dataclass(frozen=True)
class TextScores:
    """What a model made of a text: of the whole of it, of its documents, and by how much it had read.

    nats, tokens, byte_counts: (documents,) float64 each, sums over the scored tokens of every document; an end-of-text
    token belongs to the document that it ends.
    """

    total: Evaluation
    nats: np.ndarray
    tokens: np.ndarray
    byte_counts: np.ndarray
    by_position: LossByPosition

    @property
    def documents(self) -> int:
        """How many documents have scored tokens."""
        return int(np.count_nonzero(self.tokens))

    def by_source(self, split: TokenSplit) -> list[dict[str, Any]]:
        """The scores of each data set in the split of a mix, for JSON; none for other splits."""
        found = []
        for number, source in enumerate(split.sources):
            documents = split.document_sources == number
            nats, tokens, byte_count = (each[documents].sum() for each in (self.nats, self.tokens, self.byte_counts))
            if byte_count:
                rates = {"nats_per_token": nats / tokens, "bits_per_byte": nats / math.log(2) / byte_count}
                found.append({"name": source.name, "tokens": int(tokens), **rates})
        return found


def score_text(
    model: LanguageModel,
    split: TokenSplit,
    tokenizer: Tokenizer,
    reading: Reading | None = None,
    batch_size: int = 8,
    token_limit: int | None = None,
    dtype: torch.dtype = torch.float32,
    on_batch: Callable[[int], None] = lambda scored: None,
    ranks: Ranks = ALONE,
    workers: Callable[[], int] | None = None,
) -> TextScores:
    """Score a split as `reading` says (in windows that do not overlap by default), without a change to the model.

    batch_size: windows, or documents, at a time. token_limit: score the beginning of the split only. dtype: what
    autocast computes in. on_batch: called after every batch with the number of tokens that it scored. ranks: processes
    that share the batches out among themselves; all of them get the result. workers: as of `token_scores`.

    Raises ConfigurationError when there is nothing to predict, for what the model cannot do, and for a stride that
    leaves gaps.
    """
    reading = reading or Reading()
    passages = reading.passages(split, tokenizer.end_of_text, token_limit)
    starts, lengths = split.document_starts, token_byte_lengths(tokenizer)
    sums = np.zeros((len(starts), 4))
    by_position = np.zeros((len(POSITION_EDGES), 2))
    for scores in token_scores(model, passages, reading, batch_size, dtype, ranks, split.counts, workers):
        document = np.searchsorted(starts, scores.places, side="right") - 1
        tokens = split.tokens[scores.places]
        byte_counts = lengths[tokens]
        for first in np.flatnonzero(scores.places == starts[document]):
            byte_counts[first] -= drops_space(tokenizer, int(tokens[first]))
        ones = np.ones_like(scores.nats)
        np.add.at(sums, document, np.stack([scores.nats, ones, byte_counts, scores.correct], axis=1))
        position = np.searchsorted(POSITION_EDGES, scores.read, side="right") - 1
        np.add.at(by_position, position, np.stack([scores.nats, ones], axis=1))
        on_batch(len(ones))

    sums, by_position = ranks.sum(sums).T, ranks.sum(by_position).T
    nats, scored, byte_count, correct = sums.sum(axis=1)
    window = None if reading.streaming else reading.window or model.config.context_length
    total = Evaluation(
        nats=float(nats),
        tokens=int(scored),
        byte_count=int(byte_count),
        word_count=split.word_count if token_limit is None or token_limit + 1 >= len(split.tokens) else None,
        window=window,
        stride=reading.stride or window,
        correct=int(correct),
    )
    return TextScores(total, sums[0], sums[1], sums[2], LossByPosition(by_position[0], by_position[1]))


def evaluate(
    model: LanguageModel,
    split: TokenSplit,
    tokenizer: Tokenizer,
    stride: int | None = None,
    batch_size: int = 8,
    token_limit: int | None = None,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    on_batch: Callable[[int], None] = lambda scored: None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """The total of `score_text` in independent windows of so many tokens with this stride."""
    reading = Reading(window=window, stride=stride)
    return score_text(model, split, tokenizer, reading, batch_size, token_limit, dtype, on_batch, ranks).total


def log_likelihoods(
    model: LanguageModel,
    texts: Iterable[Sequence[int] | np.ndarray],
    reading: Reading | None = None,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """The log-likelihood in nats of each text, token ids, without its first token, which nothing predicts: (texts,).

    Put the end of text before a text to have all of it scored. Texts are independent of each other.
    """
    ends, passages = [0], []
    for text in texts:
        passages.append(Passage(np.asarray(text, dtype=np.int64), ends[-1]))
        ends.append(ends[-1] + max(0, len(text) - 1))
    found = np.zeros(len(passages))
    for scores in token_scores(model, passages, reading or Reading(), batch_size, dtype):
        np.subtract.at(found, np.searchsorted(ends, scores.places, side="right") - 1, scores.nats)
    return found


def drops_space(tokenizer: Tokenizer, token: int) -> bool:
    """Whether the space that a token begins with is not there where a text begins with the token."""
    return tokenizer.decode_bytes([token]).startswith(b" ") and not tokenizer.decode([token]).startswith(" ")
