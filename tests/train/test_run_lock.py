"""One run directory, one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from wavelet_train import run_lock as module
from wavelet_train.run_lock import LOCK_FILE, RunInUseError, run_lock

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")


@needs_locks
def test_second_one_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        for _ in range(2):
            with (
                pytest.raises(RunInUseError, match=rf"process {os.getpid()} on .*, since \d{{4}}-"),
                run_lock(tmp_path),
            ):
                pass
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_directories_are_made_and_kept_only_if_something_is_in_them(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "new"
    with run_lock(directory):
        pass
    assert list(tmp_path.iterdir()) == []
    with run_lock(directory):
        (directory / "file").touch()
    assert [path.name for path in directory.iterdir()] == ["file"]
    (tmp_path / "mine").mkdir()
    with run_lock(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


@needs_locks
@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b"7", b"{}", json.dumps({"process": 1}).encode()])
def test_what_a_killed_process_left_is_no_obstacle(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    with run_lock(tmp_path):
        (tmp_path / LOCK_FILE).write_bytes(content)
        with pytest.raises(RunInUseError, match="another process trains into it"), run_lock(tmp_path):
            pass


@needs_locks
def test_file_that_its_holder_removes_meanwhile_is_not_what_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = module.try_lock, []

    def removed_first(file: object) -> bool | None:
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / LOCK_FILE).unlink()
        return original(file)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "try_lock", removed_first)
    with run_lock(tmp_path), pytest.raises(RunInUseError), run_lock(tmp_path):
        pass
    assert len(calls) == 3


def test_without_locks_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "try_lock", lambda file: None)
    with run_lock(tmp_path):
        pass
    assert capsys.readouterr().err.count("no locks here") == 1
