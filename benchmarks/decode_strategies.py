"""What the strategies on top of decoding cost or save: lookahead, and speculative decoding by n-gram look-up.

The model has random weights; what it computes takes the same time as with trained ones. For speculative decoding the
text is given: a sampler lets through the next token of a real text only, so that guesses meet the repetitions of source
code, of a shuffled text that has none, and of a loop. What is compared takes turns; medians of the ratios are printed.

    python benchmarks/decode_strategies.py [--width 512] [--tokens 300] [--rounds 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wavelet_core import ComponentConfig, ModelConfig, hookimpl, registry
from wavelet_core.config import parse
from wavelet_core.generation import GenerationSettings, NgramDrafts, Sampler, generate
from wavelet_core.generation.benchmark import random_model
from wavelet_train.config import load_run_config

PROMPT_TOKENS = 1000


class ForcedText(Sampler):
    """Lets only the next token of a given text through."""

    class Config(ComponentConfig):
        kind: Literal["forced_text"] = "forced_text"
        text: list[int]

    def __init__(self, config: Config, model: Any):
        super().__init__(config, model)
        self.text = torch.tensor(config.text)

    def start(self, prompts: Any) -> dict[str, Tensor]:
        return {"place": torch.zeros(len(prompts), dtype=torch.long)}

    def observe(self, tokens: Tensor, memory: dict[str, Tensor]) -> None:
        memory["place"] += 1

    def __call__(self, logits: Tensor, memory: dict[str, Tensor]) -> Tensor:
        place = memory["place"].clamp(max=len(self.text) - 1)
        return torch.full_like(logits, -torch.inf).scatter_(-1, self.text[place].unsqueeze(-1), 0.0)


@hookimpl
def register_components(register: Any) -> None:
    register("sampler", ForcedText)


def seconds_per_token(model: Any, prompt: list[int], draft: NgramDrafts | None = None, **settings: Any) -> float:
    """Decoding alone: the prompt is read before the clock starts."""
    tokens = generate(model, [prompt], parse(GenerationSettings, settings), draft=draft)
    next(tokens)
    begin = time.perf_counter()
    count = sum(1 for _ in tokens)
    return (time.perf_counter() - begin) / count


def words_and_signs(text: str, size: int) -> list[int]:
    """A text as ids of its words and signs; all rare ones share the last id."""
    pieces = re.findall(r"\w+|\s+|[^\w\s]", text)
    ids: dict[str, int] = {}
    return [min(ids.setdefault(piece, len(ids)), size - 1) for piece in pieces]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    registry.add_plugin(sys.modules[__name__], "decode_strategies")

    sizes = {"model.width": options.width, "model.vocabulary_size": options.vocabulary, "model.memories.0.expansion": 8}
    keys = {"model.memories.1.num_keys": 1024, "model.memories.2.num_keys": 1024}
    overrides = [f"{field}={value}" for field, value in {**sizes, **keys}.items()]
    config: ModelConfig = load_run_config("wikitext-103", overrides).model
    model = random_model(config, torch.float32)

    few = max(8, options.tokens // 10)
    search = {"candidates": 3, "depth": 5}
    costs = []
    for _ in range(options.rounds):
        plain = seconds_per_token(model, [1, 2, 3], tokens=few)
        costs.append(seconds_per_token(model, [1, 2, 3], tokens=few, lookahead=search) / plain)
    print(f"lookahead 3x5 costs {statistics.median(costs):.1f} plain steps per token")

    code = words_and_signs(Path(argparse.__file__).read_text("utf-8"), options.vocabulary)
    shuffled = random.Random(0).sample(range(options.vocabulary), k=PROMPT_TOKENS + options.tokens)
    texts = {"source code": code, "text without repetition": shuffled, "a loop of 50 tokens": list(range(50)) * 100}
    for name, text in texts.items():
        prompt, rest = text[:PROMPT_TOKENS], text[PROMPT_TOKENS : PROMPT_TOKENS + options.tokens]
        forced = {"tokens": len(rest), "samplers": [{"kind": "forced_text", "text": rest}]}
        gains = []
        for _ in range(options.rounds):
            plain = seconds_per_token(model, prompt, **forced)
            gains.append(plain / seconds_per_token(model, prompt, NgramDrafts(), **forced))
        print(f"n-gram drafts on {name}: {statistics.median(gains):.2f} times as fast")


if __name__ == "__main__":
    main()
