"""The tokens of data sets that give examples of token ids instead of text."""

from __future__ import annotations

from typing import Any

import numpy as np

from wavelet_core.config import ConfigurationError
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.datasets import Split
from wavelet_train.token_split import TokenSplit, token_byte_lengths


def check_tokenizer(dataset: Any, config: Any) -> None:
    """Raise ConfigurationError unless the tokenizer's ids are those of a data set of examples."""
    needed = f"data.tokenizer: {{kind: token_ids, vocabulary_size: {dataset.vocabulary_size}}}"
    if config.kind != "token_ids":
        raise ConfigurationError(f"data.tokenizer.kind={config.kind}: the data set is made of token ids; use {needed}")
    if config.vocabulary_size < dataset.vocabulary_size:
        raise ConfigurationError(
            f"data.tokenizer.vocabulary_size={config.vocabulary_size} is less than the data set's ids; use {needed}"
        )


def example_split(name: Split, dataset: Any, tokenizer: Tokenizer) -> TokenSplit:
    """The examples of a split, each a document of its own, in a row."""
    examples = list(dataset.examples(name))
    tokens = np.concatenate([example.tokens for example in examples]).astype(np.uint32)
    lengths = [len(example.tokens) for example in examples]
    return TokenSplit(
        name,
        tokens,
        document_starts=np.cumsum([0, *lengths[:-1]]),
        byte_count=int(token_byte_lengths(tokenizer)[tokens].sum()),
        word_count=0,
        counts=np.concatenate([example.counts for example in examples]),
    )
