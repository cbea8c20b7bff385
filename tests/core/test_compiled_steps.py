"""Steps compiled ahead of time and kept beside a checkpoint: they change no number, and run only where they fit."""

import json
import subprocess
import sys

import pytest
import torch

from wavelet_core import load_checkpoint, save_checkpoint
from wavelet_core.checkpoint import verify_checkpoint
from wavelet_core.generation import (
    CompiledStepError,
    DecodingSession,
    GenerationSettings,
    compile_steps,
    compiled_files,
    generate,
    load_steps,
)
from wavelet_core.state import leaves

FAST_WEIGHTS = {"kind": "fast_weight_product_key", "num_keys": 16, "top_k": 3}
SMALLEST = {"layers": 1, "levels": 1}
CASES = {
    "learning_while_reading": {"memories": [FAST_WEIGHTS | {"inference_updates": True, "chunk_size": 4}], **SMALLEST},
    "everything_else": {
        "bypass": "ema",
        "mixer": {"kind": "deep_gated_spectral", "parametrization": "spectral_norm"},
        "transform": "hartley",
        "cross_window_state": True,
        "loop_iterations": 2,
        **SMALLEST,
    },
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WAVELET_CACHE", str(tmp_path / "cache"))


class Echo:
    """Stands in for a compiled library, which takes long to make."""

    def __init__(self, path, session, batch):
        self.content, self.session, self.batch = path.read_text(), session, batch

    def __call__(self, tokens, state):
        assert (len(tokens), state.batch_size) == (self.batch, self.batch)
        return self.session.head(self.session.hidden(tokens.unsqueeze(1), state)[:, 0]) + 1


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(compiled_files, "compile_step", lambda session, batch, path: path.write_text(f"step {batch}"))
    monkeypatch.setattr(compiled_files, "CompiledStep", Echo)


@pytest.fixture
def checkpoint(make_model, no_compiler, tmp_path):
    """A checkpoint with compiled steps for one text and for three."""
    model = make_model(SMALLEST)
    save_checkpoint(model, tmp_path / "checkpoint")
    compile_steps(DecodingSession(model), tmp_path / "checkpoint", [3, 1, 3])
    return tmp_path / "checkpoint"


def session_of(checkpoint, dtype=None):
    return DecodingSession(load_checkpoint(checkpoint, dtype))


def refused(session, checkpoint):
    with pytest.raises(CompiledStepError) as error:
        load_steps(session, checkpoint)
    assert not session.steps
    assert f"compile it again: wavelet compile {checkpoint}" in str(error.value)
    return str(error.value)


def test_steps_are_used_for_the_numbers_of_texts_that_they_were_compiled_for(checkpoint):
    session, plain = session_of(checkpoint), session_of(checkpoint)
    assert load_steps(session, checkpoint)
    for count in (1, 2, 3):
        tokens = torch.arange(count)
        with torch.inference_mode():
            added = session.next_logits(tokens, session.new_state(count)) - plain.next_logits(
                tokens, plain.new_state(count)
            )
        torch.testing.assert_close(added, torch.full_like(added, float(count != 2)))


def test_without_compiled_steps_there_is_nothing_to_load(make_model, tmp_path):
    session = DecodingSession(make_model(SMALLEST))
    assert not load_steps(session, tmp_path)
    assert not session.steps


def test_steps_fit_other_weights_of_the_same_model(checkpoint, make_model):
    torch.manual_seed(1)
    assert load_steps(DecodingSession(make_model(SMALLEST)), checkpoint)


def test_a_checkpoint_with_compiled_steps_is_still_what_was_saved(checkpoint):
    verify_checkpoint(checkpoint)
    (checkpoint / "compiled" / "1.pt2").unlink()
    verify_checkpoint(checkpoint)
    (checkpoint / "surprise").touch()
    with pytest.raises(RuntimeError, match="surprise was not there when it was saved"):
        verify_checkpoint(checkpoint)


def test_a_checkpoint_that_is_saved_anew_has_none(checkpoint):
    save_checkpoint(load_checkpoint(checkpoint), checkpoint)
    assert not (checkpoint / "compiled").exists()


def test_another_type_of_the_weights_is_refused_by_name(checkpoint):
    message = refused(session_of(checkpoint, torch.bfloat16), checkpoint)
    assert "was compiled for another type of the weights (float32, here bfloat16)" in message


@pytest.mark.parametrize(
    "change",
    [
        {"width": 16},
        {"wavelet": {"crawl": 3}},
        {"block": {"learned_residual": False}},
        {"tied_embedding": True},
        {"mixer": {"gate": "relu"}},
    ],
    ids=str,
)
def test_another_model_is_refused_by_name(checkpoint, make_model, change):
    assert "for another model" in refused(DecodingSession(make_model(SMALLEST | change)), checkpoint)


def test_options_that_are_set_after_loading_make_another_model(make_model, no_compiler, tmp_path):
    model = make_model(CASES["learning_while_reading"])
    compile_steps(DecodingSession(model), tmp_path)
    assert load_steps(DecodingSession(model), tmp_path)
    model.blocks[0].memories.memories[0].update_learning_rate *= 2
    assert "for another model" in refused(DecodingSession(model), tmp_path)


@pytest.mark.parametrize(
    ("target", "name", "value", "named"),
    [
        (torch, "__version__", "1.0", "another torch ("),
        (compiled_files, "processor", lambda: "other", "another processor ("),
        (compiled_files, "_code", lambda model: "other", "another version of the model's code ("),
    ],
    ids=["torch", "processor", "code"],
)
def test_other_circumstances_are_refused_by_name(checkpoint, monkeypatch, target, name, value, named):
    session = session_of(checkpoint)
    monkeypatch.setattr(target, name, value)
    assert named in refused(session, checkpoint)


def test_what_somebody_else_compiled_is_never_run(checkpoint, monkeypatch, tmp_path):
    session = session_of(checkpoint)
    monkeypatch.setenv("WAVELET_CACHE", str(tmp_path / "of another user"))
    assert "was not compiled by this user on this machine" in refused(session, checkpoint)
    compile_steps(session, tmp_path / "other")
    assert "was not compiled by this user on this machine" in refused(session, checkpoint)


def test_a_record_that_was_changed_is_not_believed(checkpoint):
    path = checkpoint / "compiled" / "record.json"
    record = json.loads(path.read_text())
    for name in record["made_for"]:
        changed = record | {"made_for": {key: value for key, value in record["made_for"].items() if key != name}}
        path.write_text(json.dumps(changed))
        assert "was not compiled by this user" in refused(session_of(checkpoint), checkpoint)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"signature": 1}', "[" * 100_000], ids=range(5))
def test_a_damaged_record_is_refused(checkpoint, content):
    (checkpoint / "compiled" / "record.json").write_text(content)
    assert "or it is damaged" in refused(session_of(checkpoint), checkpoint)


def test_without_the_whole_secret_nothing_is_believed(checkpoint, tmp_path):
    secret = tmp_path / "cache" / "compiled.key"
    for content in (b"", b"\0" * 31):
        secret.write_bytes(content)
        assert "was not compiled by this user" in refused(session_of(checkpoint), checkpoint)
        with pytest.raises(ValueError, match="is damaged; remove it"):
            compile_steps(session_of(checkpoint), checkpoint)


def test_a_changed_library_is_never_run(checkpoint):
    (checkpoint / "compiled" / "3.pt2").write_text("step 1")
    assert "3.pt2 is missing or damaged" in refused(session_of(checkpoint), checkpoint)


def test_the_secret_is_the_users_alone(checkpoint, tmp_path):
    secret = tmp_path / "cache" / "compiled.key"
    assert len(secret.read_bytes()) == 32
    if sys.platform != "win32":
        assert secret.stat().st_mode & 0o077 == 0
    assert secret.read_bytes().hex() not in (checkpoint / "compiled" / "record.json").read_text()


def test_without_a_compiler_it_says_so(make_model, monkeypatch, tmp_path):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def fail():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", fail)
    with pytest.raises(CompiledStepError, match=r"C\+\+ compiler, and none was found; install one"):
        compile_steps(DecodingSession(make_model(SMALLEST)), tmp_path)
    assert not list(tmp_path.glob("compiled*"))


def test_a_model_that_cannot_be_compiled_is_named(make_model, tmp_path):
    session = DecodingSession(make_model(SMALLEST))
    session.model.hidden = lambda tokens, state: 1 / 0
    with pytest.raises(CompiledStepError, match="cannot be compiled: ZeroDivisionError"):
        compile_steps(session, tmp_path)
    session.model.hidden = lambda tokens, state: session.model.embed(tokens) + secret_weight
    secret_weight = torch.ones(12)
    with pytest.raises(CompiledStepError, match="tensors that are neither parameters nor buffers"):
        compile_steps(session, tmp_path)
    assert not list(tmp_path.iterdir())


def compiled(model, directory, batches=(1,)):
    session = DecodingSession(model)
    compile_steps(session, directory, batches)
    load_steps(session, directory)
    assert set(session.steps) == set(batches)
    return session


@torch.inference_mode()
def check(session, model):
    """Logits and states over some tokens are those of the model as it is."""
    plain = DecodingSession(model)
    for batch in session.steps:
        states = [session.new_state(batch) for _ in range(2)]
        for start in range(12):
            tokens = torch.arange(start, start + batch) % model.config.vocabulary
            found, wanted = (
                run.next_logits(tokens, state) for run, state in zip((session, plain), states, strict=True)
            )
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(dict(leaves(states[0].tree)), dict(leaves(states[1].tree)), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_steps_change_no_number_and_follow_every_weight(make_model, headline, tmp_path):
    model = make_model(headline)
    session = compiled(model, tmp_path, (1, 2))
    check(session, model)
    settings = GenerationSettings(tokens=20)
    for prompts in ([[1, 2, 3]], [[1, 2], [3]], [[1]] * 4):
        assert list(generate(session, prompts, settings)) == list(generate(model, prompts, settings))
    for parameter in model.parameters():
        with torch.no_grad():
            parameter += 0.05
        check(session, model)
    with pytest.raises(ValueError, match="none of the session"):
        session.steps[1](torch.tensor([1]), session.new_state(2))


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_every_stateful_option_compiles(make_model, options, tmp_path):
    model = make_model(options)
    check(compiled(model, tmp_path), model)


@pytest.mark.slow
def test_a_second_process_loads_them_without_the_compiler(make_model, headline, tmp_path):
    model = make_model(headline)
    save_checkpoint(model, tmp_path)
    compiled(model, tmp_path)
    program = (
        "import sys, torch\n"
        "from wavelet_core import load_checkpoint\n"
        "from wavelet_core.generation import DecodingSession, generate, GenerationSettings, load_steps\n"
        f"session = DecodingSession(load_checkpoint({str(tmp_path)!r}))\n"
        f"assert load_steps(session, {str(tmp_path)!r})\n"
        "print([token.token for token in generate(session, [[1, 2]], GenerationSettings(tokens=5))])\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    wanted = [token.token for token in generate(model, [[1, 2]], GenerationSettings(tokens=5))]
    assert run.stdout.strip() == str(wanted)
