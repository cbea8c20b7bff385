"""What is asked of a batch, and what comes back token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from wavelet_core.config import ConfigurationError
from wavelet_core.generation.drafts import DraftSource
from wavelet_core.generation.settings import GenerationSettings
from wavelet_core.tokenizers import Tokenizer

Finish = Literal["length", "stop_token", "stop_string", "failed"]


@dataclass(frozen=True)
class Request:
    """A text to continue.

    prompt: a text (where the batch has a tokenizer) or token ids; an empty one starts from the tokenizer's end-of-text
    token. settings: all but `best_of`, which `generate` makes of several requests. seed, stream: decide every draw;
    the text depends on nothing else but the prompt and the settings. draft: guesses for speculative decoding.
    """

    prompt: str | Sequence[int]
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    seed: int = 0
    stream: int = 0
    draft: DraftSource | None = None


@dataclass(frozen=True)
class Token:
    """One generated token.

    row: which request it continues (`Batch.add`'s number, or `generate`'s prompt). position: 0 for the first token
    after the prompt. text: what has become certain with it ("" without a tokenizer). finish: why the row ends with this
    token, or None; "failed" says that the logits were not finite, and there is no token (-1). log_probability and
    entropy, in nats, are those of the model's own distribution, before samplers; they are None unless `metrics` is set.
    """

    row: int
    position: int
    token: int
    text: str = ""
    log_probability: float | None = None
    entropy: float | None = None
    finish: Finish | None = None


def encode_prompt(prompt: str | Sequence[int], vocabulary_size: int, tokenizer: Tokenizer | None) -> list[int]:
    """The token ids that generation starts from; never empty. Raises ConfigurationError for an unusable prompt."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ConfigurationError("a prompt that is a text needs a tokenizer; give one, or token ids")
        prompt = tokenizer.checked(tokenizer.encode(prompt))
    ids = list(prompt)
    if not ids:
        end_of_text = None if tokenizer is None else tokenizer.end_of_text
        if end_of_text is None:
            raise ConfigurationError(
                "the prompt is empty and there is no end-of-text token to start from; give at least one token"
            )
        ids = [end_of_text]
    outside = [token for token in ids if not 0 <= token < vocabulary_size]
    if outside:
        raise ConfigurationError(
            f"the prompt's token {outside[0]} is outside the model's vocabulary (model.vocabulary_size="
            f"{vocabulary_size}); encode it with the tokenizer that the model was trained with"
        )
    return ids
