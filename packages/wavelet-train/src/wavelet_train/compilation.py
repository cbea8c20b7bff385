"""Whether a run compiles its loss, which takes a minute or two and makes every step faster: `train.compile`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from wavelet_core.atomic_files import write_atomically
from wavelet_core.cache_directory import default_cache_directory
from wavelet_core.config import ConfigurationError
from wavelet_core.generation.compiled_files import processor
from wavelet_core.messages import shortened
from wavelet_train.precision import autocast
from wavelet_train.quantities import duration
from wavelet_train.run_config import RunConfig
from wavelet_train.training_loss import TrainingLoss

if TYPE_CHECKING:
    from wavelet_train.trainer import Trainer

# Runs of fewer steps are not worth a look.
FEWEST_STEPS = 20
# What is timed: passes for so many seconds, or so many passes.
TIMED_SECONDS, MOST_TIMED = 1.0, 10


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a forward and a backward pass, not compiled and compiled, and what compiling took when it last did."""

    eager: float
    compiled: float
    compiling: float

    def pays(self, steps: int) -> bool:
        """Whether so many steps save more time than compiling takes."""
        return steps * (self.eager - self.compiled) > self.compiling


def missing_compiler(device: torch.device) -> str | None:
    """What this machine lacks to compile for a device, with the remedy; None if nothing."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "a C++ compiler: install one (g++ or clang), or name one in CXX"
    elif device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "triton: pip install triton"
    return None


def compile_loss(loss: nn.Module, run: RunConfig, device: torch.device) -> None:
    """Let a loss be compiled when it is first called, with what the compiler makes kept in the cache folder.

    Raises ConfigurationError where there is no compiler.
    """
    if missing := missing_compiler(device):
        raise ConfigurationError(f"train.compile: true needs {missing}; or use train.compile: auto")
    folder = _cache_directory(run) / "inductor"
    with suppress(OSError):  # where that cannot be written, torch's own place will do
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    with suppress(AttributeError):  # else functions with gradients of their own are compiled anew by every process
        torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    loss.compile()


def choose(trainer: Trainer, kept: bool | None, may_try: bool = True) -> str:
    """Compile a trainer's loss where `train.compile: auto` should; returns what was chosen and why, for people.

    Compiled steps round differently, so a run keeps its choice: kept is that of a run that is resumed. A new run
    compiles where the steps to come save more time than compiling takes, by what was measured here before, or else by
    what is measured now, if they are many enough to find out. may_try: whether it may compile for that.
    """
    steps = trainer.steps - trainer.counters.step
    if trainer.ranks.count > 1:
        return "Steps are not compiled: for several processes that takes train.compile: true"
    if missing := missing_compiler(trainer.device):
        changed = ", and the run goes on with steps that round differently" if kept else ""
        return f"Steps are not compiled{changed}: that needs {missing}"
    if kept is None:
        if steps < FEWEST_STEPS:
            return f"Steps are not compiled: there are only {steps}"
        file = _times_file(trainer)
        times = _read(file) or _expected(_first_and_later(trainer, trainer.loss)[1])
        if not times.pays(steps):
            left = duration(steps * times.eager)
            return f"Steps are not compiled: all of them take about {left}, too little for compiling to pay"
        if not file.exists():
            if not may_try:
                return "Steps are not compiled for this, but in the run it will be tried"
            return _try(trainer, times.eager, file)
        because = f": {1e3 * times.compiled:.0f} ms instead of {1e3 * times.eager:.0f}, measured earlier"
    else:
        because = ", as the run began"
    if kept is not False:
        compile_loss(trainer.loss, trainer.run, trainer.device)
        trainer.counters.compiled = True
    return f"Steps are {'not ' if kept is False else ''}compiled{because}"


def _try(trainer: Trainer, eager: float, file: Path) -> str:
    """Compile, measure and remember; leave the loss compiled where that is faster."""
    print("Compiling to see how much faster steps become, in a minute or two", file=sys.stderr)
    loss = TrainingLoss(trainer.model)
    compile_loss(loss, trainer.run, trainer.device)
    try:
        first, later = _first_and_later(trainer, loss)
    except Exception as error:  # whatever a compiler does not know of another's model
        reason = str(error).strip().partition("\n")[0]
        return f"Steps are not compiled: {type(error).__name__}: {shortened(reason)}"
    times = StepTimes(eager, later, first - later)
    with suppress(OSError):  # what cannot be kept is measured again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda fresh: fresh.write_text(json.dumps(asdict(times))))
    if later < eager:
        trainer.loss, trainer.counters.compiled = loss, True
    return (
        f"Steps are {'' if later < eager else 'not '}compiled: {1e3 * later:.0f} ms compiled and {1e3 * eager:.0f} as "
        f"they are, measured now; compiling took {duration(times.compiling)}"
    )


def _expected(eager: float) -> StepTimes:
    """What to assume of a model that was never compiled here, until that is measured."""
    return StepTimes(eager, eager / 1.3, 90.0)


def _first_and_later(trainer: Trainer, loss: nn.Module) -> tuple[float, float]:
    """Seconds of the first forward and backward pass of a loss, and of a later one; the trainer stays as it is."""
    model, config, device = trainer.model, trainer.config, trainer.device
    shape = (config.batch_size, model.config.context_length)
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    numbered = [] if device.type == "cpu" else [device]

    def seconds() -> float:
        begin = time.perf_counter()
        state = None if trainer.carried.state is None else model.new_state(config.batch_size, device)
        if state is not None and trainer.carried.isolated:
            state.document_positions = torch.zeros_like(tokens)
        with autocast(device, trainer.dtype):
            value = loss(tokens, tokens, state)
        value.backward()
        value.item()
        return time.perf_counter() - begin

    loss.train()
    with torch.random.fork_rng(numbered, device_type=device.type if numbered else "cuda"):
        first = seconds()
        times = [seconds()]
        while sum(times) < TIMED_SECONDS and len(times) < MOST_TIMED:
            times.append(seconds())
    for parameter in trainer.parameters.values():
        parameter.grad = None
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    return first, min(times)


def _times_file(trainer: Trainer) -> Path:
    """Where the times of such steps on such a machine are kept."""
    circumstances = {
        "torch": torch.__version__,
        "processor": processor(),
        "device": str(trainer.device),
        "precision": str(trainer.dtype),
        "threads": torch.get_num_threads(),
        "batch_size": trainer.config.batch_size,
        "model": trainer.run.model.model_dump(mode="json"),
    }
    digest = hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()[:16]
    return _cache_directory(trainer.run) / "compile-times" / f"{digest}.json"


def _read(file: Path) -> StepTimes | None:
    with suppress(OSError, ValueError, TypeError):
        return StepTimes(**json.loads(file.read_text()))
    return None


def _cache_directory(run: RunConfig) -> Path:
    return Path(run.data.cache_directory or default_cache_directory()).absolute()
