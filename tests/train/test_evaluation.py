"""Evaluation: every unit, every window policy, and xz beside it."""

from __future__ import annotations

import lzma
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from wavelet_core import ConfigurationError, WaveletLM
from wavelet_train.data import PreparedData
from wavelet_train.evaluation import Evaluation, evaluate
from wavelet_train.report import Report, xz_size
from wavelet_train.run_config import RunConfig

TinyRun = Callable[..., RunConfig]
Prepared = tuple[WaveletLM, PreparedData]


@pytest.fixture
def prepared(tiny_run: TinyRun) -> Prepared:
    run = tiny_run()
    torch.manual_seed(0)
    model = WaveletLM(run.model.model_copy(update={"vocabulary_size": 256}))
    torch.nn.init.normal_(model.blocks[0].project.weight, std=0.3)
    return model.eval(), PreparedData(run.data)


def test_units_follow_from_the_total() -> None:
    result = Evaluation(nats=300.0, tokens=100, byte_count=400, word_count=60, window=16, stride=8, correct=25)
    assert result.nats_per_token == 3.0
    assert result.perplexity_per_token == pytest.approx(math.exp(3))
    assert result.bits_per_token == pytest.approx(3 / math.log(2))
    assert result.bits_per_byte == pytest.approx(0.75 / math.log(2))
    assert result.perplexity_per_word == pytest.approx(math.exp(5))
    named = result.as_dict()
    assert (named["tokens"], named["bytes"], named["words"], named["window"], named["stride"]) == (100, 400, 60, 16, 8)
    assert named["bits_per_byte"] == result.bits_per_byte


def test_hopeless_model_has_infinite_perplexity_instead_of_an_error() -> None:
    result = Evaluation(nats=1e6, tokens=100, byte_count=400, word_count=60, window=16, stride=8, correct=25)
    assert result.perplexity_per_token == math.inf == result.perplexity_per_word


def test_uniform_model_needs_eight_bits_for_a_byte(prepared: Prepared) -> None:
    model, data = prepared
    torch.nn.init.zeros_(model.head.weight)
    result = evaluate(model, data.split("validation"), data.tokenizer)
    assert result.bits_per_byte == pytest.approx(8)
    assert result.perplexity_per_token == pytest.approx(256, rel=1e-5)
    assert result.tokens == result.byte_count == len(data.split("validation").tokens) - 1
    assert result.word_count == data.split("validation").word_count


@pytest.mark.parametrize("stride", [None, 8, 5, 1])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_score_each_token_with_its_own_context(stride: int | None, batch_size: int, prepared: Prepared) -> None:
    model, data = prepared
    tokens = torch.from_numpy(data.split("validation").tokens.astype("int64"))[:70]
    step, window, nats, scored = stride or 16, 16, 0.0, 1
    start = 0
    with torch.no_grad():
        while scored < len(tokens):
            chunk = tokens[start : start + window + 1]
            losses = F.cross_entropy(model(chunk[None, :-1])[0], chunk[1:], reduction="none")
            nats += losses[scored - start - 1 :].sum().item()
            scored = start + len(chunk)
            start += step
    result = evaluate(model, data.split("validation"), data.tokenizer, stride, batch_size, token_limit=69)
    assert result.tokens == 69
    assert result.nats == pytest.approx(nats, rel=1e-5)


def test_context_helps_a_model_only_within_the_window(prepared: Prepared) -> None:
    model, data = prepared
    wide = evaluate(model, data.split("validation"), data.tokenizer, window=32)
    assert wide.window == 32 == wide.stride
    assert wide.nats != evaluate(model, data.split("validation"), data.tokenizer).nats


def test_a_text_without_words_has_no_perplexity_per_word() -> None:
    result = Evaluation(nats=300.0, tokens=100, byte_count=400, word_count=0, window=16, stride=8, correct=25)
    assert result.perplexity_per_word is None


def test_part_of_a_split_has_the_bytes_of_its_tokens_and_no_word_count(prepared: Prepared) -> None:
    model, data = prepared
    result = evaluate(model, data.split("validation"), data.tokenizer, token_limit=40)
    assert (result.tokens, result.byte_count, result.word_count) == (40, 40, None)
    assert result.perplexity_per_word is None


def test_evaluation_leaves_dropout_off_and_the_mode_as_it_was(tiny_run: TinyRun) -> None:
    run = tiny_run("model.embedding_dropout=0.5")
    model, data = WaveletLM(run.model.model_copy(update={"vocabulary_size": 256})), PreparedData(run.data)
    model.train()
    first, second = (evaluate(model, data.split("validation"), data.tokenizer).nats for _ in range(2))
    assert first == second
    assert model.training


def test_evaluation_reports_its_progress(prepared: Prepared) -> None:
    model, data = prepared
    scored: list[int] = []
    result = evaluate(model, data.split("validation"), data.tokenizer, stride=8, on_batch=scored.append)
    assert sum(scored) == result.tokens
    assert len(scored) > 1


def test_autocast_type_changes_the_arithmetic_only_slightly(prepared: Prepared) -> None:
    model, data = prepared
    exact = evaluate(model, data.split("validation"), data.tokenizer).nats_per_token
    rounded = evaluate(model, data.split("validation"), data.tokenizer, dtype=torch.bfloat16).nats_per_token
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)


def test_impossible_windows_are_refused(prepared: Prepared) -> None:
    model, data = prepared
    with pytest.raises(ValueError, match="stride"):
        evaluate(model, data.split("validation"), data.tokenizer, stride=17)
    with pytest.raises(ConfigurationError, match="1 tokens and none to predict"):
        evaluate(model, data.split("validation"), data.tokenizer, token_limit=0)


def test_xz_size_is_that_of_the_xz_command(tmp_path: Path) -> None:
    documents = [Path(math.__spec__.origin or __file__).name * 50, Path(__file__).read_text(), "ein Käfig\n" * 40]
    compressed = xz_size(documents)
    text = "".join(documents).encode()
    assert compressed == len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    if shutil.which("xz"):
        (tmp_path / "text").write_bytes(text)
        output = subprocess.run(["xz", "-9e", "-c", "-T1", tmp_path / "text"], capture_output=True, check=True).stdout
        assert compressed == len(output)


def test_report_says_who_needs_less() -> None:
    evaluation = Evaluation(
        nats=300 * math.log(2), tokens=100, byte_count=200, word_count=30, window=16, stride=8, correct=25
    )
    assert "2.0000  for the same text: the model needs 25.0% less" in str(Report(evaluation, 2.0))
    assert "the model needs 50.0% more" in str(Report(evaluation, 1.0))
    assert "xz" not in str(Report(evaluation))
    assert Report(evaluation, 2.0).as_dict()["xz_bits_per_byte"] == 2.0
