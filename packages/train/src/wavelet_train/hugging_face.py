"""The data set `hugging_face`: whatever the `datasets` library opens, on the hub or on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_core.registry import nearest
from wavelet_train.splits import Split, split_of

if TYPE_CHECKING:
    import datasets

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}


class HuggingFace:
    """Rows of a `datasets` data set, each one document.

    A data set without the configured validation and test splits is dealt to train, validation and test 90/5/5 by a hash
    of each row's text.
    """

    class Config(ComponentConfig):
        kind: Literal["hugging_face"] = "hugging_face"
        path: str = Field(
            min_length=1,
            description="name on the hub (owner/name); or here a folder that save_to_disk wrote, a folder of parquet or "
            "JSON-lines files named after their splits, or one such file",
        )
        name: str | None = Field(None, description="configuration of a hub data set, such as wikitext-103-raw-v1")
        revision: str | None = Field(None, description="branch, tag or commit of a hub data set; null: the newest")
        text_column: str = Field("text", description="column that holds the text")
        train_split: str = Field("train", description="the data set's name for the train split")
        validation_split: str = Field("validation", description="the data set's name for the validation split")
        test_split: str = Field("test", description="the data set's name for the test split")
        join: str | None = Field(
            None,
            description="rows are parts of one text: a split is one document, its rows with this string between them "
            "(kept in memory as a whole); null: every row is a document, and empty ones are left out",
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        self._splits = open_splits(config)
        wanted = {
            "train": config.train_split,
            "validation": config.validation_split,
            "test": config.test_split,
        }
        missing = [name for name in wanted.values() if name not in self._splits]
        self._names: dict[Split, str] = wanted  # type: ignore[assignment]
        self._dealt = config.train_split in self._splits and len(missing) == 2
        for name, rows in self._splits.items():
            if name in wanted.values() and config.text_column not in rows.column_names:
                raise ConfigurationError(
                    f"data.dataset.text_column: {config.path} has no column {config.text_column!r}"
                    f"{nearest(config.text_column, rows.column_names)} Columns: {', '.join(rows.column_names)}"
                )
