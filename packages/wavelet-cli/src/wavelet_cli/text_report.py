"""What `wavelet evaluate` says about a text."""

from __future__ import annotations

from typing import Any

from wavelet_cli.output import titled
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.bootstrap import LEVEL, confidence_intervals, document_word_counts
from wavelet_train.evaluation import TextScores
from wavelet_train.tables import table
from wavelet_train.token_split import TokenSplit

UNITS = ("bits_per_byte", "perplexity_per_word", "nats_per_token", "bits_per_token", "perplexity_per_token", "accuracy")
SIZES = ("bytes", "words", "tokens", "documents")


def text_report(
    scores: TextScores, text: TokenSplit, tokenizer: Tokenizer, resamples: int, seed: int
) -> dict[str, Any]:
    """All units with their confidence intervals, and the loss by position, for JSON."""
    intervals = {}
    if resamples:
        word_counts = document_word_counts(text, tokenizer) if scores.total.word_count else None
        intervals = confidence_intervals(scores, word_counts, resamples, seed)
    return {
        **scores.total.as_dict(),
        "documents": scores.documents,
        "intervals": {"level": LEVEL, "resamples": resamples, "seed": seed, **intervals} if intervals else None,
        "sources": scores.by_source(text),
        "by_position": scores.by_position.as_list(),
    }


def describe(report: dict[str, Any]) -> str:
    """The report as a table."""
    intervals = report["intervals"] or {}
    rows = []
    for name in UNITS:
        if report[name] is not None:
            ends = " to ".join(f"{end:.4f}" for end in intervals.get(name, ()))
            rows.append((name.replace("_", " "), f"{report[name]:.4f}", ends))
    rows += [(name, f"{report[name]:,}", "") for name in SIZES if report[name] is not None]
    reading = f"windows of {report['window']} tokens every {report['stride']}"
    if report["window"] is None:
        reading = "every document in a row, with the model's state"
    lines = [f"{report['checkpoint']} on {report['text']}", table(rows), reading]
    lines += [f"{source['bits_per_byte']:.4f} bits per byte of {source['name']}" for source in report["sources"]]
    if intervals:
        draws = f"{intervals['resamples']:,} draws of documents, seed {intervals['seed']}"
        lines.append(f"intervals hold with a probability of {intervals['level']:.0%}: {draws}")
    return titled("\n".join(lines))
