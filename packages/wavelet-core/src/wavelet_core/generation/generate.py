"""Prompts in, tokens and text out as they come: `generate`, best-of-n and `collect`, on top of a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from wavelet_core.config import ConfigurationError
from wavelet_core.generation.batch import Batch
from wavelet_core.generation.drafts import DraftSource
from wavelet_core.generation.request import Finish, Request, Token
from wavelet_core.generation.sampling import NOT_FINITE, GenerationError
from wavelet_core.generation.session import DecodingSession
from wavelet_core.generation.settings import GenerationSettings
from wavelet_core.language_model import LanguageModel
from wavelet_core.tokenizers import Tokenizer


def generate(
    model: LanguageModel | DecodingSession,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    seeds: Sequence[int] | None = None,
    draft: DraftSource | None = None,
    slots: int | None = None,
    prefill_tokens: int = 512,
) -> Iterator[Token]:
    """Continue prompts, yielding every token of every row as soon as it is known.

    prompts: texts (with a tokenizer) or token ids; an empty one starts from the tokenizer's end-of-text token. Rows
    may have different lengths and end at different times. seeds: one per row, by default 0, 1, 2, ...; a row's text
    depends on its prompt and seed alone, not on the other rows (up to rounding in the model). draft: guesses for
    speculative decoding, which decodes row by row. slots: texts decoded together, all by default; the next one begins
    when one has ended. prefill_tokens: tokens of prompts that one forward pass reads, over all rows.

    With `best_of` the tokens of a prompt's best text come when all of them are finished.

    Raises ConfigurationError, before anything is computed, for what does not fit together, and GenerationError for
    logits that are not finite.
    """
    settings = settings or GenerationSettings()
    seeds = list(range(len(prompts))) if seeds is None else list(seeds)
    if not prompts:
        raise ConfigurationError("there is no prompt to continue; give at least one, which may be empty")
    if len(seeds) != len(prompts):
        raise ConfigurationError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed per prompt")
    single = settings.model_copy(update={"best_of": 1, "metrics": settings.metrics or settings.best_of > 1})
    requests = [
        Request(prompt, single, seed, stream, draft)
        for prompt, seed in zip(prompts, seeds, strict=True)
        for stream in range(settings.best_of)
    ]
    slots = min(slots or len(requests), len(requests))
    batch = Batch(model, slots, tokenizer=tokenizer, prefill_tokens=prefill_tokens)
    for request in requests[:: settings.best_of]:
        batch.check(request)
    tokens = _run(batch, requests)
    return tokens if settings.best_of == 1 else _best_of(tokens, settings.best_of, len(prompts))


def _run(batch: Batch, requests: Sequence[Request]) -> Iterator[Token]:
    """All requests' tokens, each with the place of its request as its row."""
    waiting = deque(enumerate(requests))
    places: dict[int, int] = {}
    while waiting or batch.requests:
        while waiting and batch.free:
            place, request = waiting.popleft()
            places[batch.add(request)] = place
        for token in batch.step():
            if token.finish == "failed":
                raise GenerationError(NOT_FINITE)
            yield replace(token, row=places[token.row])
        if not waiting and batch.free >= batch.slots / 2:
            batch.shrink()


def _best_of(tokens: Iterable[Token], count: int, prompts: int) -> Iterator[Token]:
    """Of every prompt's `count` texts the one of highest mean log-probability."""
    texts: list[list[Token]] = [[] for _ in range(count * prompts)]
    for token in tokens:
        texts[token.row].append(token)
    for row in range(prompts):
        for token in max(texts[row * count : (row + 1) * count], key=mean_log_probability):
            yield replace(token, row=row)


def mean_log_probability(tokens: Sequence[Token]) -> float:
    """The mean log-probability in nats per token of a text generated with `metrics`."""
    return sum(token.log_probability or 0.0 for token in tokens) / len(tokens)


@dataclass
class Completion:
    """What one row has generated so far: its text and tokens, and why it ended (None while it goes on)."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, token: Token) -> None:
        """Take in the row's next token."""
        self.text += token.text
        self.tokens.append(token.token)
        if token.log_probability is not None and token.entropy is not None:
            self.log_probabilities.append(token.log_probability)
            self.entropies.append(token.entropy)
        self.finish = token.finish


def collect(tokens: Iterable[Token]) -> list[Completion]:
    """Run a generation to its end: one completion per row, in the order of the prompts."""
    completions: dict[int, Completion] = {}
    for token in tokens:
        completions.setdefault(token.row, Completion()).add(token)
    return [completions[row] for row in sorted(completions)]
