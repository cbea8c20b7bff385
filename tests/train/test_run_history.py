"""metrics.jsonl is read as far as it can be: of a run that is going on, was killed, or is damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavelet_train.run_history import RunHistory


def history_of(path: Path, *records: object) -> RunHistory:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return RunHistory.read(path)


def step(number: int, **values: object) -> dict[str, object]:
    return {"event": "train", "step": number, **values}


def test_no_file_and_an_empty_one_are_histories_without_records(tmp_path):
    assert RunHistory.read(tmp_path / "metrics.jsonl") == RunHistory() == history_of(tmp_path / "metrics.jsonl")
    assert RunHistory().steps == 0 and RunHistory().seconds() == [] and RunHistory().part_norms() == {}


def test_a_line_that_is_cut_off_costs_that_line_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event": "train", "step": 10, "loss": 2.0}\n{"event": "train", "st')
    history = RunHistory.read(path)
    assert history.column("loss") == [2.0] and history.unreadable == 1 and history.steps == 10


def test_null_texts_and_missing_numbers_are_no_numbers(tmp_path):
    losses = (None, "2.0", [3.0], 4, 10**400)
    history = history_of(tmp_path / "m", *(step(1, loss=loss) for loss in losses), step(2))
    assert [math.isnan(value) for value in history.column("loss")] == [True, True, True, False, True, True]


def test_events_are_told_apart(tmp_path):
    records = [{"event": event, "step": 1} for event in ("train", "validation", "report", "mine")]
    history = history_of(tmp_path / "m", *records)
    assert [*history.train, *history.validation, *history.report, *history.other] == records


def test_seconds_follow_from_tokens_and_speed(tmp_path):
    history = history_of(
        tmp_path / "m",
        step(1, tokens=100, tokens_per_second=10),
        step(2, tokens=None, tokens_per_second=10),
        step(3, tokens=300, tokens_per_second=100),
        step(4, tokens=400, tokens_per_second=0),
    )
    assert history.seconds() == [10, 10, 12, 12]


def test_validations_stand_where_their_step_was(tmp_path):
    validations = [{"event": "validation", "step": number} for number in (10, 15, 40)]
    history = history_of(tmp_path / "m", step(10, tokens=100), step(20, tokens=200), *validations)
    at_known, between, beyond = history.at_steps(history.column("tokens"))
    assert (at_known, between) == (100, 150) and math.isnan(beyond)


def test_gradient_norms_are_by_part_and_block(tmp_path):
    history = history_of(
        tmp_path / "m", step(1, gradient_norms={"head": 1.5, "mlp": [0.5, None]}), step(2), step(3, gradient_norms=7)
    )
    assert history.part_norms()["head"][0] == [1.5] and history.part_norms()["mlp"][0][0] == 0.5
    assert math.isnan(history.part_norms()["mlp"][0][1]) and math.isnan(history.part_norms()["head"][1][0])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(["event", "step", "loss", "tokens", "tokens_per_second", "gradient_norms"])
odd_records = st.dictionaries(fields, json_values | st.sampled_from(["train", "validation"])).map(
    lambda record: json.dumps({"event": "train", "step": 1, **record}).encode()
)


@given(st.lists(odd_records | st.binary(max_size=30), max_size=6))
def test_whatever_the_file_holds_it_is_read(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "odd.jsonl"
    path.write_bytes(b"\n".join(lines))
    history = RunHistory.read(path)
    assert len(history.seconds()) == len(history.train) == len(history.column("loss"))
    assert len(history.at_steps(history.column("tokens"))) == len(history.validation)
    assert all(len(entries) == len(history.train) for entries in history.part_norms().values())
    assert all(type(record["step"]) is int for record in (*history.train, *history.other))
    assert history.steps >= 0 or history.train or history.validation


def test_a_directory_in_its_place_is_an_error(tmp_path):
    with pytest.raises(OSError):
        RunHistory.read(tmp_path)
