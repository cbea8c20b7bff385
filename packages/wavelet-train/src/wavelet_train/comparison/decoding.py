"""Decoding speed, prompt speed and state of the arms against context length; they take turns, token by token.

Weights are random, in float32: speed does not depend on training.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wavelet_core.config import LanguageModelConfig
from wavelet_core.generation.session import DecodingSession
from wavelet_core.language_model import build_model
from wavelet_train.comparison.spec import Decoding
from wavelet_train.run_config import RunConfig, run_config

# A prompt is read, and its speed measured, in chunks of so many tokens, so many of them.
CHUNK, CHUNKS = 256, 4


@dataclass(frozen=True)
class DecodingSpeed:
    """One model at one context length, position, in tokens. Speeds are in tokens per second, medians."""

    name: str
    position: int
    decode_speed: float
    prompt_speed: float
    state_bytes: int


def measure_decoding(
    decoding: Decoding, runs: Mapping[str, RunConfig], on_position: Callable[[int], None] = lambda position: None
) -> list[DecodingSpeed]:
    """Measure every arm and variant at every position, with as many processor threads as the first arm trains with.

    on_position: called before each, with the position.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(next(iter(runs.values())).train.threads or threads)
    try:
        speeds = []
        for position in sorted(decoding.positions):
            on_position(position)
            speeds += _measure_at(position, decoding, runs)
        return speeds
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def _measure_at(position: int, decoding: Decoding, runs: Mapping[str, RunConfig]) -> list[DecodingSpeed]:
    models: dict[str, tuple[LanguageModelConfig, bool]] = {name: (run.model, False) for name, run in runs.items()}
    for name, variant in decoding.variants.items():
        data = runs[variant.like].model_dump(mode="json")
        models[name] = (run_config(data, [f"{variant.grows}={position}"], f"decoding.variants.{name}").model, True)
    # What a grown state holds has no influence on its cost, so that reading all of a long text would be in vain.
    streams = {name: _Stream(config, CHUNK if grown else position) for name, (config, grown) in models.items()}
    for stream in streams.values():
        stream.read(1)
    prompts: dict[str, list[float]] = {name: [] for name in streams}
    steps: dict[str, list[float]] = {name: [] for name in streams}
    length = min(CHUNK, position)
    for times, tokens, rounds in ((steps, 1, decoding.tokens), (prompts, length, CHUNKS)):
        for _ in range(rounds):
            for name, stream in streams.items():
                times[name].append(stream.read(tokens))
    return [
        DecodingSpeed(
            name=name,
            position=position,
            decode_speed=1 / statistics.median(steps[name]),
            prompt_speed=length / statistics.median(prompts[name]),
            state_bytes=stream.state.nbytes,
        )
        for name, stream in streams.items()
    ]


class _Stream:
    """A model with random weights in the middle of a random text."""

    def __init__(self, config: LanguageModelConfig, position: int):
        torch.manual_seed(0)
        model: Any = build_model(config).eval()
        self.session = DecodingSession(model)
        self.state = self.session.new_state(1)
        for start in range(0, position, CHUNK):
            self.session.hidden(self._tokens(min(CHUNK, position - start)), self.state)

    def read(self, tokens: int) -> float:
        """Seconds to read so many tokens more and to say what comes after them."""
        text = self._tokens(tokens)
        begin = time.perf_counter()
        if tokens == 1:
            self.session.next_logits(text[0], self.state)
        else:
            self.session.head(self.session.hidden(text, self.state)[:, -1])
        return time.perf_counter() - begin

    def _tokens(self, count: int) -> Tensor:
        return torch.randint(self.session.config.vocabulary, (1, count))
