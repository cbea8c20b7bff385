"""The contract of a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wavelet_core.config import ConfigurationError, ModelConfig
from wavelet_core.generation.samplers.sampler import Sampler
from wavelet_core.model import WaveletLM
from wavelet_core.state import State, leaves
from wavelet_core.testing.subject import Subject
from wavelet_core.tokenizers import BytesTokenizer, Tokenizer

# The model has more entries than the tokenizer has tokens, as models with a padded vocabulary have.
TOKENS, PADDED = 256, 259
PROMPTS = (b"The", b"a", b"Once upon a time, in 1789, {", b"\xf0\x9f")
STEPS = 5
TOLERANCE = 1e-4


def _make(subject: Subject, vocabulary: int = PADDED, tokenizer: Tokenizer | None = None) -> Any:
    """A new sampler, as a generation makes it."""
    torch.manual_seed(0)
    model = WaveletLM(ModelConfig(vocabulary_size=vocabulary, width=8, levels=1, memories=[])).eval()
    sampler = subject.component(subject.config, model)
    sampler.learn_vocabulary(tokenizer)
    return sampler


def _with_text(subject: Subject) -> Any:
    return _make(subject, tokenizer=BytesTokenizer())


def _start(sampler: Any, prompts: Sequence[bytes] = PROMPTS) -> State:
    return State(sampler.start([torch.tensor(list(prompt)) for prompt in prompts]), len(prompts))


def _logits(rows: int = len(PROMPTS)) -> Tensor:
    """What a chain hands to its samplers: spread, tied, extreme and partly excluded logits; padding is excluded."""
    logits = 3 * torch.randn(rows, PADDED)
    logits[1:2, : TOKENS // 2] = 1.0
    logits[2:3] *= 1000
    logits[3:4, ::3] = -torch.inf
    logits[:, TOKENS:] = -torch.inf
    return logits


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, atol=TOLERANCE, rtol=TOLERANCE)


def _check_construction(subject: Subject) -> None:
    with subject.expecting(
        f"being made as {subject.component.__name__}(config, model) and told the vocabulary",
        "give __init__ these two parameters, and learn_vocabulary the parameter tokenizer",
    ):
        if not issubclass(subject.component, Sampler):
            subject.fail("is no Sampler", "let the class inherit from wavelet_core.generation.Sampler")
        _with_text(subject)
    with subject.expecting("without a tokenizer", "raise ConfigurationError in learn_vocabulary where text is needed"):
        try:
            sampler = _make(subject, 2)
        except ConfigurationError:
            return
    with subject.expecting("with a vocabulary of two tokens", "let no size be larger than that of the logits"):
        logits = sampler(torch.tensor([[1.0, 2.0]]), sampler.start([torch.tensor([1])]))
        if not logits.isfinite().any():
            subject.fail("leaves none of two tokens", "keep at least one finite logit in every row")


def _check_logits(subject: Subject) -> None:
    sampler, logits = _with_text(subject), _logits()
    memory = _start(sampler)
    before, remembered = logits.clone(), memory.clone()
    with subject.expecting(f"on logits {list(logits.shape)}", "take (logits, memory): (B, V), and what start returned"):
        shaped = sampler(logits, memory.tree)
    if not isinstance(shaped, Tensor) or shaped.shape != logits.shape or shaped.dtype != logits.dtype:
        subject.fail(
            f"gave {list(shaped.shape)} {shaped.dtype} for logits {list(logits.shape)} {logits.dtype}"
            if isinstance(shaped, Tensor)
            else f"gave a {type(shaped).__name__}",
            "return the reshaped logits, (B, V) float32 like those that came in",
        )
    if not logits.equal(before):
        subject.fail("wrote into the logits", "make new ones: the engine reads the model's own once more")
    if not _equal(memory, remembered):
        subject.fail(
            "changed its memory when it was called",
            "change it in observe() alone: a distribution may be asked for several times, or for a guess",
        )
    if shaped.isnan().any() or shaped.isposinf().any():
        subject.fail(
            "gave logits that are NaN or +inf where some that came in were -inf or large",
            "let -inf pass through, and multiply it by no zero",
        )
    if shaped[logits.isneginf()].isfinite().any():
        subject.fail(
            "revived tokens that were excluded by a logit of -inf",
            "leave -inf alone: it excludes the padding of the vocabulary, and what other samplers have dropped",
        )
    if not shaped[:3].isfinite().any(-1).all():
        subject.fail("left no token in a row", "keep at least one finite logit in every row")


def _check_memory(subject: Subject) -> None:
    sampler = _with_text(subject)
    with subject.expecting("in start(prompts)", "take a list of token-id tensors and return a dictionary of tensors"):
        memory = _start(sampler)
        found = dict(leaves(memory.tree))
    start = {name: (tensor.shape, tensor.dtype, tensor.data_ptr()) for name, tensor in found.items()}
    for name, tensor in found.items():
        if tensor.dim() == 0 or len(tensor) != len(PROMPTS):
            subject.fail(
                f"remembers {name!r} of shape {list(tensor.shape)} for {len(PROMPTS)} prompts",
                "put the batch first, so that rows can be selected, joined and copied",
            )
    for _ in range(STEPS):
        with subject.expecting("in observe(tokens, memory)", "take the tokens (B,) and what start returned"):
            sampler.observe(torch.randint(TOKENS, (len(PROMPTS),)), memory.tree)
        now = {name: (tensor.shape, tensor.dtype, tensor.data_ptr()) for name, tensor in leaves(memory.tree)}
        for name in sorted(start.keys() | now.keys()):
            if start.get(name) != now.get(name):
                subject.fail(
                    f"replaced or resized {name!r} in its memory while observing a token",
                    "allocate it in start() and overwrite it in place: cost must not grow with the text",
                )


def _check_rows(subject: Subject) -> None:
    """Texts in one batch, and each on its own, given the same tokens: the same logits at every step."""
    together, others = _with_text(subject), [_with_text(subject) for _ in PROMPTS]
    memory = _start(together)
    alone = [_start(other, [prompt]) for other, prompt in zip(others, PROMPTS, strict=True)]
    order = list(range(len(PROMPTS)))
    for step in range(STEPS):
        logits = _logits()[torch.randperm(len(PROMPTS))]
        shaped = together(logits, memory.tree)
        if not shaped.equal(together(logits, memory.tree)):
            subject.fail(
                "gives other logits when it is called again",
                "draw no random numbers and keep nothing on the sampler: what it remembers is in the memory",
            )
        with subject.expecting("on a batch of one text", "take any number of rows"):
            wanted = torch.cat([others[row](logits[[place]], alone[row].tree) for place, row in enumerate(order)])
        if not _same(shaped, wanted):
            subject.fail(
                "mixes up texts: rows of a batch get other logits than each text alone",
                "treat rows as independent texts, and keep what belongs to a text in its rows of the memory alone",
            )
        tokens = torch.randint(TOKENS, (len(PROMPTS),))
        together.observe(tokens, memory.tree)
        for place, row in enumerate(order):
            others[row].observe(tokens[[place]], alone[row].tree)
        # The engine cuts and joins memories when texts come and go, and any sampler of the settings serves any text.
        order = [order[place] for place in (1, 3, 0, 2)]
        memory = State.join([memory[[1, 3]], memory[[0]], memory[[2]]])
        if step == STEPS // 2:
            together, others = others[0], [together] * len(PROMPTS)


def _equal(first: State, second: State) -> bool:
    return all(a.equal(b) for (_, a), (_, b) in zip(leaves(first.tree), leaves(second.tree), strict=True))


def _without_gradients(check: Any) -> Any:
    """As the engine calls samplers."""
    return torch.inference_mode()(check)


SAMPLER_CHECKS = tuple(map(_without_gradients, (_check_construction, _check_logits, _check_memory, _check_rows)))
