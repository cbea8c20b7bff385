"""WaveletLM's layers and model: language modelling without attention."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("wavelet-core")
except PackageNotFoundError:
    __version__ = "0+unknown"

from wavelet_core.block import WaveletBlock
from wavelet_core.bypass import ExponentialMovingAverageBypass, RunningMeanBypass
from wavelet_core.checkpoint import load_checkpoint, save_checkpoint
from wavelet_core.config import (
    ComponentConfig,
    ComponentOf,
    ConfigurationError,
    LanguageModelConfig,
    ModelConfig,
    ModelShape,
    Section,
)
from wavelet_core.haar import HaarWavelet
from wavelet_core.identity_mixer import IdentityMixer
from wavelet_core.kernels import use_kernel
from wavelet_core.language_model import LanguageModel, build_model
from wavelet_core.lifting import LiftingWavelet
from wavelet_core.mixers import DeepGatedSpectralMixer, GatedSpectralMixer
from wavelet_core.mlp import MLP
from wavelet_core.model import WaveletLM
from wavelet_core.multi_basis import MultiBasisWavelet
from wavelet_core.multinodal import MultinodalConfig, MultinodalLM
from wavelet_core.plugins import hookimpl
from wavelet_core.registry import build, registry
from wavelet_core.state import State
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.transforms import WalshHadamard

__all__ = [
    "MLP",
    "CheckpointError",
    "ComponentConfig",
    "ComponentOf",
    "ConfigurationError",
    "DeepGatedSpectralMixer",
    "ExponentialMovingAverageBypass",
    "GatedSpectralMixer",
    "HaarWavelet",
    "IdentityMixer",
    "LanguageModel",
    "LanguageModelConfig",
    "LiftingWavelet",
    "ModelConfig",
    "ModelShape",
    "MultiBasisWavelet",
    "MultinodalConfig",
    "MultinodalLM",
    "RunningMeanBypass",
    "Section",
    "State",
    "WalshHadamard",
    "WaveletBlock",
    "WaveletLM",
    "build",
    "build_model",
    "hookimpl",
    "load_checkpoint",
    "registry",
    "save_checkpoint",
    "use_kernel",
]
