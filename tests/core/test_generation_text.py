"""Text as it comes: unfinished characters, stop strings that tokens cut, spacing cleanup in pieces, metrics."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavelet_core.generation import SpacingStream, clean_spacing
from wavelet_core.generation.stopping import TextStream
from wavelet_core.generation.text_metrics import distinct, repetition
from wavelet_core.tokenizers import BytesTokenizer

TOKENIZER = BytesTokenizer()


def pieces_of(stream, text):
    return [stream.feed(token) for token in TOKENIZER.encode(text)]


def test_a_character_comes_when_its_last_byte_does():
    assert pieces_of(TextStream(TOKENIZER), "aé€") == ["a", "", "é", "", "", "€"]


def test_a_broken_character_comes_as_a_replacement_at_the_end():
    stream = TextStream(TOKENIZER)
    assert stream.feed(0xE2) == ""
    assert stream.finish() == "\ufffd"


def test_text_that_may_begin_a_stop_string_is_held_back():
    stream = TextStream(TOKENIZER, ["\n\nEND"])
    assert pieces_of(stream, "a\n\nE") == ["a", "", "", ""]
    assert not stream.stopped
    assert stream.feed(ord("x")) == "\n\nEx"
    assert pieces_of(stream, "\n\nEN") == ["", "", "", ""]
    assert stream.feed(ord("D")) == "" and stream.stopped
    assert stream.feed(ord("y")) == "" and stream.finish() == ""


def test_held_text_comes_when_no_stop_string_followed():
    stream = TextStream(TOKENIZER, ["stop"])
    assert "".join(pieces_of(stream, "a sto")) == "a "
    assert stream.finish() == "sto"


@given(text=st.text("ab", max_size=40), stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string_that_is_complete(text, stops):
    stream = TextStream(TOKENIZER, stops)
    seen = ""
    for count, token in enumerate(TOKENIZER.encode(text), start=1):
        seen += stream.feed(token)
        found = [stop for stop in stops if text[:count].endswith(stop)]
        assert stream.stopped == bool(found)
        if found:
            assert seen == text[: count - max(map(len, found))]
            return
        assert text.startswith(seen)
        held = text[len(seen) : count]
        assert not held or any(stop.startswith(held) for stop in stops)
    assert seen + stream.finish() == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a , b ; c : d .", "a, b; c: d."),
        ("they 're here", "they're here"),
        ('( a ) [ b ] { c } " d "', '(a) [b] {c} "d"'),
        ("one .\ntwo !\n", "one.\ntwo!\n"),
        ("a line\n. another", "a line\n. another"),
        ("costs .5 of it", "costs .5 of it"),
        ('"A" "B"', '"A" "B"'),
        ("", ""),
    ],
)
def test_spacing_cleanup(before, after):
    assert clean_spacing(before) == after


SPACED = st.lists(
    st.sampled_from(["word", "x", '"', "''", "' '", "'", "'s", "(", ")", ",", ".", "\n", '" "']), max_size=30
)


@given(words=SPACED, cuts=st.lists(st.integers(0, 150), max_size=8), joint=st.sampled_from([" ", "", "  "]))
def test_spacing_cleanup_in_pieces_is_that_of_the_whole(words, cuts, joint):
    text = " ".join(words[:15]) + joint + " ".join(words[15:])
    stream, places = SpacingStream(), sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [stream.feed(text[start:stop]) for start, stop in itertools.pairwise(places)]
    assert "".join(pieces) + stream.finish() == clean_spacing(text)


def test_spacing_cleanup_does_not_wait_for_the_end():
    stream = SpacingStream()
    assert stream.feed("He said , hello there") == "He said, hello"
    assert stream.feed(' " wait for') == ""
    assert stream.feed(' me " and go') == ' there "wait for me" and'


def test_distinct_counts_different_n_grams():
    assert distinct([1, 1, 2, 1, 1], 1) == 2 / 5
    assert distinct([1, 1, 2, 1, 1], 2) == 3 / 4
    assert distinct([1], 2) == 0


def test_repetition_is_the_share_of_tokens_in_repeated_n_grams():
    assert repetition([1, 2, 3, 4, 9, 1, 2, 3, 4]) == 8 / 9
    assert repetition([5] * 5) == 1
    assert repetition([1, 2, 3]) == repetition([]) == 0
