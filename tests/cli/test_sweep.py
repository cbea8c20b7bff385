"""`wavelet sweep` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A configuration file of a tiny run."""
    (tmp_path / "text.txt").write_text("the cat sat on a mat and ran\n" * 200)
    content = {
        "model": {"width": 8, "levels": 2, "context_length": 16, "memories": []},
        "data": {
            "dataset": {"kind": "text", "path": str(tmp_path / "text.txt")},
            "tokenizer": "bytes",
            "cache_directory": str(tmp_path / "cache"),
        },
        "train": {"steps": 2, "batch_size": 2, "precision": "float32"},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_sweep_prints_a_table_and_leaves_the_best_configuration_and_a_figure(wavelet, tiny, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ("sweep", tiny, "--set", "train.lr=0.001,0.02", "--out", tmp_path / "sweep")
    result = wavelet(*arguments)
    assert result.exit_code == 0, result.stderr
    assert all(part in result.stdout for part in ("train.lr", "0.001", "0.02", "bits per byte", "Best: run"))
    assert f"wavelet train {tmp_path / 'sweep' / 'best.yaml'}" in result.stdout
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(wavelet(*arguments, "--json").stdout)
    assert report["best"] == report["runs"][0]["number"]
    best = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert best["train"]["lr"] == float(report["runs"][0]["values"]["train.lr"])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--set", "train.lr=0.1"], ["nothing is searched"]),
        (["--set", "train.lr=1,2", "--runs", "3"], ["--runs", "tpe"]),
        (["--set", "train.lr=log:1e-3..1e-2", "--search", "grid"], ["grid", "range"]),
        (["--set", "train.lr=0.1,x"], ["train.lr", "x"]),
        (["--set", "train.lr=0.1,0.2", "--storage", "nosuch://x"], ["--storage", "nosuch://x"]),
    ],
)
def test_what_cannot_be_swept_is_refused(wavelet, tiny, tmp_path, arguments, parts):
    result = wavelet("sweep", tiny, "--out", tmp_path / "sweep", *arguments)
    assert result.exit_code == 2 and all(part in result.stderr for part in parts), result.stderr
    assert not (tmp_path / "sweep" / "runs").exists()
