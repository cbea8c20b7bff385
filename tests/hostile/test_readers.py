"""Whatever a file holds, its reader returns something or raises one of the errors that it documents."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wavelet_core import CheckpointError, ConfigurationError, ModelConfig, WaveletLM
from wavelet_core.checkpoint import CONFIG_FILE, read_model_config
from wavelet_core.digests import DIGESTS_FILE, verify_digests
from wavelet_core.registry import RegistryError
from wavelet_core.tensor_files import load_tensors, save_tensors
from wavelet_core.tokenizers import BytePairTokenizer, TokenizerError, load_tokenizer
from wavelet_train.run_config import apply_override, load_run_config
from wavelet_train.seals import read_seal, write_seal
from wavelet_train.training_state import Counters, DataIdentity, TrainingState, read_state, write_state

# What the command line shows as a message and not as a fault of the program.
DOCUMENTED = (CheckpointError, ConfigurationError, RegistryError, TokenizerError)

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([2**63, 10**400])
)
JSON = st.recursive(
    SCALARS,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=8), values, max_size=4),
    max_leaves=8,
)
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory with a trainer's state, and beside it the seal of a token cache."""
    directory = tmp_path_factory.mktemp("readers") / "checkpoint"
    torch.manual_seed(0)
    model = WaveletLM(ModelConfig(vocabulary_size=257, width=4, levels=1, layers=1))
    tokenizer = BytePairTokenizer(BytePairTokenizer.Config(vocabulary_size=257), [bytes([byte]) for byte in range(256)])
    model.save_pretrained(directory, tokenizer)
    data = DataIdentity(fingerprint="", description="none")
    state = TrainingState(counters=Counters.start(1, threads=1), loss_scaler=None, data=data)
    write_state(directory, state, {"random.cpu": torch.get_rng_state()})
    save_tensors({"a": torch.ones(3), "b": torch.zeros(2, 2)}, directory.parent / "small.safetensors")
    write_seal(directory.parent / "seal.json", [directory / CONFIG_FILE], {"dtype": "uint16"})
    return directory


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = data.items() if isinstance(data, dict) else enumerate(data[:3]) if isinstance(data, list) else ()
    return [place for key, value in entries for place in [(*path, key), *places(value, (*path, key))]]


@st.composite
def spoilt(draw: st.DrawFn, content: Any) -> Any:
    """A JSON document in which one place, or all of it, is something else."""
    if draw(st.integers(0, 9)) == 0:
        return draw(JSON)
    content = copy.deepcopy(content)
    *path, last = draw(st.sampled_from(places(content)))
    node = content
    for key in path:
        node = node[key]
    node[last] = draw(JSON)
    return content


def documents(directory: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """The JSON files of a checkpoint, and who reads them."""
    return {
        "config": (directory / CONFIG_FILE, lambda: read_model_config(directory)),
        "run": (directory / CONFIG_FILE, lambda: load_run_config(directory / CONFIG_FILE)),
        "digests": (directory / DIGESTS_FILE, lambda: verify_digests(directory)),
        "tokenizer": (directory / "tokenizer" / "tokenizer.json", lambda: load_tokenizer(directory)),
        "state": (directory / "trainer" / "state.json", lambda: read_state(directory)),
    }


@pytest.mark.parametrize("name", documents(Path()))
@many
@given(data=st.data())
def test_json_files_with_other_values_are_read_or_refused(checkpoint: Path, name: str, data: st.DataObject) -> None:
    path, read = documents(checkpoint)[name]
    before = path.read_text("utf-8")
    path.write_text(json.dumps(data.draw(spoilt(json.loads(before)))), "utf-8")
    try:
        with suppress(*DOCUMENTED):
            read()
    finally:
        path.write_text(before, "utf-8")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a file, some of them changed, left out or put in."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        left_out = draw(st.integers(0, 9))
        content = content[:place] + draw(st.binary(max_size=9)) + content[place + left_out :]
    return content


@many
@given(data=st.data())
def test_tensor_files_with_other_bytes_are_read_or_refused(checkpoint: Path, data: st.DataObject) -> None:
    path = checkpoint.parent / "small.safetensors"
    other = checkpoint.parent / "damaged.safetensors"
    other.write_bytes(data.draw(damaged(path.read_bytes())))
    with suppress(*DOCUMENTED):
        load_tensors(other)


@pytest.mark.parametrize("name", documents(Path()))
@many
@given(data=st.data())
def test_json_files_with_other_bytes_are_read_or_refused(checkpoint: Path, name: str, data: st.DataObject) -> None:
    path, read = documents(checkpoint)[name]
    before = path.read_bytes()
    path.write_bytes(data.draw(damaged(before)))
    try:
        with suppress(*DOCUMENTED):
            read()
    finally:
        path.write_bytes(before)


@many
@given(data=st.data())
def test_a_seal_with_other_bytes_is_refused(checkpoint: Path, data: st.DataObject) -> None:
    path = checkpoint.parent / "seal.json"
    before = path.read_bytes()
    after = data.draw(damaged(before).filter(lambda content: content != before))
    path.write_bytes(after)
    try:
        with pytest.raises(CheckpointError):
            read_seal(path)
    finally:
        path.write_bytes(before)


@many
@given(data=st.data())
def test_yaml_with_other_text_is_read_or_refused(checkpoint: Path, data: st.DataObject) -> None:
    text = yaml.safe_dump({"model": {"width": 8, "memories": [{"kind": "mlp"}]}, "train": {"lr": 0.1, "steps": 3}})
    path = checkpoint.parent / "run.yaml"
    path.write_bytes(data.draw(damaged(text.encode())))
    with suppress(*DOCUMENTED):
        load_run_config(path)


@many
@given(
    path=st.lists(
        st.sampled_from(["model", "memories", "0", "1", "kind", "width", "train", "lr", "", "é"]), max_size=4
    ),
    value=st.text(max_size=12) | JSON.map(repr),
)
def test_overrides_of_any_words_are_applied_or_refused(path: list[str], value: str) -> None:
    with suppress(*DOCUMENTED):
        apply_override({"model": {"memories": [{"kind": "mlp"}], "width": 8}}, f"{'.'.join(path)}={value}")
