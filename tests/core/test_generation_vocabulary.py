"""A sampler learns what the tokens are, however a text is generated."""

from typing import Literal
from unittest.mock import patch

import pytest
import torch

from wavelet_core import ComponentConfig, ConfigurationError, registry
from wavelet_core.config import parse
from wavelet_core.generation import (
    Batch,
    GenerationSettings,
    ModelDrafts,
    NgramDrafts,
    Request,
    Sampler,
    collect,
    generate,
)
from wavelet_core.testing import check_component
from wavelet_core.tokenizers import BytePairTokenizer, BytesTokenizer, TokenizerError

# Beside the 256 bytes: an end of text, which has no text, and padding up to 262 entries of the model.
MERGES = [b"12", b"e3", b"ab"]
DIGITS = frozenset(b"0123456789")


class NoDigits(Sampler):
    """Lets no token through that holds a digit."""

    class Config(ComponentConfig):
        kind: Literal["no_digits"] = "no_digits"

    made = 0

    def learn_vocabulary(self, tokenizer):
        if tokenizer is None:
            raise ConfigurationError("the sampler no_digits needs a tokenizer, to know what the tokens say")
        NoDigits.made += 1
        banned = [token for token, text in enumerate(tokenizer.token_bytes) if DIGITS & set(text)]
        self.banned = torch.tensor(banned, dtype=torch.long)

    def __call__(self, logits, memory):
        return logits.index_fill(-1, self.banned.to(logits.device), -torch.inf)


@pytest.fixture(scope="module", autouse=True)
def registered():
    registry.names("sampler")  # so that plugins are loaded, and stay
    with patch.dict(registry._components):
        registry.register("sampler", NoDigits)
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairTokenizer(BytePairTokenizer.Config(), [bytes([byte]) for byte in range(256)] + MERGES)


@pytest.fixture(scope="module")
def model(make_model):
    """A model that likes digits, so that they would come without the sampler."""
    model = make_model({"vocabulary_size": 262})
    with torch.no_grad():
        model.head.bias = torch.nn.Parameter(torch.zeros(262))
        model.head.bias[[ord("1"), ord("7"), 256, 257, ord("a"), 258]] = 6.0
        model.head.bias[260] = 20.0
    return model


def settings(*samplers, **options):
    return parse(GenerationSettings, {"tokens": 24, "samplers": list(samplers), **options})


def tokens_of(model, tokenizer, settings, draft=None):
    prompts = ["The ", "1789", ""]
    return [
        completion.tokens
        for completion in collect(generate(model, prompts, settings, tokenizer=tokenizer, draft=draft))
    ]


def holds_digits(tokenizer, rows):
    return any(DIGITS & set(tokenizer.decode_bytes(row)) for row in rows)


@pytest.mark.parametrize(
    "options",
    [{}, {"best_of": 3}, {"lookahead": {"candidates": 3, "depth": 2}}, {"context": "window"}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_no_way_of_generating_draws_what_is_forbidden(options, model, tokenizer):
    assert holds_digits(tokenizer, tokens_of(model, tokenizer, settings(**options)))
    rows = tokens_of(model, tokenizer, settings("no_digits", **options))
    assert len(rows) == 3 and all(len(row) == 24 for row in rows)
    assert not holds_digits(tokenizer, rows)


def test_speculative_decoding_keeps_to_it_and_to_the_text(model, tokenizer):
    wanted = tokens_of(model, tokenizer, settings("no_digits"))
    for draft in (NgramDrafts(), ModelDrafts(model)):
        assert tokens_of(model, tokenizer, settings("no_digits"), draft) == wanted


def test_requests_of_a_batch_have_samplers_of_their_own(model, tokenizer):
    batch = Batch(model, slots=2, tokenizer=tokenizer)
    free, bound = (batch.add(Request("The ", settings(*samplers))) for samplers in ((), ("no_digits",)))
    tokens = []
    while batch.requests:
        tokens += batch.step()
    rows = {number: [token.token for token in tokens if token.row == number] for number in (free, bound)}
    assert holds_digits(tokenizer, [rows[free]]) and not holds_digits(tokenizer, [rows[bound]])


def test_the_vocabulary_is_learnt_once_for_all_rows_and_requests(model, tokenizer):
    before = NoDigits.made
    rows = tokens_of(model, tokenizer, settings("no_digits", best_of=4))
    assert len(rows) == 3 and NoDigits.made == before + 1


def test_a_sampler_that_needs_text_is_refused_before_anything_is_computed(model):
    with pytest.raises(ConfigurationError, match="no_digits needs a tokenizer"):
        generate(model, [[1, 2]], settings("no_digits"))
    batch = Batch(model)
    with pytest.raises(ConfigurationError, match="no_digits needs a tokenizer"):
        batch.add(Request([1, 2], settings("no_digits")))
    assert batch.free == 1


def test_it_keeps_the_contract():
    check_component(NoDigits)


def test_the_bytes_of_every_token(tokenizer):
    assert tokenizer.token_bytes == [bytes([byte]) for byte in range(256)] + [*MERGES, b""]
    assert BytesTokenizer().token_bytes[65] == b"A"


def test_ids_that_nothing_is_encoded_to_have_no_bytes():
    class WithAGap(BytesTokenizer):
        vocabulary_size = 258

        def decode_bytes(self, ids):
            ids = list(ids)
            if 256 in ids:
                raise TokenizerError("no such token")
            return b"".join(b"the" if token == 257 else bytes([token]) for token in ids)

    assert WithAGap().token_bytes[255:] == [b"\xff", b"", b"the"]
