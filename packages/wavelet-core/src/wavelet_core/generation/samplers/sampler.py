"""What a sampler is: one step between the model's logits and the token that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from wavelet_core.language_model import LanguageModel
from wavelet_core.tokenizers import Tokenizer

Memory = dict[str, Tensor]


class Sampler:
    """Base class of samplers: reshapes logits (B, V), float32, and may remember something per batch row.

    A sampler without memory implements `__call__` alone. One with memory returns it from `start` as a dictionary of
    batch-first tensors; the engine clones, selects and repeats their rows together with the model's state, so a
    sampler must keep nothing about the text anywhere else. All work per token must be independent of the history's
    length. Tokens that may not be drawn get the logit -inf.
    """

    def __init__(self, config: Any, model: LanguageModel):
        self.config = config

    def learn_vocabulary(self, tokenizer: Tokenizer | None) -> None:
        """Learn what the tokens are, before the first text; `tokenizer.token_bytes` has the text of each.

        tokenizer: None where there are token ids alone; a sampler that needs text then raises ConfigurationError.
        The model's vocabulary V may be larger (padding), but none of what is beyond the tokenizer's is ever drawn.
        """

    def start(self, prompts: Sequence[Tensor]) -> Memory:
        """The memory of a batch whose rows have read `prompts`: one tensor of token ids, not empty, for every row."""
        return {}

    def observe(self, tokens: Tensor, memory: Memory) -> None:
        """Take in the token that each row has just been given, (B,), overwriting `memory` in place."""

    def __call__(self, logits: Tensor, memory: Memory) -> Tensor:
        """The reshaped logits, (B, V). Must not write into `logits`."""
        raise TypeError(f"{type(self).__qualname__} is a sampler without __call__(logits, memory)")
