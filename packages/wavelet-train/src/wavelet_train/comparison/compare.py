"""A whole comparison, from its specification to its results; what was done before is not done again."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from wavelet_core.atomic_files import write_atomically
from wavelet_core.config import ConfigurationError
from wavelet_train.comparison.arms import prepare_arms, with_own_data
from wavelet_train.comparison.decoding import DecodingSpeed, measure_decoding
from wavelet_train.comparison.page import comparison_page
from wavelet_train.comparison.progress import ComparisonProgress
from wavelet_train.comparison.results import ComparisonResults, results_of
from wavelet_train.comparison.spec import Comparison
from wavelet_train.comparison.speed import Speeds
from wavelet_train.comparison.work import ComparisonWork
from wavelet_train.json_values import json_value
from wavelet_train.side_by_side import work_side_by_side

SPECIFICATION_FILE, SPEEDS_FILE, DECODING_FILE = "comparison.yaml", "speeds.json", "decoding.json"
RESULTS_FILE, PAGE_FILE = "results.json", "comparison.html"


def plan_comparison(comparison: Comparison, directory: Path, jobs: int) -> ComparisonWork:
    """What there is to be done, with the cost of every arm's step measured where it is not known yet.

    Raises ConfigurationError where the directory holds something else than what is to be compared.
    """
    arms = prepare_arms(comparison, jobs)
    speeds = Speeds(directory / SPEEDS_FILE, arms, jobs)
    missing = speeds.missing
    if missing:
        print(f"Measuring what a step of {len(missing)} arms costs: {', '.join(missing)}", file=sys.stderr)
    speeds.measure()
    return ComparisonWork(comparison, directory, arms, speeds.known, with_own_data(comparison, arms))


def compare(work: ComparisonWork, jobs: int) -> tuple[ComparisonResults, str | None]:
    """Do all runs that are not done yet, so many side by side, and write results.json and the page.

    Gives the results, and the name of the signal that stopped it, if one did. Raises ConfigurationError for runs in the
    directory that are others, WorkerError when a process fails.
    """
    work.check()
    content = yaml.safe_dump(work.comparison.model_dump(mode="json"), sort_keys=False)
    write_atomically(work.directory / SPECIFICATION_FILE, lambda fresh: fresh.write_text(content, "utf-8"))
    progress = ComparisonProgress(work, jobs)
    stopped_by = None
    if progress.left:
        stopped_by = work_side_by_side(work.work, work.directory, jobs, progress.look)
        progress.tell()
    results = results_of(work, [] if stopped_by else decoding_of(work))
    write_json(results.as_dict(), work.directory / RESULTS_FILE)
    try:
        comparison_page(results).write(work.directory / PAGE_FILE)
        print(f"Page: {work.directory / PAGE_FILE}", file=sys.stderr)
    except ConfigurationError as error:
        print(f"No page was made: {error}", file=sys.stderr)
    return results, stopped_by


def decoding_of(work: ComparisonWork) -> list[DecodingSpeed]:
    """The speeds of decoding, measured unless the directory has those of the same models already."""
    decoding, path = work.comparison.decoding, work.directory / DECODING_FILE
    if decoding is None:
        return []
    models = {name: run.model.model_dump(mode="json") for name, run in work.arms.items()}
    subject = {"decoding": decoding.model_dump(mode="json"), "models": models}
    if path.is_file():
        known = json.loads(path.read_text("utf-8"))
        if known["subject"] == subject:
            return [DecodingSpeed(**speed) for speed in known["speeds"]]

    def say(position: int) -> None:
        print(f"Measuring decoding after {position:,} tokens", file=sys.stderr)

    speeds = measure_decoding(decoding, work.arms, say)
    write_json({"subject": subject, "speeds": [asdict(speed) for speed in speeds]}, path)
    return speeds


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(json_value(content), indent=1)
    write_atomically(path, lambda fresh: fresh.write_text(text + "\n", "utf-8"))
