"""Digests: damage of any file is found and named, and what was verified is remembered until it is written to."""

import json
import os
import random
import re
import shutil
import struct
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wavelet_core import CheckpointError, checkpoint, load_checkpoint, save_checkpoint, verified_files
from wavelet_core.checkpoint import accept_checkpoint, verify_checkpoint
from wavelet_core.digests import DIGESTS_FILE, file_digest, verify_digests, write_digests
from wavelet_core.tensor_files import check_finite
from wavelet_core.tokenizers import BytesTokenizer, load_tokenizer

WEIGHTS = "model.safetensors"
CONTENTS = {"config.json", WEIGHTS, "tokenizer/tokenizer.json", "trainer/state.json", "trainer/state.safetensors"}


def write_trainer_state(directory):
    (directory / "trainer").mkdir()
    (directory / "trainer" / "state.json").write_text('{"step": 3}')
    save_file({"random": torch.arange(999, dtype=torch.uint8)}, directory / "trainer" / "state.safetensors")


@pytest.fixture(scope="module")
def whole(make_model, tmp_path_factory):
    """A checkpoint that tests only read."""
    directory = tmp_path_factory.mktemp("whole") / "model"
    save_checkpoint(make_model(), directory, BytesTokenizer(), write_more=write_trainer_state)
    return directory


@pytest.fixture
def saved(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture(scope="module")
def damaged(whole, tmp_path_factory):
    """A checkpoint whose files tests damage one at a time and then put back."""
    return shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / "model")


def refused(directory, *expected):
    """Both kinds of reader refuse the directory, with a message that has these parts."""
    for read in (verify_checkpoint, load_checkpoint):
        with pytest.raises(CheckpointError) as error:
            read(directory)
        assert all(part in str(error.value) for part in expected), error.value


def tensor_places(path):
    """Where the bytes of each tensor of a safetensors file are: (first, last + 1)."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    return {name: tuple(end + at for at in entry["data_offsets"]) for name, entry in header.items() if "dtype" in entry}


def overwrite(path, at, new):
    content = bytearray(path.read_bytes())
    content[at : at + len(new)] = new
    path.write_bytes(content)


def test_every_file_and_every_tensor_has_a_digest(whole):
    verified = verify_checkpoint(whole)
    size = sum((whole / name).stat().st_size for name in CONTENTS)
    stored = len(load_file(whole / WEIGHTS)) + 1
    assert (verified.files, verified.tensors, verified.bytes) == (len(CONTENTS), stored, size)
    digests = json.loads((whole / DIGESTS_FILE).read_text())["files"]
    assert digests.keys() == CONTENTS
    assert digests[WEIGHTS].keys() == {"", *load_file(whole / WEIGHTS)}
    assert digests["config.json"] == {"": file_digest(whole / "config.json")}


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_files_digest_is_that_of_its_bytes(tmp_path, size):
    content = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == xxhash.xxh3_128_hexdigest(content)


@given(name=st.sampled_from(sorted(CONTENTS)), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_anywhere_is_refused(damaged, name, place, bit):
    path = damaged / name
    content = path.read_bytes()
    at = int(place * len(content))
    overwrite(path, at, bytes([content[at] ^ 1 << bit]))
    try:
        with pytest.raises(CheckpointError, match=Path(name).name):
            verify_digests(damaged)
    finally:
        path.write_bytes(content)
    assert verify_digests(damaged)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_flipped_bits_in_the_digests_never_crash(damaged, place, bit):
    path = damaged / DIGESTS_FILE
    content = path.read_bytes()
    at = int(place * len(content))
    overwrite(path, at, bytes([content[at] ^ 1 << bit]))
    try:
        verify_checkpoint(damaged)
    except CheckpointError as error:
        assert str(damaged) in str(error)
    else:
        assert json.loads(path.read_text()) == json.loads(content)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_tensors_name(damaged, value):
    path = damaged / WEIGHTS
    content = path.read_bytes()
    for name, (first, last) in tensor_places(path).items():
        at = random.Random(name).randrange(first, last, 4)
        overwrite(path, at, struct.pack("<f", value))
        try:
            with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: {re.escape(name)} has changed and .* not finite"):
                verify_checkpoint(damaged)
        finally:
            path.write_bytes(content)


def test_swapped_tensors_are_refused_by_name(saved):
    path = saved / WEIGHTS
    names = [f"blocks.{block}.bypass.gains" for block in (0, 1)]
    content = path.read_bytes()
    first, second = (tensor_places(path)[name] for name in names)
    overwrite(path, first[0], content[slice(*second)])
    overwrite(path, second[0], content[slice(*first)])
    refused(saved, *names)


def test_tensors_that_change_names_are_refused(saved):
    tensors = load_file(saved / WEIGHTS)
    one, other = "blocks.0.norm_in.weight", "blocks.1.norm_in.weight"
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, saved / WEIGHTS, metadata={"format": "pt"})
    refused(saved, one, other)


def test_tensors_that_are_missing_or_new_are_named(saved):
    tensors = load_file(saved / WEIGHTS)
    tensors["surplus"] = tensors.pop("norm.bias")
    save_file(tensors, saved / WEIGHTS, metadata={"format": "pt"})
    refused(saved, "norm.bias", "surplus")


def test_a_zeroed_page_is_refused(saved):
    size = (saved / WEIGHTS).stat().st_size
    overwrite(saved / WEIGHTS, size // 8192 * 4096, bytes(4096))
    refused(saved, WEIGHTS)


def test_another_type_of_the_same_bytes_is_refused(saved):
    content = (saved / WEIGHTS).read_bytes()
    assert b'"F32"' in content
    overwrite(saved / WEIGHTS, content.index(b'"F32"'), b'"I32"')
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}: the header has changed"):
        verify_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"is torch\.int32, but the configuration makes it torch\.float32"):
        load_checkpoint(saved)


def test_files_that_are_missing_new_or_cut_off_are_named(saved):
    for name in CONTENTS:
        content = (saved / name).read_bytes()
        (saved / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            verify_digests(saved)
        for size in (0, 7, len(content) // 2, len(content) - 1):
            (saved / name).write_bytes(content[:size])
            with pytest.raises(CheckpointError, match=name):
                verify_digests(saved)
        (saved / name).write_bytes(content + b"\0")
        with pytest.raises(CheckpointError, match=name):
            verify_digests(saved)
        (saved / name).write_bytes(content)
    (saved / "tokenizer" / "merges.txt").write_text("")
    refused(saved, "tokenizer/merges.txt was not there")


def test_what_loading_does_not_read_does_not_stop_it(saved):
    shutil.rmtree(saved / "trainer")
    (saved / "README.md").write_text("of the hub")
    (saved / ".git").mkdir()
    (saved / ".git" / "HEAD").write_text("")
    load_checkpoint(saved)
    with pytest.raises(CheckpointError) as error:
        verify_checkpoint(saved)
    lines = {line.strip() for line in str(error.value).splitlines()[1:-1]}
    assert lines == {
        "README.md was not there when it was saved",
        "trainer/state.json is missing",
        "trainer/state.safetensors is missing",
    }


def test_what_is_downloaded_from_the_hub_is_verified(saved, tmp_path, monkeypatch):
    class Hub:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            snapshot = tmp_path / "snapshot"
            for file in saved.rglob("*"):
                path = file.relative_to(saved)
                if file.is_file() and any(fnmatch(path.as_posix(), pattern) for pattern in allow_patterns):
                    (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
                    (snapshot / path).symlink_to(file)
            return snapshot

    monkeypatch.setattr(checkpoint, "require_hub", lambda: Hub)
    load_checkpoint("owner/name")
    shutil.rmtree(tmp_path / "snapshot")
    overwrite(saved / WEIGHTS, tensor_places(saved / WEIGHTS)["norm.bias"][0], b"1234")
    with pytest.raises(CheckpointError, match=r"norm\.bias has changed"):
        load_checkpoint("owner/name")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        "\0",
        "[" * 100_000,
        '{"algorithm": "crc32", "files": {}}',
        '{"algorithm": "xxh3_128"}',
        '{"algorithm": "xxh3_128", "files": []}',
        '{"algorithm": "xxh3_128", "files": {}}',
        '{"algorithm": "xxh3_128", "files": {"config.json": 7, "model.safetensors": [], "tokenizer/x": null}}',
        '{"algorithm": "xxh3_128", "files": {"config.json": {"": 7}, "model.safetensors": {"": []}}}',
    ],
)
def test_damaged_digests_are_refused(saved, content):
    (saved / DIGESTS_FILE).write_text(content)
    refused(saved, str(saved))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("name", [DIGESTS_FILE, "tokenizer/tokenizer.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    refused(saved, name)


def test_a_damaged_tokenizer_is_refused_also_by_itself(saved):
    path = saved / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    for directory in (saved, saved / "tokenizer"):
        with pytest.raises(CheckpointError, match=r"tokenizer/tokenizer\.json has changed"):
            load_tokenizer(directory)
        assert load_tokenizer(directory, verify=False).vocabulary_size == 256


def test_digests_serve_any_directory(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"kind": "bytes"}')
    write_digests(tmp_path)
    load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"kind":  "bytes"}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has changed"):
        load_tokenizer(tmp_path)


def test_a_checkpoint_without_digests_is_refused_from_format_3_on(saved):
    (saved / DIGESTS_FILE).unlink()
    refused(saved, f"{DIGESTS_FILE}: no such file")
    load_checkpoint(saved, verify=False)


def test_older_checkpoints_have_no_digests_but_finite_weights(saved):
    (saved / DIGESTS_FILE).unlink()
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "format_version": 2}))
    assert verify_checkpoint(saved) is None
    load_checkpoint(saved)
    first, _ = tensor_places(saved / WEIGHTS)["norm.bias"]
    overwrite(saved / WEIGHTS, first, struct.pack("<f", float("nan")))
    refused(saved, "norm.bias: 1 of 12 values", "infinite or not a number")
    assert verify_checkpoint(Path(__file__).parent / "first_format" / "headline") is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(saved, make_model, value):
    model = make_model()
    with torch.no_grad():
        model.blocks[1].norm_in.weight[3] = value
    with pytest.raises(CheckpointError, match=r"is not saved.*\n.*blocks\.1\.norm_in\.weight: 1 of 12 values"):
        save_checkpoint(model, saved)
    verify_checkpoint(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex64, torch.float8_e4m3fn])
def test_finite_weights_may_have_an_infinite_sum(dtype):
    largest = torch.finfo(dtype).max
    check_finite("here", {"weight": torch.full((4,), largest, dtype=dtype), "empty": torch.empty(0, dtype=dtype)})
    broken = torch.tensor([1, float("nan"), largest], dtype=torch.float32).to(dtype)
    with pytest.raises(CheckpointError, match=r"here: .*\n.*weight: 1 of 3 values"):
        check_finite("here", {"weight": broken})


def test_a_change_on_purpose_can_be_accepted(saved):
    first, _ = tensor_places(saved / WEIGHTS)["norm.bias"]
    overwrite(saved / WEIGHTS, first, struct.pack("<f", 5.0))
    refused(saved, "norm.bias", f"wavelet inspect --accept {saved}")
    accept_checkpoint(saved)
    verify_checkpoint(saved)
    assert load_checkpoint(saved).norm.bias[0] == 5
    overwrite(saved / WEIGHTS, first, struct.pack("<f", float("nan")))
    with pytest.raises(CheckpointError, match=r"norm\.bias: 1 of 12 values"):
        accept_checkpoint(saved)


@pytest.fixture
def remembers(monkeypatch, tmp_path):
    """Let small checkpoints be remembered too, and count how often they are read."""
    monkeypatch.setenv("WAVELET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified_files, "LARGE", 0)
    monkeypatch.setattr(verified_files, "CLOCK_STEP", -1.0)
    reads = []

    def verify(*arguments):
        reads.append(arguments)
        return verify_checkpoint(*arguments)

    monkeypatch.setattr(checkpoint, "verify_checkpoint", verify)
    return reads


def test_what_was_verified_is_read_again_only_after_a_change(saved, remembers):
    for _ in range(3):
        load_checkpoint(saved)
    assert len(remembers) == 1
    times = (saved / WEIGHTS).stat()
    content = (saved / WEIGHTS).read_bytes()
    overwrite(saved / WEIGHTS, len(content) - 1, bytes([content[-1] ^ 1]))
    os.utime(saved / WEIGHTS, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=WEIGHTS):
            load_checkpoint(saved)
    (saved / WEIGHTS).write_bytes(content)
    load_checkpoint(saved)
    (saved / "tokenizer" / "more.json").write_text("")
    with pytest.raises(CheckpointError, match=r"more\.json was not there"):
        load_checkpoint(saved)


def test_small_or_just_written_checkpoints_are_always_read(saved, remembers, monkeypatch):
    monkeypatch.setattr(verified_files, "CLOCK_STEP", 3600.0)
    load_checkpoint(saved)
    load_checkpoint(saved)
    monkeypatch.setattr(verified_files, "CLOCK_STEP", -1.0)
    monkeypatch.setattr(verified_files, "LARGE", 1 << 30)
    load_checkpoint(saved)
    load_checkpoint(saved)
    assert len(remembers) == 4


def test_what_was_verified_long_ago_is_forgotten(saved, remembers, tmp_path):
    load_checkpoint(saved)
    (marker,) = (tmp_path / "cache" / "verified").iterdir()
    old = time.time() - verified_files.LIFETIME - 1
    other = marker.with_name("other")
    other.touch()
    for file in (marker, other):
        os.utime(file, (old, old))
    load_checkpoint(saved)
    assert len(remembers) == 2
    assert list(marker.parent.iterdir()) == [marker]


def test_a_cache_that_cannot_be_written_is_no_error(saved, remembers, tmp_path):
    (tmp_path / "cache").write_text("a file, where a directory would be made")
    load_checkpoint(saved)
    load_checkpoint(saved)
    assert len(remembers) == 2
