"""`wavelet generate`: what it prints, what it accepts, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from wavelet_cli.sampler_presets import STRATEGIES, in_order
from wavelet_core import ModelConfig, WaveletLM, build_model
from wavelet_core.config import parse
from wavelet_core.generation import GenerationSettings, clean_spacing, collect, generate
from wavelet_core.tokenizers import BytesTokenizer

FAST_WEIGHTS = {"kind": "fast_weight_product_key", "num_keys": 16, "top_k": 2}


def save(directory: Path, vocabulary_size: int = 256, width: int = 16, memories: tuple = ("mlp", FAST_WEIGHTS)) -> Path:
    torch.manual_seed(0)
    content = {"vocabulary_size": vocabulary_size, "width": width, "levels": 3, "context_length": 6}
    model = build_model(parse(ModelConfig, {**content, "layers": 1, "memories": list(memories)}))
    with torch.no_grad():
        for parameter in model.parameters():  # away from initial values that hide what the context does
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory, BytesTokenizer())
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("generate") / "checkpoint")


@pytest.fixture
def texts(wavelet, checkpoint):
    """Run the command with --json and return its report."""

    def run(*arguments: object, **keywords: object) -> dict:
        result = wavelet("generate", checkpoint, "--json", *arguments, **keywords)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


def expected(checkpoint: Path, prompt: str, tokens: int, seed: int, **fields: object) -> str:
    settings = parse(GenerationSettings, {"tokens": tokens, **fields})
    model = WaveletLM.from_pretrained(checkpoint)
    return collect(generate(model, [prompt], settings, tokenizer=BytesTokenizer(), seeds=[seed]))[0].text


def test_the_prompt_and_its_continuation_are_printed(wavelet, checkpoint):
    result = wavelet("generate", checkpoint, "--prompt", "def ", "--num-tokens", 12, "--seed", 3)
    assert result.exit_code == 0
    assert result.stdout == f"def {expected(checkpoint, 'def ', 12, 3)}\n"
    assert "12 tokens, " in result.stderr and "tokens/s" in result.stderr


def test_text_streams_while_it_is_decoded(wavelet_process, checkpoint):
    process = wavelet_process("generate", checkpoint, "--prompt", "def ", "--num-tokens", 10**6, "--top-k", 90)
    try:
        assert process.stdout.read(300).startswith("def ")
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_json_reports_texts_tokens_and_speed(texts, checkpoint):
    report = texts("--prompt", "ab", "--n", 2, "--num-tokens", 6, "--seed", 5)
    assert [text["seed"] for text in report["texts"]] == [5, 6]
    for text in report["texts"]:
        assert text["prompt"] == "ab" and text["finish"] == "length" and len(text["tokens"]) == 6
        assert text["text"] == expected(checkpoint, "ab", 6, text["seed"])
    assert report["num_tokens"] == 12 and report["tokens_per_second"] > 0


def test_the_speed_of_best_of_n_counts_the_time_before_its_text_comes(texts, monkeypatch):
    now = iter(range(10_000))
    monkeypatch.setattr("wavelet_cli.generated_text.time.perf_counter", lambda: float(next(now)))
    plain = texts("--prompt", "ab", "--num-tokens", 6)
    best = texts("--prompt", "ab", "--num-tokens", 6, "--best-of-n", 2)
    assert (plain["prompt_seconds"], plain["decode_seconds"], plain["tokens_per_second"]) == (1, 5, 1)
    assert (best["prompt_seconds"], best["decode_seconds"], best["tokens_per_second"]) == (0, 6, 1)


def test_texts_do_not_depend_on_the_batch(texts):
    arguments = ("--prompt", "ab", "--prompt", "longer", "-n", 3, "--num-tokens", 6, "--seed", 5)
    assert texts(*arguments)["texts"] == texts(*arguments, "--batch", 2)["texts"]


def test_several_texts_are_printed_in_order(wavelet, checkpoint):
    result = wavelet("generate", checkpoint, "--prompt", "x", "--prompt", "yz", "--num-tokens", 5, "--seed", 1)
    texts = [expected(checkpoint, prompt, 5, seed) for prompt, seed in (("x", 1), ("yz", 2))]
    assert result.stdout == f"--- 1 ---\nx{texts[0]}\n--- 2 ---\nyz{texts[1]}\n"


def test_prompts_come_from_arguments_files_and_standard_input(texts, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("from a file\n")
    same = [
        texts("--prompt", "from a file", "--num-tokens", 4, "--seed", 0),
        texts("from a file", "--num-tokens", 4, "--seed", 0),
        texts("--prompt-file", file, "--num-tokens", 4, "--seed", 0),
        texts("--prompt-file", "-", "--num-tokens", 4, "--seed", 0, input="from a file\n"),
        texts("-", "--num-tokens", 4, "--seed", 0, input="from a file"),
    ]
    assert all(report["texts"] == same[0]["texts"] for report in same)


def chain(*samplers: object) -> dict[str, object]:
    return {"samplers": list(samplers)}


# What is given on the command line, the settings it stands for, and those of the same line without its last option.
OPTIONS = [
    (["--temperature", 0], chain({"kind": "temperature", "temperature": 0}), {}),
    (["--temperature", 0.8], chain({"kind": "temperature", "temperature": 0.8}), {}),
    (["--repetition-penalty", 1.3], chain({"kind": "repetition_penalty", "penalty": 1.3}), {}),
    (["--top-k", 40], chain({"kind": "top_k", "k": 40}), {}),
    (["--top-p", 0.9], chain({"kind": "top_p", "p": 0.9}), {}),
    (["--min-p", 0.01], chain({"kind": "min_p", "p": 0.01}), {}),
    (
        ["--min_p", 0.01, "--top_p", 0.9, "--top_k", 40, "--temperature", 0.8, "--repetition_penalty", 1.3],
        chain(
            {"kind": "repetition_penalty", "penalty": 1.3},
            {"kind": "temperature", "temperature": 0.8},
            {"kind": "top_k", "k": 40},
            {"kind": "top_p", "p": 0.9},
            {"kind": "min_p", "p": 0.01},
        ),
        {},
    ),
    (["--wavelet_coherence"], chain("wavelet_coherence"), {}),
    (["--entropy_adaptive"], chain("entropy_adaptive"), {}),
    (
        ["--entropy_adaptive", "--entropy_t_min", 1],
        chain({"kind": "entropy_adaptive", "minimum": 1}),
        chain("entropy_adaptive"),
    ),
    (
        ["--entropy_adaptive", "--entropy_t_max", 0.9],
        chain({"kind": "entropy_adaptive", "maximum": 0.9}),
        chain("entropy_adaptive"),
    ),
    (["--sampler", "{kind: top_k, k: 3}", "--sampler", "min_p"], chain({"kind": "top_k", "k": 3}, "min_p"), {}),
    (["--context", "hop:4"], {"context": "hop:4"}, {}),
    (["--context", "window"], {"context": "window"}, {"context": "hop:4"}),
    (["--lookahead_k", 2], {"lookahead": {"candidates": 2, "depth": 5}}, {"lookahead": {}}),
    (["--lookahead-depth", 2], {"lookahead": {"candidates": 3, "depth": 2}}, {"lookahead": {}}),
    (["--best_of_n", 3], {"best_of": 3}, {}),
]


@pytest.mark.parametrize(("arguments", "fields", "without"), OPTIONS, ids=[" ".join(map(str, o[0])) for o in OPTIONS])
def test_options_and_the_originals_spellings_set_what_they_name(texts, checkpoint, arguments, fields, without):
    report = texts("--prompt", "def f(x):", "--num_tokens", 60, "--seed", 0, *arguments)
    assert report["texts"][0]["text"] == expected(checkpoint, "def f(x):", 60, 0, **fields)
    # The option shows in this text: the same without it is another.
    assert report["texts"][0]["text"] != expected(checkpoint, "def f(x):", 60, 0, **without)


def test_a_top_k_of_zero_is_none(texts, checkpoint):
    text = texts("--prompt", "ab", "--num-tokens", 24, "--seed", 5, "--top-k", 0)["texts"][0]["text"]
    assert text == expected(checkpoint, "ab", 24, 5)


def test_strategies_are_the_published_recipe(texts, checkpoint):
    arguments = ("--prompt", "ab", "--num-tokens", 20, "--seed", 2)
    text = texts(*arguments, "--strategies")["texts"][0]
    recipe = ("--repetition-penalty", 1.2, "--entropy-adaptive", "--entropy-t-max", 0.9, "--top-p", 0.85)
    assert text == texts(*arguments, *recipe, "--clean-spacing", "--metrics")["texts"][0]
    raw = expected(checkpoint, "ab", 20, 2, samplers=in_order(STRATEGIES))
    assert text["text"] == clean_spacing(raw) and text["metrics"]["num_tokens"] == 20


def test_options_change_the_strategies(texts, checkpoint):
    text = texts("--prompt", "ab", "--num-tokens", 9, "--seed", 2, "--strategies", "--top-p", 0.5, "--temperature", 0.7)
    samplers = {"repetition_penalty": {}, "temperature": {"temperature": 0.7}, "top_p": {"p": 0.5}}
    assert text["texts"][0]["text"] == clean_spacing(expected(checkpoint, "ab", 9, 2, samplers=in_order(samplers)))


def test_metrics_are_a_table(wavelet, texts, checkpoint):
    arguments = ("--prompt", "ab", "--num-tokens", 9, "--seed", 5, "--metrics", "-n", 2)
    measured = [text["metrics"] for text in texts(*arguments)["texts"]]
    assert measured[0]["mean_log_prob"] == pytest.approx(measured[0]["sum_log_prob"] / 9)
    assert measured[0] != measured[1]
    rows = [line.rsplit(maxsplit=2) for line in wavelet("generate", checkpoint, *arguments).stdout.splitlines()]
    for name, value in measured[0].items():
        shown = [str(value), str(measured[1][name])] if isinstance(value, int) else None
        shown = shown or [f"{metrics[name]:.4f}" for metrics in measured]
        assert [name.replace("_", " "), *shown] in rows


def test_stop_strings_end_the_text(texts):
    whole = texts("--prompt", "ab", "--num-tokens", 60, "--seed", 4)["texts"][0]["text"]
    stop = next(whole[place : place + 2] for place in range(20, 60) if "\ufffd" not in whole[place : place + 2])
    text = texts("--prompt", "ab", "--num-tokens", 60, "--seed", 4, "--stop", stop, "--stop", "never this")["texts"][0]
    assert text["text"] == whole[: whole.index(stop)] and text["finish"] == "stop_string"


@pytest.fixture
def reads(monkeypatch) -> list[tuple[int, int]]:
    """What models read, in order: the width of the model, and how many positions at once."""
    seen, hidden = [], WaveletLM.hidden

    def read(self, tokens, *arguments, **options):
        seen.append((self.config.width, tokens.shape[1]))
        return hidden(self, tokens, *arguments, **options)

    monkeypatch.setattr(WaveletLM, "hidden", read)
    return seen


def test_a_smaller_model_drafts(texts, tmp_path, reads):
    draft = save(tmp_path / "draft", width=8)
    arguments = ("--prompt", "ab", "--num-tokens", 30, "--seed", 4)
    plain = texts(*arguments)["texts"]
    assert {width for width, _ in reads} == {16}
    assert texts(*arguments, "--draft", draft)["texts"] == plain
    assert {width for width, _ in reads} == {8, 16}


def test_the_text_itself_drafts(texts, reads):
    arguments = ("--prompt", "abcd" * 20, "--num-tokens", 30, "--temperature", 0)
    plain = texts(*arguments)["texts"]
    assert {positions for _, positions in reads} == {1, 80}
    reads.clear()
    assert texts(*arguments, "--draft", "ngram", "--seed", plain[0]["seed"])["texts"] == plain
    assert any(1 < positions < 80 for _, positions in reads), "no guess was ever checked"


@pytest.mark.parametrize("option", [("--ptq8",), ("--dtype", "bfloat16")])
def test_weights_in_fewer_bits_give_nearly_the_same_text(texts, option):
    arguments = ("--prompt", "ab", "--num-tokens", 10, "--temperature", 0, "--metrics")
    exact, rounded = (texts(*arguments, *more)["texts"][0]["metrics"] for more in ((), option))
    assert 0 < abs(rounded["mean_log_prob"] - exact["mean_log_prob"]) < 0.05


def test_fast_weights_learn_while_generating(texts):
    arguments = ("--prompt", "ab", "--num-tokens", 30, "--seed", 4, "--metrics")
    updates = ("--fwpkm_inference_updates", "--fwpkm_update_lr", 50, "--fwpkm_chunk_size", 4)
    assert texts(*arguments)["texts"] != texts(*arguments, *updates)["texts"]


def test_a_model_without_fast_weights_cannot_learn(wavelet, tmp_path):
    save(tmp_path / "plain", memories=("mlp",))
    result = wavelet("generate", tmp_path / "plain", "--prompt", "x", "--fwpkm-inference-updates")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--fwpkm-inference-updates: the model has no fast_weight_product_key memory" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tokens", 0], "--num-tokens"),
        (["--n", 0], "--n"),
        (["--temperature", -1], "--temperature"),
        (["--temperature", "nan"], "not a finite number"),
        (["--top-p", 1.5], "--top-p"),
        (["--top-p", 0], "--top-p"),
        (["--min-p", "x"], "--min-p"),
        (["--repetition-penalty", 0], "--repetition-penalty"),
        (["--best-of-n", 0], "--best-of-n"),
        (["--lookahead-k", 1], "--lookahead-k"),
        (["--context", "hop:x"], "stream, window or hop:N"),
        (["--seed", -1], "--seed"),
        (["--stop", ""], "empty stop string"),
        (["--sampler", "top_q"], "unknown sampler 'top_q'; did you mean 'top_p'?"),
        (["--sampler", "{kind"], "not YAML"),
        (["--sampler", "~"], "must be a name or {kind: ..., ...}"),
        (["--kernel", "nativ"], "unknown kernel 'nativ'; did you mean 'native'?"),
        (["--kernel", "{kind: native, instruction_set: sse9}"], "instruction_set: Input should be 'portable'"),
        (["--kernel", "{kind"], "not YAML"),
        (["--kernel", "7"], "must be a name or {kind: ..., ...}"),
        (["--entropy-adaptive", "--temperature", 1], "leave out --temperature"),
        (["--entropy-t-max", 0.9], "needs --entropy-adaptive"),
        (["--lookahead-k", 3, "--temperature", 0], "temperature=0"),
        (["--lookahead-k", 3, "--best-of-n", 2], "leave out one"),
        (["--draft", "ngram", "--context", "window"], "context=window"),
        (["--draft", "ngram", "--lookahead-k", 2], "lookahead"),
        (["--fwpkm-update-lr", 1], "needs --fwpkm-inference-updates"),
        (["--fwpkm-inference-updates", "--fwpkm-chunk-size", 2**63 - 1], "chunk_size: Input should be less"),
        (["--prompt-file", "nowhere.txt"], "give the prompt in one way"),
        (["y"], "give the prompt in one way: TEXT"),
        (["-"], "give the prompt in one way"),
        (["--device", "abacus"], "abacus"),
        (["--tempreature", 1], "No such option"),
    ],
)
def test_nonsense_is_refused_with_status_2(wavelet, checkpoint, arguments, message):
    result = wavelet("generate", checkpoint, "--prompt", "x", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_prompts_that_cannot_be_read_are_refused(wavelet, checkpoint, tmp_path):
    missing = wavelet("generate", checkpoint, "--prompt-file", tmp_path / "nowhere.txt")
    assert missing.exit_code == 2 and "cannot read the prompt" in missing.stderr and "No such file" in missing.stderr
    (tmp_path / "binary").write_bytes(b"ab\xff")
    binary = wavelet("generate", checkpoint, "--prompt-file", tmp_path / "binary")
    assert binary.exit_code == 2 and "not UTF-8 text: byte 2" in binary.stderr
    empty = wavelet("generate", checkpoint)
    assert empty.exit_code == 2 and "the prompt is empty" in empty.stderr


def test_checkpoints_that_do_not_fit_are_refused(wavelet, checkpoint, tmp_path):
    nothing = wavelet("generate", tmp_path / "nothing", "--prompt", "x")
    assert nothing.exit_code == 1 and "no such checkpoint directory" in nothing.stderr
    small = save(tmp_path / "small", vocabulary_size=100)
    result = wavelet("generate", small, "--prompt", "x")
    assert result.exit_code == 1 and "256 tokens" in result.stderr and "100" in result.stderr
    other = wavelet("generate", checkpoint, "--prompt", "x", "--draft", small)
    assert other.exit_code == 2 and "draft model has model.vocabulary_size=100" in other.stderr
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    truncated = wavelet("generate", broken, "--prompt", "x")
    assert truncated.exit_code == 1 and "not a whole safetensors file" in truncated.stderr
