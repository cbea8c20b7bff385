"""Whole generated texts: what `generate` yields, collected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from wavelet_core.generation.engine import Finish, Token


@dataclass
class Completion:
    """What one row has generated so far: its text and tokens, and why it ended (None while it goes on)."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, token: Token) -> None:
        """Take in the row's next token."""
        self.text += token.text
        self.tokens.append(token.token)
        if token.log_probability is not None and token.entropy is not None:
            self.log_probabilities.append(token.log_probability)
            self.entropies.append(token.entropy)
        self.finish = token.finish


def collect(tokens: Iterable[Token]) -> list[Completion]:
    """Run a generation to its end: one completion per row, in the order of the prompts."""
    completions: dict[int, Completion] = {}
    for token in tokens:
        completions.setdefault(token.row, Completion()).add(token)
    return [completions[row] for row in sorted(completions)]
