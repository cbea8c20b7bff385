"""`check_component` tells the author of a broken tokenizer what to change."""

import itertools
import time
from array import array
from typing import Literal

import pytest

from wavelet_core import ComponentConfig
from wavelet_core.testing import check_component
from wavelet_core.tokenizers import END_OF_TEXT, BytesTokenizer, Tokenizer, TokenizerError, save_description


class Plain(BytesTokenizer):
    """What the broken tokenizers below have in common: bytes, and an end of text."""

    class Config(ComponentConfig):
        kind: Literal["plain"] = "plain"

    vocabulary_size = 257
    end_of_text = 256

    def decode_bytes(self, ids):
        return super().decode_bytes(token for token in ids if token != 256)


class Pairs(Plain):
    """A sound tokenizer that is learnt: one token more, for the most frequent pair of ASCII characters."""

    vocabulary_size = 258

    def __init__(self, config, pair):
        super().__init__(config)
        self.pair = pair

    @classmethod
    def train(cls, config, documents):
        text = "".join(documents)
        pairs = sorted({text[place : place + 2] for place in range(2000)})
        return cls(config, max(filter(str.isascii, pairs), key=text.count))

    def encode(self, text):
        encoded = [[*part.encode(), 257] for part in text.split(self.pair)]
        return [token for part in encoded for token in part][:-1]

    def decode_bytes(self, ids):
        parts = [self.pair.encode() if token == 257 else Plain.decode_bytes(self, [token]) for token in ids]
        return b"".join(parts)

    def pieces(self, text, size):
        yield text

    def save(self, directory):
        save_description(directory, {"kind": "plain", "pair": self.pair})

    @classmethod
    def load(cls, directory, saved):
        return cls(cls.Config(), saved["pair"])


class NoTokenizer:
    Config = Plain.Config
    end_of_text = None

    def __init__(self, config):
        pass


class NeedsPair(Pairs):
    train = None  # type: ignore[assignment]


class NoSize(Plain):
    vocabulary_size = None  # type: ignore[assignment]


class EndOutside(Plain):
    end_of_text = 257


class LearnsOtherwise(Pairs):
    pairs = itertools.cycle(["he", "th"])

    @classmethod
    def train(cls, config, documents):
        return cls(config, next(cls.pairs))


class Strict(Plain):
    def encode(self, text):
        return list(text.encode("latin-1"))


class GivesBytes(Plain):
    def encode(self, text):
        return text.encode()


class TooManyIds(Plain):
    vocabulary_size = 200
    end_of_text = None


class ReadsSpecialTokens(Plain):
    def encode(self, text):
        before, special, after = text.partition(END_OF_TEXT)
        return [*before.encode(), *([256] if special else []), *after.encode()]


class Stateful(Plain):
    calls = 0

    def encode(self, text):
        self.calls += 1
        return [*super().encode(text), *([32] if self.calls % 2 == 0 else [])]


class OtherBuffer(Plain):
    def encode_buffer(self, text):
        return array("I", self.encode(text.strip()))


class Lowers(Plain):
    def encode(self, text):
        return super().encode(text.lower())


class SpacesBetween(Plain):
    """Strips in decode_bytes what encode has put before the text."""

    def encode(self, text):
        return super().encode(" " + text)

    def decode_bytes(self, ids):
        return super().decode_bytes(ids)[1:]


class ReplacesInStream(Plain):
    def stream(self):
        stream = super().stream()
        stream.decode([32])
        stream.finish = lambda: "."
        return stream


class KnowsEveryId(Plain):
    def decode_bytes(self, ids):
        return super().decode_bytes(max(0, min(token, 256)) for token in ids)


class RaisesIndexError(Plain):
    def decode_bytes(self, ids):
        try:
            return super().decode_bytes(ids)
        except TokenizerError:
            raise IndexError("no such token") from None


class LosesSpaces(Plain):
    def pieces(self, text, size):
        yield from text.split(" ")


class CutsAnywhere(Pairs):
    def pieces(self, text, size):
        yield from (text[start : start + size] for start in range(0, len(text), size))


class OtherKind(Plain):
    def save(self, directory):
        save_description(directory, {"kind": "plane"})


class SavesNothing(Pairs):
    save = Tokenizer.save


class ForgetsThePair(Pairs):
    @classmethod
    def load(cls, directory, saved):
        return cls(cls.Config(), "qq")


class SavesTheTime(Plain):
    def save(self, directory):
        save_description(directory, {"kind": "plain", "saved": time.time_ns()})


@pytest.mark.parametrize(
    ("broken", "found", "remedy"),
    [
        (NoTokenizer, "is no Tokenizer", "inherit from wavelet_core.tokenizers.Tokenizer"),
        (NeedsPair, "failed being made as NeedsPair(config): TypeError", "add a class method train(config, documents)"),
        (NoSize, "has vocabulary_size=None", "the number of ids"),
        (EndOutside, "has end_of_text=257 and 257 ids", "choose one of the ids"),
        (LearnsOtherwise, "is another tokenizer when it is made again", "break ties"),
        (Strict, "failed encoding", "encode every text"),
        (GivesBytes, "to a bytes that is no list of int", "return list[int]"),
        (TooManyIds, "but has 200 ids", "count special tokens"),
        (ReadsSpecialTokens, "to its end-of-text token", "ordinary text"),
        (Stateful, "otherwise the second time", "keep nothing between calls"),
        (OtherBuffer, "gives other ids in encode_buffer than in encode", "do the same"),
        (Lowers, "reads 'The owl found nothing.' back as 'the owl found nothing.'", "normalize nothing"),
        (SpacesBetween, "gives other bytes for the ids of", "on that token alone"),
        (ReplacesInStream, "streams '' otherwise than it decodes it", "keep the default"),
        (KnowsEveryId, "decodes the id -1", "raise TokenizerError"),
        (RaisesIndexError, "raises IndexError for the id -1", "raise TokenizerError"),
        (LosesSpaces, "loses text in pieces", "all of the text"),
        (CutsAnywhere, "gives other ids for the pieces", "cut only where no token can reach across"),
        (OtherKind, "saves the kind 'plane'", "write 'plain'"),
        (SavesNothing, "failed loading what it saved: KeyError", "let load(directory, saved) read"),
        (ForgetsThePair, "is another tokenizer after saving and loading", "save all"),
        (SavesTheTime, "writes other files when it is saved again", "and no time"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_tokenizer_is_told_what_to_change(broken, found, remedy):
    with pytest.raises(AssertionError) as failure:
        check_component(broken, kind="tokenizer")
    message = str(failure.value)
    assert message.startswith(f"{broken.__name__} (tokenizer 'plain') ")
    assert found in message and remedy in message, message


@pytest.mark.parametrize("sound", [Plain, Pairs])
def test_sound_third_party_tokenizers_pass(sound):
    check_component(sound, kind="tokenizer")
