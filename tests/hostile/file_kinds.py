"""Hostile files: checkpoints, trainer states, tokenizers, token caches, data, the original's files, run directories."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import damage
from base import EVALUATE, STEPS
from case import Case, copy_in
from values import OBJECTS, spoil_value

CHECKPOINT = "run/best"
READERS = (
    ("generate", "run", "--num-tokens", "3", "--prompt", "the fox", "--temperature", "0"),
    EVALUATE,
    ("evaluate", "run/best", "--data", "texts/validation.txt"),
    ("export", "run", "out", "--format", "seed"),
    ("inspect", "run", "--verify"),
)
RESUME = ("train", "--resume", "run")


def spoil_json(random: Random, path: Path) -> str:
    """A strange value somewhere in a JSON file."""
    content = json.loads(path.read_text("utf-8"))
    before = json.dumps(content)
    while json.dumps(content, default=str) == before:
        said = spoil_value(random, content)
    path.write_text(json.dumps(content, default=str, skipkeys=True, indent=1), "utf-8")
    return f"{path.name}: {said}"


def checkpoint(random: Random, base: Path, folder: Path) -> Case:
    """Damage to the files of a checkpoint, with its digests, without them, or with new ones."""
    copy_in(base, folder, "run", "cache", "texts")
    directory = folder / CHECKPOINT
    weights = directory / "model.safetensors"
    how = random.randrange(10)
    if how < 3:
        path = random.choice(damage.files_below(directory))
        spoilt = damage.damage_bytes(random, path)
    elif how == 3:
        path = random.choice(damage.files_below(directory))
        spoilt = damage.replace_file(random, path)
    elif how == 4:
        path, spoilt = weights, damage.put_non_finite(random, weights)
    elif how == 5:
        path, spoilt = weights, damage.swap_tensors(random, weights)
    elif how < 8:
        path, spoilt = weights, damage.spoil_header(random, weights)
    else:
        path = directory / "config.json"
        spoilt = spoil_json(random, path)
    digests = random.choice(("kept", "kept", "kept", "missing", "new"))
    if path.name == "digests.json":
        digests = "kept"
    if digests == "missing":
        (directory / "digests.json").unlink()
    elif digests == "new" and path.is_file():
        write_digests(directory)
    refused = (digests == "kept" and not same_digests(base / CHECKPOINT, directory)) or how == 4
    names = (path.name, CHECKPOINT) if refused else ()
    wanted = "refused" if refused else "any"
    # A configuration may ask for a model of any size, where nothing says that it is damaged.
    return Case(random.choice(READERS), f"{spoilt}; digests {digests}", wanted, names, long=not refused)


def same_digests(base: Path, directory: Path) -> bool:
    """Whether it is `digests.json` that was changed, and says the same nevertheless: white space, for example."""
    before, after = base / "digests.json", directory / "digests.json"
    if not after.is_file():  # but a pipe, which nobody writes into
        return False
    try:
        return before.read_bytes() != after.read_bytes() and json.loads(before.read_bytes()) == json.loads(
            after.read_bytes()
        )
    except (OSError, ValueError, RecursionError):
        return False


def write_digests(directory: Path) -> None:
    from wavelet_core.digests import write_digests

    write_digests(directory)


def state(random: Random, base: Path, folder: Path) -> Case:
    """Damage to what a run resumes from, with its digests or with new ones."""
    copy_in(base, folder, "run", "cache", "texts")
    directory = folder / "run" / "last"
    trainer = directory / "trainer"
    tensors, counters = trainer / "state.safetensors", trainer / "state.json"
    how = random.randrange(10)
    path = random.choice((tensors, tensors, tensors, counters, random.choice(damage.files_below(directory))))
    if how < 4:
        spoilt = damage.damage_bytes(random, path)
    elif how == 4:
        spoilt = damage.replace_file(random, path)
    elif how == 5:
        path, spoilt = tensors, damage.swap_tensors(random, tensors)
    elif how == 6:
        path, spoilt = tensors, damage.put_non_finite(random, tensors)
    elif how == 7:
        path, spoilt = tensors, damage.spoil_header(random, tensors)
    else:
        path, spoilt = counters, spoil_json(random, counters)
    new = random.random() < 0.3 and path.name != "digests.json" and path.is_file()
    if new:
        write_digests(directory)
    legal = new or same_digests(base / "run" / "last", directory)
    names = () if legal else (path.name, "run/last")
    return Case(RESUME, f"{spoilt}; digests {'new' if new else 'kept'}", "any" if legal else "refused", names)


def tokenizer(random: Random, base: Path, folder: Path) -> Case:
    """Another vocabulary than the one that the model was trained with."""
    copy_in(base, folder, "run", "cache", "texts")
    place = random.choice(("best", "last"))
    path = folder / "run" / place / "tokenizer" / "tokenizer.json"
    content: Any = json.loads(path.read_text())
    tokens = content["tokens"]
    how = random.randrange(8)
    number = random.randrange(256, len(tokens))
    if how == 0:
        other = random.randrange(256, len(tokens) - 1)
        number, other = (number, other) if number != other else (256, 257)
        tokens[number], tokens[other] = tokens[other], tokens[number]
        spoilt = f"tokens {number} and {other} have changed places"
    elif how == 1:
        tokens[number] = base64.b64encode(random.randbytes(random.choice((0, 1, 3, 5000)))).decode()
        spoilt = f"token {number} is another"
    elif how == 2:
        tokens[number] = random.choice(OBJECTS[:30])
        spoilt = f"token {number} is {tokens[number]!r}"[:100]
    elif how == 3:
        del tokens[number:]
        spoilt = f"only {number} tokens"
    elif how == 4:
        tokens += [base64.b64encode(b"more %d" % i).decode() for i in range(random.choice((1, 100, 100_000)))]
        spoilt = f"{len(tokens)} tokens"
    elif how == 5:
        content["kind"] = random.choice(
            ("bytes", "token_ids", "tiktoken", "sentence_piece", "", None, [], {}, "x" * 10_000, 1)
        )
        spoilt = f"kind {str(content['kind'])[:40]!r}"
    elif how == 6:
        content = random.choice(
            ({"kind": "token_ids", "vocabulary_size": random.choice(OBJECTS[:30])}, {"kind": "bytes"}, [], {}, None, 1)
        )
        spoilt = f"content {str(content)[:80]}"
    else:
        content["tokens"] = random.choice(OBJECTS[:40])
        spoilt = f"tokens {str(content['tokens'])[:40]!r}"
    path.write_text(json.dumps(content, default=str))
    kept = random.random() < 0.6
    if not kept:
        write_digests(folder / "run" / place)
    names = ("tokenizer", f"run/{place}") if kept else ()
    arguments = RESUME if place == "last" else random.choice(READERS)
    spoilt += f" in run/{place}; digests {'kept' if kept else 'new'}"
    return Case(arguments, spoilt, "refused" if kept else "any", names)


def cache(random: Random, base: Path, folder: Path) -> Case:
    """Damage to a file of the token cache."""
    copy_in(base, folder, "run", "cache", "texts")
    # Evaluating reads these; what was trained on is not opened then.
    paths = [path for path in damage.files_below(folder / "cache") if path.name.startswith("validation.")]
    path = random.choice(paths)
    how = random.randrange(10)
    if how < 7:
        spoilt = damage.damage_bytes(random, path)
    elif how == 7:
        content = path.read_bytes()
        path.unlink()
        other = path.with_name(path.name.replace("validation", "train"))
        path.write_bytes(other.read_bytes() if other.read_bytes() != content else content * 2)
        spoilt = f"{path.name} is that of train"
    elif how == 8:
        path = random.choice([path for path in paths if path.suffix != ".json"])
        spoilt = damage.replace_file(random, path)
    else:
        path = random.choice([path for path in paths if path.suffix == ".json"])
        line = path.read_text().splitlines()[0]
        content = json.loads(line)
        spoilt = f"{path.name}: {spoil_value(random, content)}"
        path.write_text(path.read_text().replace(line, json.dumps(content, default=str, skipkeys=True)) + "\n")
    output = (base / "evaluated.json").read_text("utf-8")
    return Case(EVALUATE, spoilt, "remade", output=output)


def data(random: Random, base: Path, folder: Path) -> Case:
    """Folders and files of text that are no text, or no files."""
    copy_in(base, folder, "run", "tiny.yaml")
    place = folder / "data"
    place.mkdir()
    spoilt = []
    for _ in range(random.choice((1, 2, 4))):
        how = random.choice(list(STRANGE_FILES))
        path = place / f"{len(spoilt)}.txt"
        STRANGE_FILES[how](random, path)
        spoilt.append(how)
    target = random.choice(("data", "data", "data/0.txt", "data/missing", "data/"))
    dataset = random.choice(
        (f"{{kind: text, path: {target}}}", f"{{kind: text, train: {target}, validation: {target}}}")
    )
    arguments: tuple[str, ...] = ("evaluate", "run", "--data", target)
    if random.random() < 0.4:
        arguments = ("train", "tiny.yaml", "--out", "out", "--set", f"data.dataset={dataset}", "--set", "train.steps=1")
        arguments += ("--set", "model.vocabulary_size=300")
    return Case(arguments, f"data: {', '.join(spoilt)}", names=("data",))


def _name_of_bytes(random: Random, path: Path) -> None:
    os.mkdir(os.fsencode(path.parent) + b"/\xff\xfe")
    with open(os.fsencode(path.parent) + b"/\xff\xfe/\xe9.txt", "wb") as file:
        file.write(b"the fox sees " * 100)


def _deep_folder(random: Random, path: Path) -> None:
    for _ in range(50):
        path = path / "deep"
    path.mkdir(parents=True)
    (path / "text.txt").write_text("the fox " * 100)


def _no_permission(random: Random, path: Path) -> None:
    path.mkdir()
    path.chmod(0)


STRANGE_FILES: dict[str, Any] = {
    "binary": lambda random, path: path.write_bytes(random.randbytes(5000)),
    "empty": lambda random, path: path.touch(),
    "a text": lambda random, path: path.write_text("the fox sees a stone.\n" * 200),
    "white space": lambda random, path: path.write_text(" \n\t\u3000" * 500),
    "one long line": lambda random, path: path.write_text("x" * 60_000),
    "one long line of spaces": lambda random, path: path.write_text(" " * 60_000),
    "letters without end": lambda random, path: path.write_text("漢字" * 20_000),
    "NUL": lambda random, path: path.write_bytes(b"\0" * 3000),
    "mark only": lambda random, path: path.write_bytes(b"\xef\xbb\xbf"),
    "UTF-16": lambda random, path: path.write_text("the fox", "utf-16"),
    "a cut character": lambda random, path: path.write_bytes("the fox 漢".encode()[:-1]),
    "surrogates": lambda random, path: path.write_bytes(b"the \xed\xa0\x80 fox"),
    "one letter": lambda random, path: path.write_text("a"),
    "a link to itself": lambda random, path: path.symlink_to(path.name),
    "a link to the folder": lambda random, path: path.symlink_to("."),
    "a dangling link": lambda random, path: path.symlink_to("nowhere"),
    "a pipe": lambda random, path: os.mkfifo(path),
    "a device": lambda random, path: path.symlink_to("/dev/null"),
    "an endless device": lambda random, path: path.symlink_to("/dev/zero"),
    "a folder": lambda random, path: path.mkdir(),
    "a hidden file": lambda random, path: path.with_name(".hidden").write_text("the fox"),
    "a deep folder": _deep_folder,
    "names of other bytes": lambda random, path: (
        _name_of_bytes(random, path) if len(os.listdir(path.parent)) < 1 else path.touch()
    ),
    "a folder without permission": _no_permission,
}


class Bomb:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch bomb-went-off",)


def seed(random: Random, base: Path, folder: Path) -> Case:
    """Damaged and dangerous files of the original code."""
    copy_in(base, folder, "exported")
    model, config = folder / "exported" / "best_model.pt", folder / "exported" / "config.json"
    how = random.randrange(8)
    refused = True
    if how < 3:
        spoilt = damage.damage_bytes(random, model)
        refused = False  # the format has digests of its records, but not of what stands between them
    elif how == 3:
        spoilt = damage.replace_file(random, random.choice((model, config)))
    elif how == 4:
        spoilt, refused = spoil_json(random, config), False
    elif how == 5:
        model.write_bytes(
            pickle.dumps(random.choice((Bomb(), [Bomb()], {"model_state": {"a": Bomb()}})), random.choice((0, 2, 4)))
        )
        spoilt = "a pickle that runs a command"
    elif how == 6:
        with zipfile.ZipFile(model) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        pickled = next(name for name in records if name.endswith("data.pkl"))
        records[pickled] = pickle.dumps({"model_state": Bomb()}, 2)
        with zipfile.ZipFile(model, "w") as archive:
            for name, content in records.items():
                archive.writestr(name, content)
        spoilt = "an archive that runs a command"
    else:
        model.write_bytes(pickle.dumps(random.choice(OBJECTS[:40]), random.choice((0, 2, 4))))
        spoilt = "a pickle of something else"
    names = ("best_model.pt", "config.json", "exported") if refused else ()
    arguments = ("import", "exported/best_model.pt", "imported")
    return Case(arguments, spoilt, "refused" if refused else "any", names, long=how == 4)


def run(random: Random, base: Path, folder: Path) -> Case:
    """A run directory in which something is missing, strange, or left by a killed process."""
    copy_in(base, folder, "run", "cache", "texts", "tiny.yaml")
    directory = folder / "run"
    how = random.randrange(9)
    names: tuple[str, ...] = ()
    if how == 0:
        path = random.choice((directory / "config.yaml", directory / "metrics.jsonl"))
        spoilt = damage.damage_bytes(random, path)
    elif how == 1:
        path = random.choice((directory / "config.yaml", directory / "metrics.jsonl"))
        spoilt = damage.replace_file(random, path)
    elif how == 2:
        path = random.choice((directory / "best", directory / "last", directory))
        shutil.rmtree(path)
        path.touch()
        spoilt = f"{path.name} is a file"
    elif how == 3:
        path = random.choice((directory / "best", directory / "last"))
        shutil.rmtree(path)
        if random.random() < 0.5:
            path.mkdir()
        spoilt = f"{path.name} is {'empty' if path.exists() else 'missing'}"
    elif how == 4:
        path = random.choice((directory / "best", directory / "last"))
        place = directory / f".{path.name}.{random.choice(('abc', '', 'x' * 100))}"
        place.mkdir()
        (place / random.choice(("lock", "unlocked", "strange"))).touch()
        path.rename(place / random.choice(("old", "new")))
        spoilt = f"{path.name} is in {place.name}"
    elif how == 5:
        name = random.choice((".last.abc", ".best.abc", ".lock", "lock", ".last.x.lock", ".config.yaml.abc"))
        place = directory / name
        random.choice((place.touch, place.mkdir, lambda: os.mkfifo(place), lambda: place.symlink_to(name)))()
        spoilt = f"there is {name}"
    elif how == 6:
        one, other = directory / "best", directory / "last"
        one.rename(directory / "x")
        other.rename(one)
        (directory / "x").rename(other)
        spoilt = "best and last have changed places"
    elif how == 7:
        shutil.rmtree(directory / "last")
        (directory / "last").symlink_to(random.choice(("best", "last", "nowhere", "../texts")))
        spoilt = "last is a link"
    else:
        metrics = directory / "metrics.jsonl"
        metrics.write_bytes(
            random.choice((b"", b"{" * 10_000, b"\0" * 10_000, metrics.read_bytes()[:-20], b"x\n" * 100))
        )
        spoilt = "other metrics"
    fresh = ("train", "tiny.yaml", "--out", "run", *random.choice(((), ("--overwrite",))))
    arguments = random.choice((*READERS, RESUME, RESUME, RESUME, fresh))
    return Case(arguments, f"run: {spoilt}, of {STEPS} steps", names=names)
