"""What others have published: perplexities of whole papers' models, each with its unit and its source.

Perplexity per word and perplexity per token of some vocabulary are different units; they stand in columns of their own
and do not compare. Conversions are those of docs/model.md, section 9, with the counts of its section 8.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A model on the test split of a text. per_word, per_token: perplexities; bits_per_byte: where it was measured.

    token: what per_token counts.
    """

    text: str
    model: str
    parameters: str
    per_word: float | None
    source: str
    per_token: float | None = None
    token: str = ""
    bits_per_byte: float | None = None


TRANSFORMER_XL = "Dai et al. 2019, arXiv 1901.02860, table 1"
GPT_2 = "Radford et al. 2019, table 3, zero-shot, after de-tokenizers"
COMPRESSIVE = "Rae et al. 2019, arXiv 1911.05507"
WAVELET = "the original's README"
CORRECTED = f"{WAVELET}; per word by its correction of 2026-07-20"

PUBLISHED = (
    Published("WikiText-103", "GPT-2", "1.5B", 17.48, GPT_2),
    Published("WikiText-103", "Transformer-XL large", "257M", 18.3, TRANSFORMER_XL),
    Published("WikiText-103", "S4", "249M", 20.95, "Gu et al. 2021, arXiv 2111.00396"),
    Published("WikiText-103", "GPT-2", "774M", 22.05, GPT_2),
    Published("WikiText-103", "Transformer-XL standard", "151M", 24.0, TRANSFORMER_XL),
    Published("WikiText-103", "GPT-2", "355M", 26.37, GPT_2),
    Published("WikiText-103", "WaveletLM, 10 layers, no MLP", "893M", 33.5, CORRECTED, 20.04, "GPT-2", 0.9597),
    Published("WikiText-103", "WaveletLM mini", "73M", 36.1, CORRECTED, 21.34, "GPT-2", 0.9797),
    Published("WikiText-103", "WaveletLM small", "239M", 36.2, CORRECTED, 21.39, "GPT-2", 0.9805),
    Published("WikiText-103", "GPT-2", "124M", 37.50, GPT_2),
    Published("WikiText-103", "WaveletLM, headline", "883M", 40.9, CORRECTED, 23.749, "GPT-2", 1.0140),
    Published("PG-19", "Perceiver AR", "974M", 28.9, "Hawthorne et al. 2022, arXiv 2202.07765"),
    Published("PG-19", "Block-Recurrent Transformer", "about 200M", 29.0, "Hutchins et al. 2022, arXiv 2203.07852"),
    Published("PG-19", "Compressive Transformer", "257M", 33.6, COMPRESSIVE),
    Published("PG-19", "Transformer-XL", "257M", 36.3, COMPRESSIVE),
    Published("PG-19", "WaveletLM, headline, 1 epoch", "808M", 79.1, CORRECTED, 27.40, "SentencePiece, 32K"),
    Published("PG-19", "WaveletLM small, 1 epoch", "231M", 80.3, CORRECTED, 27.72, "SentencePiece, 32K", 1.0892),
)

NOTES = (
    "The original first listed its perplexities per token (23.7 on WikiText-103, 27.4 on PG-19) among others' per word "
    "and later corrected that: per word is exp(total nats / words), with 287,644 tokens and 245,569 words, and "
    "9,197,032 tokens and 6,966,499 words. The headline's 40.9 follows from its 23.749 in the same way.",
    "Its tables give GPT-2 as 29.4, 22.1, 19.3 and 17.5, also after that. Table 3 of GPT-2's paper has 37.50, 26.37, "
    "22.05 and 17.48 for WikiText-103, and calls the sizes 117M, 345M, 762M and 1542M; 29.41 is its WikiText-2. They "
    "are zero-shot, of models that never saw WikiText's training split.",
    "Word-level models predict <unk> where others spell a rare word. Perceiver AR and the Block-Recurrent Transformer "
    "are listed as the original lists them, presumed to be per word as PG-19's metric is defined.",
)

HEADER = (
    "text",
    "model",
    "parameters",
    "perplexity per word",
    "perplexity per token",
    "tokens of",
    "bits per byte",
    "source",
)


def published_rows() -> list[tuple[str, ...]]:
    """The rows of a table with HEADER."""
    return [
        (
            row.text,
            row.model,
            row.parameters,
            "" if row.per_word is None else f"{row.per_word:g}",
            "" if row.per_token is None else f"{row.per_token:g}",
            row.token,
            "" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}",
            row.source,
        )
        for row in PUBLISHED
    ]
