"""The data set `python_stdlib`: source and documentation of the running interpreter's standard library.

Documents: every `.py`, `.rst` and `.txt` file under the library's folder, and the language reference that `help()`
shows, one document a topic. Left out are tests, installed packages, and files that differ between two builds of one
version. A file belongs to train, validation or test (90/5/5) by a hash of its path below that folder, so every machine
with that Python has the same splits.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_train.datasets import Split, split_of

SUFFIXES = {".py", ".rst", ".txt"}
TEST_FOLDERS = {"test", "tests", "idle_test"}
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "lib-dynload", "__pycache__"}
TOPICS = PurePosixPath("pydoc_data/topics.py")


class PythonStandardLibrary:
    """About 12 MB of text: Python source, most of it, and English about Python."""

    class Config(ComponentConfig):
        kind: Literal["python_stdlib"] = "python_stdlib"

    def __init__(self, config: Config | None = None) -> None:
        self.root = Path(sysconfig.get_paths()["stdlib"])

    def paths(self) -> list[PurePosixPath]:
        """The files, relative to the library's folder, sorted."""
        found = []
        for folder, subfolders, files in os.walk(self.root):
            subfolders[:] = [name for name in subfolders if name not in TEST_FOLDERS | NOT_THE_LIBRARY]
            below = PurePosixPath(Path(folder).relative_to(self.root).as_posix())
            found += [below / name for name in files if belongs(below / name)]
        return sorted(found)

    def _paths_of(self, split: Split) -> list[PurePosixPath]:
        return [path for path in self.paths() if split_of(str(path)) == split]

    def documents(self, split: Split) -> Iterator[str]:
        paths = self._paths_of(split)
        if not paths:
            raise ConfigurationError(
                f"data.dataset: python_stdlib has no {split} documents: the standard library's source is not under "
                f"{self.root}; install it, or use another data set"
            )
        for path in paths:
            text = read_source((self.root / path).read_bytes())
            yield from topics(text) if path == TOPICS else [text]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"python_stdlib")
        for path in self.paths():
            digest.update(f"\n{path} ".encode())
            digest.update(hashlib.sha256((self.root / path).read_bytes()).digest())
        return digest.hexdigest()

    def describe(self) -> str:
        return f"the standard library of Python {platform.python_version()}"

    def size(self, split: Split) -> int:
        return sum((self.root / path).stat().st_size for path in self._paths_of(split))


def belongs(path: PurePosixPath) -> bool:
    """Whether a file of the library's folder is source or documentation, and not written by a build."""
    generated = path.name.startswith("_sysconfigdata") or path.parts[0].startswith("config-")
    return path.suffix in SUFFIXES and not generated


def read_source(content: bytes) -> str:
    """Decode a file as Python would: by its byte-order mark or coding line, else as UTF-8; line ends become \\n."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    except SyntaxError:
        encoding = "utf-8"
    return content.decode(encoding, errors="replace").replace("\r\n", "\n")


def topics(source: str) -> list[str]:
    """The texts of `help()`'s topics, from the source of the module that holds them as string literals."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            return list(ast.literal_eval(statement.value).values())
    return [source]
