from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from wavelet_core import ConfigurationError
from wavelet_core.config import parse
from wavelet_train.datasets import SPLITS, split_of
from wavelet_train.hugging_face import HuggingFace

TEXTS = [f"document number {number}" for number in range(200)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    yield


def hugging_face(path: Path | str, **fields: Any) -> HuggingFace:
    return HuggingFace(parse(HuggingFace.Config, {"path": str(path), **fields}))


def rows(texts: list[str | None], column: str = "text") -> datasets.Dataset:
    return datasets.Dataset.from_dict({column: texts, "number": list(range(len(texts)))})


def json_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_a_saved_data_set_keeps_its_splits(tmp_path: Path) -> None:
    splits = {"train": rows(["a", "b", "", None]), "valid": rows(["c"])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    dataset = hugging_face(tmp_path / "saved", validation_split="valid")
    assert list(dataset.documents("train")) == ["a", "b"]
    assert list(dataset.documents("validation")) == ["c"]
    assert dataset.size("train") > 0
    with pytest.raises(
        ConfigurationError, match=r"data\.dataset\.test_split: .* has no split 'test'; it has: train, val"
    ):
        next(dataset.documents("test"))


def test_parquet_files_are_splits_by_their_names(tmp_path: Path) -> None:
    rows(["a", "b"], column="content").to_parquet(tmp_path / "train.parquet")
    rows(["c"], column="content").to_parquet(tmp_path / "test.parquet")
    dataset = hugging_face(tmp_path, text_column="content")
    assert list(dataset.documents("train")) == ["a", "b"]
    assert list(dataset.documents("test")) == ["c"]


def test_a_single_split_is_dealt_by_a_hash_of_the_text(tmp_path: Path) -> None:
    dataset = hugging_face(json_lines(tmp_path / "texts.jsonl", TEXTS))
    for split in SPLITS:
        assert list(dataset.documents(split)) == [text for text in TEXTS if split_of(text) == split]


def test_joined_rows_are_one_document(tmp_path: Path) -> None:
    splits = {"train": rows(["a", "", "b"]), "validation": rows(["c", "d"])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    dataset = hugging_face(tmp_path / "saved", join="\n\n")
    assert list(dataset.documents("train")) == ["a\n\n\n\nb"]
    assert list(dataset.documents("validation")) == ["c\n\nd"]


def test_a_single_joined_split_is_cut(tmp_path: Path) -> None:
    dataset = hugging_face(json_lines(tmp_path / "lines.jsonl", TEXTS), join="\n")
    parts = [list(dataset.documents(split)) for split in SPLITS]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert "".join(part[0] for part in parts) == "\n".join(TEXTS)


def test_the_fingerprint_follows_content_and_options(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "texts.jsonl", TEXTS)
    fingerprints = [hugging_face(file).fingerprint(), hugging_face(file, join=" ").fingerprint()]
    assert hugging_face(file).fingerprint() == fingerprints[0]
    json_lines(file, [*TEXTS, "one more"])
    fingerprints.append(hugging_face(file).fingerprint())
    assert len(set(fingerprints)) == 3


def test_a_wrong_column_is_named(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "texts.jsonl", TEXTS)
    with pytest.raises(ConfigurationError, match=r"data\.dataset\.text_column: .* 'txt'; did you mean 'text'"):
        hugging_face(file, text_column="txt")
    rows(["a"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigurationError, match=r"column 'number' of .* holds .*int64.*, not text"):
        hugging_face(tmp_path / "saved", text_column="number")


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.dataset\.path: there is no file or folder .*nowhere"):
        hugging_face(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="could not open"):
        hugging_face(tmp_path)
    (tmp_path / "texts.parquet").write_bytes(b"not parquet")
    with pytest.raises(ConfigurationError, match=r"could not open .*texts\.parquet"):
        hugging_face(tmp_path / "texts.parquet")
    (tmp_path / "notes.doc").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"one file must end in \.parquet"):
        hugging_face(tmp_path / "notes.doc")


def test_options_of_the_hub_are_refused_for_local_data(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "texts.jsonl", TEXTS)
    with pytest.raises(ConfigurationError, match=r"data\.dataset\.revision: applies to data sets on the hub"):
        hugging_face(file, revision="main")


def test_a_data_set_without_text_is_refused(tmp_path: Path) -> None:
    rows(["", None]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigurationError, match="leaves the train split without text"):
        next(hugging_face(tmp_path / "saved").documents("train"))


def stream(path: Path | str, **fields: Any) -> HuggingFace:
    return hugging_face(path, streaming=True, **fields)


def test_streamed_files_are_the_same_documents(tmp_path: Path) -> None:
    rows(list(TEXTS)).to_parquet(tmp_path / "train.parquet")
    rows(["c", "", None]).to_parquet(tmp_path / "validation.parquet")
    for fields in ({}, {"join": "\n"}):
        for split in ("train", "validation"):
            streamed = list(stream(tmp_path, **fields).documents(split))
            assert streamed == list(hugging_face(tmp_path, **fields).documents(split))
    with pytest.raises(ConfigurationError, match=r"data\.dataset\.test_split: .* has no split 'test'"):
        next(stream(tmp_path).documents("test"))


def test_a_streamed_split_alone_is_dealt_or_cut(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "texts.jsonl", TEXTS)
    for fields in ({}, {"join": "\n"}):
        for split in SPLITS:
            expected = list(hugging_face(file, **fields).documents(split))
            assert list(stream(file, **fields).documents(split)) == expected


def test_the_fingerprint_of_a_stream_follows_files_and_options(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "texts.jsonl", TEXTS)
    fingerprints = [stream(file).fingerprint(), stream(file, max_documents={"train": 3}).fingerprint()]
    assert stream(file).fingerprint() == fingerprints[0]
    moved = file.rename(tmp_path / "moved.jsonl")
    assert stream(moved).fingerprint() == fingerprints[0]
    json_lines(moved, [*TEXTS[:-1], "document number 000"])
    fingerprints.append(stream(moved).fingerprint())
    assert len(set(fingerprints)) == 3


def test_the_fingerprint_of_a_stream_from_the_hub_is_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {"main": "1f0a", "old": "77be"}

    def load_dataset(path: str, name: str | None, revision: str | None, streaming: bool) -> Any:
        assert (path, name, streaming) == ("owner/name", "plain", True)
        return datasets.IterableDatasetDict({"train": rows(list(TEXTS)).to_iterable_dataset()})

    class Hub:
        def dataset_info(self, path: str, revision: str | None) -> Any:
            if revision == "gone":
                raise OSError("404 for revision gone")
            return SimpleNamespace(sha=commits[revision or "main"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    main, old = (stream("owner/name", name="plain", revision=revision) for revision in (None, "old"))
    assert main.fingerprint() != old.fingerprint()
    commits["old"] = commits["main"]
    assert main.fingerprint() == old.fingerprint()
    with pytest.raises(ConfigurationError, match=r"could not look up 'owner/name': 404 for revision gone"):
        stream("owner/name", name="plain", revision="gone").fingerprint()


@pytest.mark.parametrize("streaming", [False, True])
def test_documents_can_be_limited(tmp_path: Path, streaming: bool) -> None:
    file = json_lines(tmp_path / "texts.jsonl", TEXTS)
    dataset = hugging_face(file, streaming=streaming, max_documents={"train": 3})
    whole = hugging_face(file)
    assert list(dataset.documents("train")) == list(whole.documents("train"))[:3]
    assert list(dataset.documents("test")) == list(whole.documents("test"))
    assert dataset.size("train") is None
    with pytest.raises(ConfigurationError, match="with join a split is one document"):
        hugging_face(file, join="", max_documents={"train": 3})


def test_a_wrong_column_of_a_stream_is_named(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "texts.jsonl", TEXTS)
    with pytest.raises(ConfigurationError, match=r"data\.dataset\.text_column: .* 'txt'; did you mean 'text'"):
        stream(file, text_column="txt")


def test_a_stream_that_breaks_off_is_named(tmp_path: Path) -> None:
    for number in range(2):
        rows(list(TEXTS)).to_parquet(tmp_path / f"train-{number}.parquet")
    dataset = stream(tmp_path, validation_split="train")
    (tmp_path / "train-1.parquet").write_bytes(b"PAR1 and no more")
    documents = dataset.documents("train")
    assert next(documents)
    with pytest.raises(ConfigurationError, match=r"could not read '.*test_a_stream_that_breaks_off"):
        list(documents)


def test_what_is_saved_to_disk_is_not_streamed(tmp_path: Path) -> None:
    rows(["a"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigurationError, match=r"data\.dataset\.streaming: .*saved was written by save_to_disk"):
        stream(tmp_path / "saved")
