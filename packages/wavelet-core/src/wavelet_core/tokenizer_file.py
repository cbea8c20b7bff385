"""The file `tokenizer.json` of the Hugging Face library `tokenizers`, for byte-level byte-pair vocabularies.

Its ids are those of the tokenizers here. The names of special tokens are entries of the vocabulary that no text is
encoded to, as they are here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level byte-pair encoding (Radford et al. 2019).

    Printable Latin-1 stands for itself; the other bytes, in order, are the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_level_file(
    ranks: Mapping[bytes, int], pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The content of the file of a vocabulary.

    ranks: the tokens' bytes with their ids, which are in the order of the merges. pattern: the regular expression whose
    matches are encoded apart; None for a text as a whole. special_tokens: names with their ids.
    """
    characters = byte_characters()

    def name(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]} if pattern else byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # what is a token as a whole is that token
            "vocab": {**{name(token): rank for token, rank in ranks.items()}, **(special_tokens or {})},
            "merges": [[name(first), name(second)] for first, second in merges(ranks)],
        },
    }


def merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts that each token is merged from, in the order of the ranks.

    They are the last two when the token's own bytes are encoded: wherever a text comes to the token, it comes to these
    parts before. Tokens whose bytes do not end in two parts are never merged.
    """
    found = (_last_parts(token, ranks) for token in sorted(ranks, key=ranks.__getitem__))
    return [parts for parts in found if parts is not None]


def _last_parts(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """What is left of a token's bytes before its last merge; of those possible, that of the lowest rank comes first."""
    parts = [token[place : place + 1] for place in range(len(token))]
    unknown = sys.maxsize
    while len(parts) > 2:
        rank, place = min(
            (ranks.get(first + second, unknown), place) for place, (first, second) in enumerate(pairwise(parts))
        )
        if rank == unknown:
            return None
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None
