"""What a decoded token costs: time, weights read, and how that compares with the other ways of decoding.

All comparisons are paired: the things compared take turns in one run, and the median of the ratios is reported, so
that a machine whose speed drifts does not decide the outcome.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from wavelet_core.config import LanguageModelConfig
from wavelet_core.generation.compiled_files import load_steps
from wavelet_core.generation.context import Contexts
from wavelet_core.generation.replayed_step import STEPS_BEFORE_REPLAY
from wavelet_core.generation.session import DecodingSession
from wavelet_core.kernels import active_kernels
from wavelet_core.language_model import build_model
from wavelet_core.state import State
from wavelet_quant import native_library
from wavelet_quant.native_kernel import UNOBSERVED

READ_BUFFER = 1 << 28
PREFILL_CHUNK = 256
MATRIX_PRODUCTS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "mv",
    "addmv",
    "linear",
    "matmul",
    "stacked_linear",
    "packed_linear",
}


def random_model(config: LanguageModelConfig, dtype: torch.dtype) -> Any:
    """A freshly initialised model whose weights are made in `dtype` at once, without a wider copy."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        model: Any = build_model(config)
        return model.eval()
    finally:
        torch.set_default_dtype(before)


def seconds(work: Callable[[], Any]) -> float:
    """How long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


class ReadBandwidth:
    """How fast this device reads memory, with all threads: a buffer that is larger than any cache.

    The native library reads it as its kernels do; where there is none, torch sums it, which is slower on a processor.
    """

    def __init__(self, device: torch.device):
        self.buffer = torch.ones(READ_BUFFER // 4, device=device)
        self.native = device.type == "cpu" and native_library.library() is not None

    def read(self) -> None:
        if self.native:
            native_library.read(self.buffer)
        else:
            self.buffer.sum().item()

    def measure(self) -> float:
        """Bytes per second."""
        return self.buffer.nbytes / seconds(self.read)


def weight_bytes_read(model: Any) -> int:
    """Bytes of weights that decoding one token reads, one application of a module after the other.

    A module that is applied twice, such as an update network in decomposition and reconstruction, is read twice: there
    is far more between its uses than a cache holds. Of embeddings and value tables only the rows that are used count.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal total
        if module in tables:
            whole = sum(tensor.nbytes for tensor in module.state_dict().values())
            total += whole * inputs[0].numel() // module.num_embeddings
        elif module not in inside:
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            total += sum(tensor.nbytes for tensor in own)

    session = DecodingSession(model)
    tables = {module for module in session.model.modules() if hasattr(module, "num_embeddings")}
    inside = {part for table in tables for part in table.modules()}
    with register_module_forward_pre_hook(count):
        _read_one(session)
    return total


def warm_up(step: Callable[[], Any]) -> None:
    """Let a stream take as many steps as it takes before its steps are replayed."""
    for _ in range(STEPS_BEFORE_REPLAY):
        step()


class _MatrixProducts(TorchDispatchMode):
    """Remembers every matrix product that runs in it, so that they can be run again alone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in MATRIX_PRODUCTS:
            product = UNOBSERVED.get(func, func)
            self.calls.append(lambda: product(*args, **kwargs))
        return func(*args, **kwargs)

    def run(self) -> None:
        for call in self.calls:
            call()


def matrix_products(model: Any) -> Callable[[], None]:
    """A function that runs just the matrix products of one decoded token, on the inputs that they had."""
    with _MatrixProducts() as products:
        _read_one(DecodingSession(model))
    return products.run


def _read_one(session: DecodingSession) -> None:
    """Decode one token from silence."""
    session.head(session.hidden(torch.zeros(1, 1, dtype=torch.long, device=session.device), session.new_state(1)))


def _resident_bytes() -> int | None:
    """Resident memory of this process that is no mapped file, where the system says."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return None if found is None else 1024 * int(found[1])


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


class _Text:
    """A random text that is read to given positions; the state and resident memory at each of them are kept."""

    def __init__(self, session: DecodingSession, positions: Sequence[int], chunk: int):
        self.session = session
        self.states: dict[int, State] = {}
        self.resident: dict[int, int | None] = {}
        state = session.new_state(1)
        read = 0
        for position in sorted(set(positions)):
            for tokens in self.tokens(position - read).split(chunk, dim=1):
                session.hidden(tokens, state)
            read = position
            self.states[position] = state.clone()
            self.resident[position] = _resident_bytes()

    def tokens(self, count: int) -> Tensor:
        """Random token ids, (1, count)."""
        return torch.randint(self.session.config.vocabulary, (1, count), device=self.session.device)

    def stream_at(self, position: int) -> Contexts:
        """A row under the policy `stream` that has read up to a position."""
        stream = Contexts(self.session, 1, PREFILL_CHUNK)
        stream.state, stream.logits = self.states[position], torch.zeros(1, 1)
        return stream


@torch.inference_mode()
def decode_benchmark(
    model: Any,
    positions: Sequence[int],
    rounds: int = 32,
    window_rounds: int = 5,
    batches: Sequence[int] = (),
    compiled: Path | None = None,
    token_by_token: bool = False,
    replay: bool = True,
) -> dict[str, Any]:
    """Measure decoding with a model; times in seconds, sizes in bytes.

    positions: where in the text latency is measured. rounds: tokens measured at each of them. window_rounds: how often
    the policy `window` and a whole forward over the window with all its logits take their turn; 0 leaves them out.
    batches: numbers of streams decoded at once, for throughput. compiled: a directory with compiled steps.
    token_by_token: read the text up to the positions token by token, so that memory can be compared between them; in
    chunks, what these allocate for a moment comes and goes by megabytes. replay: replay recorded steps.
    """
    device = next(model.parameters()).device
    products = matrix_products(model)
    read = weight_bytes_read(model)
    session = DecodingSession(model, replay)
    if compiled is not None:
        load_steps(session, compiled)
    text = _Text(session, positions, 1 if token_by_token else PREFILL_CHUNK)
    streams = {position: text.stream_at(position) for position in text.states}
    token = text.tokens(1)[0]
    first = streams[min(streams)]
    bandwidth = ReadBandwidth(device)

    latencies: dict[int, list[float]] = {position: [] for position in streams}
    overheads, bandwidths, shares = [], [], []
    for stream in streams.values():
        warm_up(lambda stream=stream: stream.step(token, [0]))  # type: ignore[misc]
    products()
    bandwidth.measure()
    resident = _resident_bytes()
    for _ in range(rounds):
        for position, stream in streams.items():
            latencies[position].append(seconds(lambda stream=stream: stream.step(token, [0])))  # type: ignore[misc]
        alone, whole = seconds(products), seconds(lambda: first.step(token, [0]))
        overheads.append(whole / alone)
        bandwidths.append(bandwidth.measure())
        shares.append(read / whole / bandwidths[-1])

    medians = {position: statistics.median(values) for position, values in latencies.items()}
    latency = statistics.median([value for values in latencies.values() for value in values])
    last, start = max(medians), min(medians)
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "compiled": bool(session.steps),
        "replayed": first.state is not None and session.is_replayed(first.state),
        "kernels": [kernel.config.kind for kernel in active_kernels()],
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds_per_token": latency,
        "tokens_per_second": 1 / latency,
        "latency": [{"position": position, "seconds": median} for position, median in medians.items()],
        "last_to_first_latency": medians[last] / medians[start],
        "state_bytes": text.states[start].nbytes,
        "decoded_tokens": rounds * (len(streams) + 1),
        "resident_growth_bytes": _growth(resident, _resident_bytes()),
        "resident_growth_between_positions_bytes": (
            _growth(text.resident[start], text.resident[last]) if token_by_token else None
        ),
        "weight_bytes_per_token": read,
        "read_bandwidth": statistics.median(bandwidths),
        "share_of_bandwidth": statistics.median(shares),
        "time_over_matrix_products": statistics.median(overheads),
        **_against_window(session, first, text, window_rounds),
        "batches": [_batch(size, first, token, rounds) for size in batches],
    }


def _against_window(session: DecodingSession, stream: Contexts, text: _Text, rounds: int) -> dict[str, float]:
    """How much longer the policy `window` takes per token, and a whole forward over the window with all its logits."""
    if not rounds:
        return {}
    length = session.config.context_length
    prompt = text.tokens(length)
    window = Contexts(session, 1, length)
    window.open([0], [prompt[0].tolist()], ["window"])
    token = prompt[0, :1]
    window_times, window_ratios, forward_ratios = [], [], []
    for _ in range(rounds):
        step = statistics.median(seconds(lambda: stream.step(token, [0])) for _ in range(8))
        window_times.append(seconds(lambda: window.step(token, [0])))
        window_ratios.append(window_times[-1] / step)
        forward_ratios.append(seconds(lambda: session.head(session.hidden(prompt))) / step)
    return {
        "window_tokens": length,
        "window_seconds_per_token": statistics.median(window_times),
        "window_to_stream": statistics.median(window_ratios),
        "full_forward_to_stream": statistics.median(forward_ratios),
    }


def _batch(size: int, single: Contexts, token: Tensor, rounds: int) -> dict[str, float | int]:
    """Throughput of `size` streams decoded together, against one."""
    batch = single.select([0] * size)
    tokens = token.repeat(size)
    times, gains = [], []
    warm_up(lambda: batch.step(tokens, range(size)))
    for _ in range(max(3, rounds // 4)):
        alone = seconds(lambda: single.step(token, [0]))
        times.append(seconds(lambda: batch.step(tokens, range(size))))
        gains.append(size * alone / times[-1])
    return {
        "streams": size,
        "tokens_per_second": size / statistics.median(times),
        "throughput_over_one": statistics.median(gains),
    }
