"""Values that no field and no option expects, and places in nested data where to put them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from random import Random
from typing import Any

# fmt: off
# As words of a command line, where neither NUL nor more than 128 KiB can be. They name no place
# outside of the case's folder, for commands write where they are told to.
WORDS = (
    "", " ", "-", "--", "-1", "0", "1", "2", "3.5", "-0.0", "1e308", "1e999", "1e-320", "nan", "inf", "-inf", "NaN",
    ".inf", "2147483648", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 400,
    "9" * 5000, "0x10", "1_000", "1,2", "1,,2", ",", "0b1", "١٢", "true", "null", "~", "yes", "None", "[]", "{}",
    "[[[]]]", "{a: }", "{", "kind", "{kind: nothing}", "{kind: [1]}", "{kind: null}", "{1: 2}", "{null: 1}",
    "[1, {2: [3]}]", "&a [*a]", "*a", "!!binary aGk=", "!!python/object/apply:os.system [echo]", "!!set {a, b}",
    "!!timestamp 1", "2024-01-01", "2024-99-99", "12:30:45", "a: b: c", "é漢字😀", "\u202e", "\udcff\udcfe",
    "\x1b[31m", "a\nb", "\t", "\r\n", "x" * 100_000, "[" * 3000, "'", '"', "%s", ".", "/dev/null/x", "nonexistent/x",
    "~", "~nobody", "run", "run/best", "run/config.yaml", "tiny.yaml", "texts", "owner/name", "cuda", "cuda:99",
    "mps", "meta", "cpu:1", "xla", "greedy", "hop:0", "hop:-1", "hop:99999999999999999999", "window:1",
)
OBJECTS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"), 1e-320, 2**31,
    2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**40, -(10**40), 10**400, "", " ", "1", "nan", "nothing", "é漢字😀", "\0",
    "\x1b[2J", "a\nb", "x" * 100_000, "/dev/null/x", "~nobody/x", "texts", [], [[]], [None], [1, "a", None], {},
    {"kind": None}, {"kind": "nothing"}, {"kind": ["mlp"]}, {"": 1}, {"kind": "mlp", "x": 1}, {"kind": "product_key"},
    ["mlp"] * 50, [0] * 10_000, {1: 2}, datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1), b"bytes",
)
# fmt: on
KEYS = ("kind", "nothing", "", "model", "width", "Width", "model.width", "0", "é", "x" * 5000, "__class__", "*")


def places(data: Any) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in nested dictionaries and lists, the outermost first; they may nest very deeply."""
    left = [((), data)]
    while left:
        path, value = left.pop()
        if path:
            yield path
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        left += [((*path, key), entry) for key, entry in reversed([*entries])]


def spoil_value(random: Random, data: Any) -> str:
    """Change one place of nested data; what was changed, in words."""
    path = random.choice(list(places(data)))
    node = data
    for key in path[:-1]:
        node = node[key]
    where, how = ".".join(map(str, path)), random.randrange(10)
    if how < 7:
        value = random.choice(OBJECTS)
        node[path[-1]] = value
        return f"{where} = {repr(value)[:80]}"
    if how == 7 and isinstance(node, dict):
        key = random.choice(KEYS)
        node[key] = random.choice(OBJECTS)
        return f"a key {key[:80]!r} beside {where}"
    if how == 8:
        depth = random.choice((2, 50, 200))
        for _ in range(depth):
            node[path[-1]] = [node[path[-1]]] if random.random() < 0.5 else {"kind": node[path[-1]]}
        return f"{where} nested {depth} deep"
    del node[path[-1]]
    return f"{where} is missing"


def dotted_fields(data: Any) -> list[str]:
    """The paths of `places` as `--set` takes them."""
    return [".".join(map(str, path)) for path in places(data)]
