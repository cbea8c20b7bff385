"""Builds the native kernel with the C++ compiler that is there; without one the package is plain Python, and slower."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-O3", "-fno-trapping-math", "-std=c++17", "-mavx2", "-mfma", "-mf16c", "-shared", "-fPIC"]


class NativeKernel(BuildHookInterface):
    """Compiles src/wavelet_quant/native/few_rows.cpp into a library beside it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or platform.machine() != "x86_64" or os.name != "posix":
            return
        folder = Path(self.root, "src", "wavelet_quant", "native")
        library = folder / "libfew_rows.so"
        problem = self.compile(folder / "few_rows.cpp", library)
        if problem:
            library.unlink(missing_ok=True)
            self.app.display_warning(f"wavelet-quant: no native kernel, so decoding will be slower: {problem}")
            return
        build_data["artifacts"].append("src/wavelet_quant/native/libfew_rows.so")
        build_data["pure_python"] = False
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{system}"

    def compile(self, source: Path, library: Path) -> str:
        """Make the library, whole or not at all; returns what is in the way, "" for nothing."""
        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None:
            return "there is no C++ compiler"
        made = library.with_suffix(f".{os.getpid()}")
        # OpenMP's runtime is the one that torch has loaded; a compiler without it makes a kernel for one thread.
        for flags in ([*FLAGS, "-fopenmp"], FLAGS):
            command = [*compiler.split(), *flags, str(source), "-o", str(made)]
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except OSError as error:
                return str(error)
            if done.returncode == 0:
                made.replace(library)
                return ""
        return done.stderr or f"{compiler} failed"
