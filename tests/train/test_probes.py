"""Recall probes: what their examples are, that they train, and that a model is scored on them as they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from wavelet_core import ConfigurationError, build, registry
from wavelet_core.config import LanguageModelConfig, parse
from wavelet_core.linear_cross_entropy import IGNORED
from wavelet_train.data import DataConfig, PreparedData
from wavelet_train.datasets import SPLITS
from wavelet_train.evaluation import evaluate
from wavelet_train.probes.scores import score_probe
from wavelet_train.run_config import RunConfig, run_config
from wavelet_train.run_directory import RunDirectory
from wavelet_train.trainer import Trainer, train
from wavelet_train.windows import DocumentWindows

KINDS = ("associative_recall", "induction", "selective_copying", "key_at_distance")


def probe_of(kind: str, **fields: Any) -> Any:
    return build("dataset", registry.get("dataset", kind).Config(**fields))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_what_stood_at_its_distance(kind: str) -> None:
    for example in probe_of(kind, examples=30).examples("train"):
        places = np.flatnonzero(example.counts)
        assert len(example.tokens) == 256
        assert example.tokens.min() >= 0 and example.tokens.max() < 512
        np.testing.assert_array_equal(example.tokens[places - example.distances[places]], example.tokens[places])
        assert len(places)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_follow_from_the_seed_and_no_split_has_those_of_another(kind: str) -> None:
    fields = {"vocabulary_size": 16, "length": 16, "examples": 300, "held_out": 100}
    fields |= {"associative_recall": {"pairs": 2}, "selective_copying": {"tokens": 2}}.get(kind, {"distance": 8})
    if kind == "induction":
        fields["passage"] = 3
    splits = {split: set(probe_of(kind, **fields).documents(split)) for split in SPLITS}
    again = {split: set(probe_of(kind, **fields).documents(split)) for split in SPLITS}
    other = probe_of(kind, **fields, seed=1)
    assert splits == again
    assert splits["train"] != set(other.documents("train"))
    assert probe_of(kind, **fields).fingerprint() != other.fingerprint()
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not splits[first] & splits[second]


@given(pairs=st.integers(1, 16), spare=st.integers(0, 40), power=st.floats(0.01, 3), seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_every_key_is_asked_for_once_and_answered_by_its_value(pairs: int, spare: int, power: float, seed: int) -> None:
    probe = probe_of("associative_recall", pairs=pairs, length=4 * pairs + spare, vocabulary_size=34, power=power)
    example = probe.draw(np.random.default_rng(seed))
    listed = example.tokens[: 2 * pairs].reshape(pairs, 2)
    places = np.flatnonzero(example.counts)
    assert len({*listed.flatten()}) == 2 * pairs
    asked = np.stack([example.tokens[places - 1], example.tokens[places]], axis=1)
    assert sorted(asked.tolist()) == sorted(listed.tolist())
    assert (listed[:, 0] < 17).all() and (listed[:, 1] >= 17).all()


def test_questions_come_sooner_with_less_power() -> None:
    def distance(power: float) -> float:
        probe = probe_of("associative_recall", pairs=4, power=power, examples=200)
        return float(np.mean([example.distances[example.counts].mean() for example in probe.examples("train")]))

    assert distance(0.01) < distance(1.0) < distance(3.0)


def test_pairs_of_a_list_are_drawn() -> None:
    probe = probe_of("associative_recall", pairs=[2, 8], examples=50)
    assert {int(example.counts.sum()) for example in probe.examples("train")} == {2, 8}


@pytest.mark.parametrize("kind", ["induction", "key_at_distance"])
def test_a_distance_is_kept(kind: str) -> None:
    for example in probe_of(kind, distance=40, examples=10).examples("train"):
        assert set(example.distances[example.counts]) == {40}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("associative_recall", {"pairs": 65}, "pairs=65 need a length of 260, not 256"),
        ("associative_recall", {"pairs": 64, "vocabulary_size": 128}, "a vocabulary_size of 130, not 128"),
        ("associative_recall", {"pairs": []}, "empty list"),
        ("induction", {"passage": 129}, "length of 258"),
        ("induction", {"distance": 250}, "from 16 .* to 240"),
        ("induction", {"vocabulary_size": 200}, "vocabulary_size of 240"),
        ("selective_copying", {"tokens": 128}, "length of 257"),
        ("key_at_distance", {"distance": 4}, "from 5 .* to 251"),
        ("key_at_distance", {"key": 128}, "length of 258"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.get("dataset", kind).Config(**fields)  # type: ignore[attr-defined]


def test_too_few_different_examples_are_refused() -> None:
    probe = probe_of("selective_copying", vocabulary_size=8, length=4, tokens=1)
    probe.draw = lambda generator, draw=probe.draw: draw(np.random.default_rng(0))
    with pytest.raises(ConfigurationError, match="larger vocabulary_size"):
        [list(probe.examples(split)) for split in SPLITS]


class Oracle(torch.nn.Module):
    """Predicts what came after the last time that a token was there; 0 instead of odd ids."""

    config = LanguageModelConfig(kind="oracle", vocabulary_size=64, context_length=8)

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.head = torch.nn.Identity()

    def hidden(self, tokens: torch.Tensor, state: Any = None) -> torch.Tensor:
        predicted = torch.zeros_like(tokens)
        for row, place in np.ndindex(*tokens.shape):
            before = (tokens[row, :place] == tokens[row, place]).nonzero()
            if len(before):
                predicted[row, place] = tokens[row, before[-1] + 1]
        return F.one_hot(torch.where(predicted % 2 == 0, predicted, 0), 64).float() * self.scale


@pytest.mark.parametrize(
    ("kind", "fields"), [("associative_recall", {"pairs": 8}), ("induction", {"passage": 6, "distance": 12})]
)
def test_a_model_is_scored_by_its_right_answers_and_their_distances(kind: str, fields: dict[str, Any]) -> None:
    probe = probe_of(kind, vocabulary_size=64, length=40, held_out=20, **fields)
    examples = list(probe.examples("test"))
    distances = np.concatenate([example.distances[example.counts] for example in examples])
    right = np.concatenate([example.tokens[example.counts] % 2 == 0 for example in examples])
    counted: list[int] = []
    scores = score_probe(Oracle(), probe, batch_size=3, on_batch=counted.append)
    report = scores.as_dict()
    assert report["accuracy"] == pytest.approx(right.mean())
    assert report["answers"] == len(right)
    assert counted == [3] * 6 + [2]
    assert report["nats_per_answer"] > 1
    for entry in report["by_distance"]:
        inside = (distances >= entry["first"]) & (distances <= entry["last"])
        assert entry["answers"] == inside.sum() > 0
        assert entry["accuracy"] == pytest.approx(right[inside].mean())
    assert sum(entry["answers"] for entry in report["by_distance"]) == len(right)


def recall_run(**overrides: Any) -> RunConfig:
    """A run on an easy probe: 4 pairs in 16 tokens."""
    content: dict[str, Any] = {
        "model": {"kind": "gated_delta_net", "width": 64, "layers": 1, "heads": 2, "key_width": 32, "value_width": 32},
        "data": {
            "dataset": {
                "kind": "associative_recall",
                "pairs": 4,
                "length": 16,
                "vocabulary_size": 32,
                "examples": 6000,
            },
            "tokenizer": {"kind": "token_ids", "vocabulary_size": 32},
        },
        "train": {
            "device": "cpu",
            "precision": "float32",
            "compile": False,
            "steps": 200,
            "batch_size": 64,
            "lr": 0.01,
            "validate_every": 50,
        },
    }
    content["model"] |= {"expansion": 1, "context_length": 16}
    return run_config(content, [f"{path}={value}" for path, value in overrides.items()], "recall")


def test_windows_hold_one_example_each_and_only_answers_count(tmp_path: Path) -> None:
    trainer = Trainer(recall_run(**{"train.batch_size": 3}), RunDirectory(tmp_path / "run"))
    train = trainer.data.split("train")
    starts = {tuple(train.tokens[start : start + 16]) for start in train.document_starts}
    assert type(trainer.windows) is DocumentWindows
    for _ in range(3):
        batch = next(trainer.windows)
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            assert tuple(inputs) in starts
            answers = {place: inputs[place] for place in (9, 11, 13, 15)}
            assert targets == [answers.get(place, IGNORED) for place in range(1, 17)]


def test_a_probe_needs_token_ids(tmp_path: Path) -> None:
    data = {"dataset": {"kind": "induction"}, "cache_directory": str(tmp_path)}
    with pytest.raises(ConfigurationError, match=r"byte_pair.*{kind: token_ids, vocabulary_size: 512}"):
        PreparedData(parse(DataConfig, data))
    with pytest.raises(ConfigurationError, match="vocabulary_size=100 is less"):
        PreparedData(parse(DataConfig, {**data, "tokenizer": {"kind": "token_ids", "vocabulary_size": 100}}))
    mixed = {"kind": "mix", "sources": [{"dataset": {"kind": "induction"}}]}
    with pytest.raises(ConfigurationError, match=r"sources\.0\.dataset: induction is made of token ids"):
        PreparedData(parse(DataConfig, {**data, "dataset": mixed}))


def test_only_answers_are_validated(tmp_path: Path) -> None:
    trainer = Trainer(recall_run(), RunDirectory(tmp_path / "run"))
    split = trainer.data.split("validation")
    result = evaluate(trainer.model, split, trainer.data.tokenizer)
    tokens = torch.from_numpy(split.tokens.astype(int)).view(-1, 16)
    with torch.no_grad():
        logits = trainer.model.eval()(tokens)
    answers = torch.arange(9, 16, 2)
    losses = F.cross_entropy(logits[:, answers - 1].flatten(0, 1), tokens[:, answers].flatten())
    assert result.tokens == 4 * len(tokens)
    assert result.nats_per_token == pytest.approx(losses.item(), rel=1e-5)


def test_a_small_model_learns_to_recall(tmp_path: Path) -> None:
    report = train(recall_run(), tmp_path / "run").report
    assert report is not None
    assert report.evaluation.accuracy > 0.95
