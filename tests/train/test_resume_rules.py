"""What may change when a run is resumed, what may not, and what is said about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from wavelet_core import ConfigurationError
from wavelet_core.digests import write_digests
from wavelet_train import run_directory
from wavelet_train.data import DataConfig
from wavelet_train.resume_rules import FIXED, MAY_CHANGE, changes_between, check_changes
from wavelet_train.run_config import RunConfig, TrainConfig
from wavelet_train.trainer import train
from wavelet_train.training_state import read_state

TinyRun = Callable[..., RunConfig]
Metrics = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps, a copy of one that is trained once."""
    once = tmp_path_factory.getbasetemp() / "six_steps"
    if not once.exists():
        train(tiny_run(), once)
    return Path(shutil.copytree(once, tmp_path / "run"))


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_every_field_has_one_rule() -> None:
    fields = [
        *(name for name in RunConfig.model_fields if name not in ("data", "train")),
        *(f"data.{name}" for name in DataConfig.model_fields),
        *(f"train.{name}" for name in TrainConfig.model_fields),
    ]
    assert not set(MAY_CHANGE) & set(FIXED)
    assert {rule for rule in (*MAY_CHANGE, *FIXED) if rule in fields} == set(fields)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.seed=1", "train.seed is 1, but the run was trained with 0: it decided"),
        ("model.width=32", "model.width is 32, but the run was trained with 16: the weights"),
        ("model.context_length=8", "model.context_length is 8"),
        ("model.vocabulary_size=300", "model.vocabulary_size is 300, but the run was trained with 256"),
        ("model.memories.0.expansion=3", "model.memories.0.expansion is 3"),
        ("data.tokenizer=byte_pair", "data.tokenizer.kind is 'byte_pair', but the run was trained with 'bytes'"),
        (
            "train.optimizer=adagrad",
            "train.optimizer.kind is 'adagrad', but the run was trained with 'adamw': ",
        ),
    ],
)
def test_what_may_not_change_is_refused_with_both_values_and_the_reason(
    override: str, message: str, tiny_run: TinyRun, run: Path
) -> None:
    before = files(run)
    with pytest.raises(ConfigurationError) as error:
        train(tiny_run("train.steps=9", override), run, resume=True)
    assert message in str(error.value) and "another directory" in str(error.value)
    assert "train.steps" not in str(error.value)
    assert files(run) == before


def test_started_sums_are_refused_but_not_other_options(tiny_run: TinyRun) -> None:
    adagrad = tiny_run("train.optimizer=adagrad")
    check_changes(changes_between(adagrad, tiny_run("train.optimizer={kind: adagrad, lr_decay: 0.1}")))
    started = changes_between(adagrad, tiny_run("train.optimizer={kind: adagrad, initial_accumulator: 1}"))
    with pytest.raises(ConfigurationError, match=r"initial_accumulator is 1\.0, .* have long started"):
        check_changes(started)
    muon = tiny_run("train.optimizer=muon")
    check_changes(changes_between(muon, tiny_run("train.optimizer={kind: muon, momentum: 0.9}")))
    with pytest.raises(ConfigurationError, match=r"adamw\.0 is '\*', but .* what moved it, Muon or AdamW"):
        check_changes(changes_between(muon, tiny_run("train.optimizer={kind: muon, adamw: ['*']}")))


@pytest.mark.parametrize(
    "override",
    [
        "model.gradient_checkpointing=true",
        "model.head_dropout=0.1",
        "data.cache_directory=elsewhere",
        "data.canonical_words={validation: 7}",
        "train.threads=1",
        "train.precision=float16",
        "train.optimizer.weight_decay=0.1",
        "train.optimizer.decayed=all",
        "train.gradient_clipping=null",
        "train.log_every=2",
        "train.validate_every=1",
        "train.checkpoint_every=1",
        "train.accumulation=2",
        "train.final_stride=4",
    ],
)
def test_what_may_change_is_said_and_recorded(
    override: str, tiny_run: TinyRun, run: Path, read_metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_run("train.steps=8", override), run, resume=True).step == 8
    said, path = capsys.readouterr().err, override.partition("=")[0]
    assert f"{path}" in said and "train.steps from 6 to 8" in said
    (event,) = read_metrics(run, "changes")
    assert event["step"] == 6 and event["fields"]["train.steps"] == [6, 8]
    assert any(field.startswith(path) for field in event["fields"])
    assert [line["step"] for line in read_metrics(run, "validation")][:2] == [3, 6]


def test_unchanged_configuration_is_not_talked_about(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run("train.checkpoint_every=1")
    train(run, tmp_path / "run")
    state = tmp_path / "run" / "last" / "trainer" / "state.json"
    content = json.loads(state.read_text())
    content["counters"]["metrics_size"] = (tmp_path / "run" / "metrics.jsonl").stat().st_size
    state.write_text(json.dumps(content))  # so that the report is not found, and made again
    write_digests(tmp_path / "run" / "last")
    capsys.readouterr()
    assert train(run, tmp_path / "run", resume=True).report is not None
    assert "changes" not in capsys.readouterr().err and read_metrics(tmp_path / "run", "changes") == []


def test_rate_that_jumps_is_said_with_its_step_and_cause(
    tiny_run: TinyRun, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_run("train.steps=12", "train.log_every=3"), run, resume=True)
    said = capsys.readouterr().err
    assert "The learning rate jumps at step 7: it is 0.004288, and would have been 0 before train.steps changed" in said
    assert "12 steps in all, 6 of them left; it had 6" in said
    train(tiny_run("train.steps=13", "train.log_every=3", "train.schedule=constant"), run, resume=True)
    assert "it is 0.01, and would have been 0 before train.steps and train.schedule.kind" in capsys.readouterr().err
    train(tiny_run("train.steps=14", "train.log_every=3", "train.schedule=constant"), run, resume=True)
    assert "rate jumps" not in capsys.readouterr().err
    train(tiny_run("train.steps=15", "train.schedule=constant", "train.lr=0.02"), run, resume=True)
    assert "it is 0.02, and would have been 0.01 before" in capsys.readouterr().err


def test_other_batch_size_goes_on_for_the_tokens_that_are_left(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    half = train(tiny_run("train.steps=null", "train.epochs=0.2"), directory)  # 49 steps make an epoch
    assert half.step == 10
    result = train(tiny_run("train.steps=null", "train.epochs=1", "train.batch_size=4"), directory, resume=True)
    # 24 steps of twice the size make an epoch now, and 10 steps of the old size count for 5 of them.
    assert result.step == result.steps == 10 + 24 - 5
    assert "The run now has 29 steps in all, 19 of them left; it had 10" in capsys.readouterr().err
    assert read_metrics(directory, "train")[-1]["tokens"] == 10 * 32 + 19 * 64
    again = train(tiny_run("train.steps=null", "train.epochs=1", "train.batch_size=4"), directory, resume=True)
    assert again.steps == 29


def test_batch_size_stays_where_something_is_carried_for_each_window(tiny_run: TinyRun, tmp_path: Path) -> None:
    carrying = "model.cross_window_state=true"
    train(tiny_run("train.steps=2", carrying), tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"train\.batch_size is 4, .* each of the 2"):
        train(tiny_run("train.steps=4", carrying, "train.batch_size=4"), tmp_path / "run", resume=True)


def test_fewer_steps_than_were_done_are_refused(tiny_run: TinyRun, run: Path) -> None:
    before = files(run)
    with pytest.raises(ConfigurationError, match=r"train\.steps=5 is less than the 6 steps"):
        train(tiny_run("train.steps=5"), run, resume=True)
    assert files(run) == before


@pytest.mark.parametrize("tokenizer", ["bytes", "{kind: byte_pair, vocabulary_size: 270}"])
def test_changed_text_is_refused_unless_it_is_accepted(
    tokenizer: str, tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, text = tmp_path / "run", tmp_path / "train.txt"
    arguments = (f"data.tokenizer={tokenizer}", "train.steps=8")
    train(tiny_run(*arguments[:1]), directory)
    own = files(directory / "last" / "tokenizer")
    text.write_text("zq zq zq xj xj wv wv kp kp\n" * 90)
    before = files(directory)
    with pytest.raises(ConfigurationError) as error:
        train(tiny_run(*arguments), directory, resume=True)
    assert "text, train=train.txt, validation=validation.txt" in str(error.value)
    assert "--accept-changed-data" in str(error.value) and "data.dataset" in str(error.value)
    assert files(directory) == before

    was = read_state(directory / "last").data.fingerprint
    assert train(tiny_run(*arguments), directory, resume=True, accept_changed_data=True).step == 8
    assert files(directory / "last" / "tokenizer") == own
    assert "the best checkpoint is chosen anew" in capsys.readouterr().err
    now = read_state(directory / "last").data.fingerprint
    assert read_metrics(directory, "changes")[0]["fields"]["data.fingerprint"] == [was, now] != [now, was]
    assert read_state(directory / "last").counters.best_step == 8
    assert train(tiny_run(*arguments), directory, resume=True).step == 8, "what was accepted is the run's own now"


def test_text_may_be_moved(tiny_run: TinyRun, run: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    for name in ("train.txt", "validation.txt"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    moved = "data.dataset={kind: text, train: moved/train.txt, validation: moved/validation.txt}"
    assert train(tiny_run("train.steps=7", moved), run, resume=True).step == 7


def test_other_text_is_read_from_its_beginning(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Where the windows are consecutive, the place in the old text may not be there in the new one."""
    carrying = ("model.cross_window_state=true", "train.steps=9")
    train(tiny_run(carrying[0]), tmp_path / "run")
    (tmp_path / "train.txt").write_text(
        "a short text, of three windows in every one of two streams, and no more than that."
    )
    assert train(tiny_run(*carrying), tmp_path / "run", resume=True, accept_changed_data=True).step == 9


def test_another_python_is_named_where_its_library_is_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from wavelet_train.python_stdlib import PythonStandardLibrary

    monkeypatch.setattr("platform.python_version", lambda: "3.99.1")
    assert PythonStandardLibrary().describe() == "the standard library of Python 3.99.1"


def test_failure_between_the_two_saves_loses_nothing(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_run(), tmp_path / "whole")
    original = run_directory.RunDirectory.save

    def fails_for(name: str, count: int) -> None:
        calls: list[Path] = []

        def save(self: Any, checkpoint: Path, *arguments: Any) -> None:
            if checkpoint.name == name:
                calls.append(checkpoint)
                if len(calls) == count:
                    raise OSError(28, "No space left on device", str(checkpoint))
            original(self, checkpoint, *arguments)

        monkeypatch.setattr(run_directory.RunDirectory, "save", save)

    for name, count, left in (("last", 1, set()), ("best", 1, {"last"}), ("best", 2, {"best", "last"})):
        directory = tmp_path / f"{name}{count}"
        fails_for(name, count)
        with pytest.raises(OSError, match="No space left"):
            train(tiny_run(), directory)
        assert {path.name for path in directory.iterdir() if path.is_dir()} == left
        monkeypatch.setattr(run_directory.RunDirectory, "save", original)
        train(tiny_run(), directory, resume="last" in left)
        assert read_metrics(directory) == read_metrics(tmp_path / "whole")
        for checkpoint in ("best", "last"):
            one, other = (
                load_file(place / checkpoint / "model.safetensors") for place in (directory, tmp_path / "whole")
            )
            assert all(one[key].equal(other[key]) for key in other)
