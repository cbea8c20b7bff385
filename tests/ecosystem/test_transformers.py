"""Checkpoints of ours in the library transformers: loaded by its Auto classes, generated from, trained and saved."""

import json
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_core.checkpoint import load_checkpoint, save_checkpoint
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import END_OF_TEXT, BytesTokenizer, load_tokenizer

transformers = pytest.importorskip("transformers", minversion="5.24", reason="needs wavelet-ecosystem[transformers]")

import wavelet_ecosystem  # noqa: E402
from wavelet_ecosystem import import_hook  # noqa: E402

PROMPTS = ["def f(x):\n    ", "if", "class JSONDecoder(object"]


@pytest.fixture(scope="module", params=["wavelet", "transformer", "residual_lstm"])
def loaded(request, checkpoints):
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoints[request.param])


@pytest.fixture(scope="module")
def hub_tokenizer(checkpoints):
    return transformers.AutoTokenizer.from_pretrained(checkpoints["wavelet"])


def new_tokens(model, batch, number=12, **options):
    options = {"do_sample": False, "eos_token_id": -1, **options}
    return model.generate(**batch, max_new_tokens=number, **options)[:, batch["input_ids"].shape[1] :].tolist()


def test_a_fresh_process_that_imports_transformers_alone_writes_our_tokens(checkpoints, greedy, fresh_process):
    program = "import sys; print(getattr(sys.modules.get('wavelet_ecosystem'), '__file__', None))"
    if fresh_process(program).strip() != wavelet_ecosystem.__file__:
        pytest.skip("wavelet-ecosystem is not installed from this tree")
    directory = str(checkpoints["wavelet"])
    output = fresh_process(
        "import transformers, sys\n"
        "assert not any(name.startswith(('torch', 'wavelet_core')) for name in sys.modules)\n"
        f"directory = {directory!r}\n"
        "assert transformers.AutoConfig.from_pretrained(directory).vocab_size == 400\n"
        f"batch = transformers.AutoTokenizer.from_pretrained(directory)({PROMPTS[0]!r}, return_tensors='pt')\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(directory)\n"
        "print(model.generate(**batch, max_new_tokens=12, do_sample=False)[0].tolist())\n"
    )
    prompt = load_tokenizer(directory).encode(PROMPTS[0])
    assert json.loads(output) == prompt + greedy(load_checkpoint(directory), prompt, 12)


def test_tokens_are_ours_alone_and_in_a_batch_padded_on_the_left(loaded, hub_tokenizer, greedy):
    expected = [greedy(loaded.model, hub_tokenizer(prompt)["input_ids"], 12) for prompt in PROMPTS]
    batch = hub_tokenizer(PROMPTS, return_tensors="pt", padding=True)
    assert not batch["attention_mask"].all()
    assert new_tokens(loaded, batch) == expected
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        assert new_tokens(loaded, hub_tokenizer(prompt, return_tensors="pt")) == [tokens]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "top_k": 5, "num_return_sequences": 2}])
def test_the_state_serves_beams_and_samples_as_reading_all_again_would(loaded, hub_tokenizer, options):
    batch = hub_tokenizer(PROMPTS, return_tensors="pt", padding=True)
    written = []
    for cached in (True, False):
        torch.manual_seed(0)
        written.append(new_tokens(loaded, batch, use_cache=cached, **options))
    assert written[0] == written[1]


def test_a_cache_goes_on_with_its_text_and_keeps_its_size(loaded, hub_tokenizer):
    ids = hub_tokenizer("def decode(self, text):\n    return", return_tensors="pt")["input_ids"]
    whole = loaded(ids).logits
    first = loaded(ids[:, :4], use_cache=True)
    size = first.cache.state.nbytes
    second = loaded(ids[:, 4:], cache=first.cache, logits_to_keep=2)
    torch.testing.assert_close(first.logits, whole[:, :4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second.logits, whole[:, -2:], atol=1e-4, rtol=1e-4)
    assert (second.cache.state.nbytes, second.cache.get_seq_length()) == (size, ids.shape[1])


def test_masks_that_a_state_cannot_follow_are_refused(loaded):
    ids = torch.arange(8).view(2, 4)
    right = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    torch.testing.assert_close(loaded(ids, attention_mask=right).logits[0], loaded(ids).logits[0])
    with pytest.raises(ValueError, match="padding_side = 'left'"):
        loaded(ids, attention_mask=right, use_cache=True)
    with pytest.raises(ValueError, match="inside a text"):
        loaded(ids, attention_mask=torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]))
    with pytest.raises(ValueError, match="leaves nothing to read"):
        loaded(ids, attention_mask=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"shape \[2, 3\]"):
        loaded(ids, attention_mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="not supported with stateful models"):
        loaded.generate(ids, max_new_tokens=2, assistant_model=loaded)


def test_what_left_padding_hides_changes_no_gradient(loaded):
    ids = torch.arange(1, 13).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    labels = ids.masked_fill(mask == 0, -100)
    losses = []
    for hidden in (0, 7):
        loaded.zero_grad(set_to_none=True)
        loss = loaded(ids.masked_fill(mask == 0, hidden), attention_mask=mask, labels=labels).loss
        loss.backward()
        losses.append((loss.item(), [parameter.grad for parameter in loaded.parameters()]))
    alone = loaded(ids[:1, 2:], labels=ids[:1, 2:]).loss * 3 + loaded(ids[1:], labels=ids[1:]).loss * 5
    assert losses[0][0] == pytest.approx(alone.item() / 8, abs=1e-5)
    assert losses[0][0] == losses[1][0]
    for one, other in zip(losses[0][1], losses[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_the_pipeline_writes_text(checkpoints, hub_tokenizer, greedy):
    pipeline = transformers.pipeline("text-generation", model=str(checkpoints["wavelet"]))
    [[one], [other]] = pipeline(PROMPTS[:2], max_new_tokens=6, do_sample=False, batch_size=2)
    assert one["generated_text"].startswith(PROMPTS[0]) and other["generated_text"].startswith(PROMPTS[1])
    [tokens] = new_tokens(pipeline.model, hub_tokenizer(PROMPTS[1], return_tensors="pt"), 6)
    assert other["generated_text"] == PROMPTS[1] + hub_tokenizer.decode(tokens)


@pytest.mark.filterwarnings("ignore")  # of transformers and accelerate about themselves
def test_the_trainer_trains_saves_and_resumes(checkpoints, hub_tokenizer, tmp_path, greedy):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    texts = [{"input_ids": hub_tokenizer(prompt * 2)["input_ids"]} for prompt in PROMPTS * 2]
    collator = transformers.DataCollatorForLanguageModeling(hub_tokenizer, mlm=False)

    def trainer(steps):
        arguments = transformers.TrainingArguments(
            tmp_path / "run", max_steps=steps, save_steps=2, per_device_train_batch_size=2, learning_rate=1e-2,
            lr_scheduler_type="constant", report_to=[], use_cpu=True, logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["wavelet"])
        return transformers.Trainer(
            model, arguments, train_dataset=texts, data_collator=collator, processing_class=hub_tokenizer
        )

    whole = trainer(4)
    whole.train()
    losses = [line["loss"] for line in whole.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    whole.save_model(tmp_path / "run")  # which holds the checkpoints
    assert (tmp_path / "run" / "checkpoint-4").is_dir()
    saved = load_checkpoint(tmp_path / "run")
    ids = load_tokenizer(tmp_path / "run").encode(PROMPTS[0])
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert greedy(saved, ids, 8) == greedy(whole.model.model, ids, 8) == greedy(again.model, ids, 8)


@given(text=st.one_of(st.text(), st.just(f"a{END_OF_TEXT} b"), st.text(st.sampled_from(" \nselfin().é漢"))))
@settings(deadline=None)
def test_the_tokenizer_gives_our_ids_and_text(hub_tokenizer, tokenizer, text):
    ids = tokenizer.encode(text)
    assert hub_tokenizer(text)["input_ids"] == ids
    assert hub_tokenizer.decode(ids) == text
    assert hub_tokenizer.decode([*ids, tokenizer.end_of_text], skip_special_tokens=True) == text


def test_a_saved_tokenizer_is_the_same_again_and_ours_too(hub_tokenizer, tokenizer, tmp_path):
    hub_tokenizer.save_pretrained(tmp_path)
    text = f"def f(x): {END_OF_TEXT}"
    for again in (
        transformers.AutoTokenizer.from_pretrained(tmp_path, config=transformers.AutoConfig.for_model("wavelet_lm")),
        transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path),
        load_tokenizer(tmp_path),
    ):
        assert again.encode(text) == tokenizer.encode(text)


def test_bytes_are_tokens_in_transformers_too(checkpoints, tmp_path):
    save_checkpoint(load_checkpoint(checkpoints["wavelet"]), tmp_path / "bytes", BytesTokenizer())
    bytes_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bytes")
    assert bytes_tokenizer("é\0a")["input_ids"] == list("é\0a".encode())
    assert bytes_tokenizer.eos_token is None


def test_types_and_devices_are_honoured_and_other_options_refused(checkpoints):
    directory = checkpoints["wavelet"]
    auto = transformers.AutoModelForCausalLM
    assert auto.from_pretrained(directory, dtype=torch.bfloat16, device_map="cpu").dtype == torch.bfloat16
    assert auto.from_pretrained(directory, dtype="auto", device_map={"": "cpu"}).dtype == torch.float32
    with pytest.raises(ValueError, match="does not take quantization_config"):
        auto.from_pretrained(directory, quantization_config={"load_in_8bit": True})
    with pytest.raises(ValueError, match="on one device"):
        auto.from_pretrained(directory, device_map={"model.head": "cpu", "model.blocks": "cpu"})


def test_a_model_from_a_configuration_is_new(checkpoints):
    configuration = transformers.AutoConfig.from_pretrained(checkpoints["wavelet"])
    model = transformers.AutoModelForCausalLM.from_config(configuration)
    assert dict(model.state_dict()).keys() == load_checkpoint(checkpoints["wavelet"]).state_dict().keys()


def test_damage_is_named(checkpoints, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["wavelet"])
    model.save_pretrained(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(CheckpointError, match="is not what was saved"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_library_that_we_do_not_fit_works_without_us(monkeypatch, tmp_path):
    (tmp_path / "some_library.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(import_hook.REGISTRATIONS, "some_library", "wavelet_ecosystem.registration:no_such_function")
    with pytest.warns(UserWarning, match="cannot register WaveletLM with this version of some_library"):
        import some_library
    assert some_library.value == 3
    monkeypatch.delitem(sys.modules, "some_library")
    monkeypatch.delitem(import_hook.REGISTRATIONS, "some_library")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import some_library


def test_the_start_of_python_imports_nothing_else(fresh_process):
    program = (
        "import sys; print(sorted(name for name in sys.modules if name.split('.')[0] in ('torch', 'wavelet_core')))"
    )
    assert fresh_process(f"import wavelet_ecosystem; {program}").strip() == "[]"
