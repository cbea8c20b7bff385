"""Every sampler, tokenizer, optimizer, schedule, logger and data set of ours keeps the contract of its kind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from wavelet_core import ComponentConfig, registry
from wavelet_core.testing import check_component
from wavelet_core.tokenizers import BytePairTokenizer, Tokenizer, TokenizerError
from wavelet_train.byte_pair import train_byte_pair

KINDS = ("sampler", "tokenizer", "optimizer", "schedule", "logger", "dataset")
# Encodes no text, so that it cannot read every text back.
NO_CONTRACT = {("tokenizer", "token_ids")}


class LearntBytePair(BytePairTokenizer):
    """With what learns it, which lies in another package."""

    @classmethod
    def train(cls, config: BytePairTokenizer.Config, documents: Iterable[str]) -> Tokenizer:
        return train_byte_pair(config, documents)


def text_folder(folder: Path) -> dict[str, Any]:
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"Stone {number}: café.\n", encoding="utf-8")
    return {"path": str(folder)}


def text_lines(folder: Path) -> dict[str, Any]:
    file = folder / "text.txt"
    file.write_text("".join(f"stone {number}\n" for number in range(100)), encoding="utf-8")
    return {"path": str(file)}


def text_splits(folder: Path) -> dict[str, Any]:
    for split in ("train", "validation"):
        (folder / f"{split}.txt").write_text(f"a {split} stone\r\n", encoding="utf-8")
    return {"train": [str(folder / "train.txt")], "validation": str(folder / "validation.txt")}


def saved_rows(folder: Path) -> dict[str, Any]:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": [f"stone {number} of many" for number in range(200)]})
    datasets.DatasetDict({"train": rows}).save_to_disk(str(folder / "saved"))
    return {"path": str(folder / "saved")}


def joined_rows(folder: Path) -> dict[str, Any]:
    return {**saved_rows(folder), "join": "\n"}


def streamed_rows(folder: Path) -> dict[str, Any]:
    return {**row_file(folder), "streaming": True, "text_column": "text", "max_documents": {"test": 2}}


def row_file(folder: Path) -> dict[str, Any]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"stone {number} of many"}) + "\n" for number in range(200)))
    return {"path": str(file), "text_column": "text"}


def two_sources(folder: Path) -> dict[str, Any]:
    return {"sources": [{"dataset": {"kind": "text", **read(folder)}} for read in (text_lines, row_file)]}


OPTIONS: dict[tuple[str, str], list[Callable[[Path], dict[str, Any]]]] = {
    ("dataset", "text"): [text_folder, text_lines, text_splits, row_file],
    ("dataset", "hugging_face"): [saved_rows, joined_rows, streamed_rows],
    ("dataset", "mix"): [two_sources],
    ("logger", "wandb"): [lambda folder: {"mode": "offline"}],
    ("optimizer", "adagrad"): [
        lambda folder: {},
        lambda folder: {"initial_accumulator": 0.1, "lr_decay": 0.01, "weight_decay": 0.1, "decayed": "matrices"},
    ],
    ("optimizer", "adamw"): [
        lambda folder: {},
        lambda folder: {"decayed": "all", "weight_decay": 0.3, "groups": [{"match": "table", "weight_decay": 0.0}]},
    ],
    ("optimizer", "muon"): [lambda folder: {}, lambda folder: {"matrices": ["*"], "adamw": ["table"]}],
    ("schedule", "constant"): [lambda folder: {"warmup": 0.3}],
    ("schedule", "cosine"): [lambda folder: {"warmup": 0.1, "final_lr": 0.01}, lambda folder: {}],
    ("schedule", "linear"): [lambda folder: {"warmup": 0.9, "final_lr": 0.01}, lambda folder: {}],
    ("schedule", "warmup_stable_decay"): [lambda folder: {"warmup": 0.5, "decay": 0.5, "shape": "square_root"}],
    ("sampler", "temperature"): [lambda folder: {"temperature": 0}, lambda folder: {"temperature": 0.7}],
    ("sampler", "wavelet_coherence"): [lambda folder: {"threshold": 0.01, "strength": 3.0, "window": 3}],
    ("tokenizer", "byte_pair"): [lambda folder: {"vocabulary_size": 400}],
    ("tokenizer", "sentencepiece"): [lambda folder: {"vocabulary_size": 400, "algorithm": "unigram"}],
}

CASES = [
    (kind, name, options)
    for kind in KINDS
    for name in registry.names(kind)
    if (kind, name) not in NO_CONTRACT and registry.owner(kind, name).package.startswith("wavelet-")
    for options in OPTIONS.get((kind, name), [lambda folder: {}])
]


@pytest.mark.parametrize(("kind", "name", "options"), CASES, ids=[f"{kind}-{name}" for kind, name, _ in CASES])
def test_it_keeps_the_contract_of_its_kind(
    kind: str, name: str, options: Callable[[Path], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "logger":
        pytest.importorskip(name, reason=f"needs the extra wavelet-train[{name}]")
    component: Any = registry.get(kind, name)
    config: ComponentConfig = component.Config(**options(tmp_path))
    if name == "byte_pair":
        component = LearntBytePair
    if name == "tiktoken":
        skip_without_encoding(component, config, monkeypatch)
    check_component(component, config, kind=kind)


def skip_without_encoding(component: Any, config: ComponentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path(__file__).parents[3] / "shared" / "data" / "tiktoken"
    if shared.exists() and "TIKTOKEN_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared))
    try:
        component(config)
    except TokenizerError as error:
        pytest.skip(f"the encoding is neither on this machine nor to be downloaded: {error}")


def test_every_kind_has_components_that_are_checked() -> None:
    assert {kind for kind, _, _ in CASES} == set(KINDS)
    assert {(kind, name) for kind in KINDS for name in registry.names(kind)} >= NO_CONTRACT
    assert OPTIONS.keys() <= {(kind, name) for kind, name, _ in CASES}
