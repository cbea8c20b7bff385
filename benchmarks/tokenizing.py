"""How fast text is tokenized, on how many processors, in how much memory, and what a kill costs.

The text is the standard library's, again and again, each time with noise in it: one word in twenty becomes random
letters. It is one file and one document, written into a temporary folder that is removed at the end. Numbers of
processors take turns, each in a process that may use no others and with a cache of its own. Then a process is killed
half-way and another goes on, and a last one finds all of it done.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wavelet_core.digests import file_digest
from wavelet_core.threads import available_processors
from wavelet_core.tokenizers import BytePairTokenizer, load_tokenizer
from wavelet_train.byte_pair import train_byte_pair
from wavelet_train.python_stdlib import PythonStandardLibrary
from wavelet_train.quantities import byte_size
from wavelet_train.text_files import TextFiles
from wavelet_train.tokenizing import write_split

VOCABULARY = 8192


def write_text(path: Path, size: int) -> None:
    """A file of about `size` bytes."""
    generator = random.Random(0)
    words = [word for text in PythonStandardLibrary().documents("train") for word in re.split(r"(?<=\s)(?=\S)", text)]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            noisy = list(words)
            for place in generator.sample(range(len(words)), len(words) // 20):
                noisy[place] = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) + " "
            text = "".join(noisy)[: size - written]
            written += file.write(text)


def tokenize(folder: Path, cache: Path, processors: int) -> None:
    """What a measured process does; it prints what it used."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processors])
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokenizer.encode("the first call sets things up")
    before = _memory()
    started, used = time.monotonic(), time.process_time()
    write_split(cache, "train", TextFiles(TextFiles.Config(train=str(folder / "text.txt"))), tokenizer, processors)
    result = {
        "seconds": time.monotonic() - started,
        "processor_seconds": time.process_time() - used,
        "memory": _memory(),
        "memory_before": before,
    }
    print(json.dumps(result))


def _memory() -> int:
    """The most bytes that this process has had in memory."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child(folder: Path, cache: Path, processors: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        __file__,
        "--folder",
        str(folder),
        "--cache",
        str(cache),
        "--processors",
        str(processors),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def measured(folder: Path, cache: Path, processors: int) -> dict[str, float]:
    output, _ = (process := child(folder, cache, processors)).communicate()
    if process.returncode:
        raise SystemExit(f"a process that tokenizes ended with {process.returncode}")
    result: dict[str, float] = json.loads(output)
    return result


def show(name: str, size: int, result: dict[str, float]) -> None:
    print(
        f"{name:<12} {result['seconds']:7.1f} s {result['processor_seconds']:7.1f} s of processors "
        f"{size / result['seconds'] / 1e6:6.1f} MB/s, memory {byte_size(result['memory'])} "
        f"({byte_size(result['memory_before'])} of it before)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=float, default=1e9, help="bytes of text (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=1, help="of turns that the numbers of processors take")
    parser.add_argument("--processors", type=int, default=available_processors(), help="the larger number of them")
    parser.add_argument("--no-kill", action="store_true", help="only compare numbers of processors")
    parser.add_argument("--folder", type=Path, help="where the text is, or is made and stays")
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cache:
        tokenize(arguments.folder, arguments.cache, arguments.processors)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(exist_ok=True)
        if not (folder / "tokenizer").exists():
            write_text(folder / "text.txt", int(arguments.size))
            documents = PythonStandardLibrary().documents("train")
            train_byte_pair(BytePairTokenizer.Config(vocabulary_size=VOCABULARY), documents).save(folder / "tokenizer")
        compare(folder, Path(name), arguments.processors, arguments.rounds)
        if not arguments.no_kill:
            kill(folder, Path(name) / "killed", arguments.processors)


def compare(folder: Path, caches: Path, processors: int, rounds: int) -> None:
    """One processor and several in turn."""
    size = (folder / "text.txt").stat().st_size
    ratios = []
    for number in range(rounds):
        results = {count: measured(folder, caches / f"{number}-{count}", count) for count in (1, processors)}
        for count, result in results.items():
            show(f"{count} processor{'s' if count > 1 else ''}", size, result)
        if len({file_digest(caches / f"{number}-{count}" / "train.tokens") for count in results}) > 1:
            raise SystemExit("the tokens depend on the number of processors")
        ratios.append(results[1]["seconds"] / results[processors]["seconds"])
    print(f"{processors} processors are {statistics.median(ratios):.2f} times as fast as one, and give the same tokens")


def kill(folder: Path, cache: Path, processors: int) -> None:
    """Kill a process half-way, go on, and come back once more."""
    size = (folder / "text.txt").stat().st_size
    process = child(folder, cache, processors)
    done = 0
    while done < size / 2 and process.poll() is None:
        time.sleep(0.05)
        with open(cache / "train.journal") if (cache / "train.journal").exists() else open(os.devnull) as journal:
            done = sum(json.loads(line)["byte_count"] for line in journal if line.endswith("\n"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    print(f"killed after {byte_size(done)} of {byte_size(size)}")
    show("goes on", size, measured(folder, cache, processors))
    show("once more", size, measured(folder, cache, processors))


if __name__ == "__main__":
    main()
