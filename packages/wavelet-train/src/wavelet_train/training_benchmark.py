"""How fast models train here, side by side: tokens per second, share of the matrix products' peak, memory, parts.

Each model trains in a process of its own (`training_worker.py`), so that another revision of the code can be one of
them. They take turns, step by step, and ratios are medians of pairs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from wavelet_core.config import ConfigurationError, LanguageModelConfig
from wavelet_train.run_config import RunConfig

WORKER = Path(__file__).with_name("training_worker.py")
# Rows and columns of the matrices whose product gives the peak.
PRODUCT_SIZE = {"cpu": 2048, "other": 8192}
PRODUCT_TYPES = (torch.bfloat16, torch.float32)
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Contestant:
    """One model that takes part.

    source: a checkout whose packages train it instead of this code. plugin: a Python file that registers its family.
    """

    name: str
    model: LanguageModelConfig
    source: Path | None = None
    plugin: Path | None = None


def training_benchmark(
    run: RunConfig,
    contestants: Sequence[Contestant],
    compiled: Sequence[bool],
    rounds: int,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train each model for some steps as `run` says, on random tokens; times in seconds, sizes in bytes.

    The first contestant is what the others are compared with. compiled: whether its loss is compiled; with two entries
    every model is measured both ways. run: with its device, precision and `train.threads`.

    Raises ConfigurationError for what a model's code refuses, ValueError for one that fails.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        entries: list[_Entry] = []
        for contestant in contestants:
            for compile_ in compiled:
                home = folder / str(len(entries))
                process = stack.enter_context(
                    ContestantProcess(contestant, benchmark_run(run, contestant, compile_, home), home)
                )
                entries.append(_Entry(contestant, compile_, process))
        for entry in entries:
            entry.process.begin()
        for entry in entries:
            begin = time.perf_counter()
            entry.process.ask("step")
            entry.first_step = time.perf_counter() - begin
            for _ in range(WARM_UP_STEPS - 1):
                entry.process.ask("step")
        first = entries[0].process.about
        device = torch.device(first["device"])
        torch.set_num_threads(first["threads"])
        products = {str(dtype).removeprefix("torch."): _Product(device, dtype) for dtype in PRODUCT_TYPES}
        for turn in range(rounds):
            for entry in entries if turn % 2 else reversed(entries):
                entry.seconds.append(entry.process.ask("step"))
            for product in products.values():
                product.measure()
            on_round()
        return {
            **{key: first[key] for key in ("device", "threads", "precision", "tokens")},
            "matrix_products": {name: product.peak for name, product in products.items()},
            "models": [_figures(entry, entries, products) for entry in entries],
            "breakdown": entries[0].process.ask("breakdown"),
        }


class _Entry:
    """A contestant, compiled or not, with its process and what was measured of it."""

    def __init__(self, contestant: Contestant, compiled: bool, process: ContestantProcess):
        self.contestant, self.compiled, self.process = contestant, compiled, process
        self.first_step = 0.0
        self.seconds: list[float] = []


class _Product:
    """The product of two square matrices, which runs as fast as products can on a device."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        size = PRODUCT_SIZE.get(device.type, PRODUCT_SIZE["other"])
        self.matrix = torch.ones(size, size, device=device, dtype=dtype)
        self.device, self.speeds = device, [0.0]
        self.measure()

    def measure(self) -> None:
        begin = time.perf_counter()
        self.matrix @ self.matrix
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()
        self.speeds.append(2 * len(self.matrix) ** 3 / (time.perf_counter() - begin))

    @property
    def peak(self) -> float:
        """Floating-point operations a second, the most that was seen."""
        return max(self.speeds)


def _figures(entry: _Entry, entries: Sequence[_Entry], products: dict[str, _Product]) -> dict[str, Any]:
    """What is reported of one entry."""
    about, seconds = entry.process.about, statistics.median(entry.seconds)
    first = next(other for other in entries if other.compiled == entry.compiled)
    first_tokens = first.process.about["tokens"]
    pairs = zip(first.seconds, entry.seconds, strict=True)
    flops = entry.process.ask("flops")
    memory = entry.process.ask("memory")
    return {
        "name": entry.contestant.name,
        "kind": about["kind"],
        "compiled": entry.compiled,
        "parameters": about["parameters"],
        "seconds_per_step": seconds,
        "tokens_per_second": about["tokens"] / seconds,
        "speed_over_first": about["tokens"] / first_tokens * statistics.median(its / own for its, own in pairs),
        "first_step_seconds": entry.first_step,
        "flops_per_token": flops / about["tokens"],
        "share_of_peak": {name: flops / seconds / product.peak for name, product in products.items()},
        "peak_tensors": memory["tensors"],
        "peak_resident": memory["resident"],
    }


def benchmark_run(run: RunConfig, contestant: Contestant, compiled: bool, home: Path) -> dict[str, Any]:
    """The configuration of a contestant's run: a text file whose tokens are not read stands for its data."""
    home.mkdir()
    text = home / "text.txt"
    text.write_text("a" * 4 * (contestant.model.context_length + 1) * run.train.batch_size)
    model, train = (part.model_dump(mode="json", exclude_defaults=True) for part in (contestant.model, run.train))
    dataset = {"kind": "text", "train": str(text), "validation": str(text)}
    return {
        "model": {**model, "kind": contestant.model.kind},
        "data": {"dataset": dataset, "tokenizer": "bytes", "cache_directory": str(home / "cache")},
        "train": {**train, "compile": compiled},
    }


class ContestantProcess:
    """A contestant at work, for a `with`.

    run: as `benchmark_run` makes it. home: a folder for its files. about: what it says of itself, once it has begun.
    """

    about: dict[str, Any]

    def __init__(self, contestant: Contestant, run: dict[str, Any], home: Path):
        self.contestant, self.errors = contestant, home / "errors.txt"
        path = os.environ.get("PYTHONPATH", "")
        if contestant.source is not None:
            own = sorted(map(str, contestant.source.glob("packages/*/src")))
            path = os.pathsep.join([*own, path])
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                # Run by its path, but without that path's folder among those that modules are imported from.
                [sys.executable, "-c", f"import runpy; runpy.run_path({str(WORKER)!r}, run_name='__main__')"],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        plugin = None if contestant.plugin is None else str(contestant.plugin)
        self.send({"run": run, "folder": str(home / "run"), "plugin": plugin})

    def __enter__(self) -> ContestantProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def begin(self) -> None:
        """Wait until it is ready for requests. Raises what `ask` raises."""
        self.about = self.answer()

    def ask(self, request: str) -> Any:
        """What the process answers. Raises ConfigurationError or ValueError for what it cannot do."""
        self.send(request)
        return self.answer()

    def send(self, request: Any) -> None:
        """Let the process begin; `answer` then waits for it."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the answer, which will be missing, says why
            print(json.dumps(request), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        """The answer to the first request or the one before; raises what `ask` raises."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            lines = self.errors.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ValueError(f"training {self.contestant.name} ended with status {self.process.wait()}: {lines[-1]}")
        answer = json.loads(line)
        if "error" in answer:
            expected = answer["type"] in ("ConfigurationError", "RegistryError")
            kind = "" if expected else f"{answer['type']}: "
            message = f"training {self.contestant.name}: {kind}{answer['error']}"
            raise ConfigurationError(message) if expected else ValueError(message)
        return answer["result"]
