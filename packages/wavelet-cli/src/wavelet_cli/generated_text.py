"""Printing generated texts while they are decoded, what is measured of them, and how fast they came."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from wavelet_cli.output import prompt_style, titled
from wavelet_core.generation import Completion, SpacingStream, Token, clean_spacing
from wavelet_train.tables import table


class Printer:
    """Prints texts in their order: the first unfinished one as it comes, the others when it is their turn."""

    def __init__(self, prompts: list[str], clean: bool, silent: bool):
        self.prompts, self.clean, self.silent = prompts, clean, silent
        self.completions = [Completion() for _ in prompts]
        self.texts = ["" for _ in prompts]
        self.spacing = [SpacingStream() for _ in prompts]
        self.current = -1
        self._next()

    def add(self, row: int, token: Token) -> None:
        """Take in a text's next token and print what is due."""
        self.completions[row].add(token)
        piece = self._cleaned(row, token.text, token.finish is not None)
        self.texts[row] += piece
        if row != self.current:
            return
        self._print(piece)
        while self.current < len(self.prompts) and self.completions[self.current].finish is not None:
            self._print("\n")
            self._next()

    def report(self, prompts: Sequence[str], seeds: Sequence[int], metrics: Sequence[dict[str, Any]]) -> list[Any]:
        """The finished texts for JSON; metrics: one entry a text, or none at all."""
        return [
            {
                "prompt": prompts[row],
                "text": self.texts[row],
                "tokens": completion.tokens,
                "finish": completion.finish,
                "seed": seeds[row],
                **({"metrics": metrics[row]} if metrics else {}),
            }
            for row, completion in enumerate(self.completions)
        ]

    def _cleaned(self, row: int, text: str, last: bool) -> str:
        if not self.clean:
            return text
        return self.spacing[row].feed(text) + (self.spacing[row].finish() if last else "")

    def _next(self) -> None:
        """Begin the next text with its title, its prompt and what of it is there already."""
        self.current += 1
        if self.current == len(self.prompts):
            return
        if len(self.prompts) > 1:
            self._print(titled(f"--- {self.current + 1} ---\n"))
        prompt = self.prompts[self.current]
        self._print(prompt_style(clean_spacing(prompt) if self.clean else prompt))
        self._print(self.texts[self.current])

    def _print(self, text: str) -> None:
        if text and not self.silent:
            click.echo(text, nl=False)


class Clock:
    """Tokens per second of decoding; the time before the first token is that of reading the prompt.

    at_once: texts come when they are finished, as with best-of-n; then all the time counts as decoding.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.start = time.perf_counter()
        self.at_once = at_once
        self.first = self.last = self.start
        self.tokens = 0

    def tick(self) -> None:
        """Count a token."""
        self.last = time.perf_counter()
        if not self.tokens and not self.at_once:
            self.first = self.last
        self.tokens += 1

    def report(self) -> dict[str, float | int]:
        """Tokens, seconds until the first of them and after it, and the rate after it."""
        seconds = self.last - self.first
        timed = self.tokens if self.at_once else self.tokens - 1
        return {
            "num_tokens": self.tokens,
            "prompt_seconds": self.first - self.start,
            "decode_seconds": seconds,
            "tokens_per_second": timed / seconds if seconds > 0 else 0.0,
        }

    def __str__(self) -> str:
        report = self.report()
        rate = f"{self.tokens} tokens, {report['tokens_per_second']:.1f} tokens/s"
        return rate if self.at_once else f"{rate} (first token after {report['prompt_seconds']:.2f} s)"


def metrics_table(measured: list[dict[str, Any]]) -> str:
    """The metrics of all texts side by side."""
    names = list(measured[0])
    rows = [
        [name.replace("_", " "), *(v if isinstance(v := values[name], int) else f"{v:.4f}" for values in measured)]
        for name in names
    ]
    return titled(table(rows, ["metric", *(str(number + 1) for number in range(len(measured)))]))
