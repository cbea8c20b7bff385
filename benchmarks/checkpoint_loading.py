"""What verifying a checkpoint adds to loading it, and to the first token of `wavelet generate`.

A checkpoint is loaded without verification, with all of its files read for it, and with a verification that is
remembered. All three take turns and find the files in the page cache. Printed are medians of the time on the clock and
of the processor time, which other work on the machine hardly changes, and their ratios to loading without.

    python benchmarks/checkpoint_loading.py [--preset wikitext-103] [--dtype bfloat16] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from wavelet_cli.run_configuration import load_configuration
from wavelet_core import load_checkpoint, save_checkpoint
from wavelet_core.checkpoint import WEIGHTS_FILE
from wavelet_core.tokenizers import BytesTokenizer
from wavelet_core.verified_files import CLOCK_STEP
from wavelet_quant.decode_benchmark import random_model
from wavelet_train.quantities import byte_size
from wavelet_train.tables import table

VOCABULARY = 50257


def clocks() -> tuple[float, float]:
    """Seconds on the clock, and of the processor time of this process and those that it waited for."""
    return time.perf_counter(), sum(os.times()[:4])


def measure(load: Callable[[bool], object], verify: bool) -> tuple[float, ...]:
    before = clocks()
    load(verify)
    return tuple(after - start for start, after in zip(before, clocks(), strict=True))


def compare(name: str, load: Callable[[bool], object], cache: Path, rounds: int) -> list[tuple[str, ...]]:
    """A row for each clock. One more round warms up."""
    times = []
    for _ in range(rounds + 1):
        plain = measure(load, False)
        shutil.rmtree(cache, ignore_errors=True)
        times.append((plain, measure(load, True), measure(load, True)))
    rows = []
    for number, clock in enumerate(("clock", "processor")):
        medians = [statistics.median(way[number] for way in ways) for ways in zip(*times[1:], strict=True)]
        ratios = [f"{value / medians[0]:.2f}" for value in medians[1:]]
        rows.append((f"{name}, {clock}", *(f"{value:.3f} s" for value in medians), *ratios))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="wikitext-103", help="preset or configuration file of the model")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        directory, cache = Path(name) / "model", Path(name) / "cache"
        os.environ["WAVELET_CACHE"] = str(cache)
        config = load_configuration(options.preset, ()).model.with_vocabulary(VOCABULARY)
        save_checkpoint(random_model(config, getattr(torch, options.dtype)), directory, BytesTokenizer())
        time.sleep(CLOCK_STEP)

        def generate(verify: bool) -> None:
            command = [sys.executable, "-m", "wavelet_cli", "generate", str(directory), "--prompt", "a"]
            command += ["--num-tokens", "1", *([] if verify else ["--no-verify"])]
            subprocess.run(command, check=True, capture_output=True)

        size = byte_size((directory / WEIGHTS_FILE).stat().st_size)
        print(f"{options.preset}, {options.dtype}, {size}; {torch.get_num_threads()} of {os.cpu_count()} cores")
        rows = compare(
            "load_checkpoint", lambda verify: load_checkpoint(directory, verify=verify), cache, options.rounds
        )
        rows += compare("wavelet generate, one token", generate, cache, options.rounds)
        print(table(rows, ("", "not verified", "read", "remembered", "read / not", "remembered / not")))


if __name__ == "__main__":
    main()
