"""The training loop: repeatable, resumable, and every option changes what it claims."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from wavelet_core import CheckpointError, ConfigurationError, WaveletLM
from wavelet_core.tokenizers import load_tokenizer
from wavelet_train import trainer
from wavelet_train.config import RunConfig, load_run_config
from wavelet_train.trainer import DivergenceError, Trainer, train

TinyRun = Callable[..., RunConfig]
Metrics = Callable[..., list[dict[str, Any]]]


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors") | load_file(directory / "trainer" / "state.safetensors")


def counters(directory: Path) -> dict[str, Any]:
    content = json.loads((directory / "trainer" / "state.json").read_text())["counters"]
    content.pop("metrics_size")
    return content


def assert_same_run(one: Path, other: Path, read_metrics: Metrics) -> None:
    """Metrics, weights, optimizer state, generators and counters agree bit for bit."""
    assert read_metrics(one) == read_metrics(other)
    assert counters(one / "last") == counters(other / "last")
    first, second = tensors(one / "last"), tensors(other / "last")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """Send this process a signal while it computes the step after `step`."""
    original = Trainer._step

    def interrupted(self: Trainer, lr: float) -> tuple[float, float]:
        if self.counters.step == step:
            os.kill(os.getpid(), number)
        return original(self, lr)

    monkeypatch.setattr(Trainer, "_step", interrupted)


def test_run_leaves_configuration_metrics_and_loadable_checkpoints(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics
) -> None:
    run = tiny_run()
    result = train(run, tmp_path / "run")
    assert (result.step, result.steps, result.stopped_by) == (6, 6, None)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "metrics.jsonl", "best", "last"}
    saved = load_run_config(tmp_path / "run" / "config.yaml")
    assert saved.train == run.train
    assert saved.model.vocabulary_size == 256
    for name in ("best", "last"):
        model = WaveletLM.from_pretrained(tmp_path / "run" / name)
        assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 256)
        assert load_tokenizer(tmp_path / "run" / name).vocabulary_size == 256
        sections = json.loads((tmp_path / "run" / name / "config.json").read_text())
        assert sections["train"] == run.train.model_dump(mode="json")
        assert sections["data"] == run.data.model_dump(mode="json")
    assert [line["step"] for line in read_metrics(tmp_path / "run", "train")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in read_metrics(tmp_path / "run", "validation")] == [3, 6]
    assert len(read_metrics(tmp_path / "run", "report")) == 1


def test_training_lowers_the_loss(tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics) -> None:
    train(tiny_run("train.steps=40", "train.validate_every=40", "train.lr=0.02"), tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run", "train")]
    assert losses[-1] < losses[0] - 2


def test_two_runs_are_identical(tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics) -> None:
    run = tiny_run("model.embedding_dropout=0.1", "model.layers=2", "model.stochastic_depth=0.5")
    for name in ("one", "two"):
        random.seed(name)
        torch.manual_seed(len(name) * 7)
        train(run, tmp_path / name)
    assert_same_run(tmp_path / "one", tmp_path / "two", read_metrics)


def test_seed_decides_weights_and_windows(tiny_run: TinyRun, tmp_path: Path) -> None:
    one = Trainer(tiny_run(), tmp_path / "one")
    other = Trainer(tiny_run("train.seed=1"), tmp_path / "other")
    assert not torch.equal(one.model.embedding.weight, other.model.embedding.weight)
    assert not torch.equal(next(one.windows).inputs, next(other.windows).inputs)


@pytest.mark.parametrize(
    ("step", "overrides"),
    [
        (2, ["model.embedding_dropout=0.2", "train.log_every=4"]),
        (3, ["model.layers=2", "model.stochastic_depth=0.5", "train.optimizer=adagrad", "train.accumulation=2"]),
        (4, ["model.cross_window_state=true", "train.checkpoint_every=1"]),
        (1, ["train.precision=float16", "train.schedule.warmup=0.5"]),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(
    step: int,
    overrides: list[str],
    tiny_run: TinyRun,
    tmp_path: Path,
    read_metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tiny_run(*overrides)
    train(run, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        result = train(run, tmp_path / "parts")
    assert (result.step, result.stopped_by, result.report) == (step + 1, "SIGINT", None)
    assert train(run, tmp_path / "parts", resume=True).step == 6
    assert_same_run(tmp_path / "whole", tmp_path / "parts", read_metrics)


def test_run_killed_after_its_last_checkpoint_resumes_exactly(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    train(run, tmp_path / "whole")

    def killed(self: Trainer, lr: float) -> tuple[float, float]:
        if self.counters.step == 5:
            raise SystemExit("killed")
        return original(self, lr)

    original = Trainer._step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", killed)
        with pytest.raises(SystemExit):
            train(run, tmp_path / "killed")
    assert counters(tmp_path / "killed" / "last")["step"] == 3
    assert read_metrics(tmp_path / "killed", "train")[-1]["step"] == 5
    train(run, tmp_path / "killed", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed", read_metrics)


def test_kill_while_a_checkpoint_is_replaced_loses_nothing(tiny_run: TinyRun, tmp_path: Path) -> None:
    run, directory = tiny_run(), tmp_path / "run"
    train(run, directory)
    workspace = directory / ".last.interrupted"
    workspace.mkdir()
    (directory / "last").rename(workspace / "new")
    (workspace / "old").mkdir()
    assert train(run, directory, resume=True).step == 6
    assert not list(directory.glob(".last.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_how_to_go_on(
    number: signal.Signals,
    tiny_run: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(number)
    stop_after(1, monkeypatch, number)
    result = train(tiny_run(), tmp_path / "run")
    assert result.stopped_by == number.name
    assert counters(tmp_path / "run" / "last")["step"] == 2
    assert f"wavelet train --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_second_signal_is_not_held_back(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(self: Trainer, lr: float) -> tuple[float, float]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal came to nothing")

    monkeypatch.setattr(Trainer, "_step", twice)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(), tmp_path / "run")


def test_stop_during_validation_validates_after_resuming(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    train(run, tmp_path / "whole")
    original = trainer.evaluate

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", interrupted)
        assert train(run, tmp_path / "parts").step == 3
    assert read_metrics(tmp_path / "parts", "validation") == []
    train(run, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", read_metrics)


def test_stop_during_the_report_reports_after_resuming(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    original = trainer.make_report

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_report", interrupted)
        assert train(run, tmp_path / "run").stopped_by == "SIGTERM"
    assert train(run, tmp_path / "run", resume=True).report is not None
    assert len(read_metrics(tmp_path / "run", "report")) == 1


def test_existing_run_is_not_overwritten_unasked(tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics) -> None:
    run = tiny_run("train.steps=3")
    train(run, tmp_path / "run")
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(run, tmp_path / "run")
    train(tiny_run("train.steps=2"), tmp_path / "run", overwrite=True)
    assert [line["step"] for line in read_metrics(tmp_path / "run", "train")] == [1, 2]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        train(run, tmp_path / "file")


def test_resuming_needs_a_whole_run_of_the_same_model(tiny_run: TinyRun, tmp_path: Path) -> None:
    run, directory = tiny_run("train.steps=2"), tmp_path / "run"
    with pytest.raises(CheckpointError, match="holds no run that can be resumed"):
        train(run, directory, resume=True)
    train(run, directory)
    with pytest.raises(CheckpointError, match="does not fit its configuration"):
        train(tiny_run("model.width=32"), directory, resume=True)
    state = directory / "last" / "trainer" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        train(run, directory, resume=True)
    (directory / "last" / "trainer" / "state.json").write_text("{")
    with pytest.raises(CheckpointError):
        train(run, directory, resume=True)


def test_longer_run_resumes_a_finished_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    train(tiny_run(), tmp_path / "run")
    assert train(tiny_run("train.steps=9"), tmp_path / "run", resume=True).step == 9


def test_divergence_stops_with_advice(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._next_loss
    monkeypatch.setattr(Trainer, "_next_loss", lambda self: original(self) * (float("nan") if self.counters.step == 4 else 1))
    with pytest.raises(DivergenceError, match=r"the loss became nan after 4 steps .* Lower train\.lr"):
        train(tiny_run(), tmp_path / "run")
    assert counters(tmp_path / "run" / "last")["step"] == 3


def test_epochs_are_counted_in_windows(tiny_run: TinyRun, tmp_path: Path) -> None:
    one = Trainer(tiny_run("train.steps=null"), tmp_path)
    per_epoch = one.data.train.token_count // (16 * 2)
    assert one.steps == per_epoch
    assert Trainer(tiny_run("train.steps=null", "train.epochs=2.5"), tmp_path).steps == round(2.5 * per_epoch)
    assert Trainer(tiny_run("train.steps=null", "train.accumulation=2"), tmp_path).steps == per_epoch // 2
    assert Trainer(tiny_run("train.steps=7", "train.epochs=2"), tmp_path).steps == 7


def test_accumulation_averages_the_gradients_of_its_batches(tiny_run: TinyRun, tmp_path: Path) -> None:
    whole = Trainer(tiny_run("train.batch_size=4"), tmp_path)
    parts = Trainer(tiny_run("train.batch_size=2", "train.accumulation=2"), tmp_path)
    batch = next(whole.windows)
    halves = iter([type(batch)(batch.inputs[rows], batch.targets[rows]) for rows in (slice(0, 2), slice(2, 4))])
    whole.windows, parts.windows = iter([batch]), halves
    loss, norm = whole._step(0.1)
    assert parts._step(0.1) == (pytest.approx(loss), pytest.approx(norm, rel=1e-4))
    assert whole.tokens_per_step == parts.tokens_per_step == 64


def test_gradient_clipping_bounds_the_update(tiny_run: TinyRun, tmp_path: Path) -> None:
    def change(*overrides: str) -> float:
        run = Trainer(tiny_run("train.optimizer={kind: adagrad, eps: 1.0e+6}", *overrides), tmp_path)
        before = run.model.head.weight.detach().clone()
        run._step(1e6)
        return (run.model.head.weight.detach() - before).norm().item()

    free = change("train.gradient_clipping=null")
    assert change("train.gradient_clipping=1e6") == free
    assert change("train.gradient_clipping=0.01") < free / 2


def test_schedule_sets_the_learning_rate(tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics) -> None:
    train(tiny_run("train.schedule={kind: linear, warmup: 0.5, final_lr: 0.004}"), tmp_path / "run")
    rates = [line["lr"] for line in read_metrics(tmp_path / "run", "train")]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.007, 0.004])


def test_log_every_averages_the_loss_between_lines(tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics) -> None:
    train(tiny_run(), tmp_path / "fine")
    train(tiny_run("train.log_every=4"), tmp_path / "coarse")
    losses = [line["loss"] for line in read_metrics(tmp_path / "fine", "train")]
    lines = read_metrics(tmp_path / "coarse", "train")
    assert [line["step"] for line in lines] == [4, 6]
    assert lines[0]["loss"] == pytest.approx(sum(losses[:4]) / 4)
    assert lines[1]["loss"] == pytest.approx(sum(losses[4:]) / 2)


def test_checkpoint_every_saves_between_validations(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[str, int]] = []
    original = Trainer._save

    def save(self: Trainer, name: str) -> None:
        saved.append((name, self.counters.step))
        original(self, name)

    monkeypatch.setattr(Trainer, "_save", save)
    train(tiny_run("train.checkpoint_every=2", "train.validate_every=5"), tmp_path / "run")
    assert [step for name, step in saved if name == "last"] == [2, 4, 5, 6]


def test_best_checkpoint_has_the_lowest_validation_loss(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = trainer.evaluate, []

    def rising(*arguments: Any, **keywords: Any) -> Any:
        result = original(*arguments, **keywords)
        seen.append(result)
        return type(result)(**{**vars(result), "nats": len(seen) * 100.0})

    monkeypatch.setattr(trainer, "evaluate", rising)
    train(tiny_run(), tmp_path / "run")
    best, last = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("best", "last"))
    assert not torch.equal(best["embedding.weight"], last["embedding.weight"])
    assert counters(tmp_path / "run" / "last")["best_nats"] == 100.0 / seen[0].tokens


def test_validation_tokens_limit_validations_but_not_the_report(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics
) -> None:
    result = train(tiny_run("train.validation_tokens=50"), tmp_path / "run")
    assert {line["tokens"] for line in read_metrics(tmp_path / "run", "validation")} == {50}
    assert result.report is not None
    assert result.report.evaluation.byte_count == (tmp_path / "validation.txt").stat().st_size - 1


@pytest.mark.parametrize(("stride", "expected"), [("null", 8), ("16", 16), ("3", 3)])
def test_report_slides_by_the_final_stride(stride: str, expected: int, tiny_run: TinyRun, tmp_path: Path) -> None:
    report = train(tiny_run("train.steps=1", f"train.final_stride={stride}"), tmp_path / "run").report
    assert report is not None
    assert report.evaluation.stride == expected


def test_compare_with_xz_adds_its_size(tiny_run: TinyRun, tmp_path: Path) -> None:
    plain = train(tiny_run("train.steps=1"), tmp_path / "plain").report
    compared = train(tiny_run("train.steps=1", "train.compare_with_xz=true"), tmp_path / "compared").report
    assert plain is not None and compared is not None
    assert plain.xz_bits_per_byte is None and "xz" not in str(plain)
    assert compared.xz_bits_per_byte is not None and "bits per byte of `xz -9e`" in str(compared)


def test_compile_compiles_the_loss(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    assert Trainer(tiny_run(), tmp_path).model.loss not in compiled
    run = Trainer(tiny_run("train.compile=true"), tmp_path)
    assert compiled == [run.model.loss]


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_precision_is_that_of_the_products(
    name: str, dtype: torch.dtype, tiny_run: TinyRun, tmp_path: Path
) -> None:
    run = Trainer(tiny_run(f"train.precision={name}"), tmp_path)
    seen: list[torch.dtype] = []
    run.model.head.register_forward_hook(lambda module, arguments, output: seen.append(output.dtype))
    run._step(0.01)
    assert seen == [dtype]
    assert run.model.head.weight.dtype == torch.float32


def test_device_is_where_the_weights_are(tiny_run: TinyRun, tmp_path: Path) -> None:
    assert Trainer(tiny_run("train.device=cpu"), tmp_path).model.embedding.weight.device.type == "cpu"
    with pytest.raises(ConfigurationError, match=r"train\.device='gpu'"):
        Trainer(tiny_run("train.device=gpu"), tmp_path)


def test_vocabulary_may_be_padded_but_not_cut(tiny_run: TinyRun, tmp_path: Path) -> None:
    assert Trainer(tiny_run("model.vocabulary_size=300"), tmp_path).model.head.out_features == 300
    with pytest.raises(ConfigurationError, match=r"model\.vocabulary_size=100 is smaller than the tokenizer's 256"):
        Trainer(tiny_run("model.vocabulary_size=100"), tmp_path)


def test_carried_state_is_used_within_documents_only(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = Trainer(tiny_run("model.cross_window_state=true", "train.batch_size=1"), tmp_path)
    carried = run.carried
    assert carried is not None
    seen = []
    run.loss = lambda inputs, targets, state: seen.append(state.clone()) or run.model.loss(inputs, targets, state)
    starts = run.data.train.document_starts
    assert len(starts) == 1
    for _ in range(3):
        run._step(0.01)
    means = [state.tree["window"]["carried_mean"] for state in seen]
    assert not means[0].any()
    assert not torch.equal(means[1], means[2])
    for state in seen:
        assert not any(tensor.any() for tensor in state.tree["blocks"]["0"]["wavelet"].values())
    run.windows.document_starts = torch.arange(0, run.data.train.token_count, 3).numpy()
    run._step(0.01)
    assert not seen[-1].tree["window"]["carried_mean"].any()


def test_multinodal_model_is_trained(tiny_run: TinyRun, tmp_path: Path) -> None:
    multinodal = "model.multinodal={cells: 2, width: 16, seeds: [1, 2]}"
    assert train(tiny_run("train.steps=2", multinodal), tmp_path / "run").report is not None
