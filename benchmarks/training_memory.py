"""The peak memory of real training steps beside what `wavelet config memory` says of them, at small sizes.

    python benchmarks/training_memory.py

Every configuration is trained for three steps in a process of its own, in which the peak of resident memory above that
of the imported libraries is taken (Linux).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import torch

from wavelet_core import build, build_model
from wavelet_train.precision import autocast
from wavelet_train.quantities import byte_size
from wavelet_train.run_config import RunConfig, load_run_config
from wavelet_train.tables import table
from wavelet_train.training_loss import TrainingLoss
from wavelet_train.training_memory import training_memory

SIZES = [
    ("model.width=128", "train.batch_size=8"),
    ("model.width=256", "train.batch_size=8"),
    ("model.width=256", "train.batch_size=16"),
]
COMMON = ("model.vocabulary_size=8192", "model.layers=4", "model.context_length=256")


def configuration(overrides: list[str]) -> RunConfig:
    return load_run_config("demo", [*COMMON, *overrides])


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measured(run: RunConfig) -> int:
    """Bytes of resident memory that three steps add at their peak."""
    dtype = getattr(torch, run.train.precision)
    torch.nn.functional.gelu(torch.randn(64, 64) @ torch.randn(64, 64))  # what the libraries set up for themselves
    before = resident()
    model = build_model(run.model)
    loss = TrainingLoss(model).train()
    optimizer = build("optimizer", run.train.optimizer, list(model.named_parameters()), run.train.lr)
    tokens = torch.randint(run.model.vocabulary, (run.train.batch_size, run.model.context_length + 1))
    for _ in range(3):
        with autocast(tokens.device, dtype):
            value = loss(tokens[:, :-1], tokens[:, 1:])
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    if len(sys.argv) > 1:
        print(measured(configuration(sys.argv[1:])))
        return
    rows = []
    for size in SIZES:
        for precision in ("float32", "bfloat16"):
            print(*size, precision, file=sys.stderr)
            overrides = [*size, f"train.precision={precision}"]
            told = training_memory(configuration(overrides)).total
            done = subprocess.run([sys.executable, __file__, *overrides], check=True, capture_output=True, text=True)
            peak = json.loads(done.stdout)
            assert told is not None
            rows.append((" ".join(overrides), byte_size(told), byte_size(peak), f"{peak / told:.2f}"))
    print(table(rows, ("configuration", "told", "measured", "ratio")))


if __name__ == "__main__":
    main()
