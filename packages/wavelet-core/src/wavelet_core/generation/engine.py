"""The generation engine: prompts in, tokens and text out as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from wavelet_core.computed import frozen
from wavelet_core.config import ConfigurationError
from wavelet_core.generation.decoders import Lookahead, Sampling
from wavelet_core.generation.drafts import DraftSource, ModelDrafts
from wavelet_core.generation.samplers.temperature import entropy_of
from wavelet_core.generation.sampling import RowSeed, SamplerChain
from wavelet_core.generation.settings import GenerationSettings
from wavelet_core.generation.speculative import Speculative
from wavelet_core.generation.stopping import TextStream

if TYPE_CHECKING:
    from wavelet_core.model import WaveletLM
    from wavelet_core.tokenizers import Tokenizer

Finish = Literal["length", "stop_token", "stop_string"]


@dataclass(frozen=True)
class Token:
    """One generated token.

    row: which prompt it continues. position: 0 for the first token after the prompt. text: what has become certain
    with it ("" without a tokenizer). finish: why the row ends with this token, or None. log_probability and entropy,
    in nats, are those of the model's own distribution, before samplers; they are None unless `metrics` is set.
    """

    row: int
    position: int
    token: int
    text: str = ""
    log_probability: float | None = None
    entropy: float | None = None
    finish: Finish | None = None


@dataclass
class _Row:
    """What the engine knows of a text that is being generated."""

    index: int
    text: TextStream | None
    tokens: int = 0

    def accept(self, token: int, settings: GenerationSettings, statistics: tuple[float | None, float | None]) -> Token:
        """Take one token in and decide whether the row ends with it."""
        position, self.tokens = self.tokens, self.tokens + 1
        finish: Finish | None = None
        text = ""
        if token in settings.stop_tokens:
            finish = "stop_token"
        elif self.text is not None:
            text = self.text.feed(token)
            finish = "stop_string" if self.text.stopped else None
        if finish is None and self.tokens == settings.tokens:
            finish = "length"
        if finish is not None and self.text is not None:
            text += self.text.finish()
            finish = "stop_string" if self.text.stopped else finish
        return Token(self.index, position, token, text, *statistics, finish)


@dataclass
class _Group:
    """Rows that are decoded together."""

    decoder: Sampling | Speculative
    rows: list[_Row] = field(default_factory=list)


def generate(
    model: WaveletLM,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    seeds: Sequence[int] | None = None,
    draft: DraftSource | None = None,
) -> Iterator[Token]:
    """Continue prompts, yielding every token of every row as soon as it is known.

    prompts: texts (with a tokenizer) or token ids; an empty one starts from the tokenizer's end-of-text token. Rows
    may have different lengths and end at different times. seeds: one per row, by default 0, 1, 2, ...; a row's text
    depends on its prompt and seed alone, not on the other rows (up to rounding in the model). draft: guesses for
    speculative decoding, which decodes row by row.

    With `best_of` the tokens of a prompt's best text come when all of them are finished.

    Raises ConfigurationError, before anything is computed, for what does not fit together.
    """
    settings = settings or GenerationSettings()
    _check(model, settings, tokenizer, draft)
    encoded = [encode_prompt(prompt, model, tokenizer) for prompt in prompts]
    seeds = list(range(len(encoded))) if seeds is None else list(seeds)
    if not encoded:
        raise ConfigurationError("there is no prompt to continue; give at least one, which may be empty")
    if len(seeds) != len(encoded):
        raise ConfigurationError(f"{len(seeds)} seeds for {len(encoded)} prompts; give one seed per prompt")
    if settings.best_of == 1:
        return _generate(model, encoded, settings, tokenizer, [RowSeed(seed) for seed in seeds], draft)
    return _best_of(model, encoded, settings, tokenizer, seeds, draft)


def encode_prompt(prompt: str | Sequence[int], model: WaveletLM, tokenizer: Tokenizer | None) -> list[int]:
    """The token ids that generation starts from; never empty. Raises ConfigurationError for an unusable prompt."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ConfigurationError("a prompt that is a text needs a tokenizer; give one, or token ids")
        prompt = tokenizer.encode(prompt)
    ids = list(prompt)
    if not ids:
        end_of_text = None if tokenizer is None else tokenizer.end_of_text
        if end_of_text is None:
            raise ConfigurationError(
                "the prompt is empty and there is no end-of-text token to start from; give at least one token"
            )
        ids = [end_of_text]
    size = model.config.vocabulary_size
    assert size is not None
    outside = [token for token in ids if not 0 <= token < size]
    if outside:
        raise ConfigurationError(
            f"the prompt's token {outside[0]} is outside the model's vocabulary (model.vocabulary_size={size}); "
            "encode it with the tokenizer that the model was trained with"
        )
    return ids


def _check(
    model: WaveletLM, settings: GenerationSettings, tokenizer: Tokenizer | None, draft: DraftSource | None
) -> None:
    size = model.config.vocabulary_size
    assert size is not None
    if tokenizer is not None and tokenizer.vocabulary_size > size:
        raise ConfigurationError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens, but model.vocabulary_size={size}; "
            "use the tokenizer that the model was trained with"
        )
    if tokenizer is None and settings.stop_strings:
        raise ConfigurationError("stop_strings need a tokenizer that turns tokens into text; use stop_tokens instead")
    if draft is None:
        return
    if settings.context != "stream":
        raise ConfigurationError(
            f"speculative decoding needs context=stream, but context={settings.context}; leave out one of the two"
        )
    if settings.lookahead is not None:
        raise ConfigurationError(
            "speculative decoding verifies plain decoding, not lookahead; leave out one of the two"
        )
    if isinstance(draft, ModelDrafts) and draft.model.config.vocabulary_size != size:
        raise ConfigurationError(
            f"the draft model has model.vocabulary_size={draft.model.config.vocabulary_size}, but the model has "
            f"{size}; use a draft that was trained with the same tokenizer"
        )


def _groups(
    model: WaveletLM,
    prompts: list[list[int]],
    settings: GenerationSettings,
    chain: SamplerChain,
    rows: list[_Row],
    seeds: list[RowSeed],
    draft: DraftSource | None,
) -> list[_Group]:
    if draft is not None:
        return [
            _Group(Speculative(model, prompt, chain, settings, seed, draft), [row])
            for prompt, seed, row in zip(prompts, seeds, rows, strict=True)
        ]
    if settings.lookahead is not None:
        return [_Group(Lookahead(model, prompts, chain, settings, seeds, settings.lookahead), rows)]
    return [_Group(Sampling(model, prompts, chain, settings, seeds), rows)]


@contextmanager
def _decoding(model: WaveletLM) -> Iterator[None]:
    """The model in evaluation mode, its computed matrices standing still; afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        with frozen(model):
            yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def _generate(
    model: WaveletLM,
    prompts: list[list[int]],
    settings: GenerationSettings,
    tokenizer: Tokenizer | None,
    seeds: list[RowSeed],
    draft: DraftSource | None,
) -> Iterator[Token]:
    with _decoding(model):
        rows = [
            _Row(index, None if tokenizer is None else TextStream(tokenizer, settings.stop_strings))
            for index in range(len(prompts))
        ]
        size = model.config.vocabulary_size if tokenizer is None else tokenizer.vocabulary_size
        assert size is not None
        chain = SamplerChain(settings.samplers, model, size)
        groups = _groups(model, prompts, settings, chain, rows, seeds, draft)
        while groups:
            for group in list(groups):
                chosen = group.decoder.choose()
                statistics = _statistics(group.decoder.logits, chosen, settings.metrics)
                alive = []
                for place, token in enumerate(chosen.tolist()):
                    event = group.rows[place].accept(token, settings, statistics[place])
                    if event.finish is None:
                        alive.append(place)
                    yield event
                if not alive:
                    groups.remove(group)
                    continue
                if len(alive) < len(group.rows):
                    group.decoder.keep(alive)
                    group.rows = [group.rows[place] for place in alive]
                    chosen = chosen[alive]
                group.decoder.advance(chosen)


def _statistics(logits: Tensor, tokens: Tensor, wanted: bool) -> list[tuple[float | None, float | None]]:
    """Log-probability and entropy in nats of each row's token, or Nones."""
    if not wanted:
        return [(None, None)] * len(tokens)
    logits = logits.float()
    log_probabilities = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return list(zip(log_probabilities.tolist(), entropy_of(logits).tolist(), strict=True))


def _best_of(
    model: WaveletLM,
    prompts: list[list[int]],
    settings: GenerationSettings,
    tokenizer: Tokenizer | None,
    seeds: Sequence[int],
    draft: DraftSource | None,
) -> Iterator[Token]:
    """Draw `best_of` texts of every prompt, all in one batch, and yield the one of highest mean log-probability."""
    count = settings.best_of
    repeated = [prompt for prompt in prompts for _ in range(count)]
    row_seeds = [RowSeed(seed, stream) for seed in seeds for stream in range(count)]
    measured = settings.model_copy(update={"metrics": True})
    texts: list[list[Token]] = [[] for _ in repeated]
    for token in _generate(model, repeated, measured, tokenizer, row_seeds, draft):
        texts[token.row].append(token)
    for row in range(len(prompts)):
        best = max(texts[row * count : (row + 1) * count], key=mean_log_probability)
        for token in best:
            yield replace(token, row=row)


def mean_log_probability(tokens: Sequence[Token]) -> float:
    """The mean log-probability in nats per token of a text generated with `metrics`."""
    return sum(token.log_probability or 0.0 for token in tokens) / len(tokens)
