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

FLAGS = ["-O3", "-std=c++17", "-mavx2", "-mfma", "-mf16c", "-shared", "-fPIC"]


class NativeKernel(BuildHookInterface):
    """Compiles src/wavelet_core/few_rows.cpp into a library beside it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
            return
        package = Path(self.root) / "src" / "wavelet_core"
        library = package / "_few_rows.so"
        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None:
            self.app.display_warning("wavelet-core: no C++ compiler, so no native kernel; decoding will be slower")
            return
        # OpenMP's runtime is the one that torch has loaded.
        for flags in ([*FLAGS, "-fopenmp"], FLAGS):
            command = [*compiler.split(), *flags, str(package / "few_rows.cpp"), "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                break
        else:
            self.app.display_warning(f"wavelet-core: no native kernel, decoding will be slower; {done.stderr}")
            return
        build_data["artifacts"].append("src/wavelet_core/_few_rows.so")
        build_data["pure_python"] = False
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{system}"
