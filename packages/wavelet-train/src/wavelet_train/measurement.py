"""Files of measured figures: what was measured, by which command, where, when, and on which state of the code.

`benchmarks/results/` holds them, and `benchmarks/tables.py` makes the tables of the documentation of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wavelet_core.atomic_files import write_atomically
from wavelet_core.config import ConfigurationError
from wavelet_core.threads import available_processors
from wavelet_train.json_values import json_value

LIBRARIES = ("torch", "numpy", "optuna")
MEASURED = "measured"
ROOT = Path(__file__).parents[4]

# What the figures of each kind depend on, as patterns of paths in a checkout.
MODELS = (
    "packages/wavelet-core/src/wavelet_core/*.py",
    "packages/wavelet-memory/src/wavelet_memory/*.py",
)
KERNELS = (
    "packages/wavelet-quant/src/wavelet_quant/*kernel*.py",
    "packages/wavelet-quant/src/wavelet_quant/native/*",
    "packages/wavelet-quant/src/wavelet_quant/packed*.py",
)
DECODING = (
    *MODELS,
    *KERNELS,
    "packages/wavelet-core/src/wavelet_core/generation/*.py",
    "packages/wavelet-quant/src/wavelet_quant/*_benchmark.py",
)
TRAINING = (
    *MODELS,
    "packages/wavelet-quant/src/wavelet_quant/native/*",
    *(f"packages/wavelet-train/src/wavelet_train/{name}*.py" for name in ("trainer", "training", "precision", "ranks")),
    *(f"packages/wavelet-train/src/wavelet_train/{name}.py" for name in ("optimizers", "muon", "orthogonalization")),
)
COMPARISON = (
    *DECODING,
    *TRAINING,
    "packages/wavelet-baselines/src/wavelet_baselines/*.py",
    "packages/wavelet-train/src/wavelet_train/comparison/*.py",
)


@dataclass(frozen=True)
class Measurement:
    """Figures and where they come from.

    date: of the measurement, as 2026-11-26. revision: of the checkout, with + where it had changes; None outside one.
    source: "measured", or where the figures were copied from. code: files that the figures depend on, by path, with the
    beginnings of their SHA-256. figures: all that was measured, for programs; text: the same for people, None where
    figures hold a table of `columns` and `rows`.
    """

    command: str
    date: str
    machine: str
    revision: str | None
    versions: dict[str, str]
    source: str
    code: dict[str, str]
    figures: Any
    text: str | None = None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises WriteError."""
        content = json.dumps(json_value(asdict(self)), indent=1) + "\n"
        write_atomically(path, lambda fresh: fresh.write_text(content, "utf-8"))

    @classmethod
    def read(cls, path: Path) -> Measurement:
        """The measurement in a file. Raises ConfigurationError for one that is none."""
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{path} is no file of measured figures: {error}; measure them again") from None

    def stale(self, root: Path = ROOT) -> list[str]:
        """The files of code that are no longer what was measured, or no longer there."""
        return [name for name, known in self.code.items() if _digest(root / name) != known]


def measurement(command: str, figures: Any, text: str | None, code: Sequence[str]) -> Measurement:
    """What was measured here and now. code: patterns of the files that it depends on."""
    files = sorted({path for pattern in code for path in ROOT.glob(pattern) if path.is_file()})
    digests = {path.relative_to(ROOT).as_posix(): _digest(path) for path in files if path.suffix != ".so"}
    return Measurement(
        command=command,
        date=date.today().isoformat(),
        machine=describe_machine(),
        revision=_revision(),
        versions=_versions(),
        source=MEASURED,
        code={name: digest for name, digest in digests.items() if digest is not None},
        figures=figures,
        text=text,
    )


def describe_machine() -> str:
    """The processor, how many of it may be used, and the system."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    processors = available_processors()
    return f"{name}, {processors} processor{'s' if processors > 1 else ''}, {platform.system()}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _revision() -> str | None:
    if not (
        ROOT / "packages" / "wavelet-train"
    ).is_dir():  # installed, and perhaps within the checkout of something else
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "packages")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return None
