"""Reading and writing the original WaveletLM's configurations and checkpoints ("seed" files)."""
