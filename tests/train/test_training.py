"""The training loop: every option changes what it claims."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook

from wavelet_core import ConfigurationError, WaveletLM
from wavelet_core.tokenizers import load_tokenizer
from wavelet_train import trainer
from wavelet_train.optimizers import Adagrad, AdamW
from wavelet_train.run_config import RunConfig, load_run_config
from wavelet_train.trainer import Trainer, train
from wavelet_train.training_state import read_state

TinyRun = Callable[..., RunConfig]
Metrics = Callable[..., list[dict[str, Any]]]
NewTrainer = Callable[..., Trainer]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_run_leaves_configuration_metrics_and_loadable_checkpoints(
    precision: str, tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics
) -> None:
    run = tiny_run(f"train.precision={precision}")
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_loss(precision: str, tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics) -> None:
    run = tiny_run("train.steps=40", "train.validate_every=40", "train.lr=0.02", f"train.precision={precision}")
    train(run, tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run", "train")]
    assert losses[-1] < losses[0] - 2


def test_seed_decides_weights_and_windows(new_trainer: NewTrainer) -> None:
    one = new_trainer()
    other = new_trainer("train.seed=1")
    assert not torch.equal(one.model.embedding.weight, other.model.embedding.weight)
    assert not torch.equal(next(one.windows).inputs, next(other.windows).inputs)


def test_epochs_are_counted_in_windows(new_trainer: NewTrainer) -> None:
    one = new_trainer("train.steps=null")
    per_epoch = len(one.data.split("train").tokens) // (16 * 2)
    assert one.steps == per_epoch
    assert new_trainer("train.steps=null", "train.epochs=2.5").steps == round(2.5 * per_epoch)
    assert new_trainer("train.steps=null", "train.accumulation=2").steps == per_epoch // 2
    assert new_trainer("train.steps=7", "train.epochs=2").steps == 7


def test_accumulation_averages_the_gradients_of_its_batches(new_trainer: NewTrainer) -> None:
    whole = new_trainer("train.batch_size=4", "train.precision=float32")
    parts = new_trainer("train.batch_size=2", "train.accumulation=2", "train.precision=float32")
    batch = next(whole.windows)
    halves = iter([type(batch)(batch.inputs[rows], batch.targets[rows]) for rows in (slice(0, 2), slice(2, 4))])
    whole.windows, parts.windows = iter([batch]), halves
    loss, norm = whole.take_step(0.1)
    assert parts.take_step(0.1) == (pytest.approx(loss), pytest.approx(norm, rel=1e-4))
    assert whole.tokens_per_step == parts.tokens_per_step == 64


def test_gradient_clipping_bounds_the_update(new_trainer: NewTrainer) -> None:
    def change(*overrides: str) -> float:
        run = new_trainer("train.optimizer={kind: adagrad, eps: 1.0e+6}", *overrides)
        before = run.model.head.weight.detach().clone()
        run.take_step(1e6)
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


def test_checkpoint_every_saves_between_validations(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    original = trainer.save_last

    def save(self: Trainer, keep: bool = False) -> None:
        saved.append(self.counters.step)
        original(self, keep)

    monkeypatch.setattr(trainer, "save_last", save)
    train(tiny_run("train.checkpoint_every=2", "train.validate_every=5"), tmp_path / "run")
    assert saved == [2, 4, 5, 6]


def test_best_checkpoint_has_the_lowest_validation_loss(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = trainer.score_text, []

    def rising(*arguments: Any, **keywords: Any) -> Any:
        scores = original(*arguments, **keywords)
        seen.append(scores.total)
        return replace(scores, total=replace(scores.total, nats=len(seen) * 100.0))

    monkeypatch.setattr(trainer, "score_text", rising)
    train(tiny_run(), tmp_path / "run")
    best, last = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("best", "last"))
    assert not torch.equal(best["embedding.weight"], last["embedding.weight"])
    assert read_state(tmp_path / "run" / "last").counters.best_nats == 100.0 / seen[0].tokens


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
    text = (tmp_path / "validation.txt").read_bytes()
    size = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert compared.xz_bits_per_byte == 8 * size / len(text) and "bits per byte of `xz -9e`" in str(compared)


def test_compile_compiles_the_loss_into_one_graph(new_trainer: NewTrainer) -> None:
    """With a backend that takes no time; what the real one computes is a slow test."""
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with torch.compiler.set_stance("default", force_backend=backend):
        plain = new_trainer()
        expected = [plain.take_step(0.01) for _ in range(3)]
        assert graphs == []
        compiled = new_trainer("train.compile=true")
        found = [compiled.take_step(0.01) for _ in range(3)]
    assert len(graphs) == 1, "one graph, compiled once"
    assert sum(node.op != "placeholder" for node in graphs[0].graph.nodes) > 50
    for step, other in zip(found, expected, strict=True):
        assert step == pytest.approx(other, rel=1e-5)


def test_optimizer_is_the_one_asked_for(new_trainer: NewTrainer) -> None:
    assert isinstance(new_trainer().optimizer, AdamW)
    adagrad = new_trainer("train.optimizer={kind: adagrad, initial_accumulator: 0.5}").optimizer
    assert isinstance(adagrad, Adagrad)
    assert {group["initial_accumulator_value"] for group in adagrad.param_groups} == {0.5}


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_precision_is_that_of_the_products_from_the_first_step_to_the_report(
    name: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    seen: set[tuple[bool, torch.dtype, torch.dtype]] = set()

    def see(module: Any, arguments: Any, output: Any) -> None:
        if getattr(module, "out_features", None) == 16:
            seen.add((torch.is_grad_enabled(), output.dtype, module.weight.dtype))

    hook = register_module_forward_hook(see)
    try:
        train(tiny_run(f"train.precision={name}"), tmp_path / "run")
    finally:
        hook.remove()
    dtype = getattr(torch, name)
    assert seen == {(True, dtype, torch.float32), (False, dtype, torch.float32)}


@pytest.mark.parametrize(("name", "scaled"), [("float16", True), ("bfloat16", False), ("float32", False)])
def test_loss_is_scaled_for_float16_only(name: str, scaled: bool, new_trainer: NewTrainer) -> None:
    assert new_trainer(f"train.precision={name}").scaler.is_enabled() == scaled


def test_device_is_where_the_weights_are(new_trainer: NewTrainer) -> None:
    assert new_trainer("train.device=cpu").model.embedding.weight.device.type == "cpu"
    with pytest.raises(ConfigurationError, match=r"train\.device='gpu'"):
        new_trainer("train.device=gpu")


def test_threads_are_as_many_as_asked(new_trainer: NewTrainer) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            new_trainer(f"train.threads={threads}")
            assert torch.get_num_threads() == threads
        new_trainer()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_vocabulary_may_be_padded_but_not_cut(new_trainer: NewTrainer) -> None:
    assert new_trainer("model.vocabulary_size=300").model.head.out_features == 300
    with pytest.raises(ConfigurationError, match=r"model\.vocabulary_size=100 is smaller than the tokenizer's 256"):
        new_trainer("model.vocabulary_size=100")


def test_carried_state_is_used_within_documents_only(new_trainer: NewTrainer) -> None:
    run = new_trainer("model.cross_window_state=true", "train.batch_size=1")
    seen = []
    run.loss = lambda inputs, targets, state: seen.append(state.clone()) or run.model.loss(inputs, targets, state)
    starts = run.data.split("train").document_starts
    assert len(starts) == 1
    for _ in range(3):
        run.take_step(0.01)
    means = [state.tree["window"]["carried_mean"] for state in seen]
    assert not means[0].any()
    assert not torch.equal(means[1], means[2])
    for state in seen:
        assert not any(tensor.any() for tensor in state.tree["blocks"]["0"]["wavelet"].values())
    run.windows.borders = torch.arange(0, len(run.data.split("train").tokens), 3).numpy()
    run.take_step(0.01)
    assert not seen[-1].tree["window"]["carried_mean"].any()


def test_multinodal_model_is_trained(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run("train.steps=2", "model.kind=multinodal", "model.width=16", "model.seeds=[1, 2]")
    assert train(run, tmp_path / "run").report is not None


@pytest.mark.slow
def test_compiled_training_computes_the_same(tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics) -> None:
    train(tiny_run(), tmp_path / "plain")
    train(tiny_run("train.compile=true"), tmp_path / "compiled")
    plain, compiled = (read_metrics(tmp_path / name, "train") for name in ("plain", "compiled"))
    assert [line["loss"] for line in compiled] == pytest.approx([line["loss"] for line in plain], rel=1e-4)


COUNTED = """
import json, sys
from torch._dynamo.utils import counters
from wavelet_train.run_config import load_run_config
from wavelet_train.trainer import train
train(load_run_config("tiny.yaml", ["train.compile=true", "train.steps=1", *sys.argv[2:]]), sys.argv[1])
print(json.dumps(counters["aot_autograd"]))
"""


@pytest.mark.slow
def test_a_second_process_finds_compiled_what_the_first_has_compiled(tiny_run: TinyRun, tmp_path: Path) -> None:
    tiny_run()
    memories = [{"kind": kind, "num_keys": 16, "top_k": 4} for kind in ("product_key", "fast_weight_product_key")]
    counted = []
    for out in ("cold", "warm"):
        command = [sys.executable, "-c", COUNTED, out, f"model.memories={json.dumps([{'kind': 'mlp'}, *memories])}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        counted.append(json.loads(done.stdout.splitlines()[-1]))
    cold, warm = counted
    assert cold["autograd_cache_miss"] and "autograd_cache_hit" not in cold
    assert warm["autograd_cache_hit"] == cold["autograd_cache_saved"]
    assert not {"autograd_cache_miss", "autograd_cache_bypass"} & (cold.keys() - {"autograd_cache_miss"} | warm.keys())
