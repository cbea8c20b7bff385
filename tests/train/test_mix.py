from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavelet_core import ConfigurationError, load_checkpoint
from wavelet_core.config import parse
from wavelet_core.tokenizers import BytesTokenizer
from wavelet_train import token_mix, tokenizing
from wavelet_train.data import DataConfig, PreparedData
from wavelet_train.evaluation import score_text
from wavelet_train.run_config import RunConfig
from wavelet_train.token_mix import turns
from wavelet_train.token_split import TokenSplit
from wavelet_train.trainer import plan_training, train


def source(folder: Path, letter: str, count: int, weight: float) -> dict[str, Any]:
    """A source with `count` documents of one letter and a number of it that differs."""
    file = folder / f"{letter}.jsonl"
    rows = [{"text": letter * (1 + number % 9) + "."} for number in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"kind": "text", "text_column": "text", "train": str(file), "validation": str(file)}
    return {"dataset": dataset, "weight": weight}


def prepared(folder: Path, sources: list[dict[str, Any]], **fields: Any) -> PreparedData:
    fields = {"tokenizer": "bytes"} | fields
    until = fields.pop("until", "all_exhausted")
    config = {"dataset": {"kind": "mix", "sources": sources, "until": until}, "cache_directory": str(folder / "cache")}
    return PreparedData(parse(DataConfig, config | fields))


def split_of_lengths(lengths: list[int], value: int, separated: bool) -> TokenSplit:
    tokens, starts = [], []
    for length in lengths:
        tokens += [99] if separated and starts else []
        starts.append(len(tokens))
        tokens += [value] * length
    return TokenSplit("train", np.array(tokens, np.uint16), np.array(starts, np.int64), len(tokens), 0)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), st.floats(0.1, 10)),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
    st.booleans(),
)
def test_every_source_keeps_its_share(sources: list[tuple[list[int], float]], separated: bool, repeated: bool) -> None:
    splits = [split_of_lengths(lengths, number, separated) for number, (lengths, _) in enumerate(sources)]
    weights = [weight for _, weight in sources]
    given_tokens = [0] * len(sources)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_mix, "TURN", 7)
        for turn in turns(splits, weights, separated, repeated):
            assert set(turn.tokens.tolist()) <= {turn.source}
            assert len(turn.tokens) <= 7
            given_tokens[turn.source] += len(turn.tokens)
            total = sum(given_tokens)
            for tokens, weight in zip(given_tokens, weights, strict=True):
                # Nobody is more than a turn ahead of the others, each measured by its weight.
                assert (
                    tokens / weight - 7 / weight
                    <= min(other / share for other, share in zip(given_tokens, weights, strict=True)) + 1e-6 * total
                )
    epochs = [tokens / sum(lengths) for tokens, (lengths, _) in zip(given_tokens, sources, strict=True)]
    if repeated:
        assert min(epochs) >= 1
    else:
        assert max(epochs) <= 1
        assert 1 in epochs


def test_weights_are_shares_of_tokens(tmp_path: Path) -> None:
    data = prepared(tmp_path, [source(tmp_path, "a", 300, 3), source(tmp_path, "b", 500, 1)])
    train = data.split("train")
    text = bytes(train.tokens.astype(np.uint8)).decode()
    of_b = sum(len(document) for document in text.split(".") if "b" in document) + text.count("b.")
    assert of_b / len(text) == pytest.approx(0.25, abs=0.01)
    assert [mixed.tokens for mixed in train.sources] == [len(text) - of_b, of_b]
    assert train.sources[1].epochs == 1
    assert train.sources[0].epochs == pytest.approx(3 * 500 / 300, abs=0.1)
    assert train.byte_count == len(text)
    # Documents stay whole.
    starts = [*train.document_starts.tolist(), len(text)]
    found = [text[start:end] for start, end in pairwise(starts)]
    assert all(len(set(document)) == 2 and document.endswith(".") for document in found)
    # What is validated on repeats nothing and has the same shares.
    validation = data.split("validation")
    assert [mixed.epochs for mixed in validation.sources] == [1, pytest.approx(300 / 3 / 500, abs=0.03)]


def test_documents_are_separated_and_long_ones_are_given_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_mix, "TURN", 50)
    for name, text in (("x", "x " * 400), ("y", "y " * 100)):
        (tmp_path / f"{name}.txt").write_text(text)
    sources = [
        {"dataset": {"kind": "text", "train": str(tmp_path / f"{name}.txt")}, "weight": weight}
        for name, weight in (("x", 4), ("y", 1))
    ]
    data = prepared(tmp_path, sources, tokenizer={"kind": "byte_pair", "vocabulary_size": 260})
    train = data.split("train")
    end = data.tokenizer.end_of_text
    assert train.tokens.tolist().count(end) == len(train.document_starts) - 1 > 4
    assert [train.tokens[start - 1] for start in train.document_starts[1:]] == [end] * (len(train.document_starts) - 1)
    assert sum(mixed.tokens for mixed in train.sources) == len(train.tokens) - len(train.document_starts) + 1
    assert [mixed.epochs for mixed in train.sources] == [1, 1]


def test_other_weights_tokenize_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [source(tmp_path, "a", 300, 3), source(tmp_path, "b", 500, 1)]
    tokenizer = {"kind": "byte_pair", "vocabulary_size": 270}
    first = prepared(tmp_path, sources, tokenizer=tokenizer)
    tokens = first.split("train").tokens
    monkeypatch.setattr(tokenizing, "encode", lambda *_: pytest.fail("text was tokenized again"))
    sources[0]["weight"] = 1
    second = prepared(tmp_path, sources, tokenizer=tokenizer)
    assert second.tokenizer.token_bytes == first.tokenizer.token_bytes
    assert len(second.split("train").tokens) < len(tokens)
    assert second.identity.fingerprint != first.identity.fingerprint
    assert prepared(tmp_path, sources, tokenizer=tokenizer).identity == second.identity


def test_the_length_follows_until(tmp_path: Path) -> None:
    sources = [source(tmp_path, "a", 100, 1), source(tmp_path, "b", 300, 1)]
    kinds = ("all_exhausted", "first_exhausted")
    lengths = [len(prepared(tmp_path, sources, until=until).split("train").tokens) for until in kinds]
    assert lengths[0] == pytest.approx(3 * lengths[1], rel=0.05)


def test_the_same_mix_is_the_same_every_time(tmp_path: Path) -> None:
    sources = [source(tmp_path, "a", 100, 1), source(tmp_path, "b", 300, 0.7)]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    splits = [prepared(tmp_path / name, sources).split("train") for name in ("one", "two")]
    assert splits[0].tokens.tobytes() == splits[1].tokens.tobytes()
    assert splits[0].document_starts.tolist() == splits[1].document_starts.tolist()


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"dataset\.sources\[1\]\.weight: Input should be"):
        prepared(tmp_path, [source(tmp_path, "a", 10, 1), source(tmp_path, "b", 10, weight)])


def test_errors_name_the_source(tmp_path: Path) -> None:
    sources = [source(tmp_path, "a", 10, 1), source(tmp_path, "b", 10, 1)]
    data = prepared(tmp_path, sources)
    with pytest.raises(ConfigurationError, match=r"data\.dataset\.sources\.0\.dataset\.test: names no text"):
        data.split("test")
    sources[1]["dataset"]["train"] = str(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"data\.dataset\.sources\.1\.dataset\.train: there is no file"):
        prepared(tmp_path, sources)


def test_a_mix_is_described_by_its_shares(tmp_path: Path) -> None:
    description = prepared(tmp_path, [source(tmp_path, "a", 10, 3), source(tmp_path, "b", 10, 1)]).identity.description
    assert description.startswith("mix of 75.0% text, ")
    assert "; 25.0% text, " in description


def test_the_plan_says_how_often_a_source_is_given(tmp_path: Path) -> None:
    sources = [source(tmp_path, "a", 300, 3), source(tmp_path, "b", 500, 1)]
    dataset = {"kind": "mix", "sources": sources}
    model = {"width": 8, "layers": 1, "levels": 1, "context_length": 8}
    run = parse(
        RunConfig,
        {
            "model": model,
            "data": {"dataset": dataset, "tokenizer": "bytes", "cache_directory": str(tmp_path / "cache")},
            "train": {"steps": 1, "device": "cpu", "threads": 1, "precision": "float32"},
        },
    )
    plan = plan_training(run, tmp_path / "run")
    taken = prepared(tmp_path, sources).split("train").sources
    assert plan.as_dict()["sources"][1]["epochs"] == 1
    assert f"{taken[0].tokens:,} tokens of text, train=" in str(plan)
    assert "(1.00 epochs)" in str(plan)


def test_validations_tell_the_sources_apart(tmp_path: Path) -> None:
    texts = {"a": ["aaaa", "bbbbbbbb", "aaaaaa"] * 9, "b": ["xy" * 10] * 9}
    sources = []
    for name, documents in texts.items():
        for split in ("train", "validation"):
            (tmp_path / name / split).mkdir(parents=True)
            for number, text in enumerate(documents):
                (tmp_path / name / split / f"{number:02}.txt").write_text(text)
        paths = {split: str(tmp_path / name / split) for split in ("train", "validation")}
        sources.append({"dataset": {"kind": "text", **paths}})
    run = parse(
        RunConfig,
        {
            "model": {"width": 8, "layers": 1, "levels": 1, "context_length": 8},
            "data": {
                "dataset": {"kind": "mix", "sources": sources},
                "tokenizer": "bytes",
                "cache_directory": str(tmp_path / "cache"),
            },
            "train": {"steps": 1, "batch_size": 2, "device": "cpu", "threads": 1, "precision": "float32"},
        },
    )
    train(run, tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    [found] = [line for line in lines if line["event"] == "validation"]
    model = load_checkpoint(tmp_path / "run" / "best")
    split = PreparedData(run.data).split("validation")
    scores = score_text(model, split, BytesTokenizer())
    of_first = np.isin(split.tokens[split.document_starts], list(b"ab"))
    for entry, documents in zip(found["sources"], (of_first, ~of_first), strict=True):
        assert entry["nats_per_token"] == pytest.approx(scores.nats[documents].sum() / scores.tokens[documents].sum())
        assert entry["bits_per_byte"] == pytest.approx(entry["nats_per_token"] / math.log(2))
    assert sum(entry["tokens"] for entry in found["sources"]) == found["tokens"]
    assert [entry["name"] for entry in found["sources"]] == [source.name for source in split.sources]
