"""`wavelet inspect` with figures: where the page goes, and what is refused before anything is drawn."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

TINY = """
model: {width: 16, layers: 1, levels: 2, context_length: 16, memories: []}
data: {dataset: {kind: text, train: train.txt, validation: validation.txt}, tokenizer: bytes, cache_directory: cache}
train: {device: cpu, precision: float32, steps: 2, batch_size: 2, log_every: 1}
"""


@pytest.fixture(scope="module")
def trained(wavelet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("train.txt", "validation.txt"):
            Path(name).write_text("the fox sees a stone.\n" * 8)
        Path("tiny.yaml").write_text(TINY)
        assert wavelet("train", "tiny.yaml", "--out", "run").exit_code == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run beside its data, which is where a command is started."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_the_page_lies_in_the_run_unless_it_is_named(wavelet, run, tmp_path):
    pytest.importorskip("matplotlib", reason="pages need the extra wavelet-train[plot]")
    for quiet in ("--no-html", "--json", "--verify", "--accept"):
        assert wavelet("inspect", run, quiet).exit_code == 0
    assert not (run / "inspect.html").exists()
    table = wavelet("inspect", run, "--no-html").stdout
    result = wavelet("inspect", run)
    assert (result.exit_code, result.stdout) == (0, table) and f"The page is {run / 'inspect.html'}" in result.stderr
    assert "<svg" in (run / "inspect.html").read_text("utf-8")
    assert wavelet("inspect", run / "last").exit_code == 0
    assert "<svg" in (run / "last.html").read_text("utf-8")
    arguments = ["--text", "some text", "--html", tmp_path / "page.html", "--png", tmp_path / "figures"]
    assert wavelet("inspect", run / "best", *arguments).exit_code == 0
    assert "some text" in (tmp_path / "page.html").read_text("utf-8")
    assert list((tmp_path / "figures").glob("*.png"))
    assert wavelet("inspect", run / "best", "--verify").exit_code == 0


def test_a_run_without_a_checkpoint_is_drawn(wavelet, run):
    pytest.importorskip("matplotlib", reason="pages need the extra wavelet-train[plot]")
    for checkpoint in ("best", "last"):
        shutil.rmtree(run / checkpoint)
    assert wavelet("inspect", run, "--no-html").exit_code == 1
    result = wavelet("inspect", run)
    assert result.exit_code == 0 and "has no checkpoint yet" in result.stderr and not result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["best", "--compare", "."], "is not the directory of a run"),
        ([".", "--text", "x", "--no-html"], "add --html or --png"),
        ([".", "--html", "page.html", "--no-html"], "contradict each other"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wavelet, run, monkeypatch, arguments, message):
    pytest.importorskip("matplotlib", reason="pages need the extra wavelet-train[plot]")
    monkeypatch.chdir(run)
    result = wavelet("inspect", *arguments)
    assert result.exit_code == 2 and message in result.stderr and not result.stdout


def test_without_matplotlib_the_table_is_there_and_a_page_names_the_extra(wavelet, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = wavelet("inspect", run)
    assert result.exit_code == 0 and result.stdout and "pip install 'wavelet-train[plot]'" in result.stderr
    result = wavelet("inspect", run, "--html", "page.html")
    assert result.exit_code == 2 and "pip install 'wavelet-train[plot]'" in result.stderr
