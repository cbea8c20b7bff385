"""The tokenizer that an original checkpoint names or embeds, as our `tokenizer/` directory, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wavelet_core.tokenizers import FILE_NAME, save_description

# Sizes of tiktoken's published encodings, so that an import needs neither tiktoken nor a download.
TIKTOKEN_SIZES = {
    "gpt2": 50257,
    "r50k_base": 50257,
    "p50k_base": 50281,
    "cl100k_base": 100277,
    "o200k_base": 200019,
}
SENTENCEPIECE_FILE = "sentencepiece.model"


@dataclass
class TokenizerFiles:
    """The content of a `tokenizer/` directory, written without loading the tokenizer itself."""

    description: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        save_description(directory, self.description)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)


def tokenizer_files(wrapper: Mapping[str, Any], vocabulary: int, remarks: list[str]) -> TokenizerFiles:
    """The tokenizer of an original checkpoint's wrapper; token ids, with a remark, where none of it fits."""
    embedded = wrapper.get("sentencepiece_model")
    name = wrapper.get("tokenizer_name")
    if isinstance(embedded, (bytes, bytearray)):
        return TokenizerFiles({"kind": "sentencepiece"}, {SENTENCEPIECE_FILE: bytes(embedded)})
    if TIKTOKEN_SIZES.get(str(name)) == vocabulary:
        return TokenizerFiles({"kind": "tiktoken", "encoding": name})
    if name is None:
        reason = "the checkpoint names no tokenizer"
    elif name in TIKTOKEN_SIZES:
        reason = f"the tokenizer {name!r} has {TIKTOKEN_SIZES[name]} tokens, but the model {vocabulary}"
    else:
        reason = f"the tokenizer {name!r} is not known"
    remarks.append(f"{reason}: prompts and output of the imported model are token ids")
    return TokenizerFiles({"kind": "token_ids", "vocabulary_size": vocabulary})


def seed_tokenizer(directory: Path) -> tuple[str | None, bytes | None]:
    """The original's tokenizer_name and sentencepiece_model for one of our `tokenizer/` directories.

    A tokenizer that the original cannot name comes back as (None, None).
    """
    if not (directory / FILE_NAME).is_file():
        return None, None
    description = json.loads((directory / FILE_NAME).read_text("utf-8"))
    if description["kind"] == "sentencepiece":
        return "sentencepiece", (directory / SENTENCEPIECE_FILE).read_bytes()
    return (description["encoding"] if description["kind"] == "tiktoken" else None), None
