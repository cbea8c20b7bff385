"""Throw bad input at the `wavelet` command, and report every way in which it is taken badly.

    python tests/hostile/run.py --count 10000 --seed 0
    python tests/hostile/run.py --seed 0 --case 1234        one case again: what it is, what it prints, its folder kept
    python tests/hostile/run.py --count 10000 --only cache  of these cases those of one kind

Case N of a seed is the same wherever it runs. The exit status is 1 when something was found. Linux and macOS.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import file_kinds
import option_kinds
from base import EVALUATE, make_runs, write_inputs
from case import Case, Kind, mistakes
from sandbox import Outcome, Process, run_bounded

KINDS: dict[str, Kind] = {
    "configuration": option_kinds.configuration,
    "option": option_kinds.option,
    "prompt": option_kinds.prompt,
    "checkpoint": file_kinds.checkpoint,
    "state": file_kinds.state,
    "tokenizer": file_kinds.tokenizer,
    "cache": file_kinds.cache,
    "data": file_kinds.data,
    "seed": file_kinds.seed,
    "run": file_kinds.run,
}
PATIENCE = 2.0
IMPORTED = (
    "datasets",
    "tiktoken",
    "tokenizers",
    "torch._dynamo",
    "wavelet_cli.generated_text",
    "wavelet_cli.generation_options",
    "wavelet_cli.main",
    "wavelet_cli.parameter_table",
    "wavelet_cli.run_configuration",
    "wavelet_cli.seed.conversion",
    "wavelet_quant.decode_benchmark",
    "wavelet_train.trainer",
)


def run_command(folder: Path, case: Case) -> Outcome:
    """The command of a case, in its folder."""
    return run_bounded(Process(folder, case.arguments, stdin=case.stdin), PATIENCE if case.long else None)


def make_base(folder: Path) -> None:
    """The good input, and what evaluating the good run prints."""
    write_inputs(folder)
    made = Process(folder, make_runs).wait()
    evaluated = run_command(folder, Case(EVALUATE, "nothing"))
    if made.status or evaluated.status:
        sys.exit(f"the good input does not work:\n{made.errors}\n{evaluated.errors}")
    (folder / "evaluated.json").write_text(evaluated.output, "utf-8")


def import_everything() -> None:
    """Import what commands import when they run, so that each fork does not have to."""
    for module in IMPORTED:
        importlib.import_module(module)
    from wavelet_core.registry import registry

    registry.names("model")


def run_case(number: int, seed: int, base: Path, folder: Path) -> tuple[str, Case, Outcome]:
    """Make and run one case."""
    kind = list(KINDS)[number % len(KINDS)]
    case = KINDS[kind](Random(f"{seed} {number}"), base, folder)
    return kind, case, run_command(folder, case)


def remove(folder: Path) -> None:
    """Remove a case's folder, whatever the case did to it."""
    for path in (folder / "data").glob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="cases 0 to COUNT - 1 (300)")
    parser.add_argument("--seed", type=int, default=0, help="decides what the cases are (0)")
    parser.add_argument("--only", choices=KINDS, help="leave out cases of other kinds")
    parser.add_argument("--case", type=int, metavar="N", help="run only case N, show everything, keep its folder")
    options = parser.parse_args()

    sys.stdout.reconfigure(errors="backslashreplace")
    import_everything()
    sys.setrecursionlimit(20_000)  # to write values that nest deeply into each other; commands have Python's own
    scratch = Path(tempfile.mkdtemp(prefix="hostile-")).resolve()
    base = scratch / "base"
    base.mkdir()
    make_base(base)
    if options.case is not None:
        folder = scratch / "case"
        folder.mkdir()
        kind, case, outcome = run_case(options.case, options.seed, base, folder)
        print(f"{kind}: cd {folder} && {case}\nexit status {outcome.status} after {outcome.seconds:.1f} s")
        print(f"{outcome.output}\n{outcome.errors}")
        print("\n".join(mistakes(case, outcome)) or "as it should be")
        return bool(mistakes(case, outcome))

    numbers = [n for n in range(options.count) if options.only in (None, list(KINDS)[n % len(KINDS)])]
    statuses: Counter[str] = Counter()
    slowest, failures, started = 0.0, 0, time.monotonic()
    for done, number in enumerate(numbers):
        folder = scratch / "case"
        folder.mkdir()
        kind, case, outcome = run_case(number, options.seed, base, folder)
        statuses[f"{kind} {outcome.status}{' interrupted' if outcome.interrupted else ''}"] += 1
        slowest = max(slowest, outcome.seconds)
        found = mistakes(case, outcome)
        if (folder / "bomb-went-off").exists():
            found.append("a pickle ran a command")
        if found:
            failures += 1
            print(f"FOUND {kind}: {'; '.join(found)}\n  {case}", flush=True)
            print(f"  exit {outcome.status}: {outcome.errors.strip()[-600:]}")
            print(f"  again: python tests/hostile/run.py --seed {options.seed} --case {number}", flush=True)
        remove(folder)
        if done % 500 == 499:
            print(f"{done + 1} of {len(numbers)} cases, {failures} found", flush=True)
    shutil.rmtree(scratch)
    print(f"{len(numbers)} cases in {time.monotonic() - started:.0f} s, the longest {slowest:.1f} s")
    print(", ".join(f"{name}: {count}" for name, count in sorted(statuses.items())))
    print(f"{failures} found")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
