"""How well a model predicts a text, in every unit that the field uses (docs/model.md, section 9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.nn import functional as F

from wavelet_core.generation.session import decoding_view
from wavelet_core.language_model import LanguageModel
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.precision import autocast
from wavelet_train.ranks import ALONE, Ranks
from wavelet_train.token_split import TokenSplit, token_byte_lengths
from wavelet_train.windows import evaluation_windows


@dataclass(frozen=True)
class Evaluation:
    """The negative log-likelihood of a text and the sizes that it is divided by.

    nats: of all scored tokens together. tokens: scored ones. byte_count: UTF-8 bytes of the text that they stand for.
    word_count: its words, None when only a part of a split was scored. window, stride: in tokens.
    """

    nats: float
    tokens: int
    byte_count: int
    word_count: int | None
    window: int
    stride: int

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

    def as_dict(self) -> dict[str, Any]:
        """All units by name, for JSON."""
        return {
            "nats_per_token": self.nats_per_token,
            "perplexity_per_token": self.perplexity_per_token,
            "bits_per_token": self.bits_per_token,
            "bits_per_byte": self.bits_per_byte,
            "perplexity_per_word": self.perplexity_per_word,
            "tokens": self.tokens,
            "bytes": self.byte_count,
            "words": self.word_count,
            "window": self.window,
            "stride": self.stride,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Evaluation:
        """The evaluation that `as_dict` gave. Raises KeyError, TypeError or ValueError where it did not."""
        words = content["words"]
        return cls(
            nats=float(content["nats_per_token"]) * int(content["tokens"]),
            tokens=int(content["tokens"]),
            byte_count=int(content["bytes"]),
            word_count=None if words is None else int(words),
            window=int(content["window"]),
            stride=int(content["stride"]),
        )


def exponential(nats: float) -> float:
    """exp(nats), infinity where that is beyond a float."""
    return math.exp(nats) if nats < 700 else math.inf


@torch.no_grad()
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
    """Score a split in windows that are independent of each other, without a change to the model or its mode.

    stride: tokens between the starts of two windows, a whole window by default (see `evaluation_windows`). batch_size:
    windows at a time. token_limit: score the beginning of the split only. window: tokens a window;
    model.context_length by default. dtype: what autocast computes in. on_batch: called after every batch with the
    number of tokens that it scored. ranks: processes that share the batches out among themselves; all of them get the
    result. The very first token is not scored: nothing predicts it.

    Raises ConfigurationError when there is nothing to predict, ValueError for a stride that leaves gaps.
    """
    device = next(model.parameters()).device
    window = window or model.config.context_length
    tokens = split.tokens if token_limit is None else split.tokens[: token_limit + 1]
    view = decoding_view(model)
    nats = 0.0
    batches = evaluation_windows(tokens, window, stride, batch_size, split.name)
    for batch in islice(batches, ranks.rank, None, ranks.count):
        with autocast(device, dtype):
            logits = view.head(view.hidden(batch.inputs.to(device))[batch.scored.to(device)])
        targets = batch.targets[batch.scored].to(device)
        nats += F.cross_entropy(logits.float(), targets, reduction="none").sum(dtype=torch.float64).item()
        on_batch(len(targets))

    nats = ranks.sum(nats)
    lengths = token_byte_lengths(tokenizer)
    whole = len(tokens) == len(split.tokens)
    byte_count = split.byte_count - lengths[tokens[0]] if whole else lengths[tokens[1:]].sum()
    word_count = split.word_count if whole else None
    return Evaluation(nats, len(tokens) - 1, int(byte_count), word_count, window, stride or window)
