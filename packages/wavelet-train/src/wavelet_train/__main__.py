"""`python -m wavelet_train`: training without the `wavelet` command, for `torchrun -m wavelet_train`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from wavelet_core.config import ConfigurationError
from wavelet_core.registry import RegistryError
from wavelet_core.tensor_files import CheckpointError
from wavelet_train.run_config import load_run_config
from wavelet_train.run_directory import CONFIG_FILE
from wavelet_train.trainer import train

EXAMPLES = """examples:
  python -m wavelet_train demo --out runs/demo
  torchrun --nproc-per-node 4 -m wavelet_train my.yaml --out runs/mine --set train.parallel=fsdp
  torchrun --nproc-per-node 2 -m wavelet_train --resume runs/mine
"""


def main() -> int:
    """Train as the arguments say; returns the exit status."""
    parser = argparse.ArgumentParser("wavelet_train", "%(prog)s [CONFIG] [options]", __doc__, EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", nargs="?", help="a preset, or a YAML or JSON file")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field")
    parser.add_argument("--out", type=Path, help="directory of the run; by default runs/ and the name of CONFIG")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this directory")
    parser.add_argument("--overwrite", action="store_true", help="start anew even if the directory holds a run")
    parser.add_argument("--accept-changed-data", action="store_true", help="resume even if the text has changed")
    arguments = parser.parse_args()
    if arguments.resume is None and arguments.config is None:
        parser.error("name a CONFIG to train, or a run with --resume")
    if arguments.resume is not None and (arguments.out is not None or arguments.overwrite):
        parser.error("--resume goes on in the run's own directory: leave out --out and --overwrite")
    resume, directory = arguments.resume is not None, arguments.resume or arguments.out
    directory = directory or Path("runs") / Path(arguments.config).stem
    first = os.environ.get("RANK", "0") == "0"
    try:
        run = load_run_config(arguments.config or directory / CONFIG_FILE, arguments.set)
        result = train(run, directory, resume, arguments.overwrite, arguments.accept_changed_data)
    except (ConfigurationError, RegistryError, CheckpointError, ValueError, OSError) as error:
        usage = isinstance(error, (ConfigurationError, RegistryError))
        if first or not isinstance(error, ValueError):  # what all processes meet alike, the first one says
            print(f"wavelet_train: error: {error}", file=sys.stderr)
        return 2 if usage else 1
    if first and result.report is not None:
        print(result.report)
    return 0 if result.stopped_by is None else 128 + signal.Signals[result.stopped_by]


if __name__ == "__main__":
    sys.exit(main())
