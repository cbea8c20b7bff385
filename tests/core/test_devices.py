"""Devices by name."""

import pytest
import torch

from wavelet_core import ConfigurationError
from wavelet_core.devices import resolve_device


def test_device_is_resolved_or_refused():
    assert resolve_device("cpu", "train.device") == torch.device("cpu")
    found = torch.accelerator.current_accelerator(check_available=True)
    assert resolve_device("auto", "train.device") == (found or torch.device("cpu"))
    with pytest.raises(ConfigurationError, match=r"train\.device='gpu' is not a device that torch knows"):
        resolve_device("gpu", "train.device")
    missing = "mps" if found is None or found.type != "mps" else "cuda"
    with pytest.raises(ConfigurationError, match=f"--device='{missing}' is not available on this machine"):
        resolve_device(missing, "--device")
