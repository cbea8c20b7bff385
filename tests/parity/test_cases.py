"""The ten cases of this repository: what they cover, and that they are what the original wrote."""

import json
from pathlib import Path

import pytest
import torch

from wavelet_cli.seed.configuration import model_config_from_seed

HERE = Path(__file__).parent / "cases"
ALL = Path(__file__).parents[3] / "shared" / "parity"
NAMES = sorted(path.parent.name for path in HERE.glob("*/expected.safetensors"))


def test_ten_cases_have_every_component_of_the_original():
    assert len(NAMES) == 10
    configs = [model_config_from_seed(json.loads((HERE / name / "config.json").read_text()), 61) for name in NAMES]
    assert {config.wavelet.kind for config in configs} == {"lifting", "haar", "multi_basis"}
    assert {config.bypass.kind for config in configs if config.bypass} == {"running_mean", "ema"}
    assert {config.mixer.kind for config in configs} == {"gated_spectral", "deep_gated_spectral"}
    memories = {memory.kind for config in configs for memory in config.memories}
    assert memories == {"mlp", "product_key", "fast_weight_product_key"}
    assert {config.kind for config in configs} == {"wavelet", "multinodal"}
    for option in ("shared_block", "cross_window_state", "stable_parametrization"):
        assert any(getattr(config, option) for config in configs), option


@pytest.mark.skipif(not ALL.is_dir(), reason="compares with ../shared/parity")
@pytest.mark.parametrize("name", NAMES)
def test_a_case_here_is_that_of_the_original(name):
    for file in ("config.json", "expected.safetensors", "grad_norms.json"):
        assert (HERE / name / file).read_bytes() == (ALL / name / file).read_bytes(), file
    ours, originals = (torch.load(folder / name / "best_model.pt", weights_only=True) for folder in (HERE, ALL))
    states = [content.pop("model_state") for content in (ours, originals)]
    assert ours == originals and list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], tensor) for key, tensor in states[1].items())
