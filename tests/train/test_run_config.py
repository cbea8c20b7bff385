"""Configuration files, presets and overrides of whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml

from wavelet_core import ConfigurationError, ModelConfig, MultinodalConfig, build_model
from wavelet_core.tokenizers import BytesTokenizer
from wavelet_train.data import PreparedData
from wavelet_train.datasets import SPLITS
from wavelet_train.run_config import RunConfig, TrainConfig, dump, list_presets, load_run_config

PRESETS = [
    "b200",
    "base",
    "demo",
    "mini",
    "openwebtext-mix",
    "pg-19",
    "small",
    "tiny",
    "tinystories",
    "wikitext-103",
    "wikitext-2",
]


def parameters(run: RunConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(run.model).parameters())


def test_presets_are_listed_with_descriptions() -> None:
    presets = list_presets()
    assert list(presets) == PRESETS
    assert all(description.strip() for description in presets.values())


@pytest.mark.parametrize("name", PRESETS)
def test_dumped_configuration_loads_as_the_same(name: str, tmp_path: Path) -> None:
    run = load_run_config(name)
    (tmp_path / "run.yaml").write_text(dump(run))
    (tmp_path / "run.json").write_text(run.model_dump_json())
    assert load_run_config(tmp_path / "run.yaml") == run
    assert load_run_config(tmp_path / "run.json") == run


@pytest.mark.parametrize(
    ("name", "count"), [("wikitext-103", 882_511_981), ("pg-19", 807_731_309), ("mini", 72_885_707)]
)
def test_preset_has_the_published_parameter_count(name: str, count: int) -> None:
    assert parameters(load_run_config(name)) == count


@pytest.mark.parametrize(("name", "millions"), [("tiny", 1), ("small", 3), ("base", 20)])
def test_preset_has_about_the_size_that_it_says(name: str, millions: int) -> None:
    run = load_run_config(name)
    model = run.model.with_vocabulary(run.data.tokenizer.vocabulary_size)  # type: ignore[attr-defined]
    assert parameters(run.model_copy(update={"model": model})) == pytest.approx(millions * 1e6, rel=0.1)


def test_b200_preset_has_ten_to_fifteen_billion_parameters() -> None:
    assert 10e9 < parameters(load_run_config("b200")) < 15e9
    assert 13.85e9 < parameters(load_run_config("b200", ["model.memories.0.expansion=75"])) < 13.95e9


def test_demo_preset_has_every_part_of_the_headline_architecture() -> None:
    demo, headline = load_run_config("demo").model, load_run_config("wikitext-103").model
    assert demo.wavelet == headline.wavelet
    assert demo.mixer.kind == headline.mixer.kind
    assert demo.mixer.routing and demo.mixer.rank and len(set(demo.mixer.widths)) > 1
    assert demo.block.embedding_residual and demo.block.learned_residual
    assert [memory.kind for memory in demo.memories] == [memory.kind for memory in headline.memories]
    assert (demo.transform, demo.bypass, demo.layers) == (headline.transform, headline.bypass, headline.layers)


def test_overrides_reach_fields_list_entries_and_components() -> None:
    run = load_run_config(
        "demo",
        [
            "train.lr=0.5",
            "model.memories.0.expansion=3",
            "model.mixer.widths=null",
            "data.dataset=python_stdlib",
            "train.gradient_clipping=null",
            "train.device=cpu",
        ],
    )
    assert run.train.lr == 0.5
    assert run.model.memories[0].expansion == 3
    assert run.model.memories[1] == load_run_config("demo").model.memories[1]
    assert run.model.mixer.widths is None and run.model.mixer.routing
    assert run.train.gradient_clipping is None


def test_overriding_a_kind_drops_the_fields_of_the_component_before() -> None:
    run = load_run_config("wikitext-103", ["train.optimizer.kind=adamw", "train.optimizer.beta2=0.95"])
    assert run.train.optimizer.kind == "adamw"
    assert run.train.optimizer.beta2 == 0.95
    assert run.train.optimizer.eps == 1e-8


def test_overrides_reach_defaults_that_the_file_does_not_mention(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {mixer: gated_spectral}\n")
    run = load_run_config(path, ["model.memories.0.expansion=7", "model.mixer.rank=2", "train.optimizer.eps=1e-5"])
    assert run.model.memories[0].expansion == 7
    assert run.model.mixer.rank == 2
    assert run.train.optimizer.eps == 1e-5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr", "expected a dotted path and a value"),
        ("train..lr=1", "expected a dotted path and a value"),
        ("train.lr=[1", "not YAML"),
        ("train.lr.x=1", "lr is 0.0"),
        ("model.memories.9.expansion=1", "'9' is not an entry of a list of 3"),
        ("model.memories.first.expansion=1", "'first' is not an entry"),
        ("train.lrr=1", "train.lrr: unknown field; did you mean 'lr'?"),
        ("train.lr=fast", "train.lr"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.optimizer=adamm", "did you mean 'adamw'?"),
        ("train.schedule.kind=cosin", "did you mean 'cosine'?"),
        ("train.precision=float8", "train.precision"),
        ("modell.width=1", "modell: unknown field; did you mean 'model'?"),
    ],
)
def test_bad_override_is_named(override: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_run_config("demo", [override])
    assert words in str(error.value)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown preset 'wikitext-104'; did you mean 'wikitext-103'\?"):
        load_run_config("wikitext-104")


def test_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no configuration file at nowhere/run\.yaml"):
        load_run_config("nowhere/run.yaml")
    with pytest.raises(ConfigurationError, match=r"no configuration file at run\.json"):
        load_run_config("run.json")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "train:\n  lr: 1\n  seed: [1\n", "line 4"),
        ("b.yaml", "train:\n  lr: 1\n  lr: 2\n", "line 3: not YAML: 'lr' is given twice"),
        ("c.json", '{"train":\n {"lr": }}', "line 2: not JSON"),
        ("d.yaml", "- train\n", "expected fields with values, found list"),
        ("e.yaml", "train: {lr: 1, optimiser: adamw}\n", "train.optimiser: unknown field; did you mean 'optimizer'?"),
        ("f.yaml", "train: {lr: -1}\nmodel: {layers: two}\n", "model.layers"),
    ],
)
def test_bad_file_is_named_with_the_place(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError) as error:
        load_run_config(tmp_path / name)
    assert words in str(error.value)
    assert name in str(error.value)


def test_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
        load_run_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigurationError, match="is a directory"):
        load_run_config(tmp_path)


def test_a_flat_file_of_the_original_is_refused_naming_what_translates_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"C": 24, "layers": 3, "levels": 4}')
    with pytest.raises(ConfigurationError, match=r"config\.json is a flat .*`wavelet train`.*`wavelet import`"):
        load_run_config(tmp_path / "config.json")


def test_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("")
    assert load_run_config(tmp_path / "run.yaml") == RunConfig()


def test_file_wins_over_a_preset_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("description: mine\n")
    assert load_run_config("demo").description == "mine"


def test_every_field_has_a_description_and_a_place_in_the_schema() -> None:
    schema = RunConfig.model_json_schema()
    assert json.dumps(schema)
    for section in (RunConfig, TrainConfig):
        assert all(field.description for field in section.model_fields.values())


def test_preset_files_write_numbers_that_yaml_reads_as_numbers() -> None:
    for name in PRESETS:
        run = load_run_config(name)
        assert isinstance(yaml.safe_load(dump(run))["train"]["lr"], float)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"width": 24, "multinodal": None}, ModelConfig(width=24)),
        (
            {"width": 24, "multinodal": {"cells": 2, "width": 8, "seeds": [3, 4]}},
            MultinodalConfig(width=8, cells=2, seeds=[3, 4]),
        ),
    ],
    ids=["one model", "cells"],
)
def test_configurations_of_the_first_format_are_read(tmp_path, section, expected):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"format_version": 1, "components": {}, "format": {"kind": "int8"}, "model": section}))
    assert load_run_config(file).model == expected


# What the data sets of the presets have on the hub: their splits and columns.
HUB = {
    "Salesforce/wikitext": (["train", "validation", "test"], ["text"]),
    "emozilla/pg19": (["train", "validation", "test"], ["short_book_title", "publication_date", "url", "text"]),
    "timaeus/pile-arxiv": (["train"], ["text", "meta"]),
    "lucadiliello/bookcorpusopen": (["train"], ["title", "text"]),
    "roneneldan/TinyStories": (["train", "validation"], ["text"]),
    "Skylion007/openwebtext": (["train"], ["text"]),
}


@pytest.mark.parametrize("name", ["openwebtext-mix", "pg-19", "tinystories", "wikitext-103", "wikitext-2"])
def test_the_data_of_presets_is_read_from_files_like_those_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    load = datasets.load_dataset

    def from_files(path: str, *arguments: Any, **options: Any) -> Any:
        splits, columns = HUB[path]
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        for split in splits:
            rows = {column: [f"{path} {column} {split} {number}" for number in range(100)] for column in columns}
            datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
        asked.append((path, *arguments))
        return load(str(folder), streaming=options["streaming"])

    monkeypatch.setattr(datasets, "load_dataset", from_files)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha="1f0a"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    config = load_run_config(name).data.model_copy(update={"cache_directory": str(tmp_path / "cache")})
    data = PreparedData(config, BytesTokenizer())
    for split in SPLITS:
        text = bytes(data.split(split).tokens.astype(np.uint8)).decode()
        assert " text " in text
        assert split != "train" or all(path in text for path, *_ in asked)
    assert len(asked) == (6 if name == "openwebtext-mix" else 1)
