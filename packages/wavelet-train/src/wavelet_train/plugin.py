"""wavelet-train's components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wavelet_core import hookimpl
from wavelet_train.hugging_face import HuggingFace
from wavelet_train.mix import Mix
from wavelet_train.optimizers import Adagrad, AdamW
from wavelet_train.python_stdlib import PythonStandardLibrary
from wavelet_train.schedules import Constant, Cosine, Linear
from wavelet_train.sentence_piece import SentencePieceTokenizer
from wavelet_train.text_files import TextFiles


@hookimpl
def register_components(register: Callable[[str, type], None]) -> None:
    register("dataset", PythonStandardLibrary)
    register("dataset", TextFiles)
    register("dataset", HuggingFace)
    register("dataset", Mix)
    register("tokenizer", SentencePieceTokenizer)
    for optimizer in (AdamW, Adagrad):
        register("optimizer", optimizer)
    for schedule in (Constant, Linear, Cosine):
        register("schedule", schedule)


@hookimpl
def register_contracts(register: Callable[[str, Any], None]) -> None:
    from wavelet_train.testing.dataset_contract import DATASET_CHECKS
    from wavelet_train.testing.optimizer_contract import OPTIMIZER_CHECKS
    from wavelet_train.testing.schedule_contract import SCHEDULE_CHECKS

    register("dataset", DATASET_CHECKS)
    register("optimizer", OPTIMIZER_CHECKS)
    register("schedule", SCHEDULE_CHECKS)
