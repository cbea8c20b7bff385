"""Damage to files: flipped bits, zeroed pages, wrong lengths, other things in their place, and lying tensor headers."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

PAGE = 512


def flip_bit(random: Random, content: bytearray) -> str:
    place, bit = random.randrange(len(content)), random.randrange(8)
    content[place] ^= 1 << bit
    return f"bit {bit} of byte {place} flipped"


def flip_bits(random: Random, content: bytearray) -> str:
    places = sorted(random.sample(range(len(content)), min(len(content), random.randrange(2, 20))))
    for place in places:
        content[place] ^= random.randrange(1, 256)
    return f"bytes {places} changed"


def zero_page(random: Random, content: bytearray) -> str:
    filled = [start for start in range(0, len(content), PAGE) if any(content[start : start + PAGE])]
    start = random.choice(filled or [0])
    content[start : start + PAGE] = bytes(len(content[start : start + PAGE]))
    return f"{PAGE} bytes from {start} zeroed"


def cut(random: Random, content: bytearray) -> str:
    size = random.choice((0, 1, 7, 8, len(content) - 1, random.randrange(len(content))))
    del content[size:]
    return f"cut off after {size} bytes"


def extend(random: Random, content: bytearray) -> str:
    more = random.choice((b"\0", b"\n\n", b"x" * 100, bytes(content[-16:]), bytes(5000)))
    content += more
    return f"{len(more)} bytes at the end"


def replace_all(random: Random, content: bytearray) -> str:
    content[:] = random.choice((b"", b"\0" * 100, b"[" * 100_000, b"{}", b"null", b"[]", b"\xff\xfe", b"x" * 200_000))
    return f"{len(content)} other bytes, {bytes(content[:10])!r}"


BYTES: tuple[Callable[[Random, bytearray], str], ...] = (
    flip_bit,
    flip_bit,
    flip_bits,
    zero_page,
    cut,
    extend,
    replace_all,
)


def damage_bytes(random: Random, path: Path) -> str:
    """Change a file's bytes; what was done, in words."""
    before = path.read_bytes()
    content = bytearray(before)
    said = random.choice(BYTES)(random, content) if content else "left empty"
    if content == before:
        said = extend(random, content)
    path.write_bytes(content)
    return f"{path.name}: {said}"


def replace_file(random: Random, path: Path) -> str:
    """Put something that is no file in a file's place, or nothing."""
    path.unlink()
    how = random.choice(("missing", "a directory", "a link to itself", "a pipe", "a dangling link"))
    if how == "a directory":
        path.mkdir()
    elif how == "a link to itself":
        path.symlink_to(path.name)
    elif how == "a pipe":
        os.mkfifo(path)
    elif how == "a dangling link":
        path.symlink_to("nowhere")
    return f"{path.name} is {how}"


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_tensors(path: Path) -> tuple[dict[str, Any], bytearray]:
    """The header and the data of a safetensors file."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])


def write_tensors(path: Path, header: Any, data: bytes) -> None:
    """The opposite of `read_tensors`; a header may be given as text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def put_non_finite(random: Random, path: Path) -> str:
    """One element becomes infinite or not a number."""
    header, data = read_tensors(path)
    name = random.choice([name for name, entry in header.items() if entry.get("dtype") == "F32"])
    begin, end = header[name]["data_offsets"]
    place = begin + 4 * random.randrange((end - begin) // 4)
    value = random.choice((float("nan"), float("inf"), float("-inf")))
    data[place : place + 4] = struct.pack("<f", value)
    write_tensors(path, header, data)
    return f"{path.name}: {value} in {name}"


def swap_tensors(random: Random, path: Path) -> str:
    """Two tensors of one shape, with different numbers, change places."""
    header, data = read_tensors(path)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def content(name: str) -> bytes:
        begin, end = entries[name]["data_offsets"]
        return bytes(data[begin:end])

    pairs = [
        (one, other)
        for one in entries
        for other in entries
        if one < other and entries[one]["shape"] == entries[other]["shape"] and content(one) != content(other)
        if entries[one]["dtype"] == entries[other]["dtype"]
    ]
    one, other = random.choice(pairs)
    header[one], header[other] = header[other], header[one]
    write_tensors(path, header, data)
    return f"{path.name}: {one} and {other} have changed places"


def spoil_header(random: Random, path: Path) -> str:
    """The header says what is not so."""
    header, data = read_tensors(path)
    name = random.choice([name for name in header if name != "__metadata__"])
    entry, text = header[name], None
    how = random.randrange(11)
    if how == 0:
        entry["shape"] = random.choice(
            ([2**62, 2**62], [-1], [], [2**63], [0], [1] * 1000, "wide", None, [1.5], [2**31, 4])
        )
        said = f"shape of {name} is {str(entry['shape'])[:60]}"
    elif how == 1:
        entry["dtype"] = random.choice(
            ("F64", "F16", "BF16", "I8", "U64", "BOOL", "F4", "", None, 7, "f32", "C64", "F8_E4M3")
        )
        said = f"dtype of {name} is {entry['dtype']!r}"
    elif how == 2:
        entry["data_offsets"] = random.choice(([0, 2**64], [4, 0], [-1, 3], [0, len(data) + 1], [], [0], None, [1, 5]))
        said = f"offsets of {name} are {entry['data_offsets']}"
    elif how == 3:
        header = {
            **header,
            **{f"more.{i}": {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2} for i in range(100_000)},
        }
        said = "100,000 tensors more"
    elif how == 4:
        one = json.dumps(entry)
        text = json.dumps(header)[:-1].encode() + f", {json.dumps(name)}: {one}}}".encode()
        said = f"{name} twice"
    elif how == 5:
        header[random.choice(("", "é\n", "../x", "x" * 10_000, "__metadata__", name + " "))] = header.pop(name)
        said = f"{name} is called otherwise"
    elif how == 6:
        del header[name]
        said = f"{name} is left out"
    elif how == 7:
        text = random.choice((b"[" * 100_000, b"{}", b"[]", b"null", b'{"a": 1}', b"\xff" * 64, b""))
        said = f"header {text[:10]!r}"
    elif how == 8:
        path.write_bytes(struct.pack("<Q", random.choice((0, 2**64 - 1, 2**40, len(data), 1))) + path.read_bytes()[8:])
        return f"{path.name}: another length of the header"
    elif how == 9:
        header["__metadata__"] = random.choice(
            (None, [], {"format": 1}, {"format": "tf"}, {"format": "x" * 100_000}, "pt")
        )
        said = "other metadata"
    else:
        entry["shape"] = list(reversed(entry["shape"])) if len(set(entry["shape"])) > 1 else [*entry["shape"], 1]
        said = f"shape of {name} is {entry['shape']}"
    write_tensors(path, header if text is None else text, data)
    return f"{path.name}: {said}"
