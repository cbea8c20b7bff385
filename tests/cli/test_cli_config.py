"""`wavelet config`: what is listed, shown and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wavelet_train.run_config import list_presets, load_run_config

PRESETS = ["demo", "wikitext-103", "pg-19", "mini", "b200"]


def test_list_shows_every_preset_with_its_description(wavelet):
    listed = json.loads(wavelet("config", "list", "--json").stdout)
    assert listed == list_presets()
    assert set(PRESETS) <= set(listed)
    assert all(listed.values())
    lines = wavelet("config", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(listed)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("options", "suffix"), [((), "yaml"), (("--json",), "json")])
def test_show_prints_a_file_that_loads_as_the_same_configuration(wavelet, tmp_path, preset, options, suffix):
    overrides = ("--set", "model.levels=4", "--set", "model.mixer={kind: deep_gated_spectral, depth: 3}")
    result = wavelet("config", "show", preset, *overrides, *options)
    assert result.exit_code == 0, result.stderr
    file = tmp_path / f"shown.{suffix}"
    file.write_text(result.stdout)
    assert load_run_config(file) == load_run_config(preset, overrides[1::2])


def parameters(wavelet, *arguments: str) -> tuple[int, dict[str, dict]]:
    result = wavelet("config", "show", *arguments, "--parameters", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    parts = {part["part"]: part for part in report["parts"]}
    assert sum(part["parameters"] for part in parts.values()) == report["total"]
    return report["total"], parts


def test_the_headline_preset_has_the_published_parameters(wavelet):
    total, parts = parameters(wavelet, "wikitext-103")
    assert total == 882_511_981
    assert parts["wavelet lifting"]["copies"] == [83_927_055]
    assert parts["wavelet lifting"]["uses"] == 2
    assert parts["mixer gated_spectral"]["copies"] == [44_113_920] * 2
    assert parts["memory mlp"]["copies"] == [167_815_168] * 2
    assert parts["memory product_key"]["copies"] == [38_010_880] * 2
    assert parts["memory fast_weight_product_key"]["copies"] == [38_010_880] * 2
    assert parts["embedding"]["copies"] == parts["head"]["copies"] == [102_926_336]

    table = wavelet("config", "show", "wikitext-103", "--parameters").stdout
    assert "882,511,981" in table.splitlines()[-1]
    assert "wavelet lifting (shared)" in table


def test_the_big_preset_is_counted_without_its_memory(wavelet):
    total, _ = parameters(wavelet, "b200")
    assert 10e9 < total < 15e9


def test_a_tied_head_counts_nothing(wavelet):
    _, parts = parameters(wavelet, "demo", "--set", "model.tied_embedding=true")
    assert parts["head"]["copies"] == []
    shown = wavelet("config", "show", "demo", "--set", "model.tied_embedding=true", "--parameters").stdout
    assert "head (tied to the embedding)" in shown


def test_the_vocabulary_comes_from_the_tokenizer_where_the_model_names_none(wavelet):
    common = ("--set", "model.vocabulary_size=null", "--set", "model.width=64")
    for tokenizer, size in (("{kind: byte_pair, vocabulary_size: 1000}", 1000), ("bytes", 256)):
        _, parts = parameters(wavelet, "demo", *common, "--set", f"data.tokenizer={tokenizer}")
        assert parts["embedding"]["copies"] == [64 * size]


def test_the_schema_has_the_fields_of_every_component(wavelet):
    result = wavelet("config", "schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert set(schema["properties"]) >= {"model", "data", "train"}
    assert "num_keys" in result.stdout and "crawl" in result.stdout and "description" in result.stdout


def test_a_flat_file_of_the_original_is_shown_as_ours(wavelet, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"C": 24, "layers": 3, "levels": 4, "low_rank": 2, "wavelet_crawl": True, "lr": 0.01}))
    overrides = ("--set", "model.vocabulary_size=100", "--set", "data.dataset=python_stdlib")
    result = wavelet("config", "show", file, "--json", *overrides)
    assert result.exit_code == 0, result.stderr
    model = json.loads(result.stdout)["model"]
    assert (model["width"], model["layers"], model["levels"], model["vocabulary_size"]) == (24, 3, 4, 100)
    assert (model["mixer"]["rank"], model["wavelet"]["crawl"], model["memories"]) == (2, 3, [])


def show(wavelet, tmp_path: Path, text: str) -> str:
    """The message for a configuration file that must be refused."""
    file = tmp_path / "run.yaml"
    file.write_text(text)
    result = wavelet("config", "show", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("wavelet: error: ")
    return result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {widht: 32}", ["model.widht", "did you mean 'width'?"]),
        ("modle: {}", ["modle", "did you mean 'model'?"]),
        ("model: {width: wide}", ["model.width", "'wide'", "integer"]),
        ("model: {width: -1}", ["model.width", "-1"]),
        ("model: {mixer: gated_spectrum}", ["model.mixer", "did you mean 'gated_spectral'?"]),
        ("model: {mixer: {kind: gated_spectral, rnak: 2}}", ["rnak", "did you mean 'rank'?"]),
        ("model: {wavelet: {crawl: 4}}", ["model.wavelet", "crawl=4 is even", "3 or 5"]),
        ("model: {mixer: {widths: [1, 1]}}", ["mixer", "widths", "model.levels"]),
        ("model: {width: 33, memories: [{kind: product_key, num_keys: 64, top_k: 4}]}", ["memories[0]", "width", "33"]),
        ("model: {width: 32, memories: [{kind: product_key, num_keys: 60}]}", ["num_keys", "60", "square"]),
        ("model: {width: 32, memories: [{kind: product_key, num_keys: 64, top_k: 65}]}", ["top_k", "65", "num_keys"]),
        ("train: {optimizer: adamm}", ["train.optimizer", "did you mean 'adamw'?"]),
        ("model: [1, 2]", ["model"]),
        ("- 1", ["expected fields with values", "list"]),
        ("model: {width: 1", ["line"]),
    ],
)
def test_a_mistake_is_named_with_its_field_and_value(wavelet, tmp_path, text, expected):
    message = show(wavelet, tmp_path, text)
    assert all(part in message for part in expected), message


def test_all_mistakes_are_named_at_once(wavelet, tmp_path):
    message = show(wavelet, tmp_path, "model: {widht: 32}\ntrain: {lr: fast}")
    assert "model.widht" in message and "train.lr" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no/such/file.yaml"], "no/such/file.yaml"),
        (["demoo"], "did you mean 'demo'?"),
        (["demo", "--set", "train.lr"], "train.lr"),
        (["demo", "--set", "train.lrr=1"], "did you mean 'lr'?"),
        (["demo", "--set", "model.width=[1"], "model.width"),
    ],
)
def test_a_wrong_name_or_override_is_explained(wavelet, arguments, expected):
    result = wavelet("config", "show", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr
