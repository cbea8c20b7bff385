"""Kill training runs at random moments, and let disks fill under them, and see that nothing is lost.

    python tests/hostile/kills.py --kills 300 --fills 50 --seed 0

Killed: SIGKILL, half of the times while a checkpoint is being written. The run is resumed, or started again where there
is nothing to resume yet, and killed again, until it may end. Filled: the run's directory is a small file system of its
own (Linux, in a user namespace) that is too small from the beginning or filled by another file on the way; there is
room again afterwards, and the run goes on. The end has to be that of an uninterrupted run, bit for bit: weights,
optimizer, generators, counters, and metrics without the fields that tell the time.

Processes are forked from this one, which has imported everything; with --exec each is an interpreter of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import yaml
from base import CONFIGURATION, write_inputs
from run import import_everything
from sandbox import Process

STEPS = 30
CLOCKS = ("tokens_per_second", "seconds")
MEGABYTE = 1 << 20
TRAIN, RESUME = ("train", "tiny.yaml", "--out", "run"), ("train", "--resume", "run")


class Lost(Exception):
    """A run that did not survive what was done to it."""


def prepare(folder: Path, changes: Mapping[str, Any]) -> None:
    """Texts and the configuration of a run that draws random numbers and saves after every step."""
    folder.mkdir(parents=True, exist_ok=True)
    write_inputs(folder)
    configuration: dict[str, Any] = copy.deepcopy(CONFIGURATION)
    configuration["model"] |= {"embedding_dropout": 0.1}
    configuration["train"] |= {"steps": STEPS, "checkpoint_every": 1, "validate_every": 5, **changes}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")


def end_of(run: Path) -> dict[str, Any]:
    """Everything that decides what a run is, but for times and sizes of what tells the time."""
    files = ["last/model.safetensors", "last/trainer/state.safetensors", "best/model.safetensors", "config.yaml"]
    files += sorted(str(path.relative_to(run)) for path in (run / "steps").rglob("*.safetensors"))
    end: dict[str, Any] = {name: (run / name).read_bytes() for name in files}
    state = json.loads((run / "last/trainer/state.json").read_text())
    state["counters"].pop("metrics_size")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        **end,
        "state": state,
        "metrics": [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines],
    }


def compare(run: Path, whole: dict[str, Any]) -> None:
    """Raise Lost unless a finished run is the uninterrupted one, and left nothing temporary."""
    end = end_of(run)
    if differing := [name for name in {**whole, **end} if end.get(name) != whole.get(name)]:
        raise Lost(f"the end differs from that of an uninterrupted run in {', '.join(differing)}")
    if left := [path.name for name in ("new", "old") for path in run.rglob(f".*/{name}")]:
        raise Lost(f"temporary files are left: {', '.join(left)}")


def next_arguments(run: Path) -> Sequence[str]:
    """What goes on with a run: resume where a checkpoint is or can be recovered, else begin."""
    saved = (run / "last").exists() or any(
        (place / "new").exists() and (place / "old").exists() for place in run.glob(".last.*")
    )
    return RESUME if saved else TRAIN


def kill_while_writing(process: Process, run: Path, random: Random) -> bool:
    """Kill a process a moment after it began to write one of its next checkpoints; False if it ended before."""
    for _ in range(random.randrange(1, 4)):
        for wanted in (False, True):
            while any(run.glob(".last.*")) is not wanted and any(run.glob(".best.*")) is not wanted:
                if process.ended():
                    return False
    time.sleep(random.random() * 0.01)
    return process.kill()


def killed_run(
    folder: Path, whole: dict[str, Any], seconds: float, limit: int, random: Random, new_interpreter: bool
) -> tuple[int, int]:
    """A run that is killed up to `limit` times before it may end; how often it was, and how often while writing."""
    run, kills, writing = folder / "run", 0, 0
    for _ in range(limit):
        process = Process(folder, next_arguments(run), new_interpreter)
        while_writing = random.random() < 0.5
        if while_writing:
            killed = kill_while_writing(process, run, random)
        else:
            with suppress(TimeoutError):
                process.wait(random.random() * seconds)
            killed = process.kill()
        if not killed and process.wait().status != 0:
            raise Lost(f"after {kills} kills: {process.wait().errors[-500:]}")
        kills += killed
        writing += killed and while_writing
    outcome = Process(folder, next_arguments(run), new_interpreter).wait()
    if outcome.status != 0:
        raise Lost(f"after {kills} kills: {outcome.errors[-500:]}")
    compare(run, whole)
    return kills, writing


def mount(folder: Path, size: int, *options: str) -> None:
    choices = ",".join([f"size={size}", *options])
    subprocess.run(["mount", "-t", "tmpfs", "-o", choices, "tmpfs", str(folder)], check=True)


def filled_run(
    folder: Path, whole: dict[str, Any], used: int, seconds: float, random: Random, new_interpreter: bool
) -> str | None:
    """A run on a disk that fills, and goes on with more room; what was said then, None if the disk was large enough."""
    run, ballast = folder / "run", folder / "run" / "ballast"
    run.mkdir()
    on_the_way = random.random() < 0.5
    mount(run, 16 * MEGABYTE if on_the_way else random.randrange(4096, 2 * used))
    try:
        process = Process(folder, TRAIN, new_interpreter)
        if on_the_way:
            with suppress(TimeoutError):
                process.wait(random.random() * seconds)
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        outcome = process.wait()
        ballast.unlink(missing_ok=True)
        mount(run, 16 * MEGABYTE, "remount")
        if outcome.status == 0:
            compare(run, whole)
            return None
        lines = [line for line in outcome.errors.splitlines() if "error" in line.lower()]
        if "Traceback" in outcome.errors or len(lines) != 1 or "No space left" not in lines[0] or outcome.status != 1:
            raise Lost(f"exit status {outcome.status} and these words: {outcome.errors[-700:]}")
        if (run / "best").exists() and next_arguments(run) is TRAIN:
            raise Lost("best/ without last/")
        again = Process(folder, next_arguments(run), new_interpreter).wait()
        if again.status != 0:
            raise Lost(f"does not go on: {again.errors[-500:]}")
        compare(run, whole)
        return lines[0]
    finally:
        subprocess.run(["umount", "--lazy", str(run)], check=True)


def in_a_namespace() -> bool:
    """Whether this process may mount; it starts itself again where it may be allowed to."""
    if os.environ.get("HOSTILE_NAMESPACE"):
        return True
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        return False
    os.execve(unshare, [unshare, "-rm", sys.executable, *sys.argv], {**os.environ, "HOSTILE_NAMESPACE": "1"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="how many SIGKILLs there have to be (300)")
    parser.add_argument("--fills", type=int, default=50, help="how many runs have to run out of disk (50)")
    parser.add_argument("--seed", type=int, default=0, help="decides when (0)")
    parser.add_argument("--train", default="{}", help="fields of train that differ, as YAML: {order: shuffled}")
    parser.add_argument(
        "--exec", dest="new_interpreter", action="store_true", help="a new interpreter for each process"
    )
    options = parser.parse_args()
    if options.fills and not in_a_namespace():
        sys.exit("no file systems can be mounted here (unshare -rm); leave that out with --fills 0")

    import_everything()
    scratch = Path(tempfile.mkdtemp(prefix="kills-")).resolve()
    prepare(scratch / "whole", yaml.safe_load(options.train))
    started = time.monotonic()
    outcome = Process(scratch / "whole", TRAIN, options.new_interpreter).wait()
    seconds = time.monotonic() - started
    if outcome.status:
        sys.exit(f"the run that nothing disturbs fails:\n{outcome.errors}")
    whole = end_of(scratch / "whole" / "run")
    used = sum(path.stat().st_size for path in (scratch / "whole" / "run").rglob("*") if path.is_file())
    print(f"an undisturbed run takes {seconds:.1f} s and {used:,} bytes", flush=True)

    kills = writing = fills = lost = number = 0
    while kills < options.kills or fills < options.fills:
        number += 1
        folder, random = scratch / str(number), Random(f"{options.seed} {number}")
        shutil.copytree(scratch / "whole", folder, ignore=shutil.ignore_patterns("run"))
        try:
            if kills < options.kills and (number % 2 or fills >= options.fills):
                limit = min(options.kills - kills, random.randrange(3, 9))
                more, more_writing = killed_run(folder, whole, seconds, limit, random, options.new_interpreter)
                kills, writing = kills + more, writing + more_writing
            elif said := filled_run(folder, whole, used, seconds, random, options.new_interpreter):
                fills += 1
                print(f"  {said[:300]}")
        except Lost as error:
            lost += 1
            print(f"LOST run {number}, kept in {folder}: {error}", flush=True)
        else:
            shutil.rmtree(folder)
        print(f"{kills} kills, {writing} of them while writing; {fills} full disks; {lost} lost", flush=True)
        if lost >= 10:
            break
    if not lost:
        shutil.rmtree(scratch)
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main())
