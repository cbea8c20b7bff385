"""Digests of a directory's files, which tell whether it still holds what was written into it.

    digests.json    {"algorithm": "xxh3_128", "files": {"model.safetensors": {"": "5f...", "norm.weight": "a0..."}}}

It has every other file below the directory but those whose names begin with a dot and those in `compiled`: the digest
of a whole file under "", or of a safetensors file's header under "" and of each tensor under its name. Header and
tensors cover every byte, so that damage has a name. Digests reveal damage, not forgery: whoever changes a file can
write them anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from operator import index
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError

from wavelet_core.atomic_files import write_atomically
from wavelet_core.tensor_files import SHOWN, CheckpointError, first_lines, non_finite, open_tensors

DIGESTS_FILE = "digests.json"
COMPILED_DIRECTORY = "compiled"  # what was made from the other files later
ALGORITHM = "xxh3_128"
BLOCK = 1 << 20  # bytes that are read at a time
THREADED = 1 << 24  # bytes beyond which several threads read

Digests = dict[str, dict[str, str]]
Span = tuple[int, int]  # position of the first byte, number of bytes


@dataclass(frozen=True)
class Verified:
    """How much was read and found as it was written."""

    files: int
    tensors: int
    bytes: int


def file_digest(path: str | Path) -> str:
    """The digest of a file: 32 hexadecimal digits."""
    return _digest(Path(path), (0, os.path.getsize(path)))


def write_digests(directory: str | Path, parts: Collection[str] | None = None) -> None:
    """Write the `digests.json` of a directory whose other files are complete, atomically.

    parts: only of these files and folders of it.
    """
    directory = Path(directory)
    text = json.dumps({"algorithm": ALGORITHM, "files": _digests(files_below(directory, parts))}, indent=1) + "\n"
    write_atomically(directory / DIGESTS_FILE, lambda file: file.write_text(text, "utf-8"))


def verify_digests(directory: str | Path, parts: Collection[str] | None = None) -> Verified:
    """Compare the files of a directory with its `digests.json`.

    parts: only these files and folders of the directory.
    Raises CheckpointError that names what is damaged, changed, missing or new, file by file and tensor by tensor.
    """
    directory = Path(directory)
    saved = {name: digests for name, digests in _read(directory).items() if _is_part(name, parts)}
    files = files_below(directory, parts)
    found = _digests(files)
    mistakes = [f"{name} is missing" for name in saved if name not in found]
    mistakes += [f"{name} was not there when it was saved" for name in found if name not in saved]
    for name in found:
        if name in saved:
            mistakes += _changes(files[name], name, saved[name], found[name])
    if mistakes:
        raise CheckpointError(
            f"{directory} is not what was saved:\n  {first_lines(mistakes)}\nIt has been damaged or changed since. "
            "Copy it again, or use the other checkpoint of the run, best/ or last/. If the change was made on purpose: "
            f"wavelet inspect --accept {directory}"
        )
    return Verified(len(found), sum(len(own) - 1 for own in found.values()), sum(map(os.path.getsize, files.values())))


def _changes(path: Path, name: str, saved: Any, found: dict[str, str]) -> list[str]:
    """A line for each part of a file whose digest is another."""
    before: Mapping[str, Any] = saved if isinstance(saved, Mapping) else {}
    if len(found) == 1 < len(before):
        return [f"{name} is not a whole safetensors file: it was probably cut off"]
    parts = [part for part in {**before, **found} if before.get(part) != found.get(part)]
    lines = [f"{name}: {part or 'the header'}" if len(found) > 1 else name for part in parts]
    remarks = [_remark(path, part) for part in parts[:SHOWN]]
    return [f"{line} has changed{remark}" for line, remark in zip_longest(lines, remarks, fillvalue="")]


def _remark(path: Path, tensor: str) -> str:
    with suppress(CheckpointError, SafetensorError), open_tensors(path) as file:
        if non_finite(file.get_tensor(tensor)):
            return " and has values that are not finite"
    return ""


def _read(directory: Path) -> dict[str, Any]:
    path = directory / DIGESTS_FILE
    try:
        if path.exists() and not path.is_file():
            raise ValueError  # a pipe, which reading would wait for
        content = json.loads(path.read_text("utf-8"))
        if content["algorithm"] == ALGORITHM:
            return dict(content["files"].items())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file, so that nothing tells whether the others are what was saved; copy all of them"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise CheckpointError(f"{path} is damaged, it holds no {ALGORITHM} digests; copy it again")


def files_below(directory: Path, parts: Collection[str] | None = None) -> dict[str, Path]:
    """The files that digests are of, by their names in a directory. parts: only these files and folders of it."""
    files = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if name != DIGESTS_FILE and _is_part(name, parts)}


def _is_part(name: str, parts: Collection[str] | None) -> bool:
    folders = name.split("/")
    hidden = any(folder.startswith(".") for folder in folders) or folders[0] == COMPILED_DIRECTORY
    return not hidden and (parts is None or folders[0] in parts)


def _digests(files: Mapping[str, Path]) -> Digests:
    spans = [(name, part, span) for name, path in files.items() for part, span in _spans(path).items()]
    # Threads would wait for each other where there is little to read.
    threads = os.cpu_count() if sum(size for _, _, (_, size) in spans) > THREADED else 1
    with ThreadPoolExecutor(threads) as executor:
        found = executor.map(lambda entry: _digest(files[entry[0]], entry[2]), spans)
        digests: Digests = {name: {} for name in files}
        for (name, part, _), digest in zip(spans, found, strict=True):
            digests[name][part] = digest
    return digests


def _spans(path: Path) -> dict[str, Span]:
    """What digests are made of: the file under "", or its header and each tensor of a whole safetensors file."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return _tensor_spans(path, size)
    return {"": (0, size)}


def _tensor_spans(path: Path, size: int) -> dict[str, Span]:
    """Header and tensors of a safetensors file; ValueError or the like where they do not cover it in a row."""
    with open(path, "rb") as file:
        end = 8 + int.from_bytes(file.read(8), "little")
        if end > size:
            raise ValueError
        header = json.loads(file.read(end - 8))
    header.pop("__metadata__", None)
    spans, start = {"": (0, end)}, end
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = map(index, tensor["data_offsets"])
        if end + first != start or last < first or not name:
            raise ValueError
        spans[name] = (start, last - first)
        start = end + last
    if start != size:
        raise ValueError
    return spans


def _digest(path: Path, span: Span) -> str:
    start, size = span
    hasher = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(size, BLOCK)))
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while size and (count := file.readinto(buffer[:size])):
                hasher.update(buffer[:count])
                size -= count
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    return hasher.hexdigest()
