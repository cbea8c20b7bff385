"""Hostile options, prompts and configurations."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import click
import yaml
from base import CONFIGURATION
from case import Case, copy_in
from values import WORDS, dotted_fields, spoil_value

COMMANDS = {
    "train": ("train", "tiny.yaml", "--set", "train.steps=1", "--set", "train.schedule=constant"),
    "generate": ("generate", "run", "--num-tokens", "3", "--temperature", "0"),
    "evaluate": ("evaluate", "run", "--split", "validation"),
    "inspect": ("inspect", "run", "--html", "page.html"),
    "import": ("import", "exported/best_model.pt", "imported"),
    "export": ("export", "run", "exported-again", "--format", "seed"),
    "config show": ("config", "show", "tiny.yaml"),
    "config list": ("config", "list"),
    "plugins": ("plugins",),
    "bench decode": ("bench", "decode", "run", "--positions", "3", "--rounds", "1", "--window-rounds", "0"),
}
# Compiling takes a minute, and says nothing about our own code.
LEFT_OUT = {"--compiled", "--help", "--debug"}


def options_of(words: str) -> Iterator[click.Parameter]:
    """The options and arguments of a command as click knows them, so that new ones are tried too."""
    from wavelet_cli.main import cli

    command: click.Command | None = cli
    for word in words.split():
        assert isinstance(command, click.Group)
        command = command.commands.get(word)
    assert command is not None
    return (parameter for parameter in command.params if not LEFT_OUT & set(parameter.opts))


def option(random: Random, base: Path, folder: Path) -> Case:
    """One to three options or arguments of a command have values that they do not expect."""
    copy_in(base, folder, "run", "cache", "exported", "texts", "tiny.yaml")
    words = random.choice(list(COMMANDS))
    arguments = list(COMMANDS[words])
    parameters = list(options_of(words))
    spoilt = []
    for parameter in random.sample(parameters, min(len(parameters), random.choice((1, 1, 1, 2, 3)))):
        value = random.choice(WORDS)
        if isinstance(parameter, click.Argument):
            place = len(words.split()) + [p for p in parameters if isinstance(p, click.Argument)].index(parameter)
            arguments[place : place + 1] = [value]
            spoilt.append(parameter.name or "")
            continue
        name = random.choice(parameter.opts)
        spoilt.append(name)
        if parameter.name == "overrides":
            field = random.choice([*dotted_fields(CONFIGURATION), *WORDS])
            value = random.choice((f"{field}={value}", field, value, f"={value}", f"{field}.{value}=1"))
        flag = isinstance(parameter, click.Option) and parameter.is_flag
        arguments += [f"{name}={value}" if random.random() < 0.2 else name] if flag else [name, value]
    return Case(arguments, f"hostile {', '.join(spoilt)}", long=True)


# fmt: off
PROMPTS = (
    b"", b" ", b"\n", b"\0", b"\0" * 1000, b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"a" * 3000, b" " * 3000,
    "漢字" * 1000, "é", "e\u0301", "\u202e", "\x1b[2J", "<|endoftext|>", "😀\u200d" * 100, "\r\n" * 1000,
    "the fox sees",
)
TEXTS = (
    "", "# nothing", "---\n---\n", "[]", "null", "7", "text", "\t", "{", "a: b: c", "model:\n\twidth: 3", "- a\nb: c",
    "%YAML 9.9\n---\n", "&a [*a]", "model: &a {kind: *a}", "model: &m {memories: [*m]}", "? [1, 2]\n: 3",
    "? {a: b}\n: c", "<<: 3", "<<: [1]", "model: {<<: {width: 3}}", "model: !!python/name:os.system",
    "model: !unknown {}", "model: !!binary '***'", "train: {seed: " + "9" * 5000 + "}", "train: {steps: 1e9999}",
    "[" * 5000, "{a: " * 5000, "a: " + "x" * 500_000, "# " + "x" * 5_000_000, "a: 2024-99-99", "a: !!int x",
    "a: !!float [1]", "=: 1", "a: =", "\ufeffmodel: {}", "model: {width: 8}\nmodel: {width: 9}", "1: 2", "null: 1",
    "true: 1", "2024-01-01: 1", "1.5: {}", "~: ~", "model: {1: 2}", "a: &x b\nc: *y",
)
PIECES = (
    b"\0", b"\xff", b"\n", b"{", b"}", b"[", b"'", b": ", b"- ", b"&a ", b"*a", b"!!", b"\t", b"#", b"", b"9", b"|",
    b"%",
)
# fmt: on


def prompt(random: Random, base: Path, folder: Path) -> Case:
    """A prompt of strange bytes, from the command line, a file or standard input."""
    copy_in(base, folder, "run")
    chosen = random.choice(PROMPTS)
    data = chosen.encode() if isinstance(chosen, str) else chosen
    data = data * random.choice((1, 1, 2)) + random.randbytes(random.choice((0, 0, 1, 100)))
    arguments = ["generate", "run", "--num-tokens", "3", "--seed", "0"]
    way = random.choice(("--prompt", "--prompt-file", "-"))
    stdin = b""
    if way == "--prompt":
        arguments += ["--prompt", data.replace(b"\0", b"").decode("utf-8", "surrogateescape")]
    elif way == "--prompt-file":
        (folder / "prompt.txt").write_bytes(data)
        arguments += ["--prompt-file", "prompt.txt"]
    else:
        arguments.append("-")
        stdin = data
    stop = data[:20].replace(b"\0", b"").decode("utf-8", "surrogateescape")
    more: list[list[str]] = [
        ["--stop", stop],
        ["--context", "window"],
        ["--draft", "ngram"],
        ["--lookahead-k", "2"],
        ["-n", "2"],
    ]
    more += [[flag] for flag in ("--metrics", "--strategies", "--json", "--ptq8", "--clean-spacing")]
    for extra in random.sample(more, random.randrange(3)):
        arguments += extra
    return Case(arguments, f"prompt of {len(data)} bytes by {way}", stdin=stdin)


def laughs(random: Random) -> str:
    """Few bytes of YAML that stand for very many values."""
    depth, width = random.choice(((9, 9), (30, 2), (5, 50)))
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, depth)]
    place = random.choice(("data", "model", "train", "description", "more"))
    return "\n".join([*lines, f"{place}: *a{depth - 1}"])


def configuration(random: Random, base: Path, folder: Path) -> Case:
    """A configuration file with a strange value, key, nesting, text or encoding."""
    copy_in(base, folder, "texts")
    suffix = random.choice((".yaml", ".json"))
    content: Any = copy.deepcopy(CONFIGURATION)
    content["train"] |= {"steps": 2, "validate_every": 2}
    if random.random() < 0.15:
        content = json.loads((base / "exported" / "config.json").read_text())
        suffix = ".json"
    how = random.randrange(10)
    if how < 6:
        spoilt = ", ".join(spoil_value(random, content) for _ in range(random.choice((1, 1, 1, 2, 4))))
        data = _dumped(content, suffix)
    elif how == 6:
        data = (laughs(random) if random.random() < 0.3 else random.choice(TEXTS)).encode()
        spoilt = f"text {data[:40]!r}"
    elif how == 7:
        encoding = random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le", "cp1252"))
        data = _dumped(content | {"description": "é"}, suffix, plain=True).decode().encode(encoding, "replace")
        spoilt = f"encoded as {encoding}"
    else:
        text = bytearray(_dumped(content, suffix))
        for _ in range(random.choice((1, 1, 5))):
            place = random.randrange(len(text))
            text[place : place + random.choice((0, 1, 1, 10))] = random.choice(PIECES)
        data, spoilt = bytes(text), "characters changed"
    name = f"spoilt{suffix}"
    (folder / name).write_bytes(data)
    command = random.choice((("config", "show"), ("config", "show", "--parameters"), ("train", "--out", "out")))
    return Case([*command, name], f"{name}: {spoilt}", names=(name, "data.", "model.", "train."), long=True)


def _dumped(content: Any, suffix: str, plain: bool = False) -> bytes:
    if suffix == ".json":
        return json.dumps(_json(content), indent=1, ensure_ascii=not plain).encode()
    dumper = yaml.SafeDumper
    return yaml.dump(content, Dumper=dumper, allow_unicode=plain, sort_keys=False).encode("utf-8", "replace")


def _json(value: Any) -> Any:
    """What JSON can hold of a value."""
    if isinstance(value, dict):
        return {str(key): _json(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_json(entry) for entry in value]
    return value if isinstance(value, int | float | str | None) else str(value)
