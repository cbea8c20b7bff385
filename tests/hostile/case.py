"""A case: bad input for one command, and what must hold of the way the command takes it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from sandbox import Outcome

STATUSES = (0, 1, 2, 130, 143)
ERROR_LIMIT = 20_000


@dataclass(frozen=True)
class Case:
    """One `wavelet` command on input that was spoilt.

    spoilt: what was done to the input, in words. wanted: "refused" where a success would be a silent load of damage,
    "remade" where the command must say so and print `output`, "any" where the input may be legal. names: a refusal has
    to contain one of these. long: what is asked for may be more work than there is time for, and is then interrupted.
    """

    arguments: Sequence[str]
    spoilt: str
    wanted: Literal["any", "refused", "remade"] = "any"
    names: Sequence[str] = ()
    output: str | None = None
    stdin: bytes = b""
    long: bool = False

    def __str__(self) -> str:
        return f"wavelet {shlex.join(shortened(argument) for argument in self.arguments)}    [{self.spoilt}]"


def copy_in(base: Path, folder: Path, *names: str) -> None:
    """Copy files and folders of the good input into a case's folder."""
    for name in names:
        if (base / name).is_dir():
            shutil.copytree(base / name, folder / name)
        else:
            shutil.copy(base / name, folder / name)


def shortened(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]}...({len(text)} characters)"


def mistakes(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with the way a command ended; nothing when all is as it should be."""
    text = outcome.output + outcome.errors
    if outcome.hung:
        return [f"hangs{', and cannot be interrupted' if outcome.interrupted else ''}"]
    found = []
    if outcome.status < 0:
        found.append(f"crash: signal {-outcome.status}")
    elif outcome.status not in STATUSES:
        found.append(f"exit status {outcome.status}")
    if "Traceback (most recent call last)" in text:
        found.append("traceback")
    if "`--debug` shows the traceback" in text and "MemoryError" not in text:
        found.append("raw message of an exception that nobody foresaw")
    if len(outcome.errors) > ERROR_LIMIT:
        found.append(f"{len(outcome.errors):,} characters of errors")
    if outcome.status in (1, 2):
        if not outcome.errors.strip():
            found.append("fails without a word")
        elif case.names and not any(name in text for name in case.names):
            found.append(f"the message names none of {', '.join(map(repr, case.names))}")
    if outcome.status == 0 and case.wanted == "refused":
        found.append("loads what is damaged without a word")
    if case.wanted == "remade" and not outcome.interrupted:
        if outcome.status != 0 or outcome.output != case.output:
            found.append("a damaged cache changes the result")
        if "it is made again" not in outcome.errors:
            found.append("does not say that the cache is made again")
    return found


Kind = Callable[[Random, Path, Path], Case]
"""(random, base, folder): makes the input of a case in its folder, from the good one in the base folder."""
