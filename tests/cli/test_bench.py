"""`wavelet bench decode`: what it reports, its picture, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SMALL = ["--preset", "demo", "--random", "--set", "model.width=16", "--set", "model.vocabulary_size=300"]
QUICK = ["--positions", "8,64", "--rounds", 2, "--window-rounds", 1]


def test_a_report_has_every_figure(wavelet):
    result = wavelet("bench", "decode", *SMALL, *QUICK, "--batches", "2,3", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [at["position"] for at in report["latency"]] == [8, 64]
    assert [batch["streams"] for batch in report["batches"]] == [2, 3]
    for figure in (
        "tokens_per_second",
        "seconds_per_token",
        "last_to_first_latency",
        "weight_bytes_per_token",
        "read_bandwidth",
        "share_of_bandwidth",
        "time_over_matrix_products",
        "window_to_stream",
        "full_forward_to_stream",
        "state_bytes",
    ):
        assert report[figure] > 0, figure
    assert report["resident_growth_between_positions_bytes"] is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads resident memory from /proc")
def test_memory_is_compared_between_positions_that_are_read_token_by_token(wavelet):
    arguments = (*SMALL, *QUICK, "--window-rounds", 0, "--token-by-token")
    assert "from the first position to the last" in wavelet("bench", "decode", *arguments).stdout
    report = json.loads(wavelet("bench", "decode", *arguments, "--json").stdout)
    assert isinstance(report["resident_growth_between_positions_bytes"], int)
    assert isinstance(report["resident_growth_bytes"], int)


def test_a_table_is_for_people(wavelet):
    result = wavelet("bench", "decode", *SMALL, *QUICK, "--window-rounds", 0, "--dtype", "bfloat16")
    assert "tokens/s" in result.stdout and "bfloat16" in result.stdout and "at position 64" in result.stdout
    assert "window" not in result.stdout


def test_latency_is_drawn(wavelet, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="pictures need the extra wavelet-cli[matplotlib]")
    picture = tmp_path / "decode.svg"
    result = wavelet("bench", "decode", *SMALL, *QUICK, "--plot", picture)
    assert result.exit_code == 0 and picture.read_text().lstrip().startswith("<?xml")


def test_a_picture_without_matplotlib_is_refused_before_measuring(wavelet, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = wavelet("bench", "decode", *SMALL, "--plot", tmp_path / "decode.png")
    assert result.exit_code == 2 and "pip install 'wavelet-cli[matplotlib]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either a CHECKPOINT or a --preset"),
        (["runs/x", "--preset", "demo"], "either a CHECKPOINT or a --preset"),
        (["--preset", "demo"], "add --random"),
        (["runs/x", "--random"], "for --preset"),
        ([*SMALL, "--positions", "1,x"], "whole numbers"),
        ([*SMALL, "--positions", "0"], "whole numbers"),
        ([*SMALL, "--batches", ""], "whole numbers"),
        ([*SMALL, "--plot", "decode.gif"], ".svg or .png"),
        (["--preset", "dem", "--random"], "did you mean 'demo'"),
    ],
)
def test_nonsense_is_refused_with_status_2(wavelet, arguments, message):
    result = wavelet("bench", "decode", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
