"""Build every wheel and sdist into dist/ and check them; `make release` runs this. Nothing is published."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
# torch brings its own and has loaded it before the kernel; a second one beside it would have threads of its own.
NOT_BUNDLED = "libgomp.so.1"

# What a fresh environment runs: every module is imported, every library is loaded.
CHECK = """
import ctypes, importlib, pathlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
modules = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for module in modules:
    importlib.import_module(module)
libraries = list(pathlib.Path(package.__path__[0]).rglob("*.so"))
for library in libraries:
    ctypes.CDLL(str(library))
print(f"  {package.__name__}: {1 + len(modules)} modules imported, {len(libraries)} native libraries loaded")
"""


def run(*command: str | Path) -> None:
    """Run one of this environment's tools, or another Python; a failure ends the release."""
    tools = str(Path(sys.executable).parent)
    # What is tested is what is installed, not what this shell's PYTHONPATH points to.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PATH"] = os.pathsep.join([tools, environment["PATH"]])
    done = subprocess.run(command, cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(f"failed with status {done.returncode}: {' '.join(map(str, command))}")


def build(package: Path) -> None:
    """The sdist, then the wheel from that sdist."""
    print(f"Building {package.name}", flush=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, package)


def repair(wheel: Path) -> None:
    """Put a manylinux wheel in the place of one for this Linux alone, which no index takes."""
    print(f"Repairing {wheel.name}", flush=True)
    run("auditwheel", "repair", "--exclude", NOT_BUNDLED, "--wheel-dir", DIST, wheel)
    wheel.unlink()


def check_changelog() -> None:
    """The versions of all packages are one, and CHANGELOG.md has a section about it."""
    versions = {re.split("-", path.name)[1] for path in DIST.glob("*.whl")}
    if len(versions) != 1:
        sys.exit(f"the packages have different versions: {', '.join(sorted(versions))}; give them one")
    [version] = versions
    if f"## [{version}]" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        sys.exit(f"CHANGELOG.md has no section '## [{version}]'; write what changed")


def check_install(wheel: Path) -> None:
    """Install a wheel, and what it declares, in an environment of its own; import all of it there."""
    print(f"Installing {wheel.name} in a fresh environment", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, symlinks=os.name != "nt")
        python = Path(folder, "Scripts/python.exe" if os.name == "nt" else "bin/python")
        pip = (sys.executable, "-m", "pip", "--python", python)
        # Compiling torch's thousands of modules would take longer than all the rest.
        options = ("--quiet", "--no-compile", "--find-links", DIST, "-c", ROOT / "constraints.txt")
        extras = "[transformers,lm-eval]" if wheel.name.startswith("wavelet_ecosystem-") else ""
        run(*pip, "install", *options, f"{wheel}{extras}")
        run(*pip, "check")
        run(python, "-I", "-c", CHECK, wheel.name.split("-")[0])
        if not wheel.name.endswith("-any.whl"):
            run(python, "-I", ROOT / "scripts" / "check_native.py")


def main() -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    for project in sorted(ROOT.glob("packages/*/pyproject.toml")):
        build(project.parent)
    for wheel in sorted(DIST.glob("*-linux_*.whl")):
        repair(wheel)
    check_changelog()
    files = sorted(DIST.iterdir())
    run("twine", "check", "--strict", *files)
    for wheel in sorted(DIST.glob("*.whl")):
        check_install(wheel)
    print("\nBuilt and checked, and not published:")
    for path in files:
        print(f"  {path.stat().st_size:>9,} bytes  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
