"""What `wavelet generate` and `wavelet evaluate` keep of their speed beside a process that never stops computing.

One thread, the default and two threads take turns, with and without that process; medians of tokens per second are
printed, and the share of the speed of one thread. RUN is a checkpoint or run directory, runs/demo for instance; its own
`train.threads` is left out of the copy that is measured, so that the default has to choose.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from wavelet_core.checkpoint import load_checkpoint, locate_checkpoint, read_config, save_checkpoint
from wavelet_core.tokenizers import load_tokenizer

CHOICES = {"1 thread": ["--threads", "1"], "default": [], "2 threads": ["--threads", "2"]}
NEEDED = 0.8


def tokens_per_second(command: str, checkpoint: Path, tokens: int, choice: list[str]) -> float:
    """The rate that a command reports."""
    options = {
        "generate": ["--prompt", "def ", "--num-tokens", str(tokens), "--seed", "0", "--json"],
        "evaluate": ["--split", "validation", "--json"],
    }[command]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "wavelet_cli", command, str(checkpoint), *options, *choice],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    if command == "generate":
        return float(json.loads(done.stdout)["tokens_per_second"])
    return float(re.findall(r"([\d,.]+) tokens/s", done.stderr)[-1].replace(",", ""))


def measure(command: str, checkpoint: Path, tokens: int, rounds: int) -> dict[str, float]:
    """Median rates of a command with each choice of threads."""
    rates: dict[str, list[float]] = {name: [] for name in CHOICES}
    for _ in range(rounds):
        for name, choice in CHOICES.items():
            rates[name].append(tokens_per_second(command, checkpoint, tokens, choice))
    return {name: statistics.median(measured) for name, measured in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", metavar="RUN", nargs="?", default="runs/demo", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1000)
    arguments = parser.parse_args()
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        source = locate_checkpoint(arguments.run)
        data = {"data": read_config(source)["data"]}
        save_checkpoint(load_checkpoint(source), checkpoint, load_tokenizer(source), data)
        for command in ("generate", "evaluate"):
            for beside in ("nothing", "a busy core"):
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside != "nothing" else None
                try:
                    rates = measure(command, checkpoint, arguments.tokens, arguments.rounds)
                finally:
                    if busy is not None:
                        busy.kill()
                shares = {name: rate / rates["1 thread"] for name, rate in rates.items()}
                shown = ", ".join(f"{name} {rate:,.0f} ({shares[name]:.2f})" for name, rate in rates.items())
                print(f"{command} beside {beside}: {shown} tokens/s", flush=True)
                if busy is not None:
                    kept.append(shares["default"])
    sys.exit(f"the default keeps {min(kept):.2f} of the speed of one thread" if min(kept) < NEEDED else 0)


if __name__ == "__main__":
    main()
