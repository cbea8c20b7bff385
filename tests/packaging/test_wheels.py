"""What the packages look like once built, and that wavelet-core works with nothing else of ours installed."""

import email
import email.message
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NAMES = ("core", "memory", "quant", "train", "baselines", "ecosystem", "cli")

# The table of the design, as distribution names with the extras asked of them.
RUNTIME = {
    "core": {"torch", "pluggy", "pydantic", "pyyaml", "safetensors[torch]", "xxhash"},
    "memory": {"wavelet-core"},
    "quant": {"wavelet-core"},
    "train": {
        "wavelet-core[text]",
        "datasets",
        "huggingface-hub",
        "numpy",
        "pyarrow",
        "pyyaml",
        "tokenizers",
        "tqdm",
    },
    "baselines": {"wavelet-core", "wavelet-memory"},
    "ecosystem": {"wavelet-core[text]", "wavelet-train"},
    "cli": {"wavelet-core", "wavelet-memory", "wavelet-quant", "wavelet-train", "click"},
}
EXTRAS = {
    "core": {"text": {"tiktoken"}, "onnx": {"onnx", "onnxscript"}, "hub": {"huggingface-hub"}},
    "quant": {"triton": {"triton"}},
    "train": {
        "sentencepiece": {"sentencepiece"},
        "plot": {"matplotlib"},
        "sweep": {"optuna"},
        "tensorboard": {"tensorboard"},
        "wandb": {"wandb"},
    },
    "ecosystem": {"transformers": {"transformers[torch]"}, "lm-eval": {"lm-eval"}},
    "cli": {
        "transformers": {"wavelet-ecosystem[transformers]"},
        "lm-eval": {"wavelet-ecosystem[lm-eval]"},
        "onnx": {"wavelet-core[onnx]"},
        "hub": {"wavelet-core[hub]"},
    },
}
ENTRY_POINTS = {
    "core": "[wavelet]\ncore = wavelet_core.components",
    "memory": "[wavelet]\nmemory = wavelet_memory.plugin",
    "quant": "[wavelet]\nquant = wavelet_quant.plugin",
    "train": "[wavelet]\ntrain = wavelet_train.plugin",
    "baselines": "[wavelet]\nbaselines = wavelet_baselines.plugin",
    "cli": "[console_scripts]\nwavelet = wavelet_cli.__main__:main",
}

# What Python reads at every start, from the folder that packages are installed in.
LOADED_AT_START = {"ecosystem": {"wavelet_ecosystem.pth"}}

every_package = pytest.mark.parametrize("name", NAMES)


@dataclass(frozen=True)
class Built:
    """The files of one package's wheel and sdist, by their path inside; the sdist's without its top folder."""

    path: Path
    wheel: Mapping[str, bytes]
    sdist: Mapping[str, bytes]

    def in_dist_info(self, name: str) -> bytes:
        [content] = [content for path, content in self.wheel.items() if re.fullmatch(rf"[^/]+\.dist-info/{name}", path)]
        return content

    @property
    def metadata(self) -> email.message.Message:
        return email.message_from_bytes(self.in_dist_info("METADATA"))


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    result = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        # Builds the sdist, then the wheel from that sdist.
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT / "packages" / f"wavelet-{name}")
        [wheel_path], [sdist_path] = folder.glob("*.whl"), folder.glob("*.tar.gz")
        with zipfile.ZipFile(wheel_path) as archive:
            wheel = {path: archive.read(path) for path in archive.namelist()}
        sdist = {}
        with tarfile.open(sdist_path) as archive:
            for member in archive.getmembers():
                if (content := archive.extractfile(member)) is not None:
                    sdist[member.name.partition("/")[2]] = content.read()
        result[name] = Built(wheel_path, wheel, sdist)
    return result


def source_files(name: str) -> set[str]:
    source = ROOT / "packages" / f"wavelet-{name}" / "src"
    files = (path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(source).as_posix() for path in files}


@every_package
def test_wheel_holds_its_own_package_and_nothing_else(built, name):
    files = {path for path in built[name].wheel if ".dist-info/" not in path}
    assert files == source_files(name) | LOADED_AT_START.get(name, set())
    assert f"wavelet_{name}/py.typed" in files


@every_package
def test_wheel_is_for_one_platform_only_if_it_holds_the_native_kernel(built, name):
    holds_kernel = any(path.endswith(".so") for path in built[name].wheel)
    tag = email.message_from_bytes(built[name].in_dist_info("WHEEL"))["Tag"]
    assert tag.startswith("py3-none-")
    assert (tag == "py3-none-any") == (not holds_kernel)
    assert name == "quant" or not holds_kernel


@every_package
def test_sdist_holds_the_sources_readme_and_license(built, name):
    files = {f"src/{path}" for path in source_files(name) if not path.endswith(".so")}
    files |= {"README.md", "LICENSE", "pyproject.toml", "PKG-INFO"}
    files |= {"hatch_build.py"} if name == "quant" else LOADED_AT_START.get(name, set())
    assert set(built[name].sdist) - {".gitignore"} == files
    assert built[name].sdist["PKG-INFO"] == built[name].in_dist_info("METADATA")


@every_package
def test_metadata_describes_the_package(built, name):
    metadata = built[name].metadata
    assert metadata["Name"] == f"wavelet-{name}"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = (ROOT / "packages" / f"wavelet-{name}" / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# wavelet-{name}\n") and f"pip install wavelet-{name}" in readme
    assert metadata.get_payload(decode=True).decode() == readme


@every_package
def test_artefacts_carry_the_license(built, name):
    text = (ROOT / "LICENSE").read_bytes()
    assert built[name].metadata["License-Expression"] == "Apache-2.0"
    assert built[name].in_dist_info("licenses/LICENSE") == text
    assert built[name].sdist["LICENSE"] == text


@every_package
def test_dependencies_are_those_of_the_design(built, name):
    runtime: set[str] = set()
    extras: dict[str, set[str]] = {extra: set() for extra in built[name].metadata.get_all("Provides-Extra", [])}
    for requirement in map(Requirement, built[name].metadata.get_all("Requires-Dist")):
        asked = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker))
        (extras[extra[1]] if extra else runtime).add(requirement.name + asked)
    assert runtime == RUNTIME[name]
    assert extras == EXTRAS.get(name, {})


@every_package
def test_entry_points_register_plugins_and_the_command(built, name):
    found = [path for path in built[name].wheel if path.endswith(".dist-info/entry_points.txt")]
    assert "\n".join(built[name].wheel[path].decode().strip() for path in found) == ENTRY_POINTS.get(name, "")


def test_packages_agree_on_the_version(built):
    assert len({built[name].metadata["Version"] for name in NAMES}) == 1


@pytest.fixture(scope="module")
def core_alone(built, tmp_path_factory) -> Iterator[Path]:
    """The Python of an environment that holds wavelet-core's wheel, what that wheel declares, and nothing else.

    Installs from the package index, torch included, at the versions of constraints.txt: pip has them in its cache since
    the packages were installed here.
    """
    environment = tmp_path_factory.mktemp("alone") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = (sys.executable, "-m", "pip", "--python", python)
    # Compiling torch's thousands of modules would take longer than all the rest.
    run(*pip, "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", built["core"].path)
    run(*pip, "check")
    yield python
    shutil.rmtree(environment)  # pytest would keep it, torch included, for the next three runs


def layers_snippet() -> str:
    """The first Python block after the README's heading about using the layers alone."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^#+ [^\n]*layers alone.*?^```python\n(.*?)^```", readme, re.S | re.M | re.I)
    assert found, "README.md has no ```python block after a heading that says 'layers alone'"
    return found[1]


def test_readme_layer_snippet_runs_with_core_alone(core_alone, tmp_path):
    program = layers_snippet() + "print(list(y.shape), list(output.shape))\n"
    assert run(core_alone, "-I", "-c", program, cwd=tmp_path).strip() == "[2, 100, 256] [2, 100, 192]"


def test_every_core_module_imports_with_core_alone(built, core_alone, tmp_path):
    program = (
        "import importlib, pkgutil, wavelet_core\n"
        "for module in pkgutil.walk_packages(wavelet_core.__path__, 'wavelet_core.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(wavelet_core.__version__, wavelet_core.__file__)"
    )
    version, path = run(core_alone, "-I", "-c", program, cwd=tmp_path).split(maxsplit=1)
    assert version == built["core"].metadata["Version"]
    assert Path(path.strip()).is_relative_to(core_alone.parents[1])


def test_checkpoint_round_trip_with_core_alone(core_alone, tmp_path):
    program = (
        "import torch\n"
        "from wavelet_core import ModelConfig, WaveletLM\n"
        "model = WaveletLM(ModelConfig(vocabulary_size=50, width=16, levels=2)).eval()\n"
        "model.save_pretrained('checkpoint')\n"
        "tokens = torch.arange(10)[None]\n"
        "print(torch.equal(WaveletLM.from_pretrained('checkpoint').eval()(tokens), model(tokens)))\n"
    )
    assert run(core_alone, "-I", "-c", program, cwd=tmp_path).strip() == "True"
