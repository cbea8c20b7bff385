"""From logits to tokens: samplers in their declared order, then one draw per row from the row's own seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_core.language_model import LanguageModel
from wavelet_core.registry import build
from wavelet_core.state import State, Tree
from wavelet_core.tokenizers import Tokenizer


class GenerationError(ValueError):
    """A text that cannot be generated; the message says what would help."""


class SamplerChain:
    """Samplers applied one after the other, in the order of the configuration.

    Their memory is one State, so that its rows are selected, repeated and cloned like the model's. Where the model has
    a larger vocabulary than the tokenizer (padding), only the tokenizer's tokens are ever drawn.
    """

    def __init__(self, configs: Sequence[Any], model: LanguageModel, tokenizer: Tokenizer | None = None):
        self.samplers = [build("sampler", config, model) for config in configs]
        for sampler in self.samplers:
            sampler.learn_vocabulary(tokenizer)
        self.vocabulary_size = model.config.vocabulary if tokenizer is None else tokenizer.vocabulary_size

    def start(self, prompts: Sequence[Tensor]) -> State:
        """The samplers' memory of a batch whose rows have read these prompts."""
        trees: Tree = {str(index): sampler.start(prompts) for index, sampler in enumerate(self.samplers)}
        return State(trees, len(prompts))

    def observe(self, tokens: Tensor, memory: State) -> None:
        """Show the token that each row has been given, (B,), to all samplers."""
        for sampler, tree in zip(self.samplers, memory.tree.values(), strict=True):
            sampler.observe(tokens, tree)

    def __call__(self, logits: Tensor, memory: State) -> Tensor:
        """Reshaped logits (B, V), in float32."""
        logits = logits.float()
        padding = logits.shape[-1] - self.vocabulary_size
        if padding:
            logits = F.pad(logits[:, : self.vocabulary_size], (0, padding), value=-torch.inf)
        for sampler, tree in zip(self.samplers, memory.tree.values(), strict=True):
            logits = sampler(logits, tree)
        return logits


@dataclass(frozen=True)
class RowSeed:
    """What decides a row's draws: its seed, and the number of the text that is drawn with it (best-of-n)."""

    seed: int
    stream: int = 0

    def uniform(self, position: int) -> float:
        """The number in [0, 1) that decides the token at a position of the row's text.

        A hash of its arguments instead of a generator with a state: a draw depends on nothing but the row's seed and
        the position, so neither other rows of the batch nor speculative drafts can disturb it.
        """
        digest = hashlib.blake2b(f"{self.seed} {self.stream} {position}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 12) * 2.0**-52


def draw(logits: Tensor, uniforms: Sequence[float]) -> list[int]:
    """One token per row from softmax(logits) of logits (B, V), by inverting the cumulative distribution.

    -1 for a row that holds NaN or nothing but -inf.
    """
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    targets = torch.tensor(uniforms, dtype=torch.float64, device=logits.device).unsqueeze(-1) * total
    tokens = torch.searchsorted(cumulative, targets, right=True).squeeze(-1)
    return tokens.masked_fill(~total.squeeze(-1).isfinite(), -1).tolist()


NOT_FINITE = (
    "the logits are not finite, so no token can be drawn; a 16-bit model may overflow (use float32), and samplers must "
    "leave at least one token"
)


class RowSampler:
    """The samplers, their memory and the random numbers of one row, moving on with every token drawn."""

    def __init__(self, chain: SamplerChain, memory: State, seed: RowSeed, position: int = 0):
        self.chain, self.memory, self.seed, self.position = chain, memory, seed, position

    def pick(self, logits: Tensor) -> int:
        """The row's next token for the model's logits (1, V). Raises GenerationError where they are not finite."""
        (token,) = draw(self.chain(logits, self.memory), [self.seed.uniform(self.position)])
        if token < 0:
            raise GenerationError(NOT_FINITE)
        self.chain.observe(torch.tensor([token], device=logits.device), self.memory)
        self.position += 1
        return token

    def fork(self) -> RowSampler:
        """A copy that draws the same tokens and leaves this one where it is."""
        return RowSampler(self.chain, self.memory.clone(), self.seed, self.position)
