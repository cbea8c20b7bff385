"""Make the tables of docs/ from benchmarks/results/, and say which of them are older than the code they measure.

    python benchmarks/tables.py                                  # remake the tables
    python benchmarks/tables.py --stale                          # list the results whose code has changed since
    python benchmarks/tables.py --record busy-core -- python benchmarks/busy_core.py runs/demo

A table stands between `<!-- result NAME -->` and `<!-- /result -->`; NAME.json is what `wavelet bench ... --output` or
`--record`, which runs a script and keeps what it prints, has written.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from wavelet_core.config import ConfigurationError
from wavelet_train.measurement import DECODING, MEASURED, MODELS, TRAINING, Measurement, measurement
from wavelet_train.tables import table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- result (\S+) -->\n).*?(<!-- /result -->)", re.S)
QUANTIZATION = (*MODELS, "packages/wavelet-quant/src/wavelet_quant/*.py")
# What each script measures, besides itself.
CODE = {
    "busy_core": DECODING,
    "checkpoint_loading": ("packages/wavelet-core/src/wavelet_core/*.py",),
    "decode_strategies": DECODING,
    "fast_weight_update": ("packages/wavelet-memory/src/wavelet_memory/*.py",),
    "nanogpt_block": TRAINING,
    "quantization_quality": QUANTIZATION,
    "tokenizing": ("packages/wavelet-train/src/wavelet_train/t*ken*.py",),
    "training_memory": TRAINING,
}


def render(name: str, result: Measurement) -> str:
    """A result as it stands in a page, with where it comes from."""
    if result.text is None:
        rows = [result.figures["columns"], ["---"] * len(result.figures["columns"]), *result.figures["rows"]]
        lines = ["".join(f"| {cell} " if cell else "| " for cell in row) + "|" for row in rows]
        shown = "\n".join(lines)
    else:
        shown = f"```text\n{result.text.rstrip()}\n```"
    how = f"`{result.command}`" if result.command else "No command remakes it"
    where = f"{result.date}, {result.machine}" + (f", revision {result.revision}" if result.revision else "")
    copied = "" if result.source == MEASURED else f"; {result.source}"
    return f"{shown}\n\n{how}, {where}{copied} ([raw](../benchmarks/results/{name}.json)).\n"


def remake(page: Path) -> str:
    """The text of a page with its tables made anew. Raises ConfigurationError for a result that is missing."""

    def table_of(found: re.Match[str]) -> str:
        path = RESULTS / f"{found[2]}.json"
        if not path.is_file():
            raise ConfigurationError(
                f"{page.name}: there is no {path.relative_to(ROOT)}; measure it, or remove the mark"
            )
        return found[1] + render(found[2], Measurement.read(path)) + found[3]

    return MARKED.sub(table_of, page.read_text("utf-8"))


def stale() -> list[tuple[str, str, str]]:
    """The results that are older than the code they measure: name, date, and the files that have changed."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        result = Measurement.read(path)
        if changed := result.stale(ROOT):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            rows.append((path.stem, result.date, f"{changed[0]}{more}"))
    return rows


def record(name: str, command: list[str]) -> None:
    """Run a script, show what it prints, and keep that; lines of JSON are its figures."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    sys.stdout.write(done.stdout)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with status {done.returncode}; nothing is kept")
    figures: list[Any] = []
    text = []
    for line in done.stdout.splitlines():
        try:
            figures.append(json.loads(line)) if line.startswith("{") else text.append(line)
        except ValueError:
            text.append(line)
    script = next((Path(word).stem for word in command if word.endswith(".py")), "")
    code = (*CODE.get(script, MODELS), f"benchmarks/{script}.py")
    shown = shlex.join(["python" if word == sys.executable else word for word in command])
    measurement(shown, figures or {"lines": text}, "\n".join(text), code).write(RESULTS / f"{name}.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stale", action="store_true", help="list results that are older than the code they measure")
    parser.add_argument("--record", metavar="NAME", help="run the command that follows, and keep what it prints")
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if bool(options.record) != bool(options.command):
        parser.error("--record NAME goes with a command: --record NAME -- python benchmarks/SCRIPT.py")
    if options.record:
        record(options.record, options.command)
    elif options.stale:
        rows = stale()
        print(table(rows, ("result", "measured on", "changed since")) if rows else "All results are of this code.")
    else:
        for page in sorted((ROOT / "docs").glob("*.md")):
            text = remake(page)
            if text != page.read_text("utf-8"):
                page.write_text(text, "utf-8")
                print(f"{page.relative_to(ROOT)} has new tables")


if __name__ == "__main__":
    try:
        main()
    except ConfigurationError as error:
        sys.exit(str(error))
