"""What is asked of a batch, and what comes back token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from wavelet_core.generation.drafts import DraftSource
from wavelet_core.generation.settings import GenerationSettings

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
