"""Compiled steps beside a checkpoint: `compiled/`, a library for each number of texts and what they were made for.

    compiled/record.json    {"made_for": {"torch": "2.9.1", ...}, "libraries": {"1": "<sha256>"}, "signature": "..."}
    compiled/1.pt2

Loading a library runs it. So the record is signed with a secret that never leaves the user's cache directory, and only
what this user compiled on this machine is ever loaded: not what came with a checkpoint from elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import platform
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from wavelet_core.atomic_files import write_atomically
from wavelet_core.cache_directory import default_cache_directory
from wavelet_core.digests import COMPILED_DIRECTORY, file_digest
from wavelet_core.generation.compiled_step import CompiledStep, CompiledStepError, compile_step
from wavelet_core.generation.session import DecodingSession
from wavelet_core.kernels import active_kernels

RECORD_FILE = "record.json"
SECRET_BYTES = 32


def compile_steps(session: DecodingSession, directory: str | Path, batches: Sequence[int] = (1,)) -> Path:
    """Compile a session's step for these numbers of texts into the folder `compiled` of a directory, anew; its path.

    The libraries hold no weights: they fit every model of the same structure, whatever its weights are.
    Raises CompiledStepError, as of `compile_step`.
    """

    def write(fresh: Path) -> None:
        fresh.mkdir()
        digests = {}
        for batch in sorted(set(batches)):
            library = fresh / f"{batch}.pt2"
            compile_step(session, batch, library)
            digests[str(batch)] = _sha256(library)
        content = {"made_for": circumstances(session), "libraries": digests}
        record = {**content, "signature": _signature(content, _secret(make=True))}
        (fresh / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", "utf-8")

    folder = Path(directory) / COMPILED_DIRECTORY
    session.compute()
    write_atomically(folder, write)
    return folder


def load_steps(session: DecodingSession, directory: str | Path) -> bool:
    """Let a session use the compiled steps in `directory`/compiled; False where there are none.

    Raises CompiledStepError that names what does not fit.
    """
    folder = Path(directory) / COMPILED_DIRECTORY
    if not folder.is_dir():
        return False
    record = _read(folder)
    now = circumstances(session)
    for name, then in record["made_for"].items():
        if now.get(name) != then:
            raise CompiledStepError(
                f"{folder} was compiled for another {name} ({then}, here {now.get(name)}); {_remedy(folder)}"
            )
    session.compute()
    steps = {}
    for batch, digest in record["libraries"].items():
        library = folder / f"{batch}.pt2"
        if not library.is_file() or _sha256(library) != digest:
            raise CompiledStepError(f"{library} is missing or damaged; {_remedy(folder)}")
        steps[int(batch)] = CompiledStep(library, session, int(batch))
    session.steps = steps
    return True


def _read(folder: Path) -> dict[str, Any]:
    """The record of a folder, which this user wrote on this machine."""
    with suppress(OSError, ValueError, RecursionError, TypeError, AttributeError, KeyError):
        record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text("utf-8"))
        signature = record.pop("signature")
        if hmac.compare_digest(signature, _signature(record, _secret())):
            return record
    raise CompiledStepError(
        f"{folder} was not compiled by this user on this machine, or it is damaged, and is not run; {_remedy(folder)}"
    )


def _remedy(folder: Path) -> str:
    return f"compile it again: wavelet compile {folder.parent}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _signature(content: dict[str, Any], secret: bytes) -> str:
    return hmac.new(secret, json.dumps(content, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _secret(make: bool = False) -> bytes:
    """The user's secret for this machine; make: where there is none yet. Raises OSError or ValueError without one."""
    path = default_cache_directory() / "compiled.key"
    if make:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            suppress(FileExistsError),
            open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file,
        ):
            file.write(secrets.token_bytes(SECRET_BYTES))
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"{path} is damaged; remove it")
    return secret


def circumstances(session: DecodingSession) -> dict[str, str]:
    """What a compiled step depends on, by the name that a message gives it."""
    model = session.model
    return {
        "torch": torch.__version__,
        "processor": processor(),
        "device": session.device.type,
        "type of the weights": str(next(model.parameters()).dtype).removeprefix("torch."),
        "choice of kernels": " ".join(kernel.config.model_dump_json() for kernel in active_kernels()) or "torch",
        "model": _short(json.dumps(_structure(model), default=_plain, skipkeys=True)),
        "version of the model's code": _code(model),
    }


def processor() -> str:
    """Kind and instructions of the processor, the same in every process."""
    features = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "features"))), features)
    return f"{platform.machine()} {_short(features)}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _structure(model: nn.Module) -> list[Any]:
    """Everything about a model but what its tensors hold: modules, their plain attributes, layout of the tensors."""
    numbers: dict[int, int] = {}
    return [
        [
            name,
            type(module).__qualname__,
            sorted((key, value) for key, value in vars(module).items() if not key.startswith("_")),
            [
                [key, numbers.setdefault(id(tensor), len(numbers)), str(tensor.dtype), tensor.shape, tensor.stride()]
                for key, tensor in (*module.named_parameters("", False), *module.named_buffers("", False))
            ],
        ]
        for name, module in model.named_modules(remove_duplicate=False)
    ]


def _plain(value: Any) -> Any:
    """A value that JSON does not have, as one that is the same in every process."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return getattr(value, "__qualname__", type(value).__qualname__)


def _code(model: nn.Module) -> str:
    """The source files that the classes of a model's modules come from, torch's left out."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    names = {kind.__module__ for kind in classes if kind.__module__.partition(".")[0] not in ("torch", "builtins")}
    files = {getattr(sys.modules[name], "__file__", None) for name in names}
    return _short("".join(file_digest(file) for file in sorted(filter(None, files))))
