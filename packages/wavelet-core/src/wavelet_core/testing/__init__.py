"""The contracts of components and of model families, as tests that their authors can run."""

from wavelet_core.testing.component_contract import check_component
from wavelet_core.testing.model_contract import check_model

__all__ = ["check_component", "check_model"]
