"""The page of a run: everything that it recorded and what its model is like, whatever state it is in."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from wavelet_core import ConfigurationError
from wavelet_train.run_page import is_run, run_page
from wavelet_train.trainer import train

pytest.importorskip("matplotlib", reason="pages need the extra wavelet-train[plot]")

CURVES = [
    "Loss",
    "Validation",
    "Learning rate",
    "Speed",
    "Gradient norm of each part",
    "Gradient norm of each part by block",
]
OF_THE_MODEL = [
    "Scale gains",
    "Residual scalars",
    "Bypass: what each scale takes of it",
    "Scalogram: energy per scale along the text",
    "Gates: how far they are open",
]


def titles(page) -> list[str]:
    return [unescape(title) for title in re.findall("<figure.*?<h3>(.*?)</h3>", page.html())]


def text_of(page) -> str:
    return unescape(re.sub("<[^>]*>", " ", re.sub("<svg.*?</svg>", "", page.html(), flags=re.DOTALL)))


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    train(tiny_run("train.steps=4", "train.validate_every=2", "model.layers=2"), tmp_path / "run")
    return tmp_path / "run"


def recorded(run: Path, *records: dict[str, object]) -> Path:
    """A run's directory of which there is nothing but records."""
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return run


def test_a_run_shows_its_history_and_its_model(run, tmp_path):
    page = run_page(run, run / "best")
    assert titles(page) == [*CURVES, *OF_THE_MODEL]
    shown = text_of(page)
    for expected in ("recorded up to step 4", "Validations", "Final report", "16 tokens: the start of the validation"):
        assert expected in re.sub(r"\s+", " ", shown)
    pictures = page.save_figures(tmp_path / "figures")
    assert [path.name for path in pictures[:2]] == ["01-loss.png", "02-validation.png"]
    assert len(pictures) == len(titles(page)) and all(path.read_bytes()[:4] == b"\x89PNG" for path in pictures)


def test_a_given_text_stands_below_what_depends_on_positions(run):
    page = run_page(None, run / "best", text="$a fox <b>$\x07 狐")
    assert titles(page) == OF_THE_MODEL
    scalogram = re.search("<h3>Scalogram.*?</figure>", page.html(), re.DOTALL)
    assert scalogram is not None and {"f", "o", "x", "&lt;", "$", "·"} <= set(
        re.findall(">([^<>]+)</text>", scalogram[0])
    )
    with pytest.raises(ConfigurationError, match="--text has no tokens"):
        run_page(None, run / "best", text="")


def test_without_its_data_the_rest_is_shown(run):
    Path("validation.txt").unlink()
    shutil.rmtree("cache")
    page = run_page(run, run / "best")
    assert "There is no text for the model to read" in text_of(page) and "Loss" in titles(page)


@pytest.mark.parametrize(
    ("records", "curves"),
    [
        ([], []),
        (
            [{"event": "train", "step": 9, "tokens": 9, "loss": 2.5, "lr": 0.0, "tokens_per_second": 5.0}],
            CURVES[:4],
        ),
        ([{"event": "train", "step": 1, "tokens": 9, "loss": None, "gradient_norm": None}] * 2, []),
        ([{"event": "train", "step": 1, "tokens": 9, "loss": 2.0, "gradient_norm": 0.0}], ["Loss"]),
        ([{"event": "validation", "step": 3, "bits_per_byte": 2.0}], []),
        ([{"event": "skipped", "step": 3, "reason": "the loss is <nan>"}], []),
    ],
    ids=["nothing", "one step", "no numbers", "zero", "a validation alone", "other events"],
)
def test_whatever_is_recorded_is_shown(tmp_path, records, curves):
    page = run_page(recorded(tmp_path / "run", *records), None)
    assert titles(page) == [title for title in curves if title != "Validation"]
    assert ("No step is recorded yet" in text_of(page)) == (not any(r["event"] == "train" for r in records))
    assert all(str(record.get("reason", "")) in text_of(page) for record in records)


def test_long_runs_are_thinned_and_damaged_lines_counted(tmp_path):
    records = [{"event": "train", "step": n, "tokens": n, "loss": 2 + (n % 7) / 7, "lr": 1 / n} for n in range(1, 5001)]
    run = recorded(tmp_path / "run", *records)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tra')
    page = run_page(run, None)
    assert "1 lines of metrics.jsonl cannot be read" in text_of(page)
    assert len(page.html()) < 300_000


def test_runs_are_laid_over_each_other_with_what_differs(run, tiny_run, tmp_path):
    other = tmp_path / "other"
    train(tiny_run("train.steps=2", "train.lr=0.005", "model.layers=2", "train.validate_every=2"), other)
    page = run_page(run, None, others=[other])
    assert titles(page)[:3] == ["Loss", "Loss by time", "Validation"]
    assert "run, validation" in page.html() and "other, validation" in page.html()
    shown = re.sub(r"\s+", " ", text_of(page))
    assert "train.lr 0.01 0.005" in shown and "train.steps 4 2" in shown and "train.seed" not in shown


def test_runs_of_one_name_and_configuration_and_damaged_ones_are_compared(tmp_path):
    run, other = (
        recorded(tmp_path / "run", {"event": "train", "step": 1, "tokens": 9, "loss": 2.0}),
        tmp_path / "b" / "run",
    )
    (run / "config.yaml").write_text("description: a run\n")
    shutil.copytree(run, other)
    page = run_page(run, None, others=[other])
    assert "The configurations are the same." in text_of(page) and "b/run" in page.html()
    (other / "config.yaml").write_text("[")
    assert "that of b/run cannot be read" in text_of(run_page(run, None, others=[other]))
    with pytest.raises(ConfigurationError, match="is not the directory of a run"):
        run_page(run, None, others=[tmp_path])


def test_what_a_run_is_is_told_by_its_metrics(tmp_path):
    assert is_run(recorded(tmp_path / "run")) and not is_run(tmp_path) and not is_run(tmp_path / "nowhere")
