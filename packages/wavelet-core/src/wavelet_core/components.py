"""wavelet-core's own components, registered through the same hook as everybody's."""

from __future__ import annotations

from collections.abc import Callable

from wavelet_core.block import WaveletBlock
from wavelet_core.bypass import ExponentialMovingAverageBypass, RunningMeanBypass
from wavelet_core.decayed_mean import DecayedMeanBypass
from wavelet_core.generation.samplers import (
    EntropyAdaptive,
    MinP,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    WaveletCoherence,
)
from wavelet_core.haar import HaarWavelet
from wavelet_core.identity_mixer import IdentityMixer
from wavelet_core.lifting import LiftingWavelet
from wavelet_core.mixers import DeepGatedSpectralMixer, GatedSpectralMixer
from wavelet_core.mlp import MLP
from wavelet_core.model import WaveletLM
from wavelet_core.multi_basis import MultiBasisWavelet
from wavelet_core.multinodal import MultinodalLM
from wavelet_core.plugins import hookimpl
from wavelet_core.tokenizers import BytePairTokenizer, BytesTokenizer, TiktokenTokenizer, TokenIds
from wavelet_core.transforms import DiscreteCosine, Hartley, Identity, LearnedButterfly, WalshHadamard


@hookimpl
def register_components(register: Callable[[str, type], None]) -> None:
    for family in (WaveletLM, MultinodalLM):
        register("model", family)
    for transform in (WalshHadamard, Identity, Hartley, DiscreteCosine, LearnedButterfly):
        register("transform", transform)
    for wavelet in (LiftingWavelet, HaarWavelet, MultiBasisWavelet):
        register("wavelet", wavelet)
    for mixer in (GatedSpectralMixer, DeepGatedSpectralMixer, IdentityMixer):
        register("mixer", mixer)
    for bypass in (RunningMeanBypass, ExponentialMovingAverageBypass, DecayedMeanBypass):
        register("bypass", bypass)
    register("memory", MLP)
    register("block", WaveletBlock)
    for tokenizer in (BytePairTokenizer, TiktokenTokenizer, BytesTokenizer, TokenIds):
        register("tokenizer", tokenizer)
    for sampler in (Temperature, EntropyAdaptive, TopK, TopP, MinP, RepetitionPenalty, WaveletCoherence):
        register("sampler", sampler)
