"""Atomic writes: a real kill at any moment, living writers, modes, and what reaches the disk."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from wavelet_core import WaveletLM, atomic_files
from wavelet_core.atomic_files import WriteError, append_whole, recover, write_atomically
from wavelet_core.tokenizers import BytesTokenizer

resource = pytest.importorskip("resource", reason="needs limits of a process")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, signals and modes")


def in_child(function):
    """Run a function in a process of its own; the signal that killed it, or minus its exit status."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def killed_at(step, before, exchanged, write, names=("fsync", "replace")):
    """Write in a child process that kills itself before or after the step; whether it got as far as that.

    names: the functions of `os` whose calls are steps, besides the exchange of two directories.
    """

    def child():
        steps = iter(range(1000))

        def dying(function):
            def run(*arguments, **keywords):
                now = next(steps) == step
                if now and before:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = function(*arguments, **keywords)
                if now:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return run

        if not exchanged:
            atomic_files._exchange = lambda first, second: False
        atomic_files._exchange = dying(atomic_files._exchange)
        for name in names:
            setattr(os, name, dying(getattr(os, name)))
        write()

    result = in_child(child)
    assert result in (0, signal.SIGKILL)
    return result == signal.SIGKILL


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("exchanged", [True, False], ids=["exchanged", "moved"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_checkpoint_whole(make_model, tmp_path, exchanged, before):
    models = [make_model(seed=seed) for seed in (0, 1)]
    found, step, killed = [], 0, True
    while killed:
        directory = tmp_path / str(step) / ("model" if step % 2 else "best")
        models[0].save_pretrained(directory, BytesTokenizer())
        write = partial(models[1].save_pretrained, directory, BytesTokenizer())
        killed = killed_at(step, before, exchanged, write)
        loaded = WaveletLM.from_pretrained(directory if step % 2 else directory.parent).state_dict()
        found += [
            number
            for number, model in enumerate(models)
            if all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
        ]
        assert list(directory.parent.iterdir()) == [directory], "nothing temporary may stay"
        step += 1
    assert len(found) == step > 8, "every step leaves one of the two"
    assert found == sorted(found) and set(found) == {0, 1}


def test_a_kill_leaves_the_old_or_the_new_file_whole(tmp_path):
    found, step, killed = set(), 0, True
    while killed:
        file = tmp_path / str(step) / "notes.txt"
        write_atomically(file, lambda path: path.write_text("old"))
        write = partial(write_atomically, file, lambda path: path.write_text("new"))
        killed = killed_at(step, True, True, write)
        found.add(file.read_text())
        write_atomically(file, lambda path: path.write_text("newer"))
        assert [path.name for path in file.parent.iterdir()] == ["notes.txt"]
        step += 1
    assert found == {"old", "new"}


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_kill_while_the_old_is_removed_leaves_none_of_its_files(tmp_path, exchanged):
    def write(text):
        def fill(fresh):
            fresh.mkdir()
            for name in ("one", "two", "three"):
                (fresh / name).write_text(text)

        write_atomically(path, fill)

    step, killed = 0, True
    while killed:
        path = tmp_path / str(step) / "model"
        write("old")
        killed = killed_at(step, True, exchanged, partial(write, "new"), ("unlink", "rmdir"))
        recover(path)
        found = [file.read_text() for file in path.parent.rglob("*") if file.is_file()]
        assert len(found) == 3 and len(set(found)) == 1
        step += 1
    assert step > 5


def test_a_failed_write_of_a_file_keeps_the_old_one(tmp_path):
    file = tmp_path / "notes.txt"
    write_atomically(file, lambda path: path.write_text("old"))

    def write(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, write)
    assert file.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def fail_with(number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "name a directory that you may write to")]
)
def test_a_full_or_read_only_disk_is_named_with_what_is_kept(make_model, tmp_path, monkeypatch, number, remedy):
    path = tmp_path / "model"
    make_model(seed=0).save_pretrained(path, BytesTokenizer())
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    monkeypatch.setattr(os, "fsync", fail_with(number))
    with pytest.raises(WriteError) as caught:
        make_model(seed=1).save_pretrained(path, BytesTokenizer())
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    reason = f"{path}: cannot be written: {os.strerror(number)}; what was there before is unchanged; {remedy}"
    assert str(caught.value).startswith(reason)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    with pytest.raises(WriteError, match="nothing was left there"):
        make_model().save_pretrained(tmp_path / "other")


def mounted(tmp_path, options, program):
    """Run a program in a file system of its own, mounted at `tmp_path/disk`; its output."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"', "sh"]
    try:
        subprocess.run([*mount, options, str(disk), "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs unshare and the right to mount: {error}")
    command = [*mount, options, str(disk), sys.executable, "-c", program, str(disk)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


SAVE = """
import sys
from pathlib import Path
import torch
from wavelet_core.atomic_files import WriteError, append_whole
from wavelet_core.tensor_files import save_tensors
disk = Path(sys.argv[1])
for size in (1 << 10, 1 << 20):
    try:
        save_tensors({"w": torch.zeros(size)}, disk / "w.safetensors")
        append_whole(disk / "lines", b"x" * size)
    except WriteError as error:
        print(error)
print([(path.name, path.stat().st_size) for path in sorted(disk.iterdir())])
"""


def test_a_disk_that_fills_keeps_what_was_whole(tmp_path):
    failed, left = mounted(tmp_path, "size=1m", SAVE).splitlines()
    assert "w.safetensors: cannot be written: No space left on device; what was there before is unchanged" in failed
    assert re.fullmatch(r"\[\('lines', 1024\), \('w.safetensors', 41\d\d\)\]", left)


def test_a_read_only_disk_is_named(tmp_path):
    *failed, left = mounted(tmp_path, "ro", SAVE).splitlines()
    assert len(failed) == 2 and all("Read-only file system; nothing was left there" in line for line in failed)
    assert left == "[]"


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    file = tmp_path / "lines"
    append_whole(file, b"first\n")

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        with pytest.raises(WriteError, match="lines: cannot be written"):
            append_whole(file, b"second\n")
        assert file.read_bytes() == b"first\n"

    assert in_child(child) == 0


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/x"])
def test_a_path_that_cannot_be_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError) as caught:
        write_atomically(tmp_path / name, lambda path: path.write_text("new"))
    assert caught.value.filename == str(tmp_path / name)


def test_errors_of_other_files_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "here" / "copy", lambda path: (tmp_path / "away" / "original").read_bytes())


@pytest.mark.parametrize("exchanged", [True, False])
def test_what_a_living_process_writes_is_left_alone(tmp_path, monkeypatch, exchanged):
    """In another process and in this one, while the new directory is made and while the old one is away."""
    path = tmp_path / "model"
    write_atomically(path, lambda fresh: fresh.mkdir())
    exchange = atomic_files._exchange

    def recover_twice():
        recover(path)
        assert in_child(lambda: recover(path)) == 0

    def write(fresh):
        fresh.mkdir()
        recover_twice()
        (fresh / "notes.txt").write_text("new")

    replace = os.replace

    def replace_and_recover(old, new):
        replace(old, new)
        recover_twice()

    monkeypatch.setattr(atomic_files, "_exchange", exchange if exchanged else lambda first, second: False)
    monkeypatch.setattr(os, "replace", replace_and_recover)
    write_atomically(path, write)
    assert (path / "notes.txt").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_recovering_leaves_alone_what_is_not_left_over(tmp_path):
    recover(tmp_path / "nowhere" / "model")
    others = [".model.backup", ".model.tokens.abcd1234", ".model", "model.abcd1234"]
    for name in others:
        (tmp_path / name / "new").mkdir(parents=True)
        (tmp_path / name / "old").mkdir()
    (tmp_path / ".model.tokens.abcd1234" / "lock").touch()  # of a file that is called model.tokens
    recover(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_recovering_in_a_directory_that_cannot_be_written_is_no_error(tmp_path):
    def write():
        write_atomically(tmp_path / "model", lambda fresh: fresh.mkdir())

    write()
    step = 0
    while not list(tmp_path.glob(".model.*/old")):
        assert killed_at(step, False, False, write)
        step += 1
    before = sorted(tmp_path.rglob("*"))
    os.chmod(tmp_path, 0o555)

    def child():
        os.chdir(tmp_path)
        if os.geteuid() == 0:  # whom modes do not stop
            os.setuid(65534)
        with pytest.raises(PermissionError):
            Path("new file").touch()
        recover(Path("model"))

    assert in_child(child) == 0
    os.chmod(tmp_path, 0o755)
    assert sorted(tmp_path.rglob("*")) == before
    recover(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("umask", "file", "directory"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_modes_are_those_of_the_umask(make_model, tmp_path, umask, file, directory):
    before = os.umask(umask)
    try:
        make_model().save_pretrained(tmp_path / "model", BytesTokenizer())
        make_model().new_state().save(tmp_path / "state.safetensors")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert len(modes) == 7
    assert modes == {path: directory if path.is_dir() else file for path in modes}


def test_all_is_on_disk_before_it_is_in_place_and_its_place_after(tmp_path, monkeypatch):
    moments = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor):
        moments.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def move(old, new):
        moments.append("moved")
        replace(old, new)

    def write(fresh):
        (fresh / "empty").mkdir(parents=True)
        (fresh / "full").mkdir()
        (fresh / "full" / "notes.txt").write_text("some")

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", move)
    path = tmp_path / "runs" / "demo" / "model"
    write_atomically(path, write)
    moved = moments.index("moved")
    assert set(moments[:moved]) == {entry.stat().st_ino for entry in [path, *path.rglob("*")]}
    made = (tmp_path, tmp_path / "runs", tmp_path / "runs" / "demo")
    assert set(moments[moved + 1 :]) == {entry.stat().st_ino for entry in made}
