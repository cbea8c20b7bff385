"""The tokenizer that an original checkpoint names or embeds, as our `tokenizer/` directory, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import FILE_NAME, read_description, save_description

# Sizes of tiktoken's published encodings, so that an import needs neither tiktoken nor a download.
TIKTOKEN_SIZES = {
    "gpt2": 50257,
    "r50k_base": 50257,
    "p50k_base": 50281,
    "cl100k_base": 100277,
    "o200k_base": 200019,
}
SENTENCEPIECE_FILE = "sentencepiece.model"
# An entry of the original's checkpoint that only we read: the files of a tokenizer that the original has not.
FILES_KEY = "wavelet_tokenizer"
# An entry of our tokenizer.json: the name that the original's checkpoint gave.
NAME_KEY = "original_name"
SENTENCEPIECE_NAME = "sentencepiece-pg19-32k"


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
    if FILES_KEY in wrapper:
        return _carried(wrapper[FILES_KEY])
    embedded = wrapper.get("sentencepiece_model")
    name = wrapper.get("tokenizer_name")
    original = {NAME_KEY: name} if isinstance(name, str) else {}
    if isinstance(embedded, (bytes, bytearray)):
        return TokenizerFiles({"kind": "sentencepiece", **original}, {SENTENCEPIECE_FILE: bytes(embedded)})
    if TIKTOKEN_SIZES.get(str(name)) == vocabulary:
        return TokenizerFiles({"kind": "tiktoken", "encoding": name})
    if name is None:
        reason = "the checkpoint names no tokenizer"
    elif name in TIKTOKEN_SIZES:
        reason = f"the tokenizer {name!r} has {TIKTOKEN_SIZES[name]} tokens, but the model {vocabulary}"
    else:
        reason = f"the tokenizer {name!r} is not known"
    remarks.append(f"{reason}: prompts and output of the imported model are token ids")
    return TokenizerFiles({"kind": "token_ids", "vocabulary_size": vocabulary, **original})


def _carried(files: Any) -> TokenizerFiles:
    """A tokenizer of ours that `wavelet export` put into a checkpoint."""
    try:
        description = json.loads(files[FILE_NAME])
        plain = all(Path(name).name == name and isinstance(content, bytes) for name, content in files.items())
    except (TypeError, KeyError, ValueError, AttributeError):
        plain = False
    if not plain or not isinstance(description, dict):
        raise CheckpointError(f"the checkpoint's {FILES_KEY} is damaged: it is no mapping from file names to contents")
    return TokenizerFiles(description, {name: content for name, content in files.items() if name != FILE_NAME})


def seed_tokenizer(directory: Path) -> dict[str, Any]:
    """The entries of the original's checkpoint for one of our `tokenizer/` directories.

    A tokenizer that the original has not is named by its kind, and its files travel in an entry that only we read.
    """
    entries: dict[str, Any] = {"tokenizer_name": None, "sentencepiece_model": None}
    if not (directory / FILE_NAME).is_file():
        return entries
    description = read_description(directory)
    kind = description["kind"]
    if kind == "tiktoken":
        return entries | {"tokenizer_name": description.get("encoding")}
    if kind == "token_ids":
        return entries | {"tokenizer_name": description.get(NAME_KEY)}
    if kind == "sentencepiece":
        model = (directory / SENTENCEPIECE_FILE).read_bytes()
        return {"tokenizer_name": description.get(NAME_KEY, kind), "sentencepiece_model": model}
    files = {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}
    return entries | {"tokenizer_name": kind, FILES_KEY: files}
