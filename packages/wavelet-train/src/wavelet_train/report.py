"""What a finished run says about its best checkpoint."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import torch

from wavelet_core import LanguageModel
from wavelet_train.data import PreparedData
from wavelet_train.evaluation import Evaluation, evaluate
from wavelet_train.ranks import ALONE, Ranks
from wavelet_train.run_config import TrainConfig
from wavelet_train.tables import table


@dataclass(frozen=True)
class Report:
    """The best checkpoint on the whole validation split, and what xz needs for the same text where that was asked."""

    evaluation: Evaluation
    xz_bits_per_byte: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for JSON."""
        return {"validation": self.evaluation.as_dict(), "xz_bits_per_byte": self.xz_bits_per_byte}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Report:
        """The report that `as_dict` gave. Raises KeyError, TypeError or ValueError where it did not."""
        return cls(Evaluation.from_dict(content["validation"]), content["xz_bits_per_byte"])

    def __str__(self) -> str:
        score = self.evaluation
        rows = [
            ("bits per byte", f"{score.bits_per_byte:.4f}", f"{score.byte_count:,} bytes of UTF-8"),
            ("bits per token", f"{score.bits_per_token:.4f}", f"{score.tokens:,} tokens of this run's vocabulary"),
            ("nats per token", f"{score.nats_per_token:.4f}", ""),
            ("perplexity per token", f"{score.perplexity_per_token:.3f}", ""),
            ("accuracy", f"{score.accuracy:.4f}", "share of tokens that were the likeliest"),
        ]
        if self.xz_bits_per_byte is not None:
            difference = 100 * (1 - score.bits_per_byte / self.xz_bits_per_byte)
            comparison = f"the model needs {abs(difference):.1f}% {'less' if difference > 0 else 'more'}"
            xz = ("bits per byte of `xz -9e`", f"{self.xz_bits_per_byte:.4f}", f"for the same text: {comparison}")
            rows.insert(1, xz)
        if score.perplexity_per_word is not None:
            rows.append(("perplexity per word", f"{score.perplexity_per_word:.3f}", f"{score.word_count:,} words"))
        title = f"Validation split, best checkpoint, windows of {score.window} tokens every {score.stride}:"
        return f"{title}\n{indent(table(rows), '  ')}"


def xz_size(documents: Iterable[str]) -> int:
    """Size in bytes of the documents in a row, compressed as `xz -9e` does."""
    compressor = lzma.LZMACompressor(lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    size = sum(len(compressor.compress(document.encode("utf-8", "replace"))) for document in documents)
    return size + len(compressor.flush())


def make_report(
    model: LanguageModel,
    data: PreparedData,
    config: TrainConfig,
    dtype: torch.dtype,
    on_batch: Callable[[int], None],
    ranks: Ranks = ALONE,
) -> Report:
    """Evaluate a model on the whole validation split with sliding windows (half a window apart by default)."""
    stride = config.final_stride or max(1, model.config.context_length // 2)
    split = data.split("validation")
    evaluation = evaluate(
        model, split, data.tokenizer, stride, config.batch_size, dtype=dtype, on_batch=on_batch, ranks=ranks
    )
    xz_bits_per_byte = None
    if config.compare_with_xz:
        xz_bits_per_byte = 8 * xz_size(data.dataset.documents("validation")) / split.byte_count
    return Report(evaluation, xz_bits_per_byte)
