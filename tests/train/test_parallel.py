"""Several processes train one model: the losses of one process with the same batches, and nothing lost."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from wavelet_core import load_checkpoint
from wavelet_core.checkpoint import named_tensors
from wavelet_core.tensor_files import CheckpointError
from wavelet_train import ranks, trainer
from wavelet_train.ranks import Ranks
from wavelet_train.run_directory import RunDirectory
from wavelet_train.trainer import train

WORKER = Path(__file__).with_name("rank_worker.py")
MOST = 4
# Two blocks that share a wavelet, learned scalars and everything that has random or conditional parts.
MODEL = ("model.layers=2", "model.wavelet.crawl=3", "train.batch_size=4", "train.accumulation=2", "train.steps=4")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    numbers = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


@pytest.fixture(scope="module")
def workers():
    """Processes that train together when they are told to, started once."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(MOST)
    ]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def train_together(workers, tiny_run, tmp_path):
    """Train the tiny run in so many processes; what each of them says."""
    tiny_run()

    def together(count: int, *overrides: str, out: str = "run", resume: bool = False) -> list[dict[str, Any]]:
        port = free_port()
        for rank, worker in enumerate(workers[:count]):
            task = {
                "environment": environment(rank, count, port),
                "folder": str(tmp_path),
                "overrides": overrides,
                "out": out,
                "resume": resume,
            }
            worker.stdin.write(json.dumps(task) + "\n")
            worker.stdin.flush()
        answers = []
        for worker in workers[:count]:
            line = ""
            while not line.startswith('{"answer"'):
                line = worker.stdout.readline()
                assert line, "a worker has ended"
            answers.append(json.loads(line)["answer"])
        return answers

    return together


def assert_same_run(one: Path, other: Path, read_metrics) -> None:
    """Losses, norms and validations within the tolerance of sums in another order, and so the weights."""
    for event, fields in (
        ("train", ("step", "loss", "gradient_norm", "lr")),
        ("validation", ("step", "bits_per_byte")),
    ):
        mine, theirs = read_metrics(one, event), read_metrics(other, event)
        assert [each["step"] for each in mine] == [each["step"] for each in theirs]
        for a, b in zip(mine, theirs, strict=True):
            assert [a[name] for name in fields] == pytest.approx([b[name] for name in fields], rel=2e-4), (a, b)
    for checkpoint in ("best", "last"):
        weights, others = (named_tensors(load_checkpoint(run / checkpoint)) for run in (one, other))
        assert weights.keys() == others.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize(
    ("count", "parallel", "more"),
    [
        (2, "ddp", ("model.stochastic_depth=0.5", "train.weight_average.decay=0.9", "train.order=shuffled")),
        (4, "auto", ("train.order=contiguous", "train.reset_at_documents=true")),
        (2, "fsdp", ("train.weight_average.decay=0.9", "model.stochastic_depth=0.5")),
        (4, "fsdp", ("train.order=contiguous", "model.tied_embedding=true", "train.optimizer.kind=adagrad")),
        (2, "fsdp", ("train.optimizer.kind=muon",)),
    ],
)
def test_processes_train_as_one_and_resume_in_another_number(
    train_together, tiny_run, read_metrics, tmp_path, count, parallel, more
):
    overrides = (*MODEL, *more)
    alone = train(tiny_run(*overrides), tmp_path / "alone")
    answers = train_together(count, *overrides, f"train.parallel={parallel}")
    assert [answer.get("error") for answer in answers] == [None] * count
    assert_same_run(tmp_path / "alone", tmp_path / "run", read_metrics)
    assert answers[0]["bits_per_byte"] == pytest.approx(alone.report.evaluation.bits_per_byte, rel=2e-4)

    shards = list((tmp_path / "run" / "last" / "trainer").glob("shards/*.safetensors"))
    assert len(shards) == (count if parallel == "fsdp" else 0)
    longer = (*overrides, "train.steps=6")
    train(tiny_run(*longer), tmp_path / "alone", resume=True)
    if count == 2:
        answers = train_together(4, *longer, f"train.parallel={parallel}", resume=True)
        assert [answer.get("error") for answer in answers] == [None] * 4
    else:
        train(tiny_run(*longer), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "alone", tmp_path / "run", read_metrics)


def test_a_run_of_one_process_goes_on_in_shards(train_together, tiny_run, read_metrics, tmp_path):
    for out in ("alone", "run"):
        train(tiny_run(*MODEL), tmp_path / out)
    longer = (*MODEL, "train.steps=6")
    train(tiny_run(*longer), tmp_path / "alone", resume=True)
    answers = train_together(2, *longer, "train.parallel=fsdp", resume=True)
    assert [answer.get("error") for answer in answers] == [None] * 2
    assert_same_run(tmp_path / "alone", tmp_path / "run", read_metrics)


def test_shards_train_in_bfloat16(train_together, tiny_run, tmp_path):
    overrides = (*MODEL, "train.precision=bfloat16")
    alone = train(tiny_run(*overrides), tmp_path / "alone").report.evaluation.bits_per_byte
    answers = train_together(2, *overrides, "train.parallel=fsdp")
    assert answers[0].get("bits_per_byte") == pytest.approx(alone, rel=0.02), answers


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_with_dropout_resumes_bit_for_bit(train_together, read_metrics, tmp_path, parallel):
    overrides = (*MODEL, "model.embedding_dropout=0.5", "train.validate_every=2", f"train.parallel={parallel}")
    train_together(2, *overrides, "train.steps=2", "train.schedule.kind=constant", out="cut")
    train_together(2, *overrides, "train.schedule.kind=constant", out="through")
    answers = train_together(2, *overrides, "train.schedule.kind=constant", out="cut", resume=True)
    assert answers[0].get("error") is None
    assert read_metrics(tmp_path / "through", "train")[:4] == read_metrics(tmp_path / "cut", "train")
    weights, others = (named_tensors(load_checkpoint(tmp_path / run / "last")) for run in ("through", "cut"))
    assert all(tensor.equal(others[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_find_what_is_not_finite_first(train_together, parallel):
    diverging = ("train.lr=1e30", "train.schedule.kind=constant", "train.most_skipped=2", f"train.parallel={parallel}")
    answers = train_together(2, *MODEL, *diverging)
    assert len({answer["error"] for answer in answers}) == 1
    assert re.search(
        "DivergenceError: .* first .* there is the (in|out)put of .*blocks.0.* in process 0 of 2", answers[0]["error"]
    )


@pytest.mark.parametrize(
    ("count", "overrides", "parts"),
    [
        (3, ("train.batch_size=4",), ("ConfigurationError", "train.batch_size=4", "3 processes", "multiple of 3")),
        (2, ("train.precision=float16", "train.parallel=fsdp", "train.batch_size=4"), ("float16", "ddp")),
    ],
)
def test_what_cannot_be_shared_is_refused_before_a_step(train_together, tmp_path, count, overrides, parts):
    for answer in train_together(count, *overrides):
        assert all(part in answer["error"] for part in parts), answer
    assert not (tmp_path / "run" / "last").exists()


def test_a_run_of_fewer_processes_does_not_say_how_many_threads_each_takes(tiny_run, tmp_path, monkeypatch):
    used: list[int | None] = []
    monkeypatch.setattr(trainer, "available_processors", lambda: 4)
    monkeypatch.setattr(trainer, "use_threads", lambda threads, *_: used.append(threads) or 1)
    for local_count in (1, 2):
        trainer.Trainer(tiny_run(), RunDirectory(tmp_path / "run"), threads=3, ranks=Ranks(local_count=local_count))
    assert used == [3, None]


def test_what_is_wrong_with_a_checkpoint_is_not_taken_for_a_lost_process(monkeypatch):
    at_exit: list[object] = []
    monkeypatch.setattr(ranks.atexit, "register", at_exit.append)
    for name, value in environment(0, 2, 0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.distributed, "new_group", lambda **_: None)
    monkeypatch.setattr(ranks.distributed, "get_rank", lambda: 0)
    for error, raised in (
        (CheckpointError("runs/gloo/last is damaged"), CheckpointError),
        (RuntimeError("[gloo] Connection closed by peer"), ranks.RankLostError),
    ):
        with pytest.raises(raised), ranks.joined_ranks("cpu"):
            raise error
        assert len(at_exit) == (raised is ranks.RankLostError)


def start(tmp_path: Path, *arguments: object) -> list[subprocess.Popen[str]]:
    """Two processes as torchrun starts them."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "wavelet_train", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment(rank, 2, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


LONG = ["tiny.yaml", "--set", "train.steps=5000", "--set", "train.batch_size=2", "--set", "train.validate_every=20"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_process_ends_all_and_a_stopped_one_stops_all(tiny_run, tmp_path, parallel):
    tiny_run()
    processes = start(tmp_path, *LONG, "--set", f"train.parallel={parallel}")
    try:
        saved_at = _wait_for_a_save(tmp_path / "runs" / "tiny", processes, 0)
        processes[1].send_signal(signal.SIGKILL)
        _, errors = processes[0].communicate(timeout=120)
        assert processes[0].returncode == 1
        assert "process 0 of 2 ends" in errors and "--resume" in errors and "Traceback" not in errors

        processes = start(tmp_path, "--resume", "runs/tiny", "--set", "train.log_every=1")
        step = _wait_for_a_save(tmp_path / "runs" / "tiny", processes, saved_at)
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, outputs
        assert "Stopped by SIGTERM" in outputs[0][1]
        assert _saved_step(tmp_path / "runs" / "tiny") >= step
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_kills_of_one_process_or_of_all_lose_nothing(tiny_run, tmp_path, read_metrics, parallel):
    """The run ends bit for bit as one that nobody killed."""
    tiny_run()
    kills, run = int(os.environ.get("WAVELET_TEST_KILLS", "20")), tmp_path / "run"
    fields = {"parallel": parallel, "steps": 20 * kills + 20, "checkpoint_every": 5, "validate_every": 50}
    overrides = [f"--set=train.{name}={value}" for name, value in fields.items()]
    configured = ["tiny.yaml", "--set=model.embedding_dropout=0.2", *overrides]
    chance = random.Random(parallel)
    for number in range(kills):
        saved = _saved_step(run)
        processes = start(tmp_path, *(("--resume", run) if saved else (*configured, "--out", run)))
        try:
            _wait_for_a_save(run, processes, saved + chance.choice([0, 5, 10]))
            time.sleep(chance.uniform(0, 0.1))
            killed = processes if number % 2 else [chance.choice(processes)]
            for process in killed:
                process.kill()
            for process in processes:
                _, errors = process.communicate(timeout=120)
                assert "Traceback" not in errors
                assert process.returncode == (-signal.SIGKILL if process in killed else 1), errors
        finally:
            for process in processes:
                process.kill()
                process.wait()
    for arguments in (("--resume", run), (*configured, "--out", "through")):
        processes = start(tmp_path, *arguments)
        assert [(process.communicate()[1], process.returncode)[1] for process in processes] == [0, 0]
    assert read_metrics(run) == read_metrics(tmp_path / "through")
    mine, through = (sorted(folder.rglob("last/**/*.safetensors")) for folder in (run, tmp_path / "through"))
    assert [file.read_bytes() for file in mine] == [file.read_bytes() for file in through]
    assert len(mine) == (4 if parallel == "fsdp" else 2)


def _saved_step(run: Path) -> int:
    try:
        return int(json.loads((run / "last" / "trainer" / "state.json").read_text())["counters"]["step"])
    except (OSError, ValueError):
        return 0


def _wait_for_a_save(run: Path, processes: list[subprocess.Popen[str]], after: int) -> int:
    """Until `last/` is of a step after this one; which one that is."""
    while (step := _saved_step(run)) <= after:
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.02)
    return step
