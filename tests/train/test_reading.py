"""Scores of a text however it is read, against loops that say what is meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wavelet_core import ConfigurationError, build_model
from wavelet_core.config import parse_model
from wavelet_core.tokenizers import TokenIds
from wavelet_train.evaluation import log_likelihoods, score_text
from wavelet_train.reading import Reading
from wavelet_train.token_split import TokenSplit

VOCABULARY, END = 32, 31
CONTEXT = 8


class Tokens(TokenIds):
    """Ids with an end of text."""

    end_of_text = END


TOKENIZER = Tokens(TokenIds.Config(vocabulary_size=VOCABULARY))


def split_of(*lengths: int, separated: bool = True) -> TokenSplit:
    """Documents of random tokens, with an end of text between them."""
    generator = np.random.default_rng(0)
    tokens: list[int] = []
    starts = []
    for length in lengths:
        if tokens and separated:
            tokens.append(END)
        starts.append(len(tokens))
        tokens += generator.integers(END, size=length).tolist()
    return TokenSplit("test", np.array(tokens, np.uint16), np.array(starts), 100, 50)


def model_of(**fields: Any) -> Any:
    torch.manual_seed(0)
    config = {"width": 16, "layers": 1, "vocabulary_size": VOCABULARY, "context_length": CONTEXT, **fields}
    model = build_model(parse_model(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@torch.no_grad()
def losses(model: Any, tokens: np.ndarray, state: Any = None) -> torch.Tensor:
    """Of every token but the first, each predicted from all before it."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    return F.cross_entropy(model(ids[None, :-1], state)[0], ids[1:], reduction="none")


FAMILIES: dict[str, dict[str, Any]] = {
    "wavelet": {"levels": 2},
    "multinodal": {"kind": "multinodal", "levels": 2, "cross_cell_gating": True},
    "transformer": {"kind": "transformer", "heads": 2, "capacity": 64},
    "mamba2": {"kind": "mamba2", "head_width": 8, "state_width": 4},
    "gated_delta_net": {"kind": "gated_delta_net", "heads": 2, "key_width": 4, "value_width": 4},
    "residual_lstm": {"kind": "residual_lstm", "cells": 8},
}
FAST_WEIGHTS = {
    "kind": "fast_weight_product_key",
    "num_keys": 16,
    "top_k": 3,
    "chunk_size": 4,
    "update_learning_rate": 20.0,
    "inference_updates": True,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_a_text_equals_one_parallel_pass(family: str) -> None:
    model, text = model_of(**FAMILIES[family]), split_of(50)
    scores = score_text(model, text, TOKENIZER, Reading(streaming=True), batch_size=1)
    assert scores.total.nats == pytest.approx(losses(model, text.tokens).sum().item(), rel=1e-5)
    assert (scores.total.tokens, scores.total.window, scores.total.stride) == (49, None, None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("separate", [False, True])
def test_streaming_reads_every_document_from_silence(family: str, separate: bool) -> None:
    model, lengths = model_of(**FAMILIES[family]), (3, 21, 1, 40, 9)
    text = split_of(*lengths)
    reading = Reading(streaming=True, separate_documents=separate)
    scores = score_text(model, text, TOKENIZER, reading, batch_size=3)
    expected = []
    for number, (start, length) in enumerate(zip(text.document_starts, lengths, strict=True)):
        document = text.tokens[start : start + length + (not separate)]
        before = [END] if separate or number else []
        expected.append(losses(model, np.array([*before, *document])).sum().item())
    np.testing.assert_allclose(scores.nats, expected, rtol=1e-5)


@pytest.mark.parametrize("stride", [None, 1, 3, CONTEXT])
@pytest.mark.parametrize("separated", [False, True])
def test_separate_documents_are_scored_in_windows_of_their_own(stride: int | None, separated: bool) -> None:
    model, lengths = model_of(levels=2), (3, 21, 1, 40, 9)
    text = split_of(*lengths, separated=separated)
    tokenizer = TOKENIZER if separated else TokenIds(TOKENIZER.config)
    reading = Reading(stride=stride, separate_documents=True)
    scores = score_text(model, text, tokenizer, reading, batch_size=2)
    documents = [
        np.array([*([END] if separated else []), *text.tokens[start : start + length]])
        for start, length in zip(text.document_starts, lengths, strict=True)
    ]
    expected = []
    for document in documents:
        nats, scored, start = 0.0, 1, 0
        while scored < len(document):
            window = document[start : start + CONTEXT + 1]
            nats += losses(model, window)[scored - start - 1 :].sum().item()
            scored, start = start + len(window), start + (stride or CONTEXT)
        expected.append(nats)
    np.testing.assert_allclose(scores.nats, expected, rtol=1e-5)
    np.testing.assert_allclose(log_likelihoods(model, documents, Reading(stride=stride)), -scores.nats, atol=1e-12)
    assert scores.total.tokens == sum(lengths) - (0 if separated else len(lengths))


def test_windows_over_the_borders_score_the_ends_of_documents_too() -> None:
    text = split_of(3, 21, 1)
    scores = score_text(model_of(levels=2), text, TOKENIZER)
    assert scores.tokens.tolist() == [3, 22, 1]
    assert scores.total.tokens == len(text.tokens) - 1
    assert scores.nats.sum() == pytest.approx(scores.total.nats)


def test_the_end_of_text_has_no_bytes_and_every_token_those_it_decodes_to() -> None:
    text = split_of(3, 21, 1)
    scores = score_text(model_of(levels=2), text, TOKENIZER, Reading(separate_documents=True))
    for count, start, length in zip(scores.byte_counts, text.document_starts, (3, 21, 1), strict=True):
        assert count == len(TOKENIZER.decode(text.tokens[start : start + length].tolist()))
    assert score_text(model_of(levels=2), text, TOKENIZER).total.byte_count < scores.byte_counts.sum()


def test_fast_weights_learn_from_a_document_only_where_that_is_asked_for() -> None:
    model = model_of(levels=2, memories=[FAST_WEIGHTS])
    text = split_of(40, 30)
    still = [score_text(model, text, TOKENIZER, Reading(streaming=each)).nats for each in (False, True)]
    learning = score_text(model, text, TOKENIZER, Reading(streaming=True, fast_weight_updates=True))
    first = losses(model, text.tokens[:41], model.new_state())  # whose own configuration says that it learns
    assert learning.nats[0] == pytest.approx(first.sum().item(), rel=1e-5)
    assert still[1][0] == pytest.approx(losses(model, text.tokens[:41]).sum().item(), rel=1e-5)
    assert abs(learning.nats[0] - still[1][0]) > 1e-3
    assert all(module.inference_updates for module in model.modules() if hasattr(module, "inference_updates"))


def test_cross_window_state_is_carried_along_a_document_only_where_that_is_asked_for() -> None:
    model, text = model_of(levels=2, cross_window_state=True, layers=2), split_of(30, 20)
    carried = score_text(model, text, TOKENIZER, Reading(cross_window_state=True), batch_size=2)
    expected = []
    for document in (text.tokens[:31], text.tokens[30:]):
        state, nats = model.new_state(), 0.0
        for start in range(0, len(document) - 1, CONTEXT):
            nats += losses(model, document[start : start + CONTEXT + 1], model.begin_window(state)).sum().item()
        expected.append(nats)
    np.testing.assert_allclose(carried.nats, expected, rtol=1e-5)
    alone = score_text(model, split_of(30), TOKENIZER)
    streamed = score_text(model, split_of(30), TOKENIZER, Reading(streaming=True))
    assert streamed.nats[0] == pytest.approx(losses(model, split_of(30).tokens).sum().item(), rel=1e-5)
    assert len({round(each.nats[0], 3) for each in (carried, alone, streamed)}) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"streaming": True, "stride": 2}, "leave out the window and the stride"),
        ({"streaming": True, "cross_window_state": True}, "windows that do not overlap"),
        ({"fast_weight_updates": True}, "use streaming"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Reading(**fields)


def test_what_the_model_does_not_have_is_refused() -> None:
    model, text = model_of(levels=2), split_of(9)
    with pytest.raises(ConfigurationError, match="cross_window_state"):
        score_text(model, text, TOKENIZER, Reading(cross_window_state=True))
    with pytest.raises(ConfigurationError, match="no fast_weight_product_key memory"):
        score_text(model, text, TOKENIZER, Reading(streaming=True, fast_weight_updates=True))


def test_loss_is_told_by_the_tokens_read_before() -> None:
    model, text = model_of(levels=2), split_of(40, 9)
    windows = score_text(model, text, TOKENIZER).by_position.as_list()
    assert [(entry["first"], entry["last"]) for entry in windows] == [(1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 10)]
    assert [entry["tokens"] for entry in windows] == [7, 6, 6, 12, 12, 6]
    streamed = score_text(model, split_of(40), TOKENIZER, Reading(streaming=True))
    last = streamed.by_position.as_list()[-1]
    assert (last["first"], last["last"], last["tokens"]) == (32, 44, 8)
    assert last["nats_per_token"] == pytest.approx(losses(model, split_of(40).tokens)[31:].mean().item(), rel=1e-5)
