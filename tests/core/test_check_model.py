"""`check_model` passes our model families, and tells the author of a broken one what to change."""

from typing import Literal

import pytest
import torch
from pydantic import Field
from torch import nn

from wavelet_core import LanguageModelConfig, State, registry
from wavelet_core.config import ComponentConfig
from wavelet_core.language_model import cross_entropy
from wavelet_core.testing import check_model

OURS = [
    "headline",
    "cross_window_state",
    "tied_embedding",
    "loop_iterations",
    "fast_weight_updates",
    "multinodal",
    "gated_every_block",
]
GATED = {"kind": "multinodal", "cells": 2, "width": 8, "levels": 1, "cross_cell_gating": True, "combination": "sum"}

# What the original has as well and never uses: the first block's view of a mean before it, a norm for no memories.
UNUSED = ("*blocks.0.bypass.cross_layer.weight", "*.norm_memory.*")


@pytest.mark.parametrize("name", OURS)
def test_our_families_keep_the_contract(name, make_config, architectures):
    config = make_config((architectures | {"gated_every_block": GATED})[name])
    check_model(registry.get("model", config.kind), config, unused=UNUSED)


def test_none_of_our_families_is_left_out(make_config, architectures):
    checked = {make_config(architectures.get(name, GATED)).kind for name in OURS}
    assert checked == {
        n for n in registry.names("model") if registry.get("model", n).__module__.startswith("wavelet_core.")
    }


def test_dropout_and_skipped_blocks_are_no_mistakes(make_config):
    options = {"embedding_dropout": 0.2, "head_dropout": 0.2, "stochastic_depth": 0.5}
    check_model(registry.get("model", "wavelet"), make_config(options), unused=UNUSED)


@pytest.mark.parametrize("wavelet", ["haar", "lifting"])
@pytest.mark.parametrize("mixer", ["gated_spectral", "identity"])
def test_models_without_levels_and_mixers_keep_the_contract(make_config, wavelet, mixer):
    config = make_config({"levels": 0, "wavelet": wavelet, "mixer": mixer})
    check_model(registry.get("model", "wavelet"), config, unused=UNUSED)


class Decaying(nn.Module):
    """A sound family, and what the broken ones below have in common: a decaying sum of embeddings."""

    class Config(LanguageModelConfig):
        kind: Literal["decaying"] = "decaying"
        width: int = Field(8, ge=1, description="channels")

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.decay = nn.Parameter(torch.zeros(config.width))
        self.head = nn.Linear(config.width, config.vocabulary)

    def new_state(self, batch_size=1, device=None, dtype=None):
        device, dtype = device or self.decay.device, dtype or self.decay.dtype
        return State({"sum": torch.zeros(batch_size, len(self.decay), device=device, dtype=dtype)}, batch_size)

    def embed(self, tokens):
        return self.embedding(tokens)

    def hidden(self, tokens, state=None):
        embedding = self.embed(tokens)
        total = torch.zeros_like(embedding[:, 0]) if state is None else state.tree["sum"].clone()
        totals = []
        for x in embedding.unbind(1):
            total = total * self.decay.sigmoid() + x
            totals.append(total)
        if state is not None:
            self.move_on(state, total.detach())
        return torch.stack(totals, 1)

    def move_on(self, state, last):
        state.tree["sum"].copy_(last)

    def forward(self, tokens, state=None):
        return self.head(self.hidden(tokens, state))

    def loss(self, tokens, targets, state=None):
        return cross_entropy(self(tokens, state), targets)


class TwoArguments(Decaying):
    def __init__(self, config, shape):
        super().__init__(config)


class PlainConfig(Decaying):
    class Config(ComponentConfig):
        kind: Literal["plain_config"] = "plain_config"


class ConfigLosesAField(Decaying):
    class Config(LanguageModelConfig):
        kind: Literal["forgetful"] = "forgetful"
        width: int = Field(8, exclude=True)


class NameOfAnother(Decaying):
    class Config(Decaying.Config):
        kind: Literal["wavelet"] = "wavelet"


class NoName(Decaying):
    class Config(LanguageModelConfig):
        width: int = 8


class NoHidden(Decaying):
    hidden = None


class ForgetsItsConfig(Decaying):
    def __init__(self, config):
        super().__init__(config)
        self.config = None


class NeedsABatchSize(Decaying):
    def new_state(self, batch_size, device, dtype):
        return super().new_state(batch_size, device, dtype)


class OneRowStates(Decaying):
    def new_state(self, batch_size=1, device=None, dtype=None):
        return super().new_state(1, device, dtype)


class FlatEmbedding(Decaying):
    def embed(self, tokens):
        return self.embedding(tokens).flatten(1) if tokens.shape[0] == 5 else self.embedding(tokens)

    def hidden(self, tokens, state=None):
        return super().hidden(tokens[:4], state).repeat(2, 1, 1)[: len(tokens)]


class ScalesAfterTheHead(Decaying):
    def forward(self, tokens, state=None):
        return 2 * super().forward(tokens, state)


class NormOverTime(Decaying):
    def hidden(self, tokens, state=None):
        hidden = super().hidden(tokens, state)
        return hidden - hidden.mean(1, keepdim=True)


class MeanOverRows(Decaying):
    def hidden(self, tokens, state=None):
        hidden = super().hidden(tokens, state)
        return hidden - hidden.mean(0, keepdim=True)


class ReplacesState(Decaying):
    def move_on(self, state, last):
        state.tree["sum"] = last.clone()


class GrowsState(Decaying):
    def move_on(self, state, last):
        state.tree["read"] = torch.cat([state.tree.get("read", last[:, :0]), last], dim=1)
        super().move_on(state, last)


class IgnoresState(Decaying):
    def hidden(self, tokens, state=None):
        return super().hidden(tokens)


class CountsAllRowsTogether(Decaying):
    """Its gain grows with the position, which is counted for all rows at once."""

    def new_state(self, batch_size=1, device=None, dtype=None):
        state = super().new_state(batch_size, device, dtype)
        return State(state.tree | {"count": torch.zeros(batch_size, device=device)}, batch_size)

    def hidden(self, tokens, state=None):
        places = torch.arange(tokens.shape[1]) + (0 if state is None else state.tree["count"].max())
        if state is not None:
            state.tree["count"].fill_(places[-1] + 1)
        hidden = super().hidden(tokens, state)
        return hidden / (1 + places[:, None]).to(hidden.dtype)


class InfiniteLoss(Decaying):
    def loss(self, tokens, targets, state=None):
        return super().loss(tokens, targets, state) / 0


class LossOfEveryToken(Decaying):
    def loss(self, tokens, targets, state=None):
        return nn.functional.cross_entropy(self(tokens, state).mT, targets, reduction="none")


class LossOfIgnoredTargets(Decaying):
    def loss(self, tokens, targets, state=None):
        return super().loss(tokens, targets.clamp(min=0), state)


class LossWithoutState(Decaying):
    def loss(self, tokens, targets):
        return super().loss(tokens, targets)


class DeadParameter(Decaying):
    def __init__(self, config):
        super().__init__(config)
        self.unused = nn.Linear(2, 2)


class WritesWhatAGradientNeeds(Decaying):
    def hidden(self, tokens, state=None):
        if state is None:
            return super().hidden(tokens)
        hidden = super().hidden(tokens) + state.tree["sum"].unsqueeze(1) * self.decay.sigmoid().pow(
            torch.arange(1, tokens.shape[1] + 1)[:, None]
        )
        self.move_on(state, hidden[:, -1].detach())
        return hidden


class PlainTensor(Decaying):
    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.ones(config.width)

    def embed(self, tokens):
        return super().embed(tokens) * self.gain.to(self.decay.dtype)


class Float32State(Decaying):
    def hidden(self, tokens, state=None):
        return super().hidden(tokens, state) * torch.ones(len(self.decay))


class BranchOnTokens(Decaying):
    def hidden(self, tokens, state=None):
        return super().hidden(tokens if tokens.sum() > 0 else tokens * 1, state)


class ExtraWeights(Decaying):
    """Saves less than it has: one of its tensors is in no checkpoint, and is filled differently."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("gain", torch.rand(config.width), persistent=False)

    def reset_buffers(self):
        self.gain.fill_(1)

    def embed(self, tokens):
        return super().embed(tokens) * self.gain


class TwoParametersInOnePlace(Decaying):
    """Tied by their memory, where they should be one parameter."""

    def __init__(self, config):
        super().__init__(config)
        self.head.weight = nn.Parameter(self.embedding.weight.detach())


class CountsTokens(Decaying):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("seen", torch.zeros(()))

    def hidden(self, tokens, state=None):
        self.seen += tokens.numel()
        return super().hidden(tokens, state)


class HiddenDropout(Decaying):
    """Keeps a part where no copy of the modules finds it."""

    def __init__(self, config):
        super().__init__(config)
        self.dropout = nn.Dropout(0.9)
        self.apply_dropout = self.dropout.forward

    def hidden(self, tokens, state=None):
        return self.apply_dropout(super().hidden(tokens, state))


@pytest.mark.parametrize(
    ("broken", "found", "remedy"),
    [
        (NameOfAnother, "has the name of WaveletLM", "give `kind` another default"),
        (PlainConfig, "has a configuration of type Config", "inherit from wavelet_core.LanguageModelConfig"),
        (TwoArguments, "failed being built as TwoArguments(config)", "give __init__ this one parameter"),
        (NoHidden, "has no hidden", "see wavelet_core.LanguageModel"),
        (ForgetsItsConfig, "does not keep its configuration", "see wavelet_core.LanguageModel"),
        (NeedsABatchSize, "failed making a state with new_state()", "let batch_size be 1"),
        (OneRowStates, "makes states of batch sizes [1, 1], not [1, 5]", "State(tree, batch_size)"),
        (FlatEmbedding, "gives [5, 320] in embed for tokens [5, 40]", "(B, T, C)"),
        (ScalesAfterTheHead, "other logits in forward(tokens) than in head(hidden(tokens))", "compute forward as"),
        (NormOverTime, "is not causal: changing position 1 changed the output at position 0", "over the T axis"),
        (MeanOverRows, "mixes the rows of a batch", "over the B axis"),
        (ReplacesState, "replaced its state 'sum'", "overwrite it in place"),
        (GrowsState, "changed the size of its state 'read'", "allocate all of it in new_state"),
        (IgnoresState, "does not stream: single positions", "read the history from `state`"),
        (CountsAllRowsTogether, "mixes up rows: joined, selected and repeated rows", "counters included"),
        (InfiniteLoss, "has a loss that is no finite scalar: tensor(inf", "mean loss in nats per token"),
        (LossOfEveryToken, "has a loss that is no finite scalar: tensor([[", "cross_entropy computes it"),
        (LossOfIgnoredTargets, "second half has the target -100", "leave such targets out of the mean"),
        (LossWithoutState, "failed in a forward and backward pass", "positional"),
        (WritesWhatAGradientNeeds, "failed in a forward and backward pass", "clone() a history"),
        (DeadParameter, "gives no gradient to unused.weight, unused.bias", "use each parameter in forward"),
        (PlainTensor, "failed being made on the meta device", "keep every tensor in a parameter or buffer"),
        (Float32State, "failed in torch.bfloat16", "make constants in the input's dtype"),
        (BranchOnTokens, "failed under torch.compile(fullgraph=True)", "no Python branch"),
        (ExtraWeights, "other outputs after its state dict was loaded", "persistent buffer"),
        (TwoParametersInOnePlace, "failed being saved and loaded as a checkpoint: RuntimeError", "persistent buffers"),
        (CountsTokens, "was changed by generating a text: seen", "write to nothing but the state"),
        (HiddenDropout, "generates a text that is not the most probable one", "register every part as a submodule"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_family_is_told_what_to_change(broken, found, remedy):
    with pytest.raises(AssertionError) as failure:
        check_model(broken)
    message = str(failure.value)
    assert message.startswith(f"{broken.__name__} (model ")
    assert found in message and remedy in message, message


def test_a_configuration_that_loses_a_field_is_found():
    with pytest.raises(AssertionError, match=r"comes back from JSON as Config\(.*width=8"):
        check_model(ConfigLosesAField, ConfigLosesAField.Config(width=5))


def test_a_family_that_cannot_be_registered_is_told_why():
    with pytest.raises(AssertionError, match=r"failed being registered as a model: .* needs a nested Config"):
        check_model(NoName, NoName.Config(kind="no_name"))


def test_parameters_without_gradients_can_be_allowed_by_name():
    check_model(DeadParameter, unused=["unused.*"])
    with pytest.raises(AssertionError, match=r"gives no gradient to unused\.bias\n"):
        check_model(DeadParameter, unused=["*.weight"])


def test_a_sound_third_party_family_passes_and_is_not_left_registered():
    check_model(Decaying)
    check_model(Decaying, Decaying.Config(width=3, vocabulary_size=7))
    assert "decaying" not in registry.names("model")
