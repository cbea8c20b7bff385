"""Reading and writing the original WaveletLM's configurations and checkpoints ("seed" files)."""

from wavelet_core.seed.configuration import (
    SEED_KEYS,
    SeedKey,
    is_seed_config,
    model_config_from_seed,
    seed_from_model_config,
)
from wavelet_core.seed.conversion import ImportReport, export_seed, import_seed

__all__ = [
    "SEED_KEYS",
    "ImportReport",
    "SeedKey",
    "export_seed",
    "import_seed",
    "is_seed_config",
    "model_config_from_seed",
    "seed_from_model_config",
]
