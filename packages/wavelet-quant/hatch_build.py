"""Builds the native library with the C++ compiler that is there; without one the package is plain Python, slower."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "bf16", "vnni"))]


class NativeLibrary(BuildHookInterface):
    """Compiles src/wavelet_quant/native into a library beside the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or os.name != "posix":
            return
        folder = Path(self.root, "src", "wavelet_quant", "native")
        library = folder / "libwavelet_native.so"
        problem = build(folder, library)
        if problem:
            library.unlink(missing_ok=True)
            self.app.display_warning(f"wavelet-quant: no native kernel, so decoding will be slower: {problem}")
            return
        build_data["artifacts"].append("src/wavelet_quant/native/libwavelet_native.so")
        build_data["pure_python"] = False
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{system}"


def build(folder: Path, library: Path, machine: str = platform.machine(), extra: tuple[str, ...] = ()) -> str:
    """Make the library, whole or not at all; returns what is in the way, "" for nothing.

    machine: the architecture that the compiler in CXX compiles for. extra: more flags for all of it.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return "there is no C++ compiler"
    with tempfile.TemporaryDirectory() as made:

        def run(name: str, *flags: str) -> str:
            command = [*compiler.split(), *flags, *extra, "-o", str(Path(made, name))]
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except OSError as error:
                return str(error)
            return "" if done.returncode == 0 else done.stderr or f"{compiler} failed"

        def arithmetic(name: str, *flags: str) -> str:
            return run(f"{name}.o", *FLAGS, *flags, f"-DSET={name}", "-c", str(folder / "arithmetic.cpp"))

        problem = arithmetic("portable")
        if problem:
            return problem
        # A compiler that does not know an instruction set makes a library without it.
        sets = {"avx2": AVX2, "avx512": AVX512} if machine in ("x86_64", "AMD64") else {}
        compiled = [name for name, flags in sets.items() if not arithmetic(name, *flags)]
        # OpenMP's runtime is the one that torch has loaded; a compiler without it makes a library for one thread.
        for threads in (["-fopenmp"], []):
            objects = [str(Path(made, f"{name}.o")) for name in ("portable", *compiled)]
            sources = [str(folder / "library.cpp"), *(f"-D{name.upper()}" for name in compiled)]
            flags = [*FLAGS, "-fvisibility=default", *threads, "-shared"]
            problem = run("library", *flags, *sources, *objects)
            if not problem:
                temporary = library.with_suffix(f".{os.getpid()}")
                shutil.copy(Path(made, "library"), temporary)
                temporary.replace(library)
                return ""
    return problem
