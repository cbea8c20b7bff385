"""A whole comparison, from its specification to its results; what was done before is not done again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from wavelet_core.atomic_files import write_atomically
from wavelet_train.comparison.arms import prepare_arms
from wavelet_train.comparison.progress import ComparisonProgress
from wavelet_train.comparison.results import ComparisonResults, results_of
from wavelet_train.comparison.spec import Comparison
from wavelet_train.comparison.speed import Speeds
from wavelet_train.comparison.work import ComparisonWork
from wavelet_train.json_values import json_value
from wavelet_train.side_by_side import work_side_by_side

SPECIFICATION_FILE, SPEEDS_FILE, RESULTS_FILE = "comparison.yaml", "speeds.json", "results.json"


def plan_comparison(comparison: Comparison, directory: Path, jobs: int) -> ComparisonWork:
    """What there is to be done, with the cost of every arm's step measured where it is not known yet.

    Raises ConfigurationError where the directory holds something else than what is to be compared.
    """
    runs = prepare_arms(comparison, jobs)
    speeds = Speeds(directory / SPEEDS_FILE, runs, jobs)
    missing = speeds.missing
    if missing:
        print(f"Measuring what a step of {len(missing)} arms costs: {', '.join(missing)}", file=sys.stderr)
    speeds.measure()
    return ComparisonWork(comparison, directory, runs, speeds.known)


def compare(work: ComparisonWork, jobs: int) -> tuple[ComparisonResults, str | None]:
    """Do all runs that are not done yet, so many side by side; the results, and the signal that stopped it, if any.

    Raises ConfigurationError for runs in the directory that are others, WorkerError when a process fails.
    """
    work.check()
    content = yaml.safe_dump(work.comparison.model_dump(mode="json"), sort_keys=False)
    write_atomically(work.directory / SPECIFICATION_FILE, lambda fresh: fresh.write_text(content, "utf-8"))
    progress = ComparisonProgress(work, jobs)
    stopped_by = work_side_by_side(work.work, work.directory, jobs, progress.look)
    progress.tell()
    results = results_of(work)
    write_results(work, results)
    return results, stopped_by


def write_results(work: ComparisonWork, results: ComparisonResults) -> None:
    """Write results.json into the comparison's directory."""
    text = json.dumps(json_value(results.as_dict()), indent=1)
    write_atomically(work.directory / RESULTS_FILE, lambda fresh: fresh.write_text(text + "\n", "utf-8"))
