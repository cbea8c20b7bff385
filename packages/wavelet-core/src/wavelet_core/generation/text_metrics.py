"""Metrics of generated text: how probable, how uncertain, how varied, how repetitive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from wavelet_core.generation.generate import Completion
from wavelet_core.generation.samplers.coherence import drift, signature
from wavelet_core.language_model import LanguageModel


def distinct(tokens: Sequence[int], size: int) -> float:
    """Different n-grams of `size` tokens as a share of all of them (Li et al. 2016); 0 for a text without any."""
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(tokens: Sequence[int], size: int = 4) -> float:
    """The share of tokens that lie in an n-gram of `size` tokens which occurs more than once."""
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    counts = Counter(grams)
    covered = {
        position for start, gram in enumerate(grams) if counts[gram] > 1 for position in range(start, start + size)
    }
    return len(covered) / len(tokens) if tokens else 0.0


def text_metrics(
    tokens: Sequence[int], log_probabilities: Sequence[float], entropies: Sequence[float]
) -> dict[str, float | int]:
    """All metrics of one text; log-probabilities and entropies in nats, one per token.

    mean_log_prob and sum_log_prob; mean_entropy; distinct_1, distinct_2, distinct_3; repetition_4; num_tokens.
    """
    count = len(tokens)
    return {
        "mean_log_prob": sum(log_probabilities) / count if count else 0.0,
        "sum_log_prob": float(sum(log_probabilities)),
        "mean_entropy": sum(entropies) / count if count else 0.0,
        **{f"distinct_{size}": distinct(tokens, size) for size in (1, 2, 3)},
        "repetition_4": repetition(tokens, 4),
        "num_tokens": count,
    }


def text_drift(prompt: Tensor, text: Tensor, levels: int = 4) -> float:
    """How far a text has moved from its prompt: 1 - cosine of their coarse wavelet approximations.

    prompt and text: token embeddings (T, C), each with at least one row. See samplers/coherence.py.
    """
    signatures = [
        signature(rows.unsqueeze(0), lengths=rows.new_tensor([len(rows)]), levels=levels) for rows in (text, prompt)
    ]
    return float(drift(*signatures))


@torch.inference_mode()
def completion_metrics(model: LanguageModel, prompt: Sequence[int], completion: Completion) -> dict[str, float | int]:
    """The metrics of a text generated with `metrics`, and its drift from the prompt in the model's embeddings."""
    device = next(model.parameters()).device
    start, text = (model.embed(torch.tensor([ids], device=device))[0] for ids in (prompt, completion.tokens))
    metrics = text_metrics(completion.tokens, completion.log_probabilities, completion.entropies)
    return {**metrics, "drift": text_drift(start, text)}
