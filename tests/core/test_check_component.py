"""`check_component` passes every component of ours, and tells the author of a broken one what to change."""

import re
from typing import Literal

import pytest
import torch
from torch import nn

from wavelet_core import (
    MLP,
    ComponentConfig,
    DeepGatedSpectralMixer,
    ExponentialMovingAverageBypass,
    GatedSpectralMixer,
    HaarWavelet,
    IdentityMixer,
    LiftingWavelet,
    ModelShape,
    MultiBasisWavelet,
    RunningMeanBypass,
    WalshHadamard,
    WaveletBlock,
    registry,
)
from wavelet_core.bypass import Bypass
from wavelet_core.decayed_mean import DecayedMeanBypass
from wavelet_core.testing import check_component
from wavelet_core.testing.part_contract import PART_CONTRACTS
from wavelet_core.transforms import DiscreteCosine, Hartley, Identity, LearnedButterfly
from wavelet_memory import FastWeightProductKeyMemory, GatedDeltaMemory, ProductKeyMemory

OURS = {
    WalshHadamard: {},
    Identity: {},
    Hartley: {},
    DiscreteCosine: {},
    LearnedButterfly: {},
    LiftingWavelet: {"crawl": 5, "crawl_groups": 4, "untied_reconstruction": True, "dropout": 0.1},
    HaarWavelet: {},
    MultiBasisWavelet: {"untied_reconstruction": True},
    GatedSpectralMixer: {"routing": True, "widths": [1, 0.5, 0.5], "parametrization": "spectral_norm"},
    DeepGatedSpectralMixer: {"stabilizers": True, "residuals": True, "parametrization": "exponential"},
    IdentityMixer: {},
    RunningMeanBypass: {},
    ExponentialMovingAverageBypass: {},
    DecayedMeanBypass: {},
    MLP: {"dropout": 0.1, "layers": 3},
    ProductKeyMemory: {"num_keys": 16, "top_k": 3, "heads": 2},
    FastWeightProductKeyMemory: {"num_keys": 16, "top_k": 3, "inference_updates": True, "chunk_size": 8},
    GatedDeltaMemory: {"heads": 2, "key_width": 4, "value_width": 6, "chunk_size": 16},
    WaveletBlock: {
        "embedding_residual": True,
        "decomposition_norm": True,
        "reconstruction_norm": True,
        "value_embedding": True,
        "wavelet_convolution": 4,
        "memory_convolution": 3,
    },
}


@pytest.mark.parametrize("component", OURS, ids=lambda component: component.__name__)
def test_our_components_keep_their_contract(component):
    check_component(component, component.Config(**OURS[component]))


def test_none_of_ours_is_left_out():
    known = {registry.get(kind, name) for kind in PART_CONTRACTS for name in registry.names(kind)}
    assert {component for component in known if component.__module__.startswith("wavelet_")} == set(OURS)


class Plain(nn.Module):
    """What the broken mixers below have in common: a gain per channel, used rightly."""

    class Config(ComponentConfig):
        kind: Literal["plain"] = "plain"

    def __init__(self, config, shape):
        super().__init__()
        self.shape = shape
        self.gain = nn.Parameter(torch.ones(shape.padded_width))

    def forward(self, z):
        return z * self.gain


class MeanOverTime(Plain):
    def forward(self, z):
        return super().forward(z) - z.mean(1, keepdim=True)


class ChannelsOfTheModel(Plain):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.gain = nn.Parameter(torch.ones(shape.width))


class NoShape(Plain):
    def __init__(self, config):
        super().__init__(config, None)


class DropsAScale(Plain):
    def forward(self, z):
        return super().forward(z)[:, :, 1:]


class DeadParameter(Plain):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.unused = nn.Parameter(torch.ones(3))


class DetachedInput(Plain):
    def forward(self, z):
        return super().forward(z.detach())


class InfiniteGradient(Plain):
    def forward(self, z):
        return super().forward(z) + (self.gain - self.gain).sqrt()


class BranchOnValues(Plain):
    def forward(self, z):
        return super().forward(z if z.sum() > 0 else -z * -1.0)


class FixedType(Plain):
    def forward(self, z):
        return super().forward(z) + torch.ones(self.shape.padded_width)


class MixedTypes(Plain):
    def forward(self, z):
        return super().forward(z) @ torch.eye(self.shape.padded_width)


class CancelsInBfloat16(Plain):
    """A standard deviation as the root of a difference that 8 bits cannot hold."""

    def forward(self, z):
        shifted = z + 100
        variance = shifted.square().mean(-1, keepdim=True) - shifted.mean(-1, keepdim=True).square()
        return super().forward(z) / variance.sqrt()


class UnfilledBuffer(Plain):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.register_buffer("mask", torch.ones(shape.padded_width), persistent=False)

    def forward(self, z):
        return super().forward(z) * self.mask


class PlainTensor(Plain):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.mask = torch.ones(shape.padded_width)

    def forward(self, z):
        return super().forward(z) * self.mask.to(z.dtype)


class RandomBuffer(Plain):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.register_buffer("mask", torch.rand(shape.padded_width), persistent=False)

    def forward(self, z):
        return super().forward(z) * self.mask


class LooksBack(Plain):
    """Looks back inside the chunk only: it has no `new_state`."""

    def forward(self, z):
        return super().forward(z).cumsum(1)


class MixesRows(Plain):
    def forward(self, z):
        return super().forward(z) - z.mean(0, keepdim=True)


class CountsCalls(Plain):
    calls = 0

    def forward(self, z):
        self.calls += 1
        return super().forward(z) * self.calls


class Summing(Plain):
    """A sound mixer with a state: the sum of all positions so far."""

    def new_state(self, batch_size, device, dtype):
        return {"sum": torch.zeros(batch_size, 1, *self.sizes, device=device, dtype=dtype)}

    @property
    def sizes(self):
        return self.shape.scales, self.shape.padded_width

    def forward(self, z, state=None):
        sums = super().forward(z).cumsum(1)
        if state is not None:
            sums = sums + state["sum"]
            self.move_on(state, sums[:, -1:].detach())
        return sums

    def move_on(self, state, last):
        state["sum"].copy_(last)


class IgnoresState(Summing):
    def forward(self, z, state=None):
        return super().forward(z)


class ReplacesState(Summing):
    def move_on(self, state, last):
        state["sum"] = last.clone()


class GrowsState(Summing):
    def move_on(self, state, last):
        state["sum"] = torch.cat([torch.zeros_like(last), last], dim=1)


class KeepsGraph(Summing):
    def forward(self, z, state=None):
        sums = Plain.forward(self, z).cumsum(1)
        if state is not None:
            sums = sums + state["sum"]
            state["sum"].copy_(sums[:, -1:])
        return sums


class MovesOnWhatAGradientNeeds(Summing):
    def forward(self, z, state=None):
        sums = z.cumsum(1)
        out = self.gain * sums
        if state is not None:
            out = out + self.gain * state["sum"]
            state["sum"].add_(sums[:, -1:].detach())
        return out


class StartsFromOne(Summing):
    def new_state(self, batch_size, device, dtype):
        return {"sum": super().new_state(batch_size, device, dtype)["sum"] + 1}


class BatchLast(Summing):
    def new_state(self, batch_size, device, dtype):
        return {"sum": torch.zeros(*self.sizes, batch_size, device=device, dtype=dtype)}


class NoSilence(Summing):
    def forward(self, z, state=None):
        return super().forward(z, state) + (1.0 if state is None else 0.0)


class SharesACounter(Summing):
    """The mean so far, but how many positions that are is counted for all rows at once."""

    def new_state(self, batch_size, device, dtype):
        return super().new_state(batch_size, device, dtype) | {"count": torch.zeros(batch_size, device=device)}

    def forward(self, z, state=None):
        before = 0 if state is None else state["count"].max()
        counts = before + torch.arange(1, z.shape[1] + 1, device=z.device)
        if state is not None:
            state["count"].fill_(counts[-1])
        return super().forward(z, state) / counts[:, None, None].to(z.dtype)


class ZeroStateDict(Plain):
    def state_dict(self, *arguments, **options):
        return {name: torch.zeros_like(tensor) for name, tensor in super().state_dict(*arguments, **options).items()}


@pytest.mark.parametrize(
    ("broken", "found", "remedy"),
    [
        (NoShape, "failed being built as NoShape(config, shape)", "give __init__ these two parameters"),
        (ChannelsOfTheModel, "failed on an input of shape [5, 40, 3, 32]", "takes (B, T, 3, 32)"),
        (DropsAScale, "gave an output of shape [5, 40, 2, 32]", "return (B, T, 3, 32)"),
        (MeanOverTime, "is not causal: changing position 1 changed the output at position 0", "over the T axis"),
        (MixesRows, "mixes the rows of a batch", "over the B axis"),
        (CountsCalls, "gives another output when it is called again", "keep nothing on the module"),
        (LooksBack, "does not stream", "give it new_state(batch_size, device, dtype)"),
        (IgnoresState, "does not stream", "read the history from `state`"),
        (ReplacesState, "replaced its state 'sum'", "overwrite it in place"),
        (GrowsState, "changed the size of its state 'sum'", "allocate all of it in new_state"),
        (KeepsGraph, "keeps the graph of its gradients in its state 'sum'", "detach()"),
        (MovesOnWhatAGradientNeeds, "failed in a forward and backward pass", "clone() a history"),
        (StartsFromOne, "state 'sum' that is not zero at the start", "zeros mean silence"),
        (BatchLast, "state 'sum' of shape [3, 32, 5] for a batch of 5", "put the batch first"),
        (NoSilence, "other outputs with a fresh state than without one", "silence"),
        (SharesACounter, "mixes up rows", "counters included"),
        (DetachedInput, "passes no gradient to its input", "do not detach"),
        (DeadParameter, "gives no gradient to unused", "use each parameter in forward"),
        (InfiniteGradient, "gradients that are not finite", "divisions by zero"),
        (ZeroStateDict, "other outputs after its state dict was loaded", "persistent buffer"),
        (RandomBuffer, "other outputs after its state dict was loaded", "persistent buffer"),
        (UnfilledBuffer, "failed being made on the meta device", "reset_buffers()"),
        (PlainTensor, "failed being made on the meta device", "keep every tensor in a parameter or buffer"),
        (FixedType, "gave torch.float32 outputs for torch.bfloat16 inputs", "make constants in the input's dtype"),
        (MixedTypes, "failed in torch.bfloat16", "make constants in the input's dtype"),
        (CancelsInBfloat16, "gave outputs in torch.bfloat16 that are not finite", "compute in float32"),
        (BranchOnValues, "failed under torch.compile(fullgraph=True)", "no Python branch"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_mixer_is_told_what_to_change(broken, found, remedy):
    with pytest.raises(AssertionError) as failure:
        check_component(broken, kind="mixer")
    message = str(failure.value)
    assert message.startswith(f"{broken.__name__} (mixer 'plain') ")
    assert found in message and remedy in message, message


@pytest.mark.parametrize("sound", [Plain, Summing])
def test_sound_third_party_mixers_pass(sound):
    check_component(sound, kind="mixer")


class LooksAhead(HaarWavelet):
    def decompose(self, rows, state=None):
        return super().decompose(rows.roll(-1, 1), state)


class ForgetsAtChunks(HaarWavelet):
    def decompose(self, rows, state=None):
        return super().decompose(rows)


class DecayingBypass(Bypass):
    """A third-party bypass: an exponential average with one fixed rate, as a sum over all earlier positions."""

    class Config(ComponentConfig):
        kind: Literal["decaying"] = "decaying"

    def __init__(self, config, shape):
        super().__init__(shape)

    def new_state(self, batch_size, device, dtype):
        return {"average": torch.zeros(batch_size, 1, self.width, device=device)}

    def mean(self, x, state):
        age = torch.arange(x.shape[1], device=x.device)
        decay = torch.where(age[:, None] >= age, 0.5 ** (age[:, None] - age).clamp(min=0), 0.0)
        average = 0.5 * decay @ x.float()
        if state is not None:
            average = average + 0.5 ** (age[:, None] + 1) * state["average"]
            state["average"].copy_(average[:, -1:].detach())
        return average.to(x.dtype)


class NeedsPreviousMean(DecayingBypass):
    def forward(self, x, previous_mean=None, state=None):
        return super().forward(x, previous_mean * 1.0, state)


class AverageOfTheWindow(DecayingBypass):
    def mean(self, x, state):
        return x.mean(1, keepdim=True).expand_as(x)


class NotOrthogonal(Identity):
    def forward(self, x):
        return 2 * x

    def inverse(self, x):
        return x / 2


class NotInverted(Hartley):
    def inverse(self, x):
        return x


class LastChunkMemory(MLP):
    """Keeps what it read on the module, where no state can follow it."""

    last: torch.Tensor | None = None

    def forward(self, x):
        before, self.last = self.last, x[:, -1:].detach()
        return super().forward(x if before is None else x + before)


class ForgetfulBlock(WaveletBlock):
    def forward(self, x, embedding, previous_mean=None, state=None):
        return super().forward(x, embedding, previous_mean)


@pytest.mark.parametrize(
    ("broken", "kind", "found"),
    [
        (LooksAhead, "wavelet", "is not causal"),
        (ForgetsAtChunks, "wavelet", "does not stream"),
        (AverageOfTheWindow, "bypass", "is not causal"),
        (NeedsPreviousMean, "bypass", "failed on an input"),
        (NotOrthogonal, "transform", "is not orthogonal"),
        (NotInverted, "transform", "is not orthogonal"),
        (LastChunkMemory, "memory", "gives another output"),
        (ForgetfulBlock, "block", "does not stream"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_broken_components_of_every_kind_are_found(broken, kind, found):
    with pytest.raises(AssertionError, match=re.escape(broken.__name__) + rf" \({kind} .*{found}"):
        check_component(broken, kind=kind)


def test_a_third_party_bypass_passes():
    check_component(DecayingBypass, kind="bypass")


def test_other_sizes_can_be_asked_for():
    shape = ModelShape(width=10, levels=1)
    check_component(GatedSpectralMixer, GatedSpectralMixer.Config(widths=[0.5, 1]), shape=shape)


def test_a_kind_without_a_contract_is_refused():
    with pytest.raises(ValueError, match=r"bypass, .*sampler, .*optimizer.*, not 'model'; check_model checks a model"):
        check_component(Plain, kind="model")
    with pytest.raises(ValueError, match="Plain is not registered"):
        check_component(Plain)


def test_the_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    check_component(Identity)
    assert torch.rand(1) == wanted
