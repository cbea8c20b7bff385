"""Every command that the documentation shows works as printed, in order, in one fresh directory and one shell.

The quick test makes training runs tiny and leaves the commands of LONG out; the slow one runs everything, in a clone
with an environment of its own, which takes half an hour and the network.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("fork_server.py")
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "CONTRIBUTING.md"]
PAGES += [*sorted(ROOT.glob("packages/*/README.md")), *sorted(ROOT.glob("examples/*/README.md"))]

# What the quick test leaves to the slow one, and why.
LONG = {
    r"make test|.* -m pytest .*": "runs the tests, of which this is one",
    r".*\bpre-commit\b.*": "downloads",
    r"wavelet bench (decode --preset|kernels|train) .*|.*python benchmarks/.*": "measures for minutes",
    r"wavelet (train|evaluate|compare) .*recall.*": "trains for minutes",
    r".*python tests/hostile/.*--(count|kills) .*": "tries thousands of cases",
}

# What the quick test's `wavelet train` adds to every run.
TINY = (
    "data.dataset={kind: text, path: text.txt}",
    "data.tokenizer=bytes",
    "model.width=16",
    "model.layers=1",
    "model.context_length=16",
    "model.memories=[mlp]",
    "train.steps=2",
    "train.compare_with_xz=false",
)

BLOCK = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```", re.S | re.M)


@dataclass
class Step:
    """A command to run, or a file to write, and where it is printed."""

    place: str
    command: str = ""
    file: str = ""
    content: str = ""


def steps(pages: list[Path]) -> list[Step]:
    """The commands of `console` blocks, and the files of blocks that name one, in order."""
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            language, file, content = block.groups()
            place = f"{page.relative_to(ROOT).as_posix()}:{text[: block.start(3)].count(chr(10)) + 1}"
            if file:
                assert f"`{file}`" in text, f"{place}: the text does not say that this is {file}"
                found.append(Step(place, file=file, content=content))
            elif language == "console":
                commands = re.findall(r"^\$ ((?:.*\\\n)*.*)$", content, re.M)
                found += [Step(place, command) for command in commands]
    return found


def run(directory: Path, todo: list[Step], environment: dict[str, str]) -> str:
    """Do all steps in one shell and return what it printed. Fails at the first step that fails, and says which."""
    script = ["set -e"]
    for number, step in enumerate(todo):
        if step.file:
            source = directory.with_name(f"{directory.name}-{number}")
            source.write_text(step.content, encoding="utf-8")
            step.command = f"mkdir -p {Path(step.file).parent} && cp {shlex.quote(str(source))} {step.file}"
        script += [f"echo ===$SECONDS s, {shlex.quote(f'{step.place}: {step.command}')}", step.command]
    transcript = directory.with_name("transcript.txt")
    with transcript.open("w") as output:
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    text = transcript.read_text(encoding="utf-8")
    failed = text.rpartition("===")[2]
    assert done.returncode == 0, f"{failed[:200]}\n...\n{failed[-3000:]}\nexit status {done.returncode}, {transcript}"
    return text


@pytest.fixture
def shell() -> None:
    """Skips where the documented commands cannot be run at all."""
    missing = [program for program in ("bash", "git", "make") if shutil.which(program) is None]
    if missing or os.name == "nt" or not (ROOT / ".git").exists():
        pytest.skip(f"needs bash, git, make and a clone; missing: {missing or 'a clone on a Unix'}")


def copy_of_the_tree(directory: Path) -> None:
    """The files of this clone that git tracks, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, directory / name)


@pytest.fixture
def clone(tmp_path: Path, shell: None) -> Iterator[Path]:
    """A copy of the tree, with a `.venv` that sees what these tests see, and in which plugins can be installed."""
    clone = tmp_path / "clone"
    copy_of_the_tree(clone)
    lines = (f"def number_{number}():\n    return {number}\n" for number in range(300))
    (clone / "text.txt").write_text("".join(lines), encoding="utf-8")
    environment = clone / ".venv"
    venv.create(environment, with_pip=False)
    packages = sysconfig.get_path("purelib", vars={"base": str(environment)})
    Path(packages, "tests.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    with tempfile.TemporaryDirectory() as short:  # names of sockets must be short
        python, socket = str(environment / "bin" / "python"), f"{short}/socket"
        scripts = {"wavelet": [python, "-IS", str(SERVER), socket, *TINY, "--"], "pip": [python, "-m", "pip"]}
        for name, words in scripts.items():
            script = environment / "bin" / name
            script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            script.chmod(0o755)
        (environment / ".installed").touch()  # what the Makefile goes by
        process = subprocess.Popen([python, str(SERVER), socket], env={**os.environ, "OMP_NUM_THREADS": "1"})
        while not Path(socket).exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield clone
        process.kill()
        process.wait()


def test_commands_work_as_printed(clone):
    todo = [step for step in steps(PAGES) if not any(re.fullmatch(long, step.command, re.S) for long in LONG)]
    environment = {
        **os.environ,
        "WAVELET_CACHE": str(clone.parent / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # to pip this means no isolation, and so no downloads
    }
    transcript = run(clone, todo, environment)
    assert transcript.count("===") == len(todo) > 20
    assert re.search(r"scale-gains 0\.1\.0.*mixer +scale_gains", transcript, re.S)
    assert (clone / "exported" / "best_model.pt").is_file()


@pytest.mark.slow
def test_commands_work_as_printed_in_a_fresh_clone(tmp_path, shell):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    ours = ("PYTHON", "PYTEST", "WAVELET", "VIRTUAL_ENV", "GIT_", "OMP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    here = Path(sys.prefix, "bin")
    environment["PATH"] = os.pathsep.join(
        folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != here
    )
    environment["WAVELET_CACHE"] = str(tmp_path / "cache")
    run(clone, steps(PAGES), environment)


def test_what_the_quick_test_leaves_out_is_shown_somewhere():
    commands = [step.command for step in steps(PAGES)]
    for long in LONG:
        assert any(re.fullmatch(long, command, re.S) for command in commands), f"no page shows {long}"


def test_other_languages_of_shells_are_not_used_for_commands():
    for page in PAGES:
        for language, _, content in BLOCK.findall(page.read_text(encoding="utf-8")):
            assert language not in ("sh", "bash", "shell"), f"{page.name}: write a console block, so that it is run"
            assert (language == "console") == content.startswith("$ "), f"{page.name}: {content[:60]!r}"
