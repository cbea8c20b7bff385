"""What the documentation shows is true: its Python runs, its commands work, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from wavelet_cli.main import cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = [README, *sorted(ROOT.glob("docs/*.md"))]
PAGES = [*sorted(ROOT.glob("*.md")), *GUIDES[1:]]
PAGES += [*sorted(ROOT.glob("packages/*/README.md")), *sorted(ROOT.glob("examples/*/README.md"))]
ORIGINAL = ROOT / "tests" / "parity" / "cases" / "haar"

# What makes the training runs of the README tiny; nothing else of its commands is changed.
TINY = (
    "data.dataset={kind: text, path: text.txt}",
    "data.tokenizer=bytes",
    "model.width=16",
    "model.context_length=16",
    "model.memories=[mlp]",
    "train.steps=2",
    "train.compare_with_xz=false",
)

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return [content for found, content in BLOCK.findall(text) if found == language]


def readme_section(heading: str) -> str:
    """The part of the README below a heading, as far as the next one."""
    found = re.search(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", text_of(README), re.S | re.M)
    assert found, f"README.md has no heading {heading!r}"
    return found[1]


def commands_in(text: str) -> list[list[str]]:
    """The commands of `console` blocks, split into words, without the word `wavelet`."""
    lines = "".join(blocks(text, "console")).splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith("$ wavelet ")]


def tiny(arguments: list[str]) -> list[str]:
    """A command's arguments, with a training run made tiny."""
    fields = TINY if arguments[0] == "train" else ()
    return [*arguments, *(word for field in fields for word in ("--set", field))]


def wavelet(arguments: list[str]) -> Result:
    result = CliRunner().invoke(cli, arguments, prog_name="wavelet")
    assert result.exit_code == 0, f"wavelet {shlex.join(arguments)}\n{result.output}"
    return result


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: with a little text to train on, and a cache of its own."""
    lines = (f"def number_{number}():\n    return {number}\n" for number in range(300))
    (tmp_path / "text.txt").write_text("".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WAVELET_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("page", [page for page in GUIDES if blocks(text_of(page), "python")], ids=name_of)
def test_python_blocks_run(page, tmp_path):
    names = []
    for number, block in enumerate(blocks(text_of(page), "python"), start=1):
        names.append(f"block_{number}")
        (tmp_path / f"{names[-1]}.py").write_text(block, encoding="utf-8")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {', '.join(names)}"
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_readme_work(workplace):
    commands = commands_in(readme_section("The `wavelet` command"))
    assert {command[0] for command in commands} >= {"train", "generate"}
    for command in commands:
        assert wavelet(tiny(command)).stdout


def test_a_checkpoint_of_the_original_goes_in_and_out_as_the_readme_says(workplace):
    for name in ("best_model.pt", "config.json"):
        shutil.copy(ORIGINAL / name, workplace)
    commands = commands_in(readme_section("Checkpoints of the original"))
    assert [command[0] for command in commands] == ["import", "generate", "export"]
    for command in commands:
        # The checkpoint of the parity case names no tokenizer that fits, so that prompts are token ids.
        wavelet(["1 2 3" if word == "The" else word for word in command])
    assert (workplace / "exported" / "best_model.pt").is_file()


def test_the_mixer_of_the_readme_installs_and_trains(workplace):
    text = readme_section("A mixer of your own")
    project, site = workplace / "project", workplace / "site"
    project.mkdir()
    for language, file in (("python", "scale_gains.py"), ("toml", "pyproject.toml")):
        [content] = blocks(text, language)
        (project / file).write_text(content, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site]
    program = [sys.executable, "-c", "from wavelet_cli.main import main; main()"]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    for command in ([*pip, project], *([*program, *tiny(words)] for words in [*commands_in(text), ["plugins"]])):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert re.search(r"scale-gains 0\.1\.0.*mixer +scale_gains", done.stdout, re.S)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text_of(page))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() and file.is_relative_to(ROOT), f"{target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text_of(file)), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}: that page has no such heading"


def test_cited_sections_of_the_specification_exist():
    sections = re.findall(r"^## (\d+)\.", text_of(ROOT / "docs" / "model.md"), re.M)
    assert sections == [str(number) for number in range(1, 12)]
    sources = "".join(text_of(path) for path in ROOT.glob("packages/*/src/**/*.py"))
    cited = re.findall(r"docs/model\.md, sections? (\d+)(?: and (\d+))?", sources)
    assert len(cited) > 20 and {number for pair in cited for number in pair if number} <= set(sections)


def test_there_is_something_to_check():
    assert README in PAGES and len(PAGES) > len(GUIDES) > 5
    assert {README, ROOT / "docs" / "plugins.md"} <= {page for page in GUIDES if blocks(text_of(page), "python")}
    assert all(shown_commands(page) for page in (README, ROOT / "docs" / "benchmarks.md"))


def shown_commands(page: Path) -> list[str]:
    """The `wavelet` command lines on a page, in blocks and in inline code."""
    inline = re.findall(r"`(wavelet [^`\n]+)`", BLOCK.sub("", text_of(page)))
    return [
        *inline,
        *re.findall(r"^(?:    |\$ |)(wavelet [a-z].*)$", "".join(c for _, c in BLOCK.findall(text_of(page))), re.M),
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_exist(page):
    for line in shown_commands(page):
        command: click.Command = cli
        context = click.Context(cli)
        words = shlex.split(line, comments=True)[1:]
        while isinstance(command, click.Group) and words and words[0].islower() and not words[0].startswith("-"):
            word = words.pop(0)
            found = command.get_command(context, word)
            assert found is not None, f"{line}: there is no command {word}"
            command = found
        known = {option for parameter in command.get_params(context) for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word in known, f"{line}: there is no option {word}"


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text_of(ROOT / "Makefile"), re.M)
    assert found, f"the Makefile has no target {target}"
    return [line.strip("\t@").replace("$(BIN)", ".venv/bin") for line in found[1].splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_targets_and_files_of_shell_commands_exist(page):
    text = text_of(page)
    for command in [*re.findall(r"^\$ (.*)$", text, re.M), *re.findall(r"`(make [^`]+)`", text)]:
        program, *words = shlex.split(command)
        if program == "make":
            assert recipe(next(word for word in words if "=" not in word))
        for path in (word for word in words if re.match(r"(tests|benchmarks|docs|packages)/", word)):
            assert (ROOT / path).exists(), f"{command}: there is no {path}"


def test_pre_commit_runs_what_make_lint_runs():
    [repository] = yaml.safe_load(text_of(ROOT / ".pre-commit-config.yaml"))["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == recipe("lint")
    assert all((hook["language"], hook["pass_filenames"]) == ("system", False) for hook in repository["hooks"])


def test_every_benchmark_is_explained():
    page = text_of(ROOT / "docs" / "benchmarks.md")
    for script in (ROOT / "benchmarks").glob("*.py"):
        assert f"[benchmarks/{script.name}]" in page, f"docs/benchmarks.md does not say what {script.name} prints"
