"""A batch of texts that are generated together: requests join and leave between tokens (docs/model.md, section 10)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from wavelet_core.config import ConfigurationError
from wavelet_core.generation.context import Contexts
from wavelet_core.generation.drafts import ModelDrafts
from wavelet_core.generation.lookahead import look_ahead
from wavelet_core.generation.request import Finish, Request, Token, encode_prompt
from wavelet_core.generation.samplers.temperature import entropy_of
from wavelet_core.generation.sampling import GenerationError, RowSeed, SamplerChain, draw
from wavelet_core.generation.session import DecodingSession
from wavelet_core.generation.settings import GenerationSettings
from wavelet_core.generation.speculative import Speculative
from wavelet_core.generation.stopping import TextStream
from wavelet_core.language_model import LanguageModel
from wavelet_core.state import State
from wavelet_core.tokenizers import Tokenizer


@dataclass
class _Row:
    """One request while it is generated.

    samplers: the same for rows whose samplers are configured alike. memory: what the samplers remember, one row. after:
    contexts and memory that lookahead has left where the last token is read already.
    """

    number: int
    request: Request
    prompt: list[int]
    samplers: str
    chain: SamplerChain
    text: TextStream | None
    memory: State | None = None
    tokens: int = 0
    last: int = -1
    speculative: Speculative | None = None
    after: tuple[Contexts, State] | None = None

    @property
    def seed(self) -> RowSeed:
        return RowSeed(self.request.seed, self.request.stream)

    def accept(self, token: int, statistics: tuple[float, float] | None) -> Token:
        """Take one token in and decide whether the text ends with it."""
        settings = self.request.settings
        position, self.tokens, self.last = self.tokens, self.tokens + 1, token
        finish: Finish | None = None
        text = ""
        if token < 0:
            finish = "failed"
        elif token in settings.stop_tokens:
            finish = "stop_token"
        elif self.text is not None:
            text = self.text.feed(token)
            finish = "stop_string" if self.text.stopped else None
        if finish is None and self.tokens == settings.tokens:
            finish = "length"
        if finish is not None and self.text is not None:
            text += self.text.finish()
            finish = "stop_string" if self.text.stopped else finish
        log_probability, entropy = statistics or (None, None)
        return Token(self.number, position, token, text, log_probability, entropy, finish)


class Batch:
    """A fixed number of slots, each with a request or free. Rows share nothing but the product.

    Position, samplers and their memory, context policy, stops, seed, drafts and lookahead are each row's own, so a
    request's text does not depend on what else is in the batch: all slots go through every product, whether they are
    taken or not, which keeps its shape and every row's numbers. Memory is allocated once, for all slots. Speculative
    rows are verified one by one, on a state of their own.

    model: any language model, or a session of one (compiled, or shared by several batches). It is not changed.
    tokenizer: turns prompts and tokens from and into text, and tells samplers what the tokens are; without one all are
    token ids. prefill_tokens: tokens of prompts that one forward pass reads, over all rows.
    """

    def __init__(
        self,
        model: LanguageModel | DecodingSession,
        slots: int = 1,
        *,
        tokenizer: Tokenizer | None = None,
        prefill_tokens: int = 512,
    ):
        if slots < 1:
            raise ConfigurationError(f"slots={slots}: a batch needs at least one slot")
        self.session = model if isinstance(model, DecodingSession) else DecodingSession(model)
        self.tokenizer = tokenizer
        self.prefill_tokens = prefill_tokens
        size = self.session.config.vocabulary
        if tokenizer is not None and tokenizer.vocabulary_size > size:
            raise ConfigurationError(
                f"the tokenizer has {tokenizer.vocabulary_size} tokens, but model.vocabulary_size={size}; "
                "use the tokenizer that the model was trained with"
            )
        self._slots: list[_Row | None] = [None] * slots
        self._contexts = Contexts(self.session, slots, prefill_tokens)
        self._chains: dict[str, SamplerChain] = {}
        self._numbers = count()

    @property
    def slots(self) -> int:
        """How many requests fit in."""
        return len(self._slots)

    @property
    def free(self) -> int:
        """How many more requests fit in now."""
        return self._slots.count(None)

    @property
    def requests(self) -> dict[int, Request]:
        """The requests that are being generated, by number."""
        return {row.number: row.request for row in self._slots if row is not None}

    def add(self, request: Request) -> int:
        """Give a request a free slot; the next step reads its prompt. Returns its number, which its tokens carry.

        Raises ConfigurationError for what does not fit together, and GenerationError when no slot is free.
        """
        prompt = self.check(request)
        if not self.free:
            raise GenerationError(f"all {self.slots} slots are taken; wait until a request ends, or cancel one")
        samplers, chain = self._chain(request.settings)
        text = None if self.tokenizer is None else TextStream(self.tokenizer, request.settings.stop_strings)
        row = _Row(next(self._numbers), request, prompt, samplers, chain, text)
        self._slots[self._slots.index(None)] = row
        return row.number

    def _chain(self, settings: GenerationSettings) -> tuple[str, SamplerChain]:
        """What identifies the samplers of some settings, and they themselves, made once for all rows that have them."""
        samplers = repr([(sampler.kind, sampler.model_dump_json()) for sampler in settings.samplers])
        if samplers not in self._chains:
            chain = SamplerChain(settings.samplers, self.session.model, self.tokenizer)
            used = {row.samplers: row.chain for row in self._slots if row is not None}
            self._chains = {**used, samplers: chain}
        return samplers, self._chains[samplers]

    def cancel(self, number: int) -> bool:
        """Take a request out of the batch before its end; False when it is not, or no longer, in it."""
        for slot, row in enumerate(self._slots):
            if row is not None and row.number == number:
                self._slots[slot] = None
                return True
        return False

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Read each row's last token, or the prompts of those that joined, and give every row its next token.

        Rows whose text ends with it leave. Nothing is read after a text's last token. An empty batch gives nothing.
        """
        self._read()
        self._join()
        found = {**self._draw(), **self._verify()}
        events = []
        for slot in sorted(found):
            row = self._slots[slot]
            assert row is not None
            token, logits = found[slot]
            measured = row.request.settings.metrics and token >= 0
            events.append(row.accept(token, _statistics(logits, token) if measured else None))
            if events[-1].finish is not None:
                self._slots[slot] = None
        return events

    def _rows(self, *, speculative: bool = False) -> dict[int, _Row]:
        """The rows by slot: those that are verified one by one, or those that are read together."""
        rows = {slot: row for slot, row in enumerate(self._slots) if row is not None}
        return {slot: row for slot, row in rows.items() if (row.request.draft is not None) == speculative}

    def _read(self) -> None:
        """Let the rows read the tokens that they were given."""
        rows = {slot: row for slot, row in self._rows().items() if row.memory is not None}
        plain = {slot: row for slot, row in rows.items() if row.after is None}
        if plain:
            tokens = torch.tensor([0 if row is None else max(row.last, 0) for row in self._slots])
            tokens = tokens.to(self.session.device)
            self._contexts.step(tokens, list(plain))
            for group in _alike(plain):
                memory = _memory(group)
                if memory.nbytes:
                    group[min(group)].chain.observe(tokens[list(group)], memory)
                    for place, row in enumerate(group.values()):
                        row.memory = memory[place] if len(group) > 1 else memory
        for slot, row in rows.items():
            if row.after is not None:
                contexts, row.memory = row.after
                self._contexts.write([slot], contexts)

    def _join(self) -> None:
        """Read the prompts of the rows that are new."""
        new = {slot: row for slot, row in self._rows().items() if row.memory is None}
        for row in new.values():
            row.memory = row.chain.start([torch.tensor(row.prompt, device=self.session.device)])
        if new:
            policies = [row.request.settings.context for row in new.values()]
            self._contexts.open(list(new), [row.prompt for row in new.values()], policies)

    def _draw(self) -> dict[int, tuple[int, Tensor]]:
        """Tokens that are drawn from the rows' own distributions, with the model's logits, by slot."""
        found: dict[int, tuple[int, Tensor]] = {}
        for group in _alike(self._rows()):
            slots, first = list(group), group[min(group)]
            logits = self._contexts.logits if len(slots) == self.slots else self._contexts.logits[slots]
            if (search := first.request.settings.lookahead) is not None:
                tokens, contexts, memory = look_ahead(self._contexts, slots, first.chain, _memory(group), search)
                for place, row in enumerate(group.values()):
                    row.after = contexts.select([place]), memory[place]
            else:
                shaped = first.chain(logits, _memory(group))
                tokens = draw(shaped, [row.seed.uniform(row.tokens) for row in group.values()])
            found |= {slot: (token, row) for slot, token, row in zip(slots, tokens, logits.split(1), strict=True)}
        return found

    def _verify(self) -> dict[int, tuple[int, Tensor]]:
        """Tokens of the speculative rows."""
        found = {}
        for slot, row in self._rows(speculative=True).items():
            assert row.request.draft is not None
            try:
                if row.speculative is None:
                    row.speculative = Speculative(
                        self.session, row.prompt, row.chain, row.seed, row.request.draft, self.prefill_tokens
                    )
                found[slot] = row.speculative.next()
            except GenerationError:
                found[slot] = -1, torch.empty(1, 0)
        return found

    def shrink(self) -> None:
        """Give the free slots up, so that later steps read the rows that are left and nothing else."""
        left = [slot for slot, row in enumerate(self._slots) if row is not None]
        if left and len(left) < self.slots:
            self._slots = [self._slots[slot] for slot in left]
            self._contexts = self._contexts.select(left)

    def check(self, request: Request) -> list[int]:
        """The token ids that a request starts from; never empty.

        Raises ConfigurationError for a prompt that cannot be used, for options that do not fit together, and for what a
        sampler refuses.
        """
        settings, size = request.settings, self.session.config.vocabulary
        if settings.best_of > 1:
            raise ConfigurationError(f"best_of={settings.best_of} compares several requests; `generate` does that")
        if self.tokenizer is None and settings.stop_strings:
            raise ConfigurationError(
                "stop_strings need a tokenizer that turns tokens into text; use stop_tokens instead"
            )
        if request.draft is not None:
            if settings.context != "stream":
                raise ConfigurationError(
                    f"speculative decoding needs context=stream, but context={settings.context}; leave out one of the "
                    "two"
                )
            if settings.lookahead is not None:
                raise ConfigurationError(
                    "speculative decoding verifies plain decoding, not lookahead; leave out one of the two"
                )
            if isinstance(request.draft, ModelDrafts) and request.draft.session.config.vocabulary_size != size:
                raise ConfigurationError(
                    f"the draft model has model.vocabulary_size={request.draft.session.config.vocabulary_size}, but "
                    f"the model has {size}; use a draft that was trained with the same tokenizer"
                )
        self._chain(settings)
        return encode_prompt(request.prompt, size, self.tokenizer)


def _alike(rows: dict[int, _Row]) -> list[dict[int, _Row]]:
    """Rows by slot, in groups that have the same samplers and search alike."""
    groups: dict[Any, dict[int, _Row]] = {}
    for slot, row in rows.items():
        groups.setdefault((row.samplers, row.request.settings.lookahead), {})[slot] = row
    return list(groups.values())


def _memory(rows: dict[int, _Row]) -> State:
    """What the samplers remember of some rows, in their order."""
    memories = [row.memory for row in rows.values() if row.memory is not None]
    if not memories[0].nbytes:  # samplers that remember nothing
        return State(memories[0].tree, len(memories))
    return memories[0] if len(memories) == 1 else State.join(memories)


def _statistics(logits: Tensor, token: int) -> tuple[float, float]:
    """Log-probability and entropy in nats of a token under the model's logits (1, V)."""
    logits = logits.float()
    return float(logits.log_softmax(-1)[0, token]), float(entropy_of(logits))
