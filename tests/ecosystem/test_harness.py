"""lm-evaluation-harness on checkpoints of ours, offline: its numbers are a naive loop's and our evaluation's."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wavelet_core.checkpoint import load_checkpoint, save_checkpoint
from wavelet_core.config import ConfigurationError
from wavelet_core.tokenizers import BytesTokenizer, load_tokenizer
from wavelet_train.evaluation import log_likelihoods
from wavelet_train.reading import Reading

pytest.importorskip("lm_eval", reason="needs wavelet-ecosystem[lm-eval]")

import lm_eval
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

TEXTS = ["def decode(self, s):\n    return s.strip()\n", "if x is None:\n    raise ValueError(x)", "é", "a" * 150]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""
CHOICES = """
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""
ANSWERS = """
output_type: generate_until
doc_to_text: question
doc_to_target: text
generation_kwargs: {until: ["\\n"], max_gen_toks: 9}
metric_list: [{metric: exact_match}]
"""


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def naive(model, context, continuation):
    """The log-likelihood of a continuation token by token, and whether each token is the likeliest."""
    total, greedy = 0.0, True
    for place, token in enumerate(continuation):
        logits = model(torch.tensor([context + continuation[:place]]))[0, -1].double()
        total += logits.log_softmax(-1)[token].item()
        greedy &= int(logits.argmax()) == token
    return total, greedy


@pytest.fixture(scope="module", params=["wavelet", "transformer"])
def harness(request, checkpoints):
    return get_model("wavelet").create_from_arg_string(f"pretrained={checkpoints[request.param]},batch_size=3")


@torch.no_grad()
def test_likelihoods_equal_a_naive_loop(harness):
    pairs = [("def f(", "x):"), ("", "import json"), ("class A:\n  ", "def"), ("x", " = 1\n" * 20), ("if", "")]
    found = harness.loglikelihood(requests(*pairs), disable_tqdm=True)
    for (context, continuation), (nats, greedy) in zip(pairs, found, strict=True):
        ids = harness.tok_encode(context.rstrip())
        whole = harness.tok_encode(context + continuation)
        expected = naive(harness.model, ids or [harness.eot_token_id], whole[len(ids) :])
        assert (nats, greedy) == (pytest.approx(expected[0], abs=1e-6 * max(1, len(whole))), expected[1])
    [(_, greedy)] = harness._score([([5, 6], [token := int(harness.model(torch.tensor([[5, 6]]))[0, -1].argmax())])])
    assert greedy and not harness._score([([5, 6], [token, (token + 1) % 256])])[0][1]


@torch.no_grad()
def test_rolling_equals_a_naive_loop_and_our_evaluation(harness):
    found = harness.loglikelihood_rolling(requests(*((text,) for text in TEXTS)))
    texts = [harness.tok_encode(text) for text in TEXTS]
    ours = log_likelihoods(harness.model, [[harness.eot_token_id, *ids] for ids in texts], Reading(streaming=True))
    counts = np.array([len(ids) for ids in texts])
    assert np.abs(np.array(found) - ours).max() / counts.max() < 1e-6
    expected = [naive(harness.model, [harness.eot_token_id], ids)[0] for ids in texts]
    assert (np.abs(np.array(found) - expected) / counts).max() < 1e-6


def test_windows_are_those_of_our_evaluation(checkpoints):
    harness = get_model("wavelet")(str(checkpoints["wavelet"]), window=16, stride=8)
    ids = harness.tok_encode(TEXTS[-1])
    [found] = harness.loglikelihood_rolling(requests((TEXTS[-1],)))
    [ours] = log_likelihoods(harness.model, [[harness.eot_token_id, *ids]], Reading(window=16, stride=8))
    assert found == pytest.approx(ours, abs=1e-6 * len(ids))


def test_answers_are_our_greedy_ones_up_to_the_stop(harness, greedy):
    questions = ["def f(x):\n    ", "", "import"]
    options = {"until": ["e", "(("], "max_gen_toks": 12, "do_sample": False}
    found = harness.generate_until(requests(*((question, options) for question in questions)))
    for question, answer in zip(questions, found, strict=True):
        ids = harness.tok_encode(question) or [harness.eot_token_id]
        tokens = greedy(harness.model, ids, 12)
        tokens = tokens[: (*tokens, harness.eot_token_id).index(harness.eot_token_id)]
        text = harness.own_tokenizer.decode(tokens)
        assert answer == text[: min(text.find(stop) % (len(text) + 1) for stop in ("e", "(("))]


def test_what_cannot_be_done_is_refused(harness, checkpoints):
    with pytest.raises(ConfigurationError, match="num_beams: there is no such option"):
        harness.generate_until(requests(("a", {"until": [], "num_beams": 3})))
    for argument, message in (("batch_size=auto", "batch_size='auto'"), ("dtype=int", "dtype='int'")):
        with pytest.raises(ConfigurationError, match=message):
            get_model("wavelet").create_from_arg_string(f"pretrained={checkpoints['wavelet']},{argument}")


def test_bytes_are_read_from_a_line_end_on(checkpoints, tmp_path):
    save_checkpoint(load_checkpoint(checkpoints["wavelet"]), tmp_path / "bytes", BytesTokenizer())
    assert get_model("wavelet")(str(tmp_path / "bytes")).eot_token_id == ord("\n")


def test_tasks_run_offline_and_give_our_numbers(checkpoints, tmp_path):
    rows = [
        {"question": "def f(", "choices": ["x", "self):\n"], "answer": place % 2, "text": text}
        for place, text in enumerate(TEXTS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, content in (("choices", CHOICES), ("rolling", ROLLING), ("answers", ANSWERS)):
        task = TASK.format(name=f"our_{name}", data=json.dumps(str(tmp_path / "rows.jsonl")))
        (tmp_path / f"{name}.yaml").write_text(task + content)
    result = lm_eval.simple_evaluate(
        model="wavelet",
        model_args={"pretrained": str(checkpoints["wavelet"])},
        batch_size=4,
        tasks=["our_choices", "our_rolling", "our_answers"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        random_seed=None,
    )["results"]
    model, tokenizer = load_checkpoint(checkpoints["wavelet"]), load_tokenizer(checkpoints["wavelet"])
    texts = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in TEXTS]
    bits = -log_likelihoods(model, texts, Reading(streaming=True)).sum() / np.log(2)
    assert result["our_rolling"]["bits_per_byte,none"] == pytest.approx(bits / len("".join(TEXTS).encode()), abs=1e-6)
    assert result["our_choices"]["acc,none"] == 0.5
    assert result["our_answers"]["exact_match,none"] == 0
