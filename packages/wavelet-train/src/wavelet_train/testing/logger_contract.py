"""The contract of a logger."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from wavelet_core.testing.subject import Subject
from wavelet_train.logger import LoggedRun

# One of each event, with all that a value can be.
RECORDS: tuple[dict[str, Any], ...] = (
    {"event": "changes", "step": 4, "fields": {"train.lr": [0.01, 0.02], "train.epochs": [None, "two"]}},
    {"event": "train", "step": 5, "loss": 2.5, "lr": 1e-3, "gradient_norms": {"embedding": 0.5, "mlp": [0.25, None]}},
    {"event": "train", "step": 6, "loss": None, "lr": 0, "gradient_norm": float("nan"), "overflow": float("inf")},
    {"event": "validation", "step": 6, "nats_per_token": 2.25, "tokens": 100},
    {"event": "of_a_plugin", "step": 6, "name": "text", "flag": True, "list": [], "table": {}},
    {"event": "report", "step": 6, "validation": {"bits_per_byte": 1.5, "perplexity_per_word": None}},
)
CONFIGURATION = {"model": {"kind": "wavelet", "width": 16}, "train": {"lr": 0.01, "optimizer": {"kind": "adamw"}}}
OWN_FILES = ("config.yaml", "metrics.jsonl", "best/config.json", "last/config.json")


def _check_records(subject: Subject) -> None:
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for name in OWN_FILES:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text(name, "utf-8")
        random = torch.get_rng_state()
        for step in (0, 3, 6):  # anew, and resumed twice: before what a killed process has recorded, and at its end
            _record(subject, run, step)
        if not torch.get_rng_state().equal(random):
            subject.fail("draws random numbers from torch", "leave torch's generator alone: runs are reproduced by it")
        for name in OWN_FILES:
            if not (run / name).is_file() or (run / name).read_text("utf-8") != name:
                subject.fail(f"changes the run's {name}", "keep files in a folder of your own in run.directory")


def _record(subject: Subject, run: Path, step: int) -> None:
    with subject.expecting(
        f"being made as {subject.component.__name__}(config)",
        "give __init__ the parameter (config), and let it check that all is there that it needs",
    ):
        logger = subject.component(subject.config)
    configuration = copy.deepcopy(CONFIGURATION)
    with subject.expecting("in start(run)", "take a LoggedRun, of a run that was recorded before as well"):
        logger.start(LoggedRun(run, configuration, step))
    for record in RECORDS:
        if record["step"] <= step:
            continue
        given = copy.deepcopy(record)
        with subject.expecting(
            f"in write(record) of {json.dumps(record)}",
            "pass over what cannot be recorded: texts, null, nested values, numbers that are not finite",
        ):
            logger.write(given)
        if repr(given) != repr(record):
            subject.fail("changes the record that it is given", "copy what is to be changed: others get it too")
    if configuration != CONFIGURATION:
        subject.fail("changes the configuration that it is given", "copy what is to be changed")
    with subject.expecting("in close()", "close what was started"):
        logger.close()


LOGGER_CHECKS = (_check_records,)
