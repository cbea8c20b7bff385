"""A flat configuration of the original becomes the run that it means, or the question what it means."""

from __future__ import annotations

import json

import pytest

from wavelet_train.run_config import TrainConfig, load_run_config

MODEL = {"C": 16, "layers": 1, "levels": 2, "block_size": 8}
# As in the original's own files, with options of its model that are off and settings that leave the model alone.
PUBLISHED = {
    **MODEL,
    **{"dataset": "wikitext-103", "tokenizer": "auto", "seed": 1337, "epochs": 5, "micro_batch_size": 4},
    **{"grad_accum": 2, "eval_interval": 250, "optimizer": "Adagrad", "optimizer_eps": 2e-13, "lr": 0.02},
    **{"min_lr": 0.0004, "warmup_fraction": 0.2, "grad_clip": 0.5, "use_amp": True, "amp_dtype": "fp16"},
    **{"weight_decay": 1e-6, "out_dir": "logs", "compile": True, "bbce_enabled": False, "wavelet_2d_mode": "off"},
    **{"__comment": "a note", "temperature": 1.0},
}


@pytest.fixture
def called(wavelet, tmp_path):
    """Run a command with a flat configuration and overrides."""

    def run(flat, overrides, command, *options):
        (tmp_path / "config.json").write_text(json.dumps(flat))
        settings = [part for override in overrides for part in ("--set", override)]
        return wavelet(*command, tmp_path / "config.json", *options, *settings)

    return run


@pytest.fixture
def show(called):
    """The run that `wavelet config show` prints for a flat configuration, and its notes."""

    def run(flat, *overrides):
        result = called(flat, overrides, ("config", "show"), "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout), result.stderr

    return run


@pytest.fixture
def refusal(called, tmp_path):
    """The message of `wavelet train` for a flat configuration."""

    def run(flat, *overrides):
        result = called(flat, overrides, ("train",), "--out", tmp_path / "run")
        assert (result.exit_code, result.stdout) == (2, "")
        assert not (tmp_path / "run").exists()
        return result.stderr

    return run


def test_the_published_recipe(show):
    run, notes = show(PUBLISHED)
    assert notes == ""
    assert run["model"]["vocabulary_size"] == 50257
    preset = load_run_config("wikitext-103").model_dump(mode="json")
    assert run["data"] == preset["data"]
    expected = {
        **{"seed": 1337, "epochs": 5.0, "batch_size": 4, "accumulation": 2, "validate_every": 250, "lr": 0.02},
        **{"gradient_clipping": 0.5, "precision": "float16"},
    }
    assert {name: run["train"][name] for name in expected} == expected
    assert run["train"]["optimizer"] == preset["train"]["optimizer"]
    assert run["train"]["schedule"] == {"kind": "cosine", "warmup": 0.2, "final_lr": 0.0004}


def test_other_data_tokenizers_and_optimizers(show):
    run, _ = show(PUBLISHED | {"dataset": "wikitext-2"})
    assert run["data"]["dataset"]["name"] == "wikitext-2-raw-v1"
    run, _ = show(PUBLISHED | {"dataset": "pg19", "use_amp": False})
    assert run["data"] == load_run_config("pg-19").data.model_dump(mode="json")
    assert run["train"]["precision"] == "float32"
    run, _ = show(
        PUBLISHED | {"dataset": "owner/books", "tokenizer": "cl100k_base", "amp_dtype": "bf16", "grad_clip": 0}
    )
    dataset, tokenizer = run["data"]["dataset"], run["data"]["tokenizer"]
    assert (dataset["kind"], dataset["path"], dataset["join"]) == ("hugging_face", "owner/books", "\n\n")
    assert (tokenizer["encoding"], run["model"]["vocabulary_size"]) == ("cl100k_base", 100277)
    assert (run["train"]["precision"], run["train"]["gradient_clipping"]) == ("bfloat16", None)
    adamw = {name: value for name, value in PUBLISHED.items() if name not in ("optimizer_eps", "weight_decay")}
    run, _ = show(adamw | {"optimizer": "AdamW"})
    optimizer = run["train"]["optimizer"]
    assert [optimizer[name] for name in ("kind", "eps", "beta2", "weight_decay")] == ["adamw", 1e-8, 0.999, 0.01]


def test_what_the_text_is_must_be_known(refusal):
    assert "names no dataset" in refusal(MODEL)
    message = refusal(PUBLISHED | {"dataset": "pile"})
    assert "dataset='pile' is not known here" in message
    assert "--set data.dataset=" in message
    assert "--set data.tokenizer=" in refusal(PUBLISHED | {"tokenizer": "mine"})
    assert "--set train.optimizer=" in refusal(PUBLISHED | {"optimizer": "Lion"})


@pytest.mark.parametrize("key", ["dataset", "tokenizer", "optimizer", "lr", "epochs", "grad_clip", "min_lr"])
@pytest.mark.parametrize("value", [[1], {"a": 1}, "x", -1])
def test_a_value_of_another_type_is_refused(refusal, key, value):
    assert refusal(PUBLISHED | {key: value}).startswith("wavelet: error: ")


@pytest.mark.parametrize("override", ["data=5", "model=[1]", "train=x", "data.tokenizer=[1]", "data.dataset=7"])
def test_an_override_of_another_type_is_refused(refusal, override):
    assert refusal(PUBLISHED, override).startswith("wavelet: error: ")


def test_an_override_is_the_answer(show):
    flat = PUBLISHED | {"dataset": "pile", "tokenizer": "mine", "optimizer": "Lion"}
    run, _ = show(flat, "data.dataset={kind: text, path: books}", "data.tokenizer=bytes", "train.optimizer=adamw")
    assert (run["data"]["dataset"]["path"], run["data"]["tokenizer"]["kind"]) == ("books", "bytes")
    assert run["model"]["vocabulary_size"] is None
    assert run["train"]["optimizer"]["kind"] == "adamw"
    run, _ = show(PUBLISHED, "data.dataset.kind=python_stdlib")
    assert run["data"]["canonical_words"] == {}, "the words are those of the text that it replaces"


def test_what_nothing_here_corresponds_to_is_noted(show):
    _, notes = show(PUBLISHED | {"bbce_enabled": True, "mixer_recurrence_steps": 2})
    assert notes.count("note: ") == 1
    assert "nothing here corresponds to bbce_enabled, mixer_recurrence_steps: left out" in notes


def test_a_file_without_a_recipe_has_ours(show):
    run, notes = show(MODEL, "data.dataset=python_stdlib")
    assert run["train"] == TrainConfig().model_dump(mode="json")
    assert "no training recipe" in notes


def test_for_the_model_alone_the_text_need_not_be_known(called):
    result = called(MODEL, (), ("config", "show"), "--parameters", "--json")
    assert result.exit_code == 0, result.stderr
    embedding = next(part for part in json.loads(result.stdout)["parts"] if part["part"] == "embedding")
    assert embedding["parameters"] == 50257 * 16
