"""A model as programs that run without this package: in torch alone, or in whatever runs ONNX.

    step.pt2, prompt.pt2    or step.onnx, prompt.onnx
    export.json             sizes, and the names, shapes and types of the state's tensors
    tokenizer.json          of the library `tokenizers`, where the tokenizer has one

Both programs take `tokens` (B, T), int64, and the state's tensors, and give the logits (B, T, V) and the tensors of the
state that has read the tokens too. T is 1 for a step and a fixed number for the prompt's: a prompt is read in pieces of
that length, and what is left of it in steps. A silent state is all zeros.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavelet_core.atomic_files import write_atomically
from wavelet_core.generation.session import DecodingSession
from wavelet_core.generation.traced_model import TracedModel
from wavelet_core.kernels import torch_alone
from wavelet_core.state import leaves
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import FILE_NAME, Tokenizer, TokenizerError

DESCRIPTION_FILE = "export.json"


class ExportError(CheckpointError):
    """A model that cannot be exported; the message says why, and what can be done."""


def export_programs(
    model: Any,
    directory: Path,
    output_format: str,
    batch: int = 1,
    prompt_tokens: int = 64,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model's programs to a new directory, atomically.

    output_format: `pt2` or `onnx`. batch: B, texts read side by side. prompt_tokens: T of the prompt's program.
    Raises ExportError for a model that cannot be traced or has operators of its own, and where a package is missing.
    """
    save = _WRITERS[output_format]

    def write(fresh: Path) -> None:
        fresh.mkdir()
        session = DecodingSession(model)
        session.compute()
        state = dict(leaves(session.new_state(batch).tree))
        for name, length in (("step", 1), ("prompt", prompt_tokens)):
            save(_trace(session, state, batch, length), fresh / f"{name}.{output_format}", state)
        description = {
            "format": output_format,
            "texts": batch,
            "prompt_tokens": prompt_tokens,
            "vocabulary_size": model.config.vocabulary,
            "end_of_text": None if tokenizer is None else tokenizer.end_of_text,
            "state": {
                name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
                for name, tensor in state.items()
            },
        }
        (fresh / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n", "utf-8")
        with suppress(TokenizerError):
            if tokenizer is not None:
                content = json.dumps(tokenizer.tokenizers_file(), ensure_ascii=False)
                (fresh / FILE_NAME).write_text(content, "utf-8")

    with torch_alone(), torch.no_grad():
        write_atomically(directory, write)


class _Pass(TracedModel):
    """Tokens (B, T) and a state by names in, logits (B, T, V) and the next state by names out."""

    def forward(self, tokens: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        following = self.state_of(tensor.clone() for tensor in state.values())
        logits = self.model.head(self.model.hidden(tokens, following))
        return logits, dict(leaves(following.tree))


def _trace(session: DecodingSession, state: dict[str, Tensor], batch: int, length: int) -> Any:
    tokens = torch.zeros(batch, length, dtype=torch.long, device=session.device)
    with _explained("be traced"):
        program = torch.export.export(_Pass(session, batch), (tokens, state))
    own = sorted({operator.name() for operator in _operators(program) if operator.namespace not in ("aten", "prims")})
    if own:
        raise ExportError(
            f"the model computes with {', '.join(own)}, which torch alone does not have; export the checkpoint that "
            "this one was quantized from, or one without inference_updates in its memories"
        )
    return program


def _operators(program: Any) -> Iterator[Any]:
    """Every operator of a program, also of those that others are called through."""
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            yield from (part for part in (node.target, *node.args) if isinstance(part, torch._ops.OpOverload))


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise as ExportError what goes wrong inside of torch, and keep to itself what torch says about itself."""
    said = logging.getLogger("torch.onnx")
    level = said.level
    said.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise ExportError(f"the model cannot {what}: {type(error).__name__}: {lines[0] if lines else ''}") from error
    finally:
        said.setLevel(level)


def _save_pt2(program: Any, path: Path, state: Mapping[str, Tensor]) -> None:
    torch.export.save(program, path)


def _save_onnx(program: Any, path: Path, state: Mapping[str, Tensor]) -> None:
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        raise ExportError("the format onnx needs extra packages: pip install 'wavelet-core[onnx]'") from None
    inputs, outputs = ["tokens", *state], ["logits", *(f"{name}.next" for name in state)]
    with _explained("be written as ONNX"):
        program = program.run_decompositions({torch.ops.aten.linalg_solve_triangular.default: _solve_triangular})
        written: Any = torch.onnx.export(program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
        written.save(path)


def _solve_triangular(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """Solve A X = B row by row, for ONNX, which has no operator for it."""
    if upper or not left:
        return NotImplemented
    rows: list[Tensor] = []
    for place in range(a.shape[-1]):
        row = b[..., place : place + 1, :]
        if rows:
            row = row - a[..., place : place + 1, :place] @ torch.cat(rows, dim=-2)
        rows.append(row if unitriangular else row / a[..., place : place + 1, place : place + 1])
    return torch.cat(rows, dim=-2)


_WRITERS: dict[str, Callable[[Any, Path, Mapping[str, Tensor]], None]] = {"pt2": _save_pt2, "onnx": _save_onnx}
