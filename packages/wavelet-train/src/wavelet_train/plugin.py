"""wavelet-train's components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wavelet_core import hookimpl
from wavelet_train.hugging_face import HuggingFace
from wavelet_train.mix import Mix
from wavelet_train.muon import Muon
from wavelet_train.optimizers import Adagrad, AdamW
from wavelet_train.probes.associative_recall import AssociativeRecall
from wavelet_train.probes.induction import Induction
from wavelet_train.probes.key_at_distance import KeyAtDistance
from wavelet_train.probes.selective_copying import SelectiveCopying
from wavelet_train.python_stdlib import PythonStandardLibrary
from wavelet_train.schedules import Constant, Cosine, Linear, WarmupStableDecay
from wavelet_train.sentence_piece import SentencePieceTokenizer
from wavelet_train.tensorboard import TensorBoard
from wavelet_train.text_files import TextFiles
from wavelet_train.weights_and_biases import WeightsAndBiases


@hookimpl
def register_components(register: Callable[[str, type], None]) -> None:
    register("dataset", PythonStandardLibrary)
    register("dataset", TextFiles)
    register("dataset", HuggingFace)
    register("dataset", Mix)
    for probe in (AssociativeRecall, Induction, SelectiveCopying, KeyAtDistance):
        register("dataset", probe)
    register("tokenizer", SentencePieceTokenizer)
    for optimizer in (AdamW, Adagrad, Muon):
        register("optimizer", optimizer)
    register("logger", TensorBoard)
    register("logger", WeightsAndBiases)
    for schedule in (Constant, Linear, Cosine, WarmupStableDecay):
        register("schedule", schedule)


@hookimpl
def register_contracts(register: Callable[[str, Any], None]) -> None:
    from wavelet_train.testing.dataset_contract import DATASET_CHECKS
    from wavelet_train.testing.logger_contract import LOGGER_CHECKS
    from wavelet_train.testing.optimizer_contract import OPTIMIZER_CHECKS
    from wavelet_train.testing.schedule_contract import SCHEDULE_CHECKS

    register("dataset", DATASET_CHECKS)
    register("logger", LOGGER_CHECKS)
    register("optimizer", OPTIMIZER_CHECKS)
    register("schedule", SCHEDULE_CHECKS)
