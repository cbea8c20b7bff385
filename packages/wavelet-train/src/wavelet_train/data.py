"""The `data` section of a configuration, and from it to tokens ready for training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from wavelet_core.cache_directory import default_cache_directory
from wavelet_core.config import ComponentOf, Section
from wavelet_core.registry import build
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.datasets import Dataset, Split, describe
from wavelet_train.examples import check_tokenizer, example_split
from wavelet_train.token_cache import TokenCache
from wavelet_train.token_split import TokenSplit
from wavelet_train.training_state import DataIdentity


class DataConfig(Section):
    """Which text, how it becomes tokens, and where the tokens are kept."""

    dataset: Annotated[Any, ComponentOf("dataset", "python_stdlib")] = Field(
        {"kind": "python_stdlib"}, description="the text: documents in the splits train, validation and test"
    )
    tokenizer: Annotated[Any, ComponentOf("tokenizer", "byte_pair")] = Field(
        {"kind": "byte_pair"},
        description="how text becomes tokens; kinds that are learnt are trained on the train split",
    )
    cache_directory: str | None = Field(
        None,
        description="directory for trained tokenizers and token files; null: $WAVELET_CACHE, or else ~/.cache/wavelet",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="processor threads that tokenize; null: all processors that may be used"
    )
    canonical_words: dict[Split, Annotated[int, Field(ge=1)]] = Field(
        {},
        description="words of a split, in words, where the field has agreed on a number for word-level perplexity; "
        "whitespace-separated words are counted for splits that are not named",
    )


class PreparedData:
    """A data set with its tokenizer, trained if its kind is learnt. Splits are tokenized when they are first asked for.

    tokenizer: this one instead of `config.tokenizer`, for instance a checkpoint's. What was trained and tokenized once
    is read from the cache.

    Raises ConfigurationError for data that is missing, empty or not UTF-8, and for a tokenizer that cannot be made.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None = None) -> None:
        directory = Path(config.cache_directory or default_cache_directory()).expanduser()
        self.dataset: Dataset = build("dataset", config.dataset)
        self._description = describe(self.dataset, config.dataset)
        self._examples = hasattr(self.dataset, "examples")
        if self._examples:
            check_tokenizer(self.dataset, config.tokenizer if tokenizer is None else tokenizer.config)
        self._cache = TokenCache(self.dataset, directory, config.threads)
        self.tokenizer = tokenizer or self._cache.tokenizer(config.tokenizer)
        self._canonical_words = config.canonical_words
        self._splits: dict[Split, TokenSplit] = {}

    @property
    def identity(self) -> DataIdentity:
        """What makes the data set the same one again."""
        return DataIdentity(fingerprint=self._cache.data_fingerprint, description=self._description)

    def split(self, name: Split) -> TokenSplit:
        """Tokens, document starts and counts of a split. Raises ConfigurationError when it has no documents."""
        if name not in self._splits:
            if self._examples:
                split = example_split(name, self.dataset, self.tokenizer)
            else:
                split = self._cache.split(self.tokenizer, name)
            words = self._canonical_words.get(name, split.word_count)
            self._splits[name] = replace(split, word_count=words)
        return self._splits[name]
