"""How much of a probe a model recalls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wavelet_core.language_model import LanguageModel
from wavelet_train.probes.probe import Probe
from wavelet_train.reading import Reading, token_scores
from wavelet_train.windows import Passage

# Where ranges of distances begin: octaves.
DISTANCE_EDGES = 2 ** np.arange(40)


@dataclass(frozen=True)
class ProbeScores:
    """answers, correct, nats: (ranges,) float64 each, sums over the answers at distances from DISTANCE_EDGES[i] to
    DISTANCE_EDGES[i + 1] - 1; an answer is correct when the model holds it to be the likeliest of all tokens."""

    answers: np.ndarray
    correct: np.ndarray
    nats: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of correct answers."""
        return float(self.correct.sum() / self.answers.sum())

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for JSON."""
        return {
            "accuracy": self.accuracy,
            "answers": int(self.answers.sum()),
            "nats_per_answer": float(self.nats.sum() / self.answers.sum()),
            "by_distance": [
                {
                    "first": int(DISTANCE_EDGES[index]),
                    "last": int(DISTANCE_EDGES[index + 1]) - 1,
                    "answers": int(self.answers[index]),
                    "accuracy": float(self.correct[index] / self.answers[index]),
                }
                for index in np.flatnonzero(self.answers)
            ],
        }


def score_probe(
    model: LanguageModel,
    probe: Probe,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    on_batch: Callable[[int], None] = lambda examples: None,
    workers: Callable[[], int] | None = None,
) -> ProbeScores:
    """Score the test examples of a probe, each read in one window, whatever the model's context_length is.

    batch_size: examples at a time. dtype: what autocast computes in. on_batch: called after every batch with the number
    of examples in it. workers: as of `token_scores`.

    Raises ConfigurationError where there are too few different examples.
    """
    examples = list(probe.examples("test"))
    length = probe.config.length
    passages = [Passage(example.tokens, number * length + 1) for number, example in enumerate(examples)]
    distances = np.concatenate([example.distances for example in examples])
    sums = np.zeros((len(DISTANCE_EDGES), 3))
    reading = Reading(window=length)
    for scores in token_scores(model, passages, reading, batch_size, dtype, counts=distances > 0, workers=workers):
        ranges = np.searchsorted(DISTANCE_EDGES, distances[scores.places], side="right") - 1
        np.add.at(sums, ranges, np.stack([np.ones_like(scores.nats), scores.correct, scores.nats], axis=1))
        on_batch(len(np.unique(scores.places // length)))
    return ProbeScores(*sums.T)
