"""What the documentation shows is true: its Python runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from wavelet_cli.main import cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = [README, *sorted(ROOT.glob("docs/*.md"))]
PAGES = [*sorted(ROOT.glob("*.md")), *GUIDES[1:]]
PAGES += [*sorted(ROOT.glob("packages/*/README.md")), *sorted(ROOT.glob("examples/*/README.md"))]

BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.S | re.M)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    """A page, with every command on one line."""
    return page.read_text(encoding="utf-8").replace("\\\n", "")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return [content for found, content in BLOCK.findall(text) if found == language]


@pytest.mark.parametrize("page", [page for page in GUIDES if blocks(text_of(page), "python")], ids=name_of)
def test_python_blocks_run(page, tmp_path):
    if "from transformers" in text_of(page):
        pytest.importorskip("transformers", minversion="5.24")
    names = []
    for number, block in enumerate(blocks(text_of(page), "python"), start=1):
        names.append(f"block_{number}")
        (tmp_path / f"{names[-1]}.py").write_text(block, encoding="utf-8")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {', '.join(names)}"
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
    assert sections == [str(number) for number in range(1, 13)]
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
