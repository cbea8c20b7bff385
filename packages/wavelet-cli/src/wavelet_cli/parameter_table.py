"""The table of a model's parameters that `wavelet config show --parameters` and `wavelet inspect` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wavelet_cli.output import titled
from wavelet_train.tables import table

if TYPE_CHECKING:
    from wavelet_core.config import LanguageModelConfig
    from wavelet_train.run_config import RunConfig


def vocabulary_resolved(run: RunConfig) -> LanguageModelConfig:
    """The model section with the tokenizer's vocabulary where it names none."""
    from wavelet_core.registry import build

    model: LanguageModelConfig = run.model
    if model.vocabulary_size is not None:
        return model
    tokenizer = run.data.tokenizer
    return model.with_vocabulary(
        getattr(tokenizer, "vocabulary_size", None) or build("tokenizer", tokenizer).vocabulary_size
    )


def parameter_report(config: LanguageModelConfig) -> dict[str, Any]:
    """Parameter counts of the model that `config` describes, which is built without memory for its weights."""
    import torch

    from wavelet_core.language_model import build_model
    from wavelet_core.parameter_counts import count_parameters, parameter_parts

    with torch.device("meta"):
        model: Any = build_model(config)
    parts = [
        {"part": part.name, "uses": part.uses, "copies": part.copies, "parameters": part.total}
        for part in parameter_parts(model)
    ]
    return {"total": count_parameters(model), "parts": parts}


def parameter_table(report: dict[str, Any]) -> str:
    """A parameter report for people; parts without parameters are left out."""
    rows = [
        (_describe(part), len(part["copies"]), _each(part["copies"]), part["parameters"])
        for part in report["parts"]
        if part["copies"] or part["part"] == "head"
    ]
    header = ("part", "copies", "parameters of each", "together")
    return titled(table([*rows, ("total", "", "", report["total"])], header))


def _describe(part: dict[str, Any]) -> str:
    if not part["copies"]:
        return f"{part['part']} (tied to the embedding)"
    return f"{part['part']} (shared)" if part["uses"] > len(part["copies"]) else part["part"]


def _each(copies: list[int]) -> int | str:
    sizes = set(copies)
    return sizes.pop() if len(sizes) == 1 else ", ".join(f"{size:,}" for size in copies)
