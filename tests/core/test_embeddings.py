"""What stands beside the token embedding: hashed bigrams, value embeddings, and capped logits."""

import pytest
import torch

from wavelet_core.bigrams import bigram_row
from wavelet_core.config import ConfigurationError, parse_model
from wavelet_core.language_model import cross_entropy
from wavelet_core.parameter_counts import parameter_parts


def row_as_stated(previous: int, token: int, rows: int) -> int:
    bits = (0x9E3779B1 * previous ^ 0x85EBCA77 * token) % 2**31
    bits = 0x2C1B3C6D * (bits ^ bits >> 15) % 2**31
    return (bits ^ bits >> 15) % rows


def test_the_rows_of_bigrams_are_as_stated_and_spread_evenly():
    previous, tokens = torch.randint(1 << 17, (2, 200_000), generator=torch.Generator().manual_seed(0))
    rows = bigram_row(previous, tokens, 1000)
    for p, t, row in zip(previous[:100].tolist(), tokens[:100].tolist(), rows[:100].tolist(), strict=True):
        assert row == row_as_stated(p, t, 1000)
    counts = rows.bincount(minlength=1000).float()
    assert (counts - 200).square().mean() / 200 == pytest.approx(1, abs=0.2), "as of independent draws"


@pytest.mark.parametrize("rows", [256, 4099])
def test_all_pairs_of_a_small_vocabulary_spread_evenly(rows):
    previous, tokens = torch.cartesian_prod(torch.arange(128), torch.arange(128)).unbind(1)
    counts = bigram_row(previous, tokens, rows).bincount(minlength=rows).float()
    assert (counts - counts.mean()).square().mean() / counts.mean() < 1.3


def test_bigrams_add_the_row_of_the_pair(make_model, tokens):
    model = make_model({"bigram_rows": 37})
    plain = model.embed(tokens)
    found = model.embed_text(tokens, {}) - plain
    table = model.bigram_embedding.table.weight
    for place in (0, 1, 17):
        previous = 0 if place == 0 else int(tokens[0, place - 1]) + 1
        row = row_as_stated(previous, int(tokens[0, place]), 37)
        torch.testing.assert_close(found[0, place], table[row])


def test_fresh_tables_change_nothing(make_model, tokens):
    logits = []
    for overrides in ({}, {"bigram_rows": 37}, {"block": {"value_embedding": True}}):
        model = make_model(overrides, nudge=0)
        for name, parameter in model.named_parameters():
            if "bigram" not in name and "value" not in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        logits.append(model(tokens))
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_every_block_has_a_value_embedding_for_what_it_reads(make_model, tokens):
    model = make_model({"block": {"value_embedding": True}})
    seen = {}
    for index, block in enumerate(model.blocks):
        block.memories.register_forward_pre_hook(lambda _, inputs, index=index: seen.update({index: inputs[0]}))
        block.norm_memory.register_forward_hook(lambda _, inputs, out, index=index: seen.update({f"n{index}": out}))
    model(tokens)
    for index, block in enumerate(model.blocks):
        value = model.value_embeddings[index](tokens)
        torch.testing.assert_close(seen[index], seen[f"n{index}"] + block.value_gains[1] * value)


def test_logits_stay_below_their_cap_and_the_loss_is_theirs(make_model, tokens):
    model, free = (make_model({"logit_soft_cap": cap}) for cap in (0.5, None))
    raw = free(tokens)
    torch.testing.assert_close(model(tokens), 0.5 * torch.tanh(raw / 0.5))
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(loss, cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]))


def test_a_head_can_start_small(make_model):
    assert make_model({"head_std": 0.001}, nudge=0).head.weight.std().item() == pytest.approx(0.001, rel=0.2)
    with pytest.raises(ConfigurationError, match=r"head_std.*tied_embedding"):
        parse_model({"head_std": 0.1, "tied_embedding": True})


def test_tables_are_counted_by_name(make_model):
    model = make_model({"bigram_rows": 37, "block": {"value_embedding": True}, "logit_soft_cap": 9.0})
    totals = {part.name: part.total for part in parameter_parts(model)}
    assert totals["bigram_embedding"] == 37 * 12
    assert totals["value_embeddings"] == 2 * totals["embedding"] == 2 * totals["head"]
