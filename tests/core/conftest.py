"""Small models of every architecture: the cases that the properties of whole models are tested on."""

import pytest
import torch

from wavelet_core import ModelConfig, build_model
from wavelet_core.config import parse_model

VOCABULARY = 29
TINY = {"vocabulary_size": VOCABULARY, "width": 12, "layers": 2, "levels": 3, "memories": []}
HEADLINE = {
    "block": {"embedding_residual": True},
    "wavelet": {"crawl": 3},
    "mixer": {"routing": True, "widths": [1, 1, 0.5, 0.5]},
    "memories": [
        {"kind": "mlp", "expansion": 2},
        {"kind": "product_key", "num_keys": 16, "top_k": 3},
        {"kind": "fast_weight_product_key", "num_keys": 16, "top_k": 3},
    ],
}
FAST_WEIGHTS = {"kind": "fast_weight_product_key", "num_keys": 16, "top_k": 3, "inference_updates": True}

# What each case changes in TINY. Every architecture option of docs/model.md is switched on in one of them.
ARCHITECTURES = {
    "base": {"memories": [{"kind": "mlp"}]},
    "headline": HEADLINE,
    "power_of_two_width": {"width": 16},
    "no_projection": {"width": 16, "block": {"projection": False}},
    "unshared_wavelet": {"shared_wavelet": False},
    "haar": {"wavelet": {"kind": "haar"}},
    "crawl_3": {"wavelet": {"crawl": 3}},
    "crawl_5": {"wavelet": {"crawl": 5}},
    "crawl_33": {"wavelet": {"crawl": 33}},
    "linear_lifting": {"wavelet": {"network": "linear"}},
    "hidden_multiplier": {"wavelet": {"hidden_multiplier": 2}},
    "untied_reconstruction": {"wavelet": {"untied_reconstruction": True}},
    "multi_basis": {"shared_wavelet": False, "wavelet": {"kind": "multi_basis"}},
    "multi_basis_untied": {
        "shared_wavelet": False,
        "wavelet": {"kind": "multi_basis", "bases": [{"crawl": 3}, {}, {}], "untied_reconstruction": True},
    },
    "no_gate": {"mixer": {"gate": None}},
    "gate_sigmoid": {"mixer": {"gate": "sigmoid"}},
    "gate_gelu": {"mixer": {"gate": "gelu"}},
    "gate_relu": {"mixer": {"gate": "relu"}},
    "rank_0": {"mixer": {"rank": 0}},
    "routing": {"mixer": {"routing": True}},
    "widths": {"mixer": {"widths": [1, 0.5, 1, 0.25]}},
    "spectral_norm": {"mixer": {"parametrization": "spectral_norm"}},
    "exponential": {"mixer": {"parametrization": "exponential"}},
    "deep_mixer": {"mixer": {"kind": "deep_gated_spectral", "depth": 3, "stabilizers": True, "residuals": True}},
    "identity_transform": {"transform": "identity"},
    "hartley": {"transform": "hartley"},
    "discrete_cosine": {"transform": "discrete_cosine"},
    "learned_butterfly": {"transform": "learned_butterfly"},
    "wavelet_norms": {"block": {"decomposition_norm": True, "reconstruction_norm": True}},
    "no_learned_residual": {"block": {"learned_residual": False}},
    "embedding_residual": {"block": {"embedding_residual": True}},
    "embedding_scaling": {"embedding_scaling": True},
    "tied_embedding": {"tied_embedding": True},
    "no_bypass": {"bypass": None},
    "ema_bypass": {"bypass": "ema"},
    "cross_window_state": {"cross_window_state": True},
    "shared_block": {"shared_block": True, "layers": 3},
    "loop_iterations": {"loop_iterations": 2},
    "stable_parametrization": {"stable_parametrization": True},
    "product_key": {"memories": [{"kind": "product_key", "num_keys": 16, "top_k": 3}]},
    "product_key_heads": {"memories": [{"kind": "product_key", "num_keys": 16, "top_k": 3, "heads": 2}]},
    "fast_weights": {"memories": [{"kind": "fast_weight_product_key", "num_keys": 16, "top_k": 3}]},
    "fast_weight_updates": {"memories": [FAST_WEIGHTS | {"chunk_size": 8, "update_learning_rate": 2.0}]},
    "fast_weight_updates_in_loops": {
        "memories": [FAST_WEIGHTS | {"chunk_size": 5, "heads": 2, "update_learning_rate": 2.0}],
        "loop_iterations": 2,
        "shared_block": True,
    },
    "gated_delta": {"memories": [{"kind": "gated_delta", "heads": 2, "key_width": 4, "value_width": 6}]},
    "relu_squared": {"memories": [{"kind": "mlp", "activation": "relu_squared", "bias": False}]},
    "bigrams": {"bigram_rows": 37, "embedding_scaling": True},
    "value_embeddings": {"block": {"value_embedding": True}, "shared_block": True, "layers": 3},
    "convolutions": {"block": {"wavelet_convolution": 4, "memory_convolution": 3}, "memories": [{"kind": "mlp"}]},
    "selective_crawl": {"wavelet": {"crawl": 5, "crawl_groups": 4}},
    "decayed_mean": {"bypass": "decayed_mean"},
    "decayed_mean_scales": {"bypass": {"kind": "decayed_mean", "longest": 100}},
    "soft_cap": {"logit_soft_cap": 3.0, "tied_embedding": True},
    "multinodal": {"kind": "multinodal", "cells": 2, "width": 12, "features_per_cell": 8},
    "multinodal_gated": {
        "kind": "multinodal",
        "layers": 3,
        "cells": 2,
        "width": 8,
        "cross_cell_gating": True,
        "gate_interval": 2,
        "combination": "sum",
    },
}


def config_of(overrides=None) -> ModelConfig:
    return parse_model(TINY | (overrides or {}))


def model_of(overrides=None, seed=0, nudge=0.1):
    """A small model in evaluation mode, its parameters moved away from initial values that hide what they do."""
    torch.manual_seed(seed)
    model = build_model(config_of(overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += nudge * torch.randn_like(parameter)
    return model.eval()


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())


@pytest.fixture(scope="session")
def make_config():
    """make_config(overrides): the configuration of a small model."""
    return config_of


@pytest.fixture(scope="session")
def make_model():
    """make_model(overrides, seed, nudge): a small model in evaluation mode."""
    return model_of


@pytest.fixture(scope="session")
def architectures():
    """What every architecture changes, by name; a test with the argument `architecture` runs for each."""
    return ARCHITECTURES


@pytest.fixture(scope="session")
def headline():
    """What the headline architecture switches on, at small size."""
    return HEADLINE


@pytest.fixture(scope="session")
def tokens():
    """Two texts of 48 tokens; not to be changed in place."""
    return torch.randint(VOCABULARY, (2, 48), generator=torch.Generator().manual_seed(5))
