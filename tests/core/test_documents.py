"""Documents in one window: each is read as it would be alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_core import ModelConfig, WaveletLM
from wavelet_core.state import without_reset

LENGTH = 40


def positions_of(borders, earlier):
    """Positions in documents of a window, whose first document began `earlier` tokens before it."""
    places = []
    for begin, end in itertools.pairwise([0, *sorted(borders), LENGTH]):
        offset = earlier if begin == 0 else 0
        places += range(offset, offset + end - begin)
    return torch.tensor(places)


# Which keys a memory finds may hang on the last bit of its query. Without the bypass, whose sums are rounded in another
# order, documents of a window and documents alone have the same bits.
CASES = {
    "headline": {"memories": []},
    "fast_weight_updates_in_loops": {"bypass": None},
    **{name: {} for name in ("ema_bypass", "haar", "crawl_33", "multi_basis", "multinodal_gated", "shared_block")},
}


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(list(CASES)), data=st.data())
def test_a_document_is_read_as_if_it_were_alone(make_model, architectures, name, data):
    """In two windows that follow each other, cut anywhere."""
    model = make_model({**architectures[name], **CASES[name]})
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    tokens = torch.randint(29, (2, LENGTH), generator=generator)
    borders = [data.draw(st.sets(st.integers(1, LENGTH - 1), max_size=6)) for _ in range(2)]
    earlier = data.draw(st.sampled_from([0, 3, 10_000]))
    positions = torch.stack([positions_of(each, earlier) for each in borders])
    state, parts, cut = model.new_state(2), [], data.draw(st.integers(1, LENGTH - 1))
    with torch.no_grad():
        for window in (slice(cut), slice(cut, LENGTH)):
            state.document_positions = positions[:, window]
            parts.append(model(tokens[:, window], state))
        together = torch.cat(parts, 1)
        for row, each in enumerate(borders):
            for begin, end in itertools.pairwise([0, *sorted(each), LENGTH]):
                alone = model(tokens[row : row + 1, begin:end], model.new_state(1))
                torch.testing.assert_close(together[row : row + 1, begin:end], alone, atol=1e-5, rtol=1e-5)


def test_a_carried_mean_reaches_only_the_document_that_goes_on(make_model, tokens):
    model = make_model({"cross_window_state": True, "bypass": {"kind": "ema"}})
    state = model.new_state(2)
    with torch.no_grad():
        model(tokens[:, :10], state)
        model.begin_window(state)
        goes_on = state.clone()
        state.document_positions = torch.tensor([*range(10, 14), *range(6)]).expand(2, -1)
        together = model(tokens[:, 10:20], state)
        assert torch.allclose(together[:, :4], model(tokens[:, 10:14], goes_on), atol=1e-6)
        assert torch.allclose(together[:, 4:], model(tokens[:, 14:20], model.new_state(2)), atol=1e-6)


def test_gradients_do_not_cross_a_border_with_recomputation_either(make_model, headline):
    model = make_model({**headline, "gradient_checkpointing": True}).train()
    seen = {}
    model.embedding.register_forward_hook(lambda module, arguments, output: seen.update(rows=output))
    tokens = torch.randint(29, (1, 20), generator=torch.Generator().manual_seed(0))
    state = model.new_state(1)
    state.document_positions = torch.tensor([[*range(12), *range(8)]])
    hidden = model.hidden(tokens, state)
    (gradient,) = torch.autograd.grad(hidden[:, 12:].square().sum(), seen["rows"])
    assert not gradient[:, :12].any()
    assert gradient[:, 12:].any(-1).all()


def test_a_compiled_model_keeps_documents_apart_in_one_graph(make_model, headline):
    model = make_model(headline)
    tokens = torch.randint(29, (1, 20), generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(lambda state: model(tokens, state), fullgraph=True, backend="eager")
    torch.compiler.reset()
    with torch.no_grad():
        for border in (7, 12):
            one, other = model.new_state(1), model.new_state(1)
            one.document_positions = other.document_positions = torch.tensor([[*range(border), *range(20 - border)]])
            assert torch.allclose(compiled(one), model(tokens, other), atol=1e-5)


def test_parts_that_cannot_reset_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = WaveletLM(ModelConfig(vocabulary_size=29, width=8, layers=1, levels=2))
    assert without_reset(model) == {}
    monkeypatch.setattr(type(model.blocks[0].bypass), "resets_at_documents", False)
    assert list(without_reset(model)) == ["blocks.0.bypass"]
