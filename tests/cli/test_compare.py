"""`wavelet compare` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The specification of a comparison of two tiny arms."""
    (tmp_path / "text.txt").write_text("the cat sat on a mat and ran\n" * 200)
    content = {
        "run": {
            "model": {"width": 8, "levels": 2, "context_length": 16, "memories": []},
            "data": {
                "dataset": {"kind": "text", "path": str(tmp_path / "text.txt")},
                "tokenizer": "bytes",
                "cache_directory": str(tmp_path / "cache"),
            },
            "train": {"threads": 1, "batch_size": 2, "precision": "float32"},
        },
        "arms": {"one": {}, "two": {"model": {"layers": 1}}},
        "budgets": [{"name": "short", "tokens": 128, "seeds": [1]}],
        "tuning": {"rates": [0.01]},
        "validations": 2,
        "decoding": {"positions": [8], "tokens": 1},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_comparison_prints_a_table_and_leaves_a_page_and_json(wavelet, tiny, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("wavelet_train.comparison.speed.SECONDS_PER_TURN", 1e-6)
    arguments = ("compare", tiny, "--out", tmp_path / "out")
    planned = wavelet(*arguments, "--dry-run")
    assert planned.exit_code == 0 and "two, short, seed 1" in planned.stdout
    result = wavelet(*arguments)
    assert result.exit_code == 0, result.stderr
    assert all(part in result.stdout for part in ("short", "one", "two", "bits per byte", "decoded tokens/s"))
    assert "Measuring what a step" in planned.stderr and "Measuring what a step" not in result.stderr
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "Bits per byte against time" in page and "Transformer-XL" in page and "<script" not in page
    report = json.loads(wavelet(*arguments, "--json").stdout)
    assert report == json.loads((tmp_path / "out" / "results.json").read_text())
    assert [run["arm"] for run in report["runs"]] == ["one", "two"] and len(report["decoding"]) == 2


def test_what_cannot_be_compared_is_refused(wavelet, tiny, tmp_path):
    missing = wavelet("compare", tmp_path / "no.yaml")
    assert missing.exit_code == 2 and "no.yaml" in missing.stderr
    result = wavelet("compare", tiny, "--set", "budgets.0.arms=[three]", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "three" in result.stderr and "one" in result.stderr
    assert not (tmp_path / "out").exists()
