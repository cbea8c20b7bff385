"""Sweeps: every run once, the best named, hopeless ones given up, and nothing lost when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import pytest

from wavelet_core.config import ConfigurationError
from wavelet_train.run_config import load_run_config
from wavelet_train.search_space import parse_arguments
from wavelet_train.trainer import train

sweep_module = pytest.importorskip("wavelet_train.sweep")
optuna = pytest.importorskip("optuna")

from wavelet_train.side_by_side import work_side_by_side  # noqa: E402
from wavelet_train.sweep import Plan, Sweep, work_on  # noqa: E402
from wavelet_train.sweep_results import draw, results_of, write_best  # noqa: E402


@pytest.fixture
def make_plan(tiny_run):
    def make(*arguments: str, **options) -> Plan:
        overrides, space = parse_arguments(arguments)
        return Plan(tiny_run(*overrides), space, **options)

    return make


def test_every_combination_is_trained_once_and_the_best_is_named(make_plan, tmp_path):
    plan = make_plan("train.lr=0.0001,0.01,0.02", prune=False)
    sweep = Sweep(plan, tmp_path / "sweep")
    assert sweep.work() is None
    results = results_of(sweep)
    assert [run.state for run in results.runs] == ["done"] * 3
    scores = {run.values["train.lr"]: run.bits_per_byte for run in results.runs}
    assert set(scores) == {"0.0001", "0.01", "0.02"}
    assert results.runs[0].bits_per_byte == min(scores.values()) and results.best == results.runs[0].number
    best = load_run_config(write_best(sweep, results))
    assert best.train.lr == float(results.runs[0].values["train.lr"])
    alone = train(sweep.configuration_of({"train.lr": "0.01"}), tmp_path / "alone")
    assert alone.report.evaluation.bits_per_byte == scores["0.01"]
    assert "0.0001" in str(results) and json.dumps(results.as_dict())


def test_a_finished_sweep_does_nothing_again(make_plan, tmp_path, capsys):
    plan = make_plan("train.lr=0.001,0.01")
    Sweep(plan, tmp_path / "sweep").work()
    capsys.readouterr()
    again = Sweep(plan, tmp_path / "sweep")
    assert again.work() is None
    assert "Run" not in capsys.readouterr().err
    assert len(results_of(again).runs) == 2


def test_hopeless_runs_are_given_up(make_plan, tmp_path):
    plan = make_plan("train.lr=0.01,0.02,1e-9", "train.steps=8", "train.validate_every=2")
    sweep = Sweep(plan, tmp_path / "sweep")
    sweep.work()
    states = {run.values["train.lr"]: run for run in results_of(sweep).runs}
    assert states["1e-9"].state == "given up" and states["1e-9"].progress < 1
    assert states["0.01"].state == states["0.02"].state == "done"


def test_a_diverged_run_is_given_up_and_says_why(make_plan, tmp_path):
    plan = make_plan("train.lr=0.01,1e30", "train.gradient_clipping=null", prune=False)
    sweep = Sweep(plan, tmp_path / "sweep")
    sweep.work()
    runs = {run.values["train.lr"]: run for run in results_of(sweep).runs}
    assert runs["1e30"].state == "given up" and "diverged" in runs["1e30"].remark
    assert runs["0.01"].state == "done"


def test_tpe_makes_as_many_runs_as_asked_and_more_when_asked_again(make_plan, tmp_path):
    options = {"prune": False, "seed": 5}
    arguments = ("train.lr=log:1e-3..3e-2", "model.memories.0.expansion=1..2", "train.steps=2")
    first = Sweep(make_plan(*arguments, runs=2, **options), tmp_path / "sweep")
    first.work()
    assert len(results_of(first).runs) == 2
    more = Sweep(make_plan(*arguments, runs=3, **options), tmp_path / "sweep")
    more.work()
    runs = results_of(more).runs
    rates = {float(run.values["train.lr"]) for run in runs}
    assert len(runs) == len(rates) == 3 and all(1e-3 <= rate <= 3e-2 for rate in rates)
    assert {run.values["model.memories.0.expansion"] for run in runs} <= {"1", "2"}
    same = Sweep(make_plan(*arguments, runs=2, **options), tmp_path / "same")
    same.work()
    assert {run.values["train.lr"] for run in results_of(same).runs} < {run.values["train.lr"] for run in runs}


def test_values_that_were_tried_are_not_trained_again(make_plan, tmp_path, capsys):
    options = {"runs": 4, "prune": False}
    sweep = Sweep(make_plan("train.seed=0,1", "train.steps=2", **options), tmp_path / "sweep")
    sweep.work()
    runs = results_of(sweep).runs
    trained = len(list((tmp_path / "sweep" / "runs").glob("*/config.yaml")))
    assert len(runs) == 4 and trained == len({run.values["train.seed"] for run in runs})
    assert sum("as run" in (run.remark or "") for run in runs) == 4 - trained


def test_a_stopped_run_is_resumed(make_plan, tmp_path, monkeypatch):
    plan = make_plan("train.lr=0.001,0.01", prune=False)
    stop = "wavelet_train.interruption.StopOnSignal.check"
    from wavelet_train.interruption import StopOnSignal, Stopped

    checks = iter(range(10**6))

    def check(self: StopOnSignal) -> None:
        if next(checks) == 4:
            raise Stopped("SIGTERM")

    monkeypatch.setattr(stop, check)
    sweep = Sweep(plan, tmp_path / "sweep")
    assert sweep.work() == "SIGTERM"
    assert results_of(sweep).runs[0].state == "unfinished"
    assert Sweep(plan, tmp_path / "sweep").work() is None
    runs = results_of(sweep).runs
    assert [run.state for run in runs] == ["done", "done"]
    lines = [json.loads(line) for line in (tmp_path / "sweep/runs/000/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "train"] == [1, 2, 3, 4, 5, 6]


SCRIPT = """
from pathlib import Path
from wavelet_train.run_config import load_run_config
from wavelet_train.search_space import parse_arguments
from wavelet_train.sweep import Plan, Sweep
overrides, space = parse_arguments(["train.lr=0.001,0.01,0.02", "train.steps=24", "train.validate_every=8"])
Sweep(Plan(load_run_config("tiny.yaml", overrides), space, prune=False), Path("sweep")).work()
"""


def test_a_killed_sweep_goes_on_and_does_no_run_twice(tiny_run, tmp_path):
    tiny_run()
    metrics = tmp_path / "sweep/runs/001/metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 10):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "sweep/runs/002").exists()
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    directories = sorted(path.name for path in (tmp_path / "sweep/runs").iterdir())
    assert directories == ["000", "001", "002"]
    for directory in directories:
        lines = (tmp_path / f"sweep/runs/{directory}/metrics.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        counts = Counter(event["step"] for event in events if event["event"] == "train")
        assert counts == Counter(range(1, 25))


@pytest.mark.skipif(not hasattr(os, "setsid"), reason="needs POSIX processes")
def test_runs_side_by_side_share_the_work(make_plan, tmp_path):
    plan = make_plan("train.lr=0.001,0.01,0.02", prune=False)
    sweep = Sweep(plan, tmp_path / "sweep")
    assert work_side_by_side(partial(work_on, plan, tmp_path / "sweep"), tmp_path / "sweep", 2) is None
    results = results_of(sweep)
    assert [run.state for run in results.runs] == ["done"] * 3
    logs = "".join((tmp_path / f"sweep/worker-{index}.log").read_text() for index in range(2))
    assert all(logs.count(f"Run {number}: train.lr") == 1 for number in range(3))


def test_what_another_machine_left_can_be_released(make_plan, tmp_path):
    plan = make_plan("train.lr=0.001,0.01", prune=False)
    sweep = Sweep(plan, tmp_path / "sweep")
    sweep.study.ask().set_user_attr("host", "gone")
    sweep.work()
    assert sorted(run.state for run in results_of(sweep).runs) == ["done", "unfinished"]
    assert sweep.release("gone") == 1 and sweep.release("gone") == 0
    sweep.work()
    assert sorted(run.state for run in results_of(sweep).runs) == ["done", "done", "failed"]


def test_a_directory_keeps_to_its_sweep(make_plan, tmp_path):
    Sweep(make_plan("train.lr=0.001,0.01"), tmp_path / "sweep")
    with pytest.raises(ConfigurationError, match=r"another space.*0\.02"):
        Sweep(make_plan("train.lr=0.001,0.02"), tmp_path / "sweep")
    with pytest.raises(ConfigurationError, match=r"configuration\.train\.steps \(6, not 7\).*--out"):
        Sweep(make_plan("train.lr=0.001,0.01", "train.steps=7"), tmp_path / "sweep")


def test_values_are_checked_before_the_first_run(make_plan, tmp_path):
    with pytest.raises(ConfigurationError, match=r"train\.lr"):
        Sweep(make_plan("train.lr=0.001,-1"), tmp_path / "sweep")
    with pytest.raises(ConfigurationError, match=r"nosuch"):
        Sweep(make_plan("train.nosuch=1,2"), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_combination_that_does_not_fit_is_named_and_the_others_go_on(make_plan, tmp_path):
    arguments = ("model.width=16,12", "model.block.projection=true,false", "train.steps=2")
    sweep = Sweep(make_plan(*arguments, prune=False), tmp_path / "sweep")
    sweep.work()
    runs = results_of(sweep).runs
    assert [run.state for run in runs] == ["done", "done", "done", "failed"]
    assert "projection" in runs[-1].remark


def test_a_storage_that_is_none_is_named(make_plan, tmp_path):
    (tmp_path / "broken.db").write_text("no database, but more than a line of text " * 40)
    for url in ("nosuch://host/x", f"sqlite:///{tmp_path / 'broken.db'}", f"sqlite:///{tmp_path}/no/such/x.db"):
        with pytest.raises(ConfigurationError, match="--storage"):
            Sweep(make_plan("train.lr=0.001,0.01", storage=url), tmp_path / "sweep")


def test_the_figure_has_a_panel_for_every_field(make_plan, tmp_path):
    pytest.importorskip("matplotlib")
    plan = make_plan("train.lr=0.0001,0.01", "train.optimizer.kind=adamw,adagrad", "train.steps=2")
    sweep = Sweep(plan, tmp_path / "sweep")
    assert draw(results_of(sweep)) is not None  # before the first run
    sweep.work()
    panels = draw(results_of(sweep)).axes
    assert [panel.get_xlabel() for panel in panels[:2]] == ["train.lr", "train.optimizer.kind"]
    assert panels[0].get_xscale() == "log" and len(panels) == 3
