"""What the strategies on top of decoding cost or save: lookahead, and speculative decoding by n-gram look-up.

The model has random weights; what it computes takes the same time as with trained ones. For speculative decoding the
text is given: a sampler lets through the next token of a real text only, so that guesses meet the repetitions of source
code (long files of the standard library), of English (its documentation), of a shuffled text that has none, and of a
loop. What is compared takes turns; medians of the ratios are printed, for source code with the least and greatest file.

    python benchmarks/decode_strategies.py [--width 512] [--tokens 300] [--rounds 3] [--threads 1] [--tokenizer gpt2]

`--tokenizer gpt2` reads the texts in GPT-2's tokens, for which tiktoken needs its files or the network; without it they
are read in those of a vocabulary of 8192 learnt here from source code, which leaves less to repeat.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
from typing import Any, Literal

import torch
from torch import Tensor

from wavelet_core import ComponentConfig, ModelConfig, hookimpl, registry
from wavelet_core.config import parse
from wavelet_core.generation import GenerationSettings, NgramDrafts, Sampler, generate
from wavelet_core.tokenizers import BytePairTokenizer, TiktokenTokenizer, Tokenizer
from wavelet_quant.decode_benchmark import random_model
from wavelet_train.byte_pair import train_byte_pair
from wavelet_train.python_stdlib import PythonStandardLibrary
from wavelet_train.run_config import load_run_config

PROMPT_TOKENS = 1000
VOCABULARY = 50257


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


def make_tokenizer(kind: str) -> Tokenizer:
    if kind == "gpt2":
        return TiktokenTokenizer(TiktokenTokenizer.Config(encoding="gpt2"))
    documents = itertools.islice(PythonStandardLibrary().documents("train"), 200)
    return train_byte_pair(BytePairTokenizer.Config(vocabulary_size=8192), documents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokenizer", choices=["byte_pair", "gpt2"], default="byte_pair")
    parser.add_argument("--files", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    registry.add_plugin(sys.modules[__name__], "decode_strategies")

    sizes = {"model.width": options.width, "model.vocabulary_size": VOCABULARY, "model.memories.0.expansion": 8}
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

    tokenizer = make_tokenizer(options.tokenizer)
    library = PythonStandardLibrary()
    code = sorted((text for text in library.documents("test") if "import " in text), key=len)[-options.files :]
    english = "\n".join(text for text in library.documents("train") if "import " not in text)
    length = PROMPT_TOKENS + options.tokens
    texts = {
        "source code": [tokenizer.encode(text)[:length] for text in code],
        "English": [tokenizer.encode(english[:100_000])[:length]],
        "text without repetition": [random.Random(0).sample(range(VOCABULARY), k=length)],
        "a loop of 50 tokens": [[token % 50 for token in range(length)]],
    }
    for name, examples in texts.items():
        gains = [gain_of_drafts(model, example, options.rounds) for example in examples]
        spread = f" ({min(gains):.2f} to {max(gains):.2f} in {len(gains)} files)" if len(gains) > 1 else ""
        print(f"n-gram drafts on {name}: {statistics.median(gains):.2f} times as fast{spread}", flush=True)


def gain_of_drafts(model: Any, text: list[int], rounds: int) -> float:
    """How many times as fast n-gram drafts make a text, after its first tokens as the prompt."""
    prompt, rest = text[:PROMPT_TOKENS], text[PROMPT_TOKENS:]
    forced = {"tokens": len(rest), "samplers": [{"kind": "forced_text", "text": rest}]}
    gains = []
    for _ in range(rounds):
        plain = seconds_per_token(model, prompt, **forced)
        gains.append(plain / seconds_per_token(model, prompt, NgramDrafts(), **forced))
    return statistics.median(gains)


if __name__ == "__main__":
    main()
