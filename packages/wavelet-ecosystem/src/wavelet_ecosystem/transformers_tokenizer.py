"""The tokenizer of a checkpoint of ours as one of transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import tokenizers
from transformers.tokenization_utils_tokenizers import TokenizersBackend


class WaveletTokenizer(TokenizersBackend):
    """Gives the ids that our tokenizer gives, names of special tokens in a text included, and pads on the left.

    own: our tokenizer, where the checkpoint has it; it is saved along.
    """

    padding_side = "left"
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    own: Any = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **options: Any
    ) -> WaveletTokenizer:
        """The tokenizer of a checkpoint directory, or of one of the hub that has a `tokenizer.json` of `tokenizers`."""
        from wavelet_core.tokenizers import END_OF_TEXT, FILE_NAME, load_tokenizer

        directory = Path(pretrained_model_name_or_path)
        own = load_tokenizer(directory) if (directory / "tokenizer" / FILE_NAME).is_file() else None
        if own is None or (directory / FILE_NAME).is_file():
            tokenizer: WaveletTokenizer = super().from_pretrained(pretrained_model_name_or_path, *inputs, **options)
        else:
            backend = tokenizers.Tokenizer.from_str(json.dumps(own.tokenizers_file()))
            special = {} if own.end_of_text is None else {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
            tokenizer = cls(tokenizer_object=backend, split_special_tokens=True, **special)
            tokenizer.name_or_path = str(directory)
        tokenizer.own = own
        return tokenizer

    def save_pretrained(self, save_directory: str | os.PathLike[str], *inputs: Any, **options: Any) -> tuple[str, ...]:
        """As of transformers, and our own file in the folder `tokenizer`, so that our commands find it."""
        from wavelet_core.checkpoint import CONFIG_FILE, MODEL_PARTS, TOKENIZER_DIRECTORY
        from wavelet_core.digests import DIGESTS_FILE, write_digests

        files: tuple[str, ...] = super().save_pretrained(save_directory, *inputs, **options)
        directory = Path(save_directory)
        if self.own is not None:
            self.own.save(directory / TOKENIZER_DIRECTORY)
            if (directory / DIGESTS_FILE).exists() and (directory / CONFIG_FILE).exists():
                write_digests(directory, MODEL_PARTS)
        return files
