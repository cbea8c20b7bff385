"""`check_component` tells the author of a broken sampler what to change."""

import re
from typing import Literal

import pytest
import torch

from wavelet_core import ComponentConfig, ConfigurationError, ModelShape
from wavelet_core.generation import Sampler
from wavelet_core.generation.samplers import RepetitionPenalty
from wavelet_core.testing import check_component


class Plain(Sampler):
    """What the broken samplers below have in common."""

    class Config(ComponentConfig):
        kind: Literal["plain"] = "plain"

    def __call__(self, logits, memory):
        return logits / 2


class Counting(Plain):
    """A sound sampler with a memory: the text grows more certain with every token."""

    def start(self, prompts):
        return {"count": torch.tensor([float(len(prompt)) for prompt in prompts])}

    def observe(self, tokens, memory):
        memory["count"].add_(1)

    def __call__(self, logits, memory):
        return logits * (1 + memory["count"]).log1p().unsqueeze(-1)


class OnlyAscii(Plain):
    """A sound sampler that needs text."""

    def learn_vocabulary(self, tokenizer):
        if tokenizer is None:
            raise ConfigurationError("only_ascii needs a tokenizer")
        self.banned = [token for token, text in enumerate(tokenizer.token_bytes) if not text.isascii()]

    def __call__(self, logits, memory):
        return logits.index_fill(-1, torch.tensor(self.banned), -torch.inf)


class NoSampler:
    Config = Plain.Config

    def __init__(self, config, model):
        pass


class NoModel(Plain):
    def __init__(self, config):
        super().__init__(config, None)


class RefusesRudely(OnlyAscii):
    def learn_vocabulary(self, tokenizer):
        self.banned = [token for token, text in enumerate(tokenizer.token_bytes) if not text.isascii()]


class FiveBest(Plain):
    def __call__(self, logits, memory):
        values, indices = logits.topk(5)
        return torch.full_like(logits, -torch.inf).scatter(-1, indices, values)


class Probabilities16(Plain):
    def __call__(self, logits, memory):
        return logits.bfloat16()


class FirstRow(Plain):
    def __call__(self, logits, memory):
        return logits[0]


class InPlace(Plain):
    def __call__(self, logits, memory):
        return logits.div_(2)


class Multiplies(Plain):
    def __call__(self, logits, memory):
        return logits * (logits > 0)


class FillsWithAFloor(Plain):
    def __call__(self, logits, memory):
        return logits.clamp(min=-100.0)


class BansEverything(Plain):
    def __call__(self, logits, memory):
        return logits.masked_fill(logits.amax(-1, keepdim=True) < 1e9, -torch.inf)


class BansText(OnlyAscii):
    def learn_vocabulary(self, tokenizer):
        super().learn_vocabulary(tokenizer)
        self.banned = list(range(tokenizer.vocabulary_size))


class CountsWhenCalled(Counting):
    def __call__(self, logits, memory):
        self.observe(None, memory)
        return super().__call__(logits, memory)


class OneForAll(Counting):
    def start(self, prompts):
        return {"count": torch.ones(1)}


class Replaces(Counting):
    def observe(self, tokens, memory):
        memory["count"] = memory["count"] + 1


class Grows(Counting):
    def start(self, prompts):
        return {"text": torch.zeros(len(prompts), 0)}

    def observe(self, tokens, memory):
        memory["text"] = torch.cat([memory["text"], tokens.unsqueeze(-1)], dim=1)

    def __call__(self, logits, memory):
        return logits


class Random(Plain):
    def __call__(self, logits, memory):
        return logits + torch.rand(1)


class CountsOnItself(Plain):
    count = 0

    def observe(self, tokens, memory):
        self.count += 1

    def __call__(self, logits, memory):
        return logits * (1 + self.count)


class MeanOfRows(Plain):
    def __call__(self, logits, memory):
        return logits / logits[logits.isfinite()].std()


class TwoTextsOrMore(Plain):
    def __call__(self, logits, memory):
        return logits / (2 if logits.shape[1] == 2 else logits[1].softmax(-1).sum())


class LongestPrompt(Counting):
    def start(self, prompts):
        return {"count": torch.full((len(prompts),), float(max(map(len, prompts))))}


@pytest.mark.parametrize(
    ("broken", "found", "remedy"),
    [
        (NoSampler, "is no Sampler", "inherit from wavelet_core.generation.Sampler"),
        (NoModel, "failed being made as NoModel(config, model)", "give __init__ these two parameters"),
        (RefusesRudely, "failed without a tokenizer: AttributeError", "raise ConfigurationError"),
        (FiveBest, "failed with a vocabulary of two tokens", "let no size be larger"),
        (BansEverything, "leaves none of two tokens", "at least one finite logit"),
        (BansText, "left no token in a row", "at least one finite logit"),
        (Probabilities16, "gave [4, 259] torch.bfloat16 for logits [4, 259] torch.float32", "(B, V) float32"),
        (FirstRow, "gave [259] torch.float32", "(B, V) float32"),
        (InPlace, "wrote into the logits", "make new ones"),
        (Multiplies, "gave logits that are NaN or +inf", "let -inf pass through"),
        (FillsWithAFloor, "revived tokens", "padding of the vocabulary"),
        (CountsWhenCalled, "changed its memory when it was called", "change it in observe() alone"),
        (OneForAll, "remembers 'count' of shape [1] for 4 prompts", "put the batch first"),
        (Replaces, "replaced or resized 'count'", "overwrite it in place"),
        (Grows, "replaced or resized 'text'", "cost must not grow"),
        (Random, "gives other logits when it is called again", "draw no random numbers"),
        (CountsOnItself, "mixes up texts", "in its rows of the memory alone"),
        (TwoTextsOrMore, "failed on a batch of one text: IndexError", "any number of rows"),
        (MeanOfRows, "mixes up texts", "rows as independent texts"),
        (LongestPrompt, "mixes up texts", "rows as independent texts"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_sampler_is_told_what_to_change(broken, found, remedy):
    with pytest.raises(AssertionError) as failure:
        check_component(broken, kind="sampler")
    message = str(failure.value)
    assert message.startswith(f"{broken.__name__} (sampler 'plain') ")
    assert found in message and remedy in message, message


@pytest.mark.parametrize("sound", [Plain, Counting, OnlyAscii])
def test_sound_third_party_samplers_pass(sound):
    check_component(sound, kind="sampler")


def test_a_memory_that_is_kept_by_row_is_not_confused_with_the_place_in_the_batch():
    class ByPlace(RepetitionPenalty):
        """Sees what the first text of the batch has seen."""

        def __call__(self, logits, memory):
            return super().__call__(logits, {"seen": memory["seen"][:1].expand_as(memory["seen"])})

    with pytest.raises(AssertionError, match="mixes up texts"):
        check_component(ByPlace, kind="sampler")


def test_a_shape_is_refused():
    with pytest.raises(ValueError, match=re.escape("shape= is for parts of a model; a sampler has none")):
        check_component(Plain, kind="sampler", shape=ModelShape(width=8, levels=1))
