"""Training, resuming, evaluating and inspecting through the command line, and what is refused on the way."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from torch import nn

from wavelet_cli.main import cli
from wavelet_core import LanguageModelConfig, WaveletLM, atomic_files, hookimpl, registry, save_checkpoint
from wavelet_core.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from wavelet_core.digests import write_digests

WORDS = "the cat sat on a mat and ran to them with joy over old green hills"


@pytest.fixture(scope="session")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of a tiny model on a short text."""
    directory = tmp_path_factory.mktemp("tiny")
    words = WORDS.split()
    lines = (" ".join(words[(line * step) % len(words)] for step in range(1, 9)) for line in range(400))
    (directory / "text.txt").write_text("\n".join(lines))
    content = {
        "model": {
            "width": 16,
            "levels": 3,
            "context_length": 16,
            "memories": [{"kind": "mlp", "expansion": 1}, {"kind": "product_key", "num_keys": 16, "top_k": 4}],
        },
        "data": {
            "dataset": {"kind": "text", "path": str(directory / "text.txt")},
            "tokenizer": {"kind": "byte_pair", "vocabulary_size": 290},
            "cache_directory": str(directory / "cache"),
        },
        "train": {"steps": 4, "batch_size": 2, "validate_every": 2, "precision": "float32", "compile": False},
    }
    file = directory / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="session")
def trained(wavelet, configuration: Path) -> Path:
    """A finished run; tests that change it take a copy."""
    directory = configuration.parent / "run"
    result = wavelet("train", configuration, "--out", directory)
    assert result.exit_code == 0, result.stderr
    return directory


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of this test's own."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def assert_refused(result, status: int, *expected: str) -> None:
    """One message on stderr with the given parts, no output, no traceback."""
    assert result.exit_code == status, result.stderr
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("wavelet: error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert all(part in result.stderr for part in expected), result.stderr


def test_training_prints_a_report_and_leaves_checkpoints(wavelet, configuration, tmp_path):
    result = wavelet("train", configuration, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["step"], report["steps"], report["stopped_by"]) == (4, 4, None)
    for name in ("best", "last"):
        assert (tmp_path / "run" / name / WEIGHTS_FILE).is_file()
    evaluated = json.loads(wavelet("evaluate", tmp_path / "run", "--split", "validation", "--json").stdout)
    assert report["report"]["validation"]["bits_per_byte"] == pytest.approx(evaluated["bits_per_byte"], rel=1e-5)


def test_the_report_for_people_names_its_units(wavelet, run, configuration):
    result = wavelet("train", configuration, "--out", run, "--overwrite", "--set", "train.steps=2")
    assert result.exit_code == 0, result.stderr
    assert "bits per byte" in result.stdout and "perplexity per word" in result.stdout
    assert f"wavelet generate {run}" in result.stdout


def test_a_run_is_not_overwritten_unasked(wavelet, run, configuration):
    before = (run / "last" / WEIGHTS_FILE).read_bytes()
    assert_refused(wavelet("train", configuration, "--out", run), 1, str(run), "--resume", "--overwrite", "--out")
    assert (run / "last" / WEIGHTS_FILE).read_bytes() == before


def test_resume_goes_on_in_the_runs_own_configuration(wavelet, run):
    result = wavelet("train", "--resume", run, "--set", "train.steps=6", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["step"] == 6
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 6


def test_a_finished_run_says_so_and_stays_as_it_is(wavelet, trained, run):
    def files():
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = files()
    result = wavelet("train", "--resume", run)
    assert result.exit_code == 0, result.stderr
    assert "all of its 4 steps are done" in result.stderr and f"--resume {run} --set train.steps=N" in result.stderr
    assert "bits per byte" in result.stdout
    report = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    again = json.loads(wavelet("train", "--resume", run, "--json").stdout)
    assert again["report"]["validation"] == pytest.approx(report["validation"])
    assert (again["step"], again["stopped_by"]) == (4, None)
    assert files() == before


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(wavelet, configuration, tmp_path):
    result = wavelet("train", configuration, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.stderr
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if not line.startswith(" "))
    assert rows["run"] == str(tmp_path / "run")
    assert rows["training"].startswith("4 steps of 32 tokens, 128 in all")
    assert rows["tokenizer"].startswith("byte_pair, vocabulary 2") and rows["model"].startswith("wavelet, ")
    assert {"data", "computing", "disk", "time"} < rows.keys()
    plan = json.loads(wavelet("train", configuration, "--out", tmp_path / "run", "--dry-run", "--json").stdout)
    assert plan["steps"] == 4 and plan["seconds"] > 0 and plan["disk_free"] > plan["disk_needed"] > plan["best_bytes"]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_resume_changes_nothing(wavelet, run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = wavelet("train", "--resume", run, "--set", "train.steps=7", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    plan = json.loads(result.stdout)
    assert (plan["step"], plan["steps"]) == (4, 7)
    assert "train.steps from 4 to 7" in result.stderr and "learning rate jumps at step 5" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_second_process_is_refused_until_the_first_is_killed(wavelet, wavelet_process, configuration, tmp_path):
    directory = tmp_path / "run"
    forever = ("--set", "train.steps=1000000", "--set", "train.validate_every=2")
    first = wavelet_process("train", configuration, "--out", directory, *forever)
    try:
        assert any(line.startswith("step 2:") for line in first.stderr)
        for arguments in (("--resume", directory), (configuration, "--out", directory, "--overwrite")):
            assert_refused(wavelet("train", *arguments), 1, f"{directory} is in use", f"process {first.pid} on ")
        result = wavelet("generate", directory, "--prompt", "the", "--num-tokens", "1")
        assert result.exit_code == 0, result.stderr
        assert wavelet("evaluate", directory, "--json").exit_code == 0
    finally:
        first.kill()
        first.communicate()
    step = json.loads((directory / "last" / "trainer" / "state.json").read_text())["counters"]["step"]
    resumed = wavelet("train", "--resume", directory, "--set", f"train.steps={step + 1}", "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["step"] == step + 1
    steps = [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert {path.name for path in directory.iterdir()} == {"config.yaml", "metrics.jsonl", "best", "last"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "CONFIG"),
        (["demo", "--accept-changed-data"], "--resume"),
        (["demo", "--resume", "a", "--out", "b"], "--out"),
        (["--resume", "a", "--overwrite"], "--overwrite"),
        (["demo", "--no-such-option"], "--no-such-option"),
    ],
)
def test_options_that_exclude_each_other_are_usage_errors(wavelet, arguments, expected):
    result = wavelet("train", *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr


@pytest.mark.parametrize(
    "name", [WEIGHTS_FILE, "trainer/state.safetensors", "trainer/state.json", "tokenizer/tokenizer.json"]
)
def test_a_damaged_run_is_not_resumed(wavelet, run, name):
    path = run / "last" / name
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert_refused(
        wavelet("train", "--resume", run, "--set", "train.steps=6"), 1, f"{run / 'last'} is not what was saved", name
    )
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_resuming_what_is_no_run_is_refused(wavelet, tmp_path):
    assert_refused(wavelet("train", "--resume", tmp_path), 2, str(tmp_path))
    assert_refused(wavelet("train", "demo", "--resume", tmp_path), 1, str(tmp_path), "resume")


def test_missing_and_empty_data_are_refused(wavelet, configuration, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "file.txt").write_text("")
    for name, expected in (("missing", "no file or folder"), ("empty", "no files"), ("blank", "data.dataset.path")):
        result = wavelet(
            "train",
            configuration,
            "--out",
            tmp_path / "run",
            "--set",
            f"data.dataset={{kind: text, path: {tmp_path / name}}}",
        )
        assert_refused(result, 2, "data.dataset", expected)


def test_data_without_a_validation_split_is_refused_before_training(wavelet, configuration, tmp_path):
    text = configuration.parent / "text.txt"
    override = f"data.dataset={{kind: text, train: {text}}}"
    result = wavelet("train", configuration, "--out", tmp_path / "run", "--set", override)
    assert_refused(result, 2, "data.dataset.validation", "names no text")
    assert not (tmp_path / "run").exists()


def test_a_text_shorter_than_a_window_is_refused(wavelet, configuration, tmp_path):
    result = wavelet("train", configuration, "--out", tmp_path / "run", "--set", "model.context_length=100000")
    assert_refused(result, 2, "model.context_length=100000")


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(wavelet, configuration, tmp_path):
    result = wavelet("train", configuration, "--out", tmp_path / "run", "--set", "model.vocabulary_size=100")
    assert_refused(result, 2, "model.vocabulary_size=100", "tokenizer")


def read_by_evaluate(run: Path, wavelet) -> object:
    return wavelet("evaluate", run)


def read_by_inspect(run: Path, wavelet) -> object:
    return wavelet("inspect", run)


def read_by_export(run: Path, wavelet) -> object:
    return wavelet("export", run / "best", run / "exported", "--format", "seed")


def read_by_generate(run: Path, wavelet) -> object:
    return wavelet("generate", run, "--prompt", "the", "--num-tokens", "2")


READERS = [read_by_evaluate, read_by_inspect, read_by_export, read_by_generate]


@pytest.mark.parametrize("read", READERS)
def test_a_truncated_checkpoint_is_refused(wavelet, run, read):
    weights = run / "best" / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_refused(read(run, wavelet), 1, str(weights), "cut off")


@pytest.mark.parametrize("read", READERS)
def test_a_missing_checkpoint_is_refused(wavelet, tmp_path, read):
    assert_refused(read(tmp_path / "nowhere", wavelet), 1, "nowhere", "no such")


@pytest.mark.parametrize("read", [read_by_evaluate, read_by_generate])
def test_a_checkpoint_whose_weights_do_not_fit_its_configuration_is_refused_by_name(wavelet, run, read):
    file = run / "best" / CONFIG_FILE
    content = json.loads(file.read_text())
    content["model"]["vocabulary_size"] += 1
    file.write_text(json.dumps(content))
    assert_refused(read(run, wavelet), 1, "embedding.weight", "does not fit")


@pytest.mark.parametrize("read", [read_by_evaluate, read_by_generate])
def test_a_tokenizer_that_does_not_match_the_checkpoint_is_refused(wavelet, run, read):
    model = WaveletLM.from_pretrained(run / "best")
    config = model.config.model_copy(update={"vocabulary_size": 200})
    tokenizer = run / "best" / "tokenizer" / "tokenizer.json"
    saved = tokenizer.read_text()
    data = json.loads((run / "best" / CONFIG_FILE).read_text())["data"]
    WaveletLM(config).save_pretrained(run / "best", extra={"data": data})
    tokenizer.parent.mkdir()
    tokenizer.write_text(saved)
    write_digests(run / "best")
    assert_refused(read(run, wavelet), 1, "tokenizer", "vocabulary", "200")


@pytest.mark.parametrize("read", [("evaluate",), ("generate", "--prompt", "the")])
def test_an_unknown_device_is_refused(wavelet, trained, read):
    assert_refused(wavelet(*read, trained, "--device", "abacus"), 2, "--device='abacus'", "auto")


@pytest.mark.parametrize(("flag", "windows"), [((), 2), (("--windows", "non-overlapping"), 1)])
def test_evaluate_reports_every_unit(wavelet, trained, flag, windows):
    result = wavelet("evaluate", trained, "--split", "validation", *flag, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["window"] == report["stride"] * windows
    assert report["bits_per_byte"] == pytest.approx(report["bits_per_token"] * report["tokens"] / report["bytes"])
    assert report["perplexity_per_word"] > report["perplexity_per_token"] > 1


def test_evaluate_takes_a_text_as_a_whole(wavelet, trained, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(f"{WORDS}\n" * 3)
    result = wavelet("evaluate", trained, "--data", text)
    assert result.exit_code == 0, result.stderr
    rows = dict(line.rsplit(maxsplit=1) for line in result.stdout.splitlines()[1:-1])
    assert rows["words"] == str(3 * len(WORDS.split()))
    # All but the first token, which nothing predicts.
    assert 0 <= text.stat().st_size - int(rows["bytes"]) <= len(WORDS.split()[0]) + 1
    assert wavelet("evaluate", trained, "--data", text, "--split", "test").exit_code == 2


def test_a_checkpoints_configuration_is_a_configuration_file_too(wavelet, trained):
    result = wavelet("config", "show", trained / "best" / CONFIG_FILE, "--json")
    assert result.exit_code == 0, result.stderr
    saved = json.loads((trained / "best" / CONFIG_FILE).read_text())
    shown = json.loads(result.stdout)
    assert all(shown[section] == saved[section] for section in ("model", "data", "train"))


def test_inspect_shows_what_a_checkpoint_holds(wavelet, trained):
    result = wavelet("inspect", trained, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    model = WaveletLM.from_pretrained(trained / "best")
    assert report["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert report["tokenizer"] == "byte_pair"
    assert list(report["tensor_types"]) == ["F32"]
    assert report["files"][WEIGHTS_FILE] == (trained / "best" / WEIGHTS_FILE).stat().st_size
    assert report["components"]["memory product_key"].startswith("wavelet-memory ")
    table = wavelet("inspect", trained, "--no-html").stdout
    assert "byte_pair" in table and "memory product_key" in table and WEIGHTS_FILE in table


class Unigram(nn.Module):
    """A model family that has neither width nor layers."""

    class Config(LanguageModelConfig):
        kind: Literal["unigram"] = "unigram"
        bins: int = 3
        smooth: bool = True

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.scores = nn.Parameter(torch.zeros(config.bins, config.vocabulary))

    @staticmethod
    @hookimpl
    def register_components(register):
        register("model", Unigram)


def test_inspect_shows_the_fields_that_a_family_has(wavelet, tmp_path):
    assert registry.add_plugin(Unigram, "unigram").error is None
    save_checkpoint(Unigram(Unigram.Config(vocabulary_size=7, context_length=16)), tmp_path / "unigram")
    result = wavelet("inspect", tmp_path / "unigram")
    assert result.exit_code == 0, result.stderr
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line)
    assert shown["total"] == "21"
    assert re.search("^model +unigram, vocabulary size 7, context length 16, bins 3$", result.stdout, re.M)


def test_ctrl_c_in_training_saves_and_says_how_to_resume(wavelet, wavelet_process: Callable, configuration, tmp_path):
    directory = tmp_path / "run"
    process = wavelet_process(
        "train", configuration, "--out", directory, "--set", "train.steps=1000000", "--set", "train.validate_every=2"
    )
    for line in process.stderr:
        if line.startswith("step 2:"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"wavelet train --resume {directory}" in errors
    assert "Traceback" not in errors

    saved = json.loads((directory / "last" / "trainer" / "state.json").read_text())["counters"]["step"]
    resumed = wavelet("train", "--resume", directory, "--set", f"train.steps={saved + 1}", "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["step"] == saved + 1


def test_a_disk_that_fills_leaves_a_run_that_can_be_resumed_and_says_how(
    wavelet, trained, configuration, tmp_path, monkeypatch
):
    flush, saves = atomic_files._flush, iter(range(100))

    def flush_until_full(fresh: Path, mode: int) -> None:
        if (fresh / "trainer").is_dir() and next(saves) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(fresh, mode)

    directory = tmp_path / "run"
    monkeypatch.setattr(atomic_files, "_flush", flush_until_full)
    result = wavelet("train", configuration, "--out", directory)
    assert result.exit_code == 1
    assert f"{directory / 'last'}: cannot be written: No space left on device; what was there before" in result.stderr
    assert f"Then go on with: wavelet train --resume {directory}\n" in result.stderr
    assert wavelet("train", "--resume", directory).exit_code == 0
    ends = [(folder / "last" / WEIGHTS_FILE).read_bytes() for folder in (trained, directory)]
    assert ends[0] == ends[1]


def test_an_export_imports_as_the_same_checkpoint(wavelet, trained, tmp_path):
    exported, imported = tmp_path / "exported", tmp_path / "imported"
    result = wavelet("export", trained, exported, "--format", "seed")
    assert result.exit_code == 0, result.stderr
    result = wavelet("import", exported / "best_model.pt", imported)
    assert result.exit_code == 0, result.stderr
    original, again = WaveletLM.from_pretrained(trained), WaveletLM.from_pretrained(imported)
    assert again.config == original.config
    for name, tensor in original.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_nothing_is_written_over_what_exists(wavelet, trained, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    for command in (("export", trained, tmp_path, "--format", "seed"), ("import", "best_model.pt", tmp_path)):
        result = wavelet(*command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{tmp_path} exists already" in result.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_what_is_no_original_checkpoint_is_not_imported(wavelet, tmp_path):
    file = tmp_path / "best_model.pt"
    assert_refused(wavelet("import", file, tmp_path / "out"), 1, str(file), "no such file")
    file.write_bytes(b"PK not really")
    assert_refused(wavelet("import", file, tmp_path / "out"), 1, str(file))
    torch.save({"weight": torch.zeros(1)}, file)
    assert_refused(wavelet("import", file, tmp_path / "out"), 1, "config.json", "--config")
    assert not (tmp_path / "out").exists()


def test_the_commands_are_the_designed_ones():
    designed = {"train", "generate", "evaluate", "import", "export", "bench", "config", "plugins", "inspect"}
    assert set(cli.commands) >= designed
