"""Reading and writing the original WaveletLM's configurations and checkpoints ("seed" files)."""

from wavelet_cli.seed.configuration import (
    SEED_KEYS,
    SeedKey,
    model_config_from_seed,
    seed_from_model_config,
)
from wavelet_cli.seed.conversion import ImportReport, export_seed, import_seed

__all__ = [
    "SEED_KEYS",
    "ImportReport",
    "SeedKey",
    "export_seed",
    "import_seed",
    "model_config_from_seed",
    "seed_from_model_config",
]
