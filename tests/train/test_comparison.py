"""Comparisons: every run once, with its own tuned rate, whatever is killed in between; fits, and what is refused."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wavelet_core.config import ConfigurationError, parse

pytest.importorskip("optuna")

from wavelet_train.comparison.arms import prepare_arms, with_own_data
from wavelet_train.comparison.decoding import measure_decoding
from wavelet_train.comparison.fits import crossing, fit
from wavelet_train.comparison.plan import make_plan
from wavelet_train.comparison.published import PUBLISHED
from wavelet_train.comparison.results import results_of
from wavelet_train.comparison.spec import Comparison, load_comparison, run_of
from wavelet_train.comparison.speed import Speed, Speeds
from wavelet_train.comparison.work import ComparisonWork

SPEC = """
run:
  model: {context_length: 16, width: 16}
  data:
    dataset: {kind: text, train: train.txt, validation: validation.txt}
    tokenizer: bytes
    cache_directory: cache
  train: {device: cpu, threads: 1, precision: float32, batch_size: 2, log_every: 1}
arms:
  wide: {model: {layers: 1, levels: 2, memories: [{kind: mlp, expansion: 2}]}}
  bare: {like: wide, model: {memories: []}}
budgets: [{name: short, tokens: 256, seeds: [1, 2]}]
tuning: {rates: [0.003, 0.01, 0.03], share: 0.5, extend: 0, prune: false}
validations: 2
decoding: null
"""
TOKENS = 32


@pytest.fixture
def comparison(tiny_run, tmp_path):
    """Make a comparison of two tiny arms, with overrides, in a directory that has its text."""
    tiny_run()
    (tmp_path / "spec.yaml").write_text(SPEC)
    return lambda *overrides: load_comparison(tmp_path / "spec.yaml", overrides)


def work_on(comparison: Comparison, directory: Path) -> ComparisonWork:
    """The work, with speeds that nobody measured: a step takes 0.1 seconds in one arm and 0.2 in the other."""
    runs = prepare_arms(comparison, jobs=1)
    speeds = {
        name: Speed(0.1 * (1 + index), 1000, TOKENS, 100, 1, run.model_dump(mode="json"))
        for index, (name, run) in enumerate(runs.items())
    }
    return ComparisonWork(comparison, directory, runs, speeds)


def steps_of(directory: Path) -> list[int]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "train"]


def test_every_arm_is_tuned_and_then_trained_with_every_seed(comparison, tmp_path):
    work = work_on(comparison(), tmp_path / "out")
    assert work.work() is None
    results = results_of(work)
    assert results.unfinished == 0 and len(results.runs) == 4
    for arm, tuned in results.tuning["short"].items():
        known = {rate: score for rate, score in tuned.scores.items() if score is not None}
        assert set(known) == {0.003, 0.01, 0.03} and tuned.rate == min(known, key=known.get)
        assert {run.rate for run in results.runs if run.arm == arm} == {tuned.rate}
    scores = {score.arm: score for score in results.scores}
    assert scores["wide"].steps == scores["bare"].steps == 8 and scores["wide"].seeds == 2
    assert scores["bare"].seconds == pytest.approx(2 * scores["wide"].seconds)
    best = min(scores.values(), key=lambda score: score.bits_per_byte)
    assert best.behind == 0 and all(score.behind >= 0 for score in scores.values())
    assert json.dumps(results.as_dict()) and "bits per byte" in str(results)
    values = [run.bits_per_byte for run in results.runs if run.arm == "wide"]
    assert scores["wide"].bits_per_byte == pytest.approx(sum(values) / 2) and values[0] != values[1]


def test_seconds_and_operations_become_steps_by_what_a_step_takes(comparison, tmp_path):
    work = work_on(
        comparison("budgets=[{name: a, seconds: 2}, {name: b, flops: 7000}, {name: c, tokens: 1}]"), tmp_path
    )
    steps = {(run.budget.name, run.arm): work.configuration(run, 0.1).train.steps for run in work.runs()}
    assert steps == {
        ("a", "wide"): 20, ("a", "bare"): 10, ("b", "wide"): 7, ("b", "bare"): 7, ("c", "wide"): 1, ("c", "bare"): 1,
    }  # fmt: skip


def test_a_best_rate_at_the_end_is_followed_beyond_it(comparison, tmp_path):
    work = work_on(comparison("tuning.rates=[0.00001, 0.0001]", "tuning.extend=1", "budgets.0.seeds=[1]"), tmp_path)
    work.work()
    tuned = work.tuned(work.comparison.budgets[0], "wide")
    assert tuned.rate == 0.001 and set(tuned.scores) == {0.00001, 0.0001, 0.001} and tuned.at_edge


def test_seeds_budgets_and_arms_can_be_added_and_nothing_is_done_again(comparison, tmp_path, capsys):
    work_on(comparison("budgets.0.seeds=[1]"), tmp_path / "out").work()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("metrics.jsonl")}
    longer = (
        "budgets=[{name: short, tokens: 256, seeds: [1, 2]}, {name: long, tokens: 320, seeds: [1], tuned_at: short}]"
    )
    capsys.readouterr()
    more = work_on(comparison(longer, "arms.third={like: bare, model: {levels: 1}}"), tmp_path / "out")
    more.check()
    more.work()
    assert len(results_of(more).runs) == 3 * 2 + 3
    assert all(path.read_bytes() == content for path, content in before.items())
    assert "wide, short, seed 1:" not in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match=r"train\.batch_size.*--out|configuration\.train\.batch_size"):
        work_on(comparison(longer, "run.train.batch_size=1"), tmp_path / "out").check()


def test_a_budget_has_data_of_its_own(comparison, tmp_path):
    probe = "{kind: associative_recall, pairs: 2, length: 16, vocabulary_size: 16, examples: 20, held_out: 4}"
    data = f"{{dataset: {probe}, tokenizer: {{kind: token_ids, vocabulary_size: 16}}, cache_directory: cache}}"
    spec = comparison(f"budgets.0.data={data}", "budgets.0.seeds=[1]", "tuning.rates=[0.01]")
    arms = prepare_arms(spec, jobs=1)
    speeds = {name: Speed(0.1, 1000, TOKENS, 100, 1, {}) for name in arms}
    work = ComparisonWork(spec, tmp_path / "out", arms, speeds, with_own_data(spec, arms))
    work.work()
    results = results_of(work)
    assert results.recall == {"short": ("associative_recall", 2)} and not results.fits
    assert all(0 <= run.accuracy <= 1 for run in results.runs)
    assert next(iter(work.with_data["short"].values())).model.vocabulary_size == 16
    with pytest.raises(ConfigurationError, match=r"budgets\[0\].*tokens"):
        comparison(f"budgets=[{{name: a, seconds: 1, data: {data}}}]")


def test_an_arm_whose_runs_fail_is_told_and_stops_nothing(comparison, tmp_path):
    overrides = (
        "arms.bare.train={gradient_clipping: null}",
        "tuning.rates=[1.0e+30, 1.0e+31]",
        "budgets.0.arms=[bare]",
    )
    work = work_on(comparison(*overrides), tmp_path)
    assert work.work() is None
    results = results_of(work)
    assert results.unfinished == 0 and results.scores[0].bits_per_byte is None
    assert "tuning" in results.runs[0].failure and str(results)


def test_runs_are_listed_before_they_are_done_and_nothing_is_written(comparison, tmp_path):
    work = work_on(comparison(), tmp_path / "out")
    plan = make_plan(work, jobs=2)
    assert len(plan.runs) == 6 + 4 and plan.seconds == pytest.approx((3 * 4 * 0.3 + 2 * 8 * 0.3) / 2)
    assert "wide, short, seed 2" in str(plan) and json.dumps(plan.as_dict())
    assert not (tmp_path / "out").exists()


SCRIPT = """
import pickle, sys
work = pickle.load(open("work.pickle", "rb"))
work.work()
"""


def test_a_killed_comparison_goes_on_and_does_no_run_twice(comparison, tmp_path):
    import pickle

    work = work_on(comparison("budgets.0.tokens=1280"), Path("out"))
    (tmp_path / "work.pickle").write_bytes(pickle.dumps(work))
    command = [sys.executable, "-c", SCRIPT]
    metrics = tmp_path / "out/runs/short/bare/seed-1/metrics.jsonl"
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 5):
            time.sleep(0.002)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    finished = (tmp_path / "out/runs/short/wide/seed-1/metrics.jsonl").read_bytes()
    assert not (tmp_path / "out/runs/short/wide/seed-2").exists()
    subprocess.run(command, cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "out/runs/short/wide/seed-1/metrics.jsonl").read_bytes() == finished
    results = results_of(work)
    assert results.unfinished == 0
    for run in work.runs():
        assert Counter(steps_of(run.directory)) == Counter(range(1, 41))
    trials = sorted((tmp_path / "out/tuning").rglob("metrics.jsonl"))
    assert len(trials) == 6
    for metrics in trials:
        assert Counter(steps_of(metrics.parent)) == Counter(range(1, 21))


def test_speeds_are_measured_once_and_new_arms_against_a_known_one(comparison, tmp_path):
    two = prepare_arms(comparison(), jobs=1)
    path = tmp_path / "speeds.json"
    speeds = Speeds(path, two, jobs=1)
    assert speeds.missing == ["wide", "bare"]
    speeds.measure(rounds=1)
    wide, bare = (speeds.known[name] for name in ("wide", "bare"))
    assert wide.tokens == TOKENS and wide.flops > bare.flops > 0 and wide.parameters > bare.parameters > 0
    again = Speeds(path, two, jobs=1)
    assert again.missing == [] and asdict(again.known["wide"]) == asdict(wide)
    changed = prepare_arms(comparison("arms.bare.model.levels=1"), jobs=1)
    assert Speeds(path, changed, jobs=1).missing == ["bare"]
    with pytest.raises(ConfigurationError, match="--jobs 2"):
        Speeds(path, two, jobs=2)


def test_decoding_is_measured_for_arms_and_for_states_that_grow(comparison):
    pytest.importorskip("wavelet_baselines")
    given = "decoding={positions: [20, 5], tokens: 2, variants: {all: {like: attention, grows: model.capacity}}}"
    spec = comparison("arms.attention={model: {kind: transformer, layers: 1, heads: 2}}", given)
    speeds = measure_decoding(spec.decoding, prepare_arms(spec, jobs=1))
    sizes = {(speed.name, speed.position): speed.state_bytes for speed in speeds}
    assert sizes["all", 20] > sizes["all", 5] and sizes["attention", 20] == sizes["attention", 5]
    assert all(speed.decode_speed > 0 and speed.prompt_speed > 0 for speed in speeds)


def test_the_width_that_meets_the_number_of_parameters_is_found(comparison):
    pytest.importorskip("wavelet_baselines")
    match = "match={parameters: 20000, tolerance: 0.1, multiple: 2}"
    attention = "arms={attention: {model: {kind: transformer, layers: 1, heads: 4}, fit: model.width}}"
    runs = prepare_arms(comparison(match, attention), jobs=1)
    assert runs["attention"].model.width == 24  # of 16, 24 and 32, which heads divide, it is the nearest
    with pytest.raises(ConfigurationError, match=r"arms\.wide has [\d,]+ parameters, not 20,000 within 10%.*fit"):
        prepare_arms(comparison(match), jobs=1)


def test_an_arm_is_laid_over_the_run_and_over_the_arm_it_is_like():
    data = yaml.safe_load(SPEC)
    data["run"]["train"]["optimizer"] = {"kind": "adamw", "weight_decay": 0.5}
    data["arms"]["muon"] = {"like": "wide", "train": {"optimizer": {"kind": "muon"}}, "model": {"levels": 1}}
    data["arms"]["decayed"] = {"train": {"optimizer": {"weight_decay": 0.25}}}
    data["arms"]["demo"] = {"preset": "demo", "model": {"layers": 3}}
    spec = parse(Comparison, data)
    demo = run_of(spec, "demo")
    assert (demo.model.width, demo.model.layers, demo.train.batch_size) == (16, 3, 2)  # of the run, the arm, the run
    assert demo.model.mixer.routing and demo.train.optimizer.kind == "adamw" and demo.data.tokenizer.kind == "bytes"
    muon, decayed = run_of(spec, "muon"), run_of(spec, "decayed")
    assert (muon.train.optimizer.kind, muon.model.levels, len(muon.model.memories)) == ("muon", 1, 1)
    assert muon.train.batch_size == 2 and muon.model.context_length == 16
    assert (decayed.train.optimizer.kind, decayed.train.optimizer.weight_decay) == ("adamw", 0.25)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budgets.0.seconds=5", "exactly one of seconds, flops, tokens, not seconds and tokens"),
        ("budgets.0.tokens=null", "not none"),
        ("budgets.0.arms=[wid]", "unknown 'wid'.*wide"),
        ("budgets.0.seeds=[1, 1]", "seeds: one is given twice"),
        ("budgets.0.name=a/b", "'a/b' becomes a directory"),
        ("budgets.0.tuned_at=long", "tuned_at: unknown 'long'"),
        ("tuning.rates=[0.1, 0.1]", "a rate is given twice"),
        ("arms.bare.like=wid", "arms.bare.like: unknown 'wid'.*wide"),
        ("arms.bare.fit=model.width", r"arms\.bare\.fit.*match\.parameters"),
        ("arms.wide.modl={}", "modl.*model"),
        ("decoding={variants: {all: {like: nosuch, grows: model.capacity}}}", "variants.all.like: unknown 'nosuch'"),
    ],
)
def test_what_does_not_fit_is_named(comparison, override, message):
    with pytest.raises(ConfigurationError, match=message):
        comparison(override)


@pytest.mark.parametrize("name", ["quick", "default", "small", "recall"])
def test_comparisons_that_are_shipped_can_be_made(name):
    pytest.importorskip("wavelet_baselines")
    spec = load_comparison(Path(__file__).parents[2] / f"benchmarks/comparisons/{name}.yaml")
    assert all(run_of(spec, arm).train.threads == 1 for arm in spec.arms)


def test_arms_that_are_like_each_other_are_refused(comparison):
    with pytest.raises(ConfigurationError, match=r"arms\.wide\.like.*like each other"):
        run_of(comparison("arms.wide.like=bare"), "wide")


numbers = st.floats(-3, 3)


@given(a=numbers, b=st.floats(-1, -0.01), c=numbers, steeper=st.floats(0.1, 1))
def test_lines_are_found_and_where_they_cross(a, b, c, steeper):
    times = (60.0, 300.0, 1200.0, 3600.0)
    first = fit([(time, a + b * math.log(time)) for time in times])
    second = fit([(time, c + (b - steeper) * math.log(time)) for time in times])
    assert first.at(777) == pytest.approx(a + b * math.log(777), abs=1e-6) and first.residual < 1e-6
    meeting = crossing(first, second)
    place = (c - a) / steeper
    assert math.log(meeting.seconds) == pytest.approx(place, abs=1e-6)
    assert meeting.factor == pytest.approx(1, abs=1e-3)
    if abs(place - math.log(60)) > 1e-3 and abs(place - math.log(3600)) > 1e-3:
        assert meeting.within == (math.log(60) < place < math.log(3600))


def test_a_fit_says_no_more_than_its_points():
    assert fit([]) is None and fit([(60, 1.0), (60, 1.1)]) is None
    exact = fit([(60, 1.2), (300, 1.0)])
    assert exact.residual is None and exact.error_at(60) is None and crossing(exact, exact).seconds is None
    noisy = fit([(60, 1.2), (60, 1.22), (300, 1.0), (300, 0.98)])
    assert noisy.residual == pytest.approx(math.sqrt(4 * 0.01**2 / 2))
    assert noisy.error_at(3600) > noisy.error_at(134) > 0


def test_published_perplexities_are_in_one_unit_a_column():
    words, tokens = {"WikiText-103": 245_569, "PG-19": 6_966_499}, {"WikiText-103": 287_644, "PG-19": 9_197_032}
    for row in PUBLISHED:
        assert row.source and (row.per_token is None) == (not row.token)
        if row.per_token is not None:
            ratio = tokens[row.text] / words[row.text]
            assert row.per_word == pytest.approx(math.exp(math.log(row.per_token) * ratio), abs=0.06)
        if row.text == "WikiText-103" and row.bits_per_byte is not None:
            bits = math.log2(row.per_token) * tokens[row.text] / 1_296_370
            assert row.bits_per_byte == pytest.approx(bits, abs=2e-3)
