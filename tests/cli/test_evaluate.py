"""`wavelet evaluate` as a new user calls it: every way to read a text, and the probes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from wavelet_core import ModelConfig, WaveletLM
from wavelet_core.tokenizers import BytesTokenizer

TEXT = "the fox sees a stone, and the owl sees the fox.\n" * 6
CONTEXT = 16


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WaveletLM:
    """A model in `model`, beside a text and a folder of five documents."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = WaveletLM(ModelConfig(vocabulary_size=256, width=8, layers=1, levels=2, context_length=CONTEXT))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / "model", BytesTokenizer())
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "documents").mkdir()
    for number in range(5):
        (tmp_path / "documents" / f"{number}.txt").write_text(TEXT[: 40 + 9 * number])
    return model.eval()


def evaluated(wavelet: Any, *arguments: object) -> dict[str, Any]:
    result = wavelet("evaluate", "model", *arguments, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@torch.no_grad()
def nats(model: WaveletLM, ids: torch.Tensor, first: int = 1) -> float:
    """Of the tokens from the first on, predicted in one pass."""
    return F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")[first - 1 :].sum().item()


def test_units_are_those_of_a_loop_over_sliding_windows(wavelet: Any, checkpoint: WaveletLM) -> None:
    ids = torch.tensor(list(TEXT.encode()))
    for window, stride in ((CONTEXT, 8), (12, 5)):
        total, scored, start = 0.0, 1, 0
        while scored < len(ids):
            part = ids[start : start + window + 1]
            total += nats(checkpoint, part, scored - start)
            scored, start = start + len(part), start + stride
        options = () if window == CONTEXT else ("--window", window, "--stride", stride)
        report = evaluated(wavelet, "--data", "text.txt", *options)
        assert (report["window"], report["stride"], report["documents"]) == (window, stride, 1)
        assert report["nats_per_token"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
        assert report["perplexity_per_token"] == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-5)
        assert report["bits_per_token"] == pytest.approx(total / (len(ids) - 1) / math.log(2), rel=1e-5)
        assert report["bits_per_byte"] == pytest.approx(total / math.log(2) / (len(TEXT) - 1), rel=1e-5)
        assert report["perplexity_per_word"] == pytest.approx(math.exp(total / len(TEXT.split())), rel=1e-5)
        assert report["intervals"] is None


def test_streaming_is_one_pass_over_the_text(wavelet: Any, checkpoint: WaveletLM) -> None:
    ids = torch.tensor(list(TEXT.encode()))
    report = evaluated(wavelet, "--data", "text.txt", "--windows", "streaming", "--batch-size", 1)
    assert report["nats_per_token"] == pytest.approx(nats(checkpoint, ids) / (len(ids) - 1), rel=1e-5)
    part = evaluated(wavelet, "--data", "text.txt", "--windows", "streaming", "--tokens", 50)
    assert part["nats_per_token"] == pytest.approx(nats(checkpoint, ids[:51]) / 50, rel=1e-5)
    assert (part["tokens"], part["words"], part["perplexity_per_word"]) == (50, None, None)
    assert [entry["last"] for entry in part["by_position"]][-1] >= 50


def test_separate_documents_have_intervals_and_say_so(wavelet: Any, checkpoint: WaveletLM) -> None:
    options = ("--data", "documents", "--separate-documents")
    report = evaluated(wavelet, *options, "--resamples", 50, "--words", 100)
    assert (report["documents"], report["words"], report["tokens"]) == (5, 100, 5 * 40 + 90 - 5)
    low, high = report["intervals"]["bits_per_byte"]
    assert low < report["bits_per_byte"] < high
    assert evaluated(wavelet, *options, "--resamples", 50, "--words", 100) == report
    other = evaluated(wavelet, *options, "--resamples", 50, "--words", 100, "--seed", 1)
    assert other["intervals"] != report["intervals"] and other["bits_per_byte"] == report["bits_per_byte"]
    assert evaluated(wavelet, *options, "--resamples", 0)["intervals"] is None
    text = wavelet("evaluate", "model", *options).stdout
    assert "bits per byte" in text and " to " in text and "95%" in text


def test_the_result_is_the_same_with_any_number_of_threads(wavelet: Any, checkpoint: WaveletLM) -> None:
    reports = [evaluated(wavelet, "--data", "text.txt", "--batch-size", 2, "--threads", each) for each in (1, 3)]
    assert reports[0] == reports[1]


def test_the_loss_by_position_is_drawn(wavelet: Any, checkpoint: WaveletLM, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    evaluated(wavelet, "--data", "text.txt", "--windows", "streaming", "--plot", "loss.svg")
    assert (tmp_path / "loss.svg").read_text().count("nats per token") == 1


def test_probes_are_scored_for_every_combination(wavelet: Any, checkpoint: WaveletLM, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ("--probe", "associative_recall", "--set", "pairs=2,4", "--set", "length=16, 32", "--set", "held_out=5")
    report = evaluated(wavelet, *options, "--plot", "recall.svg")
    settings = [(each["settings"]["pairs"], each["settings"]["length"]) for each in report["results"]]
    assert settings == [(2, 16), (2, 32), (4, 16), (4, 32)]
    assert [each["answers"] for each in report["results"]] == [10, 10, 20, 20]
    assert report == evaluated(wavelet, *options)
    assert "distance in tokens" in (tmp_path / "recall.svg").read_text()
    text = wavelet("evaluate", "model", *options).stdout
    assert text.splitlines()[1].split() == ["pairs", "length", "accuracy", "nats", "per", "answer", "answers"]


def test_a_probe_takes_the_fields_that_the_run_was_trained_on(wavelet: Any, checkpoint: WaveletLM) -> None:
    trained = {"kind": "induction", "vocabulary_size": 40, "length": 30, "passage": 7, "held_out": 3}
    checkpoint.save_pretrained("model", BytesTokenizer(), {"data": {"dataset": trained}})
    assert evaluated(wavelet, "--probe", "induction")["results"][0]["answers"] == 3 * 6
    assert evaluated(wavelet, "--probe", "induction", "--set", "passage=3")["results"][0]["answers"] == 3 * 2
    assert evaluated(wavelet, "--probe", "selective_copying", "--set", "held_out=2")["results"][0]["answers"] == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "pairs=4"), "--set is for the fields of a --probe"),
        (("--probe", "induction", "--words", 3), "--words is for texts"),
        (("--probe", "recall"), "unknown; did you mean 'associative_recall'?"),
        (("--probe", "text"), "unknown"),
        (("--probe", "induction", "--set", "pairs=4"), "pairs"),
        (("--probe", "induction", "--set", "pairs"), "expected a field and its values"),
        (("--probe", "induction", "--set", "passage=4", "--set", "passage=5"), "set more than once"),
        (("--probe", "induction", "--set", "passage=[1"), "not YAML"),
        (("--probe", "associative_recall", "--set", "pairs=4,300"), "need a length of 1200"),
        (("--probe", "induction", "--set", "vocabulary_size=999"), "the model has 256 token ids"),
        (("--data", "text.txt", "--windows", "streaming", "--stride", 3), "--stride is for sliding windows"),
        (("--data", "text.txt", "--windows", "streaming", "--window", 3), "leave out the window"),
        (("--data", "text.txt", "--words", 3, "--tokens", 3), "--words are those of the whole text"),
        (("--data", "text.txt", "--fast-weight-updates"), "use streaming"),
        (("--data", "text.txt", "--cross-window-state"), "model.cross_window_state"),
        (("--data", "text.txt", "--plot", "loss.pdf"), ".svg or .png"),
    ],
)
def test_what_cannot_be_measured_is_said(
    wavelet: Any, checkpoint: WaveletLM, arguments: tuple[object, ...], message: str
) -> None:
    result = wavelet("evaluate", "model", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_stride_beyond_the_window_is_refused(wavelet: Any, checkpoint: WaveletLM) -> None:
    result = wavelet("evaluate", "model", "--data", "text.txt", "--stride", 17)
    assert result.exit_code == 2
    assert "between 1 and context_length=16, not 17" in result.stderr
