"""Training steps on request: the process that `wavelet bench train` starts for each model that it compares.

It is run by its path, with the packages of any revision on the import path, and so uses only what they have in common.
The first line on standard input has the arguments of `Worker`, each further one the name of a method; they are JSON,
as are the answers on standard output.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from wavelet_core.block import MemorySum
from wavelet_core.config import parse
from wavelet_core.plugins import Plugin
from wavelet_core.registry import registry
from wavelet_train.run_config import RunConfig
from wavelet_train.run_directory import RunDirectory
from wavelet_train.trainer import Trainer
from wavelet_train.training_loss import TrainingLoss


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Operations of attention, forward. Shapes: query (B, H, T, D), key (B, H, S, D), value (B, H, S, E)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The two gradients of both products, and the first product again."""
    batch, heads, queries, width = query
    return 2 * _attention(query, key, value) + 2 * batch * heads * queries * key[2] * width


def _triangular_solve(matrix: Any, right: Any, *_: Any, **__: Any) -> int:
    """Half of the product with a full matrix. Shapes: (..., T, T), (..., T, D)."""
    return math.prod(right) * int(matrix[-1])


def _lstm(inputs: Any, weight: Any, recurrent: Any, *_: Any, **__: Any) -> int:
    """Operations of an LSTM layer, forward. Shapes: (T, B, C), (4 H, C), (4 H, H)."""
    return 2 * inputs[0] * inputs[1] * (math.prod(weight) + math.prod(recurrent))


def _lstm_backward(*arguments: Any, **keywords: Any) -> int:
    return 2 * _lstm(*arguments, **keywords)


# Of what torch itself does not count, as it runs on processors.
FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.aten.linalg_solve_triangular: _triangular_solve,
    torch.ops.aten.mkldnn_rnn_layer: _lstm,
    torch.ops.aten.mkldnn_rnn_layer_backward: _lstm_backward,
}

PART = "part: "
LOSS, OPTIMIZER, REST = "head and loss", "optimizer", "rest of the step"


class RandomTokens:
    """The windows of a run with random tokens in them, so that a benchmark needs no text of the vocabulary's size."""

    def __init__(self, windows: Any, vocabulary: int):
        self.windows, self.vocabulary = windows, vocabulary

    def __next__(self) -> Any:
        batch = next(self.windows)
        inputs, targets = (torch.randint(self.vocabulary, batch.inputs.shape) for _ in range(2))
        return batch._replace(inputs=inputs, targets=targets)


class Worker:
    """A run of its own, of which single steps are asked for.

    run: its configuration. folder: for its files. plugin: a Python file that registers what the configuration names.
    """

    def __init__(self, run: dict[str, Any], folder: str, plugin: str | None = None):
        if plugin is not None:
            load_plugin(Path(plugin))
        self.trainer = trainer = Trainer(parse(RunConfig, run), RunDirectory(folder))
        trainer.windows = RandomTokens(trainer.windows, trainer.model.config.vocabulary)  # type: ignore[assignment]
        trainer.loss.train()

    def describe(self) -> dict[str, Any]:
        """What is measured."""
        trainer = self.trainer
        return {
            "kind": trainer.run.model.kind,
            "parameters": sum(parameter.numel() for parameter in trainer.parameters.values()),
            "device": str(trainer.device),
            "precision": str(trainer.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "tokens": trainer.tokens_per_step,
        }

    def step(self) -> float:
        """Seconds of one optimizer step."""
        begin = time.perf_counter()
        self.trainer.take_step(self.trainer.config.lr / 100)
        if self.trainer.device.type != "cpu":
            torch.get_device_module(self.trainer.device).synchronize()
        return time.perf_counter() - begin

    def processor_step(self) -> float:
        """Seconds of one optimizer step by the processor's time, which does not count what other processes take.

        That of all threads together: it is the time of the step where there is one thread.
        """
        begin = time.process_time()
        self.step()
        return time.process_time() - begin

    def flops(self) -> int:
        """Floating-point operations of the matrix products of one step, two for a multiplication and its addition.

        Those of attention count as torch counts them, as if it were not causal.
        """
        with self._eager(), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            self.step()
        return counter.get_total_flops()

    def memory(self) -> dict[str, int | None]:
        """Bytes at the fullest moment of a step: of all tensors, and of the process where the system says.

        The former is what weights, gradients, the optimizer's state and activations take together; the latter also
        has the libraries, and freed memory that is kept for the next step.
        """
        if self.trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return {"tensors": torch.cuda.max_memory_allocated(), "resident": None}
        resident = _reset_peak_of_process()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.step()
        peak = allocated = 0
        for event in sorted(_kineto(profiled), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                allocated += event.nbytes()
                peak = max(peak, allocated)
        return {"tensors": self._kept() + peak, "resident": _peak_of_process() if resident else None}

    def breakdown(self) -> dict[str, dict[str, float]]:
        """Seconds of one step, not compiled, by part of the model, forward and backward."""
        with self._eager():
            _name_parts(self.trainer.loss)
            self.step()
            cuda = self.trainer.device.type == "cuda"
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
            with profile(activities=activities) as profiled:
                self.step()
        return _seconds_by_part(profiled.events(), "self_device_time_total" if cuda else "self_cpu_time_total")

    def _eager(self) -> Any:
        return _Eager(self.trainer)

    def _kept(self) -> int:
        """Bytes of all tensors that stay from one step to the next."""
        states = self.trainer.optimizer.state.values()
        kept = [tensor for state in states for tensor in state.values() if isinstance(tensor, torch.Tensor)]
        storages = [tensor.untyped_storage() for tensor in (*self.trainer.model.state_dict().values(), *kept)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class _Eager:
    """A context in which a trainer's loss is not compiled."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.loss = trainer, trainer.loss

    def __enter__(self) -> None:
        self.trainer.loss = TrainingLoss(self.trainer.model).train()

    def __exit__(self, *_: object) -> None:
        self.trainer.loss = self.loss


def load_plugin(path: Path) -> Plugin:
    """Register what a Python file brings. Raises ValueError for one that cannot be loaded."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where annotations are looked up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    plugin = registry.add_plugin(module, path.stem)
    if plugin.error is not None:
        raise ValueError(f"{path} cannot be loaded: {plugin.reason}")
    return plugin


def _reset_peak_of_process() -> bool:
    """Let the system forget the most memory that this process has had; whether it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_of_process() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def _kineto(profiled: profile) -> Any:
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    return profiled.profiler.kineto_results.events()


def _name_parts(loss: nn.Module) -> None:
    """Let the parts of a model say in a profile when they are at work: its modules, and those of its blocks."""
    model: Any = loss.model
    _name_methods(loss, LOSS)
    for name, module in model.named_children():
        if not isinstance(module, nn.ModuleList):
            _name_methods(module, LOSS if name == "head" else name)
            continue
        for block in module:
            _name_methods(block, name)
            for part, inner in block.named_children():
                _name_methods(inner, part)
    for module in model.modules():
        if isinstance(module, MemorySum):
            for memory in cast("list[Any]", module.memories):
                _name_methods(memory, f"memory {memory.Config.model_fields['kind'].default}")


def _name_methods(module: nn.Module, part: str) -> None:
    """Record the public methods of a module's class under a name; those of shared modules once."""
    for name in dir(type(module)):
        own = inspect.getattr_static(type(module), name)
        public = not name.startswith("_") and (name == "forward" or not hasattr(nn.Module, name))
        if inspect.isfunction(own) and public and name not in vars(module):
            setattr(module, name, _recorded(getattr(module, name), part))


def _recorded(method: Any, part: str) -> Any:
    def call(*arguments: Any, **keywords: Any) -> Any:
        with record_function(PART + part):
            return method(*arguments, **keywords)

    return call


def _seconds_by_part(events: Any, measure: str) -> dict[str, dict[str, float]]:
    """Seconds by part and direction. What runs in the backward pass belongs to the part whose operation it undoes."""
    events = sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end))
    places: dict[int, tuple[str, str]] = {}
    part_of_sequence: dict[int, str] = {}
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
    for event in events:
        part, direction = places.get(id(event.cpu_parent), (REST, "forward"))
        if event.name.startswith(PART):
            part = event.name.removeprefix(PART)
        elif event.name.startswith("autograd::engine::evaluate_function"):
            part, direction = part_of_sequence.get(event.sequence_nr, REST), "backward"
        elif event.name.startswith("Optimizer.step"):
            part = OPTIMIZER
        elif direction == "forward" and event.sequence_nr >= 0:
            part_of_sequence[event.sequence_nr] = part  # the last to begin with a number is what made the node
        places[id(event)] = part, direction
        seconds[part][direction] += getattr(event, measure) / 1e6
    return dict(seconds)


def main() -> None:
    # Whatever prints goes to standard error; the answers have the pipe for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        worker = Worker(**json.loads(sys.stdin.readline()))
        answer(result=worker.describe())
        for request in sys.stdin:
            answer(result=getattr(worker, json.loads(request))())
    except Exception as error:
        answer(error=str(error), type=type(error).__name__)


if __name__ == "__main__":
    main()
