"""What `--set` of a sweep means."""

import pytest

from wavelet_core.config import ConfigurationError
from wavelet_train.search_space import Choices, Range, grid, parse_arguments, split_list


def test_lists_ranges_and_single_values_are_told_apart():
    overrides, space = parse_arguments(
        ["train.lr=log:1e-3..3e-2", "model.layers=1..4", "train.steps=100", "train.optimizer.kind=adamw, adagrad"]
    )
    assert overrides == ["train.steps=100"]
    assert space == [
        Range("train.lr", 1e-3, 3e-2, log=True, whole=False),
        Range("model.layers", 1, 4, log=False, whole=True),
        Choices("train.optimizer.kind", ("adamw", "adagrad")),
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1, 2", ["1", "2"]),
        ("{kind: a, b: [1, 2]}, {kind: c}", ["{kind: a, b: [1, 2]}", "{kind: c}"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("[1, 2]", ["[1, 2]"]),
        ("", [""]),
    ],
)
def test_commas_inside_brackets_and_quotes_do_not_split(text, parts):
    assert split_list(text) == parts


def test_a_grid_has_every_combination_once():
    _, space = parse_arguments(["a=1,2", "b=x,y,z"])
    points = grid(space)
    assert len(points) == 6 and {tuple(point.values()) for point in points} == {(a, b) for a in "12" for b in "xyz"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train.lr=0.1"], ["nothing is searched", "log:"]),
        (["train.lr=3..1"], ["train.lr=3..1", "from a smaller to a larger"]),
        (["train.lr=log:0..1"], ["above zero"]),
        (["train.lr=a..b"], ["numbers"]),
        (["train.lr=nan..1"], ["from a smaller to a larger"]),
        (["train.lr=1,1"], ["'1'", "twice"]),
        (["train.lr=1,,2"], ["empty"]),
        (["train.lr=1,2", "train.lr=3"], ["train.lr is set more than once"]),
        (["train.lr=1,2", "train.lr=3..4"], ["train.lr is set more than once"]),
    ],
)
def test_bad_arguments_are_named(arguments, parts):
    with pytest.raises(ConfigurationError) as error:
        parse_arguments(arguments)
    assert all(part in str(error.value) for part in parts), error.value


def test_a_grid_refuses_ranges():
    _, space = parse_arguments(["train.lr=log:1e-3..1e-2"])
    with pytest.raises(ConfigurationError, match="tpe"):
        grid(space)
