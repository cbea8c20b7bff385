"""Seals of entries of the token cache: digests that tell whether the files beside them are those that were written.

Another entry's seal is none, since it also covers where it lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wavelet_core.atomic_files import write_atomically
from wavelet_core.digests import file_digest
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.verified_files import check_once

FORMAT_VERSION = 2


def write_seal(path: Path, files: Iterable[Path], facts: Mapping[str, Any] | None = None) -> None:
    """Write the digests of an entry's files, and facts about it, in a line of JSON; a second line has its digest."""
    digests = {file.relative_to(path.parent).as_posix(): file_digest(file) for file in files}
    line = json.dumps({**(facts or {}), "digests": digests})
    text = f"{line}\n{_digest_of_seal(path, line)}\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def read_seal(path: Path) -> dict[str, Any]:
    """What `write_seal` wrote, with every file as it was then.

    Raises FileNotFoundError when there is none, CheckpointError that names the file that is damaged.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path} is damaged, it is no file")
    try:
        line, _, digest = path.read_text(encoding="utf-8", errors="replace").partition("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise CheckpointError(f"{path} is damaged: {error.strerror}") from error
    if digest != f"{_digest_of_seal(path, line)}\n":
        raise CheckpointError(f"{path} is damaged")
    content: dict[str, Any] = json.loads(line)
    digests = {path.parent / name: digest for name, digest in content["digests"].items()}
    try:
        check_once(digests, lambda: check_files(digests))
    except OSError as error:
        raise CheckpointError(f"{error.filename} is damaged: {error.strerror}") from error
    return content


def check_files(digests: Mapping[Path, str]) -> None:
    """Raise CheckpointError that names the first file with another digest."""
    for file, digest in digests.items():
        if not file.is_file() or file_digest(file) != digest:
            raise CheckpointError(f"{file} is damaged")


def _digest_of_seal(path: Path, line: str) -> str:
    """Of the line and of where it lies, so that another entry's is no right one."""
    return hash_of("seal", path.parent.name, path.name, line)


def hash_of(*parts: str) -> str:
    """The cache key of some parts."""
    return hashlib.sha256(json.dumps([FORMAT_VERSION, *parts]).encode()).hexdigest()[:32]
