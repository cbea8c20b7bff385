"""The contracts of components and of model families, as tests that their authors can run."""

from wavelet_core.testing.component_contract import CONTRACTS, check_component
from wavelet_core.testing.model_contract import check_model

__all__ = ["CONTRACTS", "check_component", "check_model"]
