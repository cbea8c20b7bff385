"""How fast a model decodes in several formats: all side by side in one run, in which they take turns."""

from __future__ import annotations

import copy
import functools
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core.config import ConfigurationError
from wavelet_core.generation import compile_steps, load_steps
from wavelet_core.generation.context import Contexts
from wavelet_core.generation.session import DecodingSession
from wavelet_core.kernels import active_kernels
from wavelet_quant.decode_benchmark import PREFILL_CHUNK, ReadBandwidth, seconds, warm_up, weight_bytes_read
from wavelet_quant.drop_ins import DropIn, drop_in_of
from wavelet_quant.kernel_benchmark import DENSE
from wavelet_quant.packed import OFFSETS, PackedMatrix, unpack
from wavelet_quant.quantizer import quantize, weight_bytes
from wavelet_quant.weight_format import StoredMatrix

DEQUANTIZE = "dequantize"


class DequantizedMatrix(StoredMatrix):
    """8-bit numbers and a scale for each row that become floating point before each product, as published."""

    values: Tensor
    scale: Tensor

    def __init__(self, packed: PackedMatrix):
        super().__init__(packed.shape, packed.dtype, packed.values.device)
        codes = unpack(packed.values, packed.bits, *packed.shape[-2:])
        per_row = packed.scales.transpose(-1, -2).flatten(-3, -2)[..., : packed.height, :]
        self.register_buffer("values", (codes.int() - int(OFFSETS[packed.bits])).to(torch.int8))
        self.register_buffer("scale", per_row.float())

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        return (self.values * self.scale).to(dtype or self.dtype)

    def rows(self, index: Tensor) -> Tensor:
        return (self.values[index] * self.scale[index]).to(self.dtype)


def model_in_format(model: Any, format: str) -> Any:
    """A model like the given one, which stays as it is, in a dense type or by a recipe.

    format: float32, bfloat16 or float16; a recipe's name or file; or `dequantize`: 8-bit weights that become floating
    point before each product. What a recipe leaves in floating point keeps the model's type. Numbers in formats are
    random: speed does not depend on them, and rounding a large model takes minutes.

    Raises what `quantize` raises.
    """
    if format in DENSE:
        dtype = getattr(torch, format)
        return model if next(model.parameters()).dtype is dtype else copy.deepcopy(model).to(dtype)
    if format != DEQUANTIZE:
        return _randomly_quantized(model, format)
    made = _randomly_quantized(model, "int8")
    dequantized: dict[PackedMatrix, DequantizedMatrix] = {}
    for module in list(made.modules()):
        if isinstance(module, DropIn) and isinstance(module.weight, PackedMatrix):
            if module.weight not in dequantized:
                dequantized[module.weight] = DequantizedMatrix(module.weight)
            module.weight = dequantized[module.weight]
    return made


def _randomly_quantized(model: Any, recipe: str) -> Any:
    """A copy of a model that is quantized by a recipe, without the time and the memory that rounding takes."""
    matrices: dict[int, Any] = {
        id(module.weight): nn.Parameter(torch.empty_like(module.weight, device="meta"), requires_grad=False)
        for module in model.modules()
        if drop_in_of(module) is not None
    }
    made = quantize(copy.deepcopy(model, matrices), recipe)
    weights = dict(model.named_parameters(remove_duplicate=False))
    kept: dict[int, nn.Parameter] = {}  # by the weight that they are copies of: shared ones stay shared
    for path, module in made.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.is_meta:
                weight = weights[name]
                copied = kept.setdefault(id(weight), nn.Parameter(weight.detach().clone(), requires_grad=False))
                setattr(module, name.rpartition(".")[2], copied)
        if isinstance(module, StoredMatrix):
            _fill(module, next(iter(weights.values())).device)
    return made


def _fill(stored: StoredMatrix, device: torch.device) -> None:
    """Give a stored matrix without values random integers and scales with which sums stay small."""
    for name, buffer in list(stored.named_buffers(recurse=False)):
        if buffer.is_meta:
            filled = torch.empty_like(buffer, device=device)
            stored._buffers[name] = (
                filled.fill_(stored.shape[-1] ** -0.5 / 64) if buffer.is_floating_point() else filled.random_()
            )


class _Decoder:
    """A model in a format, with a stream that has read a text, and the times that it took."""

    def __init__(self, format: str, model: Any, text: Tensor, batches: Sequence[int], compiled: bool, replay: bool):
        self.format = format
        self.weight_bytes, self.read = weight_bytes(model), weight_bytes_read(model)
        self.session = DecodingSession(model, replay)
        if compiled:
            with tempfile.TemporaryDirectory() as folder:
                compile_steps(self.session, folder, [1, *batches])
                load_steps(self.session, folder)
        self.token = text[0, :1]
        self.stream = Contexts(self.session, 1, PREFILL_CHUNK)
        self.stream.open([0], [text[0].tolist()], ["stream"])
        self.batches = {size: self.stream.select([0] * size) for size in batches}
        self.times: list[float] = []
        self.batch_times: dict[int, list[tuple[float, float]]] = {size: [] for size in batches}
        self.prompt_times: list[float] = []

    def is_replayed(self) -> bool:
        return self.stream.state is not None and self.session.is_replayed(self.stream.state)

    def step(self) -> float:
        return seconds(lambda: self.stream.step(self.token, [0]))

    def batch_step(self, size: int) -> float:
        tokens = self.token.repeat(size)
        return seconds(lambda: self.batches[size].step(tokens, range(size)))

    def read_prompt(self, prompt: Tensor) -> float:
        state = self.session.new_state(1)
        return seconds(lambda: self.session.hidden(prompt, state))


@torch.inference_mode()
def format_benchmark(
    model: Any,
    formats: Sequence[str],
    rounds: int = 32,
    batches: Sequence[int] = (),
    prompt_tokens: int = 512,
    position: int = 16,
    compiled: bool = False,
    replay: bool = True,
) -> dict[str, Any]:
    """Measure decoding in several formats; times in seconds, sizes in bytes.

    formats: what `model_in_format` knows; speeds are compared with the first one's. rounds: turns, of one token in each
    format, after `position` tokens of a random text; a quarter as many for batches and prompts. batches: numbers of
    streams decoded at once. prompt_tokens: of a text that is read from its start. compiled: decode by compiled steps.
    replay: replay recorded steps.

    Raises what `model_in_format` raises.
    """
    if len(set(formats)) < len(formats):
        raise ConfigurationError(f"formats: {', '.join(formats)} names one twice")
    device = next(model.parameters()).device
    text = torch.randint(model.config.vocabulary, (1, position), device=device)
    prompt = torch.randint(model.config.vocabulary, (1, prompt_tokens), device=device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    decoders = [_Decoder(format, model_in_format(model, format), text, batches, compiled, replay) for format in formats]
    bandwidth = ReadBandwidth(device)
    for decoder in decoders:
        warm_up(decoder.step)
        for size in batches:
            warm_up(functools.partial(decoder.batch_step, size))
    bandwidth.measure()
    reads = []
    for _ in range(rounds):
        reads.append(bandwidth.measure())
        for decoder in decoders:
            decoder.times.append(decoder.step())
    for _ in range(max(3, rounds // 4)):
        for decoder in decoders:
            decoder.prompt_times.append(decoder.read_prompt(prompt))
        for size in batches:
            for decoder in decoders:
                decoder.batch_times[size].append((decoder.step(), decoder.batch_step(size)))
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "compiled": compiled,
        "replayed": all(decoder.is_replayed() for decoder in decoders),
        "kernels": [kernel.config.kind for kernel in active_kernels()],
        "parameters": parameters,
        "read_bandwidth": statistics.median(reads),
        "prompt_tokens": prompt_tokens,
        "formats": [_report(decoder, decoders[0], reads, prompt_tokens) for decoder in decoders],
    }


def _report(decoder: _Decoder, first: _Decoder, reads: Sequence[float], prompt_tokens: int) -> dict[str, Any]:
    time = statistics.median(decoder.times)
    shares = [decoder.read / own / read for own, read in zip(decoder.times, reads, strict=True)]
    return {
        "format": decoder.format,
        "weight_bytes": decoder.weight_bytes,
        "weight_bytes_per_token": decoder.read,
        "seconds_per_token": time,
        "tokens_per_second": 1 / time,
        "share_of_bandwidth": statistics.median(shares),
        "speed_over_first": _ratio(first.times, decoder.times),
        "prompt_tokens_per_second": prompt_tokens / statistics.median(decoder.prompt_times),
        "prompt_speed_over_first": _ratio(first.prompt_times, decoder.prompt_times),
        "batches": [
            {
                "streams": size,
                "tokens_per_second": size / statistics.median(together for _, together in times),
                "throughput_over_one": statistics.median(size * alone / together for alone, together in times),
            }
            for size, times in decoder.batch_times.items()
        ],
    }


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
