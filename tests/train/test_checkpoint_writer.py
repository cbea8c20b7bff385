"""Checkpoints that are written while training goes on, and those that are kept."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from wavelet_core.checkpoint import verify_checkpoint
from wavelet_train.checkpoint_writer import CheckpointWriter
from wavelet_train.run_config import RunConfig
from wavelet_train.run_directory import RunDirectory
from wavelet_train.saving import save_last
from wavelet_train.trainer import Trainer, train
from wavelet_train.training_state import read_state

TinyRun = Callable[..., RunConfig]
NewTrainer = Callable[..., Trainer]


def same_files(one: Path, other: Path) -> bool:
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    return bool(files) and all((one / file).read_bytes() == (other / file).read_bytes() for file in files)


def test_what_is_written_in_the_background_is_as_it_was_when_it_was_saved(
    new_trainer: NewTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer("train.background_saves=true")
    trainer.directory.begin(trainer.run, 0)
    trainer.take_step(0.1)
    expected = {name: tensor.clone() for name, tensor in {**trainer.parameters, **trainer.state_tensors()}.items()}
    trained, write = threading.Event(), RunDirectory.save
    monkeypatch.setattr(RunDirectory, "save", lambda *arguments: trained.wait(60) and write(*arguments))
    save_last(trainer)
    trainer.take_step(0.1)
    trainer.counters.step = 1
    assert not (tmp_path / "run" / "last").exists(), "training went on"
    trained.set()
    trainer.writer.wait()
    last = tmp_path / "run" / "last"
    saved = load_file(last / "model.safetensors") | load_file(last / "trainer" / "state.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
    assert read_state(last).counters.step == 0


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_run_ends_with_all_its_checkpoints(background: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    train(tiny_run(f"train.background_saves={background}", "train.checkpoint_every=2"), tmp_path / "run")
    for name in ("best", "last"):
        verify_checkpoint(tmp_path / "run" / name)
    assert read_state(tmp_path / "run" / "last").counters.step == 6


def test_an_error_of_the_writer_ends_the_run(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []

    def fail(self: RunDirectory, checkpoint: Path, *arguments: Any) -> None:
        saved.append(checkpoint.name)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunDirectory, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        train(tiny_run("train.background_saves=true"), tmp_path / "run")
    assert saved == ["last"], "best/ is not written after a last/ that failed"


def test_off_copies_nothing() -> None:
    tensors = {"a": torch.zeros(3)}
    assert CheckpointWriter(False).snapshot(tensors)["a"] is tensors["a"]
    assert CheckpointWriter(True).snapshot(tensors)["a"].data_ptr() != tensors["a"].data_ptr()


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ([], []),
        (["train.keep_checkpoints=2"], [8, 9]),
        (["train.keep_every=4"], [4, 8]),
        (["train.keep_checkpoints=1", "train.keep_every=3"], [3, 6, 9]),
        (["train.keep_checkpoints=20"], [2, 3, 4, 6, 8, 9]),
    ],
)
def test_the_newest_and_every_nth_checkpoint_are_kept(
    overrides: list[str], kept: list[int], tiny_run: TinyRun, tmp_path: Path
) -> None:
    run = tiny_run("train.steps=9", "train.checkpoint_every=2", *overrides)
    train(run, tmp_path / "run")
    places = sorted((tmp_path / "run").glob("steps/*"))
    assert [int(place.name) for place in places] == kept
    assert [read_state(place).counters.step for place in places] == kept
    for place in places:
        verify_checkpoint(place)


def test_a_run_goes_back_to_a_kept_checkpoint_and_does_the_same_again(tiny_run: TinyRun, tmp_path: Path) -> None:
    run, directory = tiny_run("train.keep_every=3"), tmp_path / "run"
    train(run, directory)
    whole = Path(shutil.copytree(directory, tmp_path / "whole"))
    shutil.rmtree(directory / "last")
    shutil.copytree(directory / "steps" / "00000003", directory / "last")
    assert train(run, directory, resume=True).step == 6
    for name in ("last", "best", "steps"):
        assert same_files(whole / name, directory / name)


def test_what_is_kept_does_not_change_with_what_shares_its_files(tiny_run: TinyRun, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        shutil.rmtree(directory.last, ignore_errors=True)
        directory.last.mkdir()
        (directory.last / "weights").write_text(str(step))
        (directory.steps / ".00000000").mkdir(parents=True, exist_ok=True)  # what a kill left
        directory.keep_last(step, newest=2, every=None)
    assert {place.name: (place / "weights").read_text() for place in directory.steps.iterdir()} == {
        "00000002": "2",
        "00000003": "3",
    }
    directory.clear()
    assert not directory.steps.exists()
