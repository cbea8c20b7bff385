"""Checkpoints on the Hugging Face hub: what is uploaded, to a hub in this process, and what its readers make of it."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from click.testing import CliRunner

from wavelet_cli.main import cli
from wavelet_core.checkpoint import load_checkpoint, verify_checkpoint
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import BytesTokenizer, load_tokenizer

huggingface_hub = pytest.importorskip("huggingface_hub")
hf_api = pytest.importorskip("huggingface_hub.hf_api")

REPORT = {"event": "report", "step": 30, "validation": {"bits_per_byte": 1.25, "window": 32, "stride": 16}}
VALIDATION = {"event": "validation", "step": 20, "bits_per_byte": 1.5, "window": 32, "stride": 32}


class Hub(BaseHTTPRequestHandler):
    """The requests of an upload; every file goes into the commit itself. The server has `repositories` and `files`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.strip("/").split("/")
        if self.headers.get("Authorization") != "Bearer hf_token":
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            self.server.repositories.append(json.loads(body))
            return self.answer({"url": f"{self.server.address}/ada/demo", "name": "ada/demo"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "preupload" in parts:
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            return self.answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        if "branch" in parts:
            return self.answer({})
        assert parts[:5] == ["api", "models", "ada", "demo", "commit"], self.path
        self.server.branch = parts[5]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer({"commitUrl": f"{self.server.address}/ada/demo/commit/1", "commitOid": "1"})

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer({"error": "Repository not found"}, 404)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address, server.repositories, server.files = f"http://127.0.0.1:{server.server_port}", [], {}
    monkeypatch.setattr(hf_api.api, "endpoint", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(checkpoints, tmp_path):
    """The directory of a run that has measured its best checkpoint, which is of step 30, and an earlier one."""
    for name in ("best", "last"):
        shutil.copytree(checkpoints["wavelet"], tmp_path / "run" / name)
    lines = [VALIDATION, REPORT]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "run"


def push(*arguments):
    return CliRunner().invoke(cli, ["push", *map(str, arguments)])


def written(hub, directory):
    for name, content in hub.files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def card_of(hub):
    _, metadata, text = hub.files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_a_run_is_uploaded_with_a_card_about_it(hub, run, tmp_path):
    result = push(run, "ada/demo", "--private", "--license", "apache-2.0", "--revision", "trial")
    assert result.exit_code == 0, result.output
    assert f"{hub.address}/ada/demo/commit/1" in result.output
    [repository] = hub.repositories
    assert (repository["organization"], repository["name"]) == ("ada", "demo")
    assert "private" in json.dumps(repository)
    assert hub.branch == "trial"
    metadata, text = card_of(hub)
    assert (metadata["license"], metadata["pipeline_tag"]) == ("apache-2.0", "text-generation")
    [measured] = metadata["model-index"][0]["results"]
    assert measured["metrics"] == [{"type": "bits_per_byte", "value": 1.25}]
    assert "| validation | 32 every 16 | 1.2500 |" in text and "wavelet generate ada/demo" in text
    model = load_checkpoint(run)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert f"{parameters:,} parameters" in text

    directory = written(hub, tmp_path / "downloaded")
    verify_checkpoint(directory)
    downloaded = load_checkpoint(directory)
    assert all((one == other).all() for one, other in zip(model.parameters(), downloaded.parameters(), strict=True))


def test_what_was_uploaded_loads_in_tokenizers_and_transformers(hub, run, tmp_path, greedy):
    transformers = pytest.importorskip("transformers", minversion="5.24")
    push(run, "ada/demo")
    directory = written(hub, tmp_path / "downloaded")
    ids = load_tokenizer(directory).encode("def f(x):")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    shutil.rmtree(directory / "tokenizer")  # as where this package is not installed
    (directory / "config.json").unlink()
    alone = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    text = "def f(x): <|endoftext|>"
    assert tokenizer(text)["input_ids"] == alone(text)["input_ids"] == tokenizer.own.encode(text)
    assert tokenizer.pad_token == alone.pad_token == "<|endoftext|>"
    batch = alone("def f(x):", return_tensors="pt")
    assert model.generation_config.eos_token_id == tokenizer.own.end_of_text
    assert model.generate(**batch, max_new_tokens=6, eos_token_id=-1)[0].tolist() == ids + greedy(model.model, ids, 6)


def test_a_checkpoint_without_measurements_has_a_card_without(hub, run):
    assert push(run / "last", "ada/demo").exit_code == 0
    metadata, text = card_of(hub)
    assert "model-index" not in metadata and "license" not in metadata and "Results" not in text
    assert "## Configuration" in text


def test_a_model_uploads_itself(hub, checkpoints):
    model = load_checkpoint(checkpoints["wavelet"])
    address = model.push_to_hub("ada/demo", BytesTokenizer(), license="mit")
    assert address == f"{hub.address}/ada/demo/commit/1"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer/tokenizer.json"} <= set(
        hub.files
    )
    assert card_of(hub)[0]["license"] == "mit"


def test_the_same_files_are_written_to_a_directory(hub, run, tmp_path):
    push(run, "ada/demo")
    result = CliRunner().invoke(cli, ["export", str(run), str(tmp_path / "demo"), "--format", "hub"])
    assert result.exit_code == 0, result.output
    found = {
        path.relative_to(tmp_path / "demo").as_posix() for path in (tmp_path / "demo").rglob("*") if path.is_file()
    }
    assert found == set(hub.files)


def test_what_the_hub_refuses_is_told(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    result = push(run, "ada/demo")
    assert result.exit_code == 1
    assert "ada/demo: the hub did not take it" in result.output and "hf auth login" in result.output
    assert not hub.files


def test_damage_is_not_uploaded(hub, run):
    with (run / "best" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert "is not what was saved" in push(run, "ada/demo").output
    assert not hub.files and not hub.repositories
    with pytest.raises(CheckpointError):
        load_checkpoint(run)
