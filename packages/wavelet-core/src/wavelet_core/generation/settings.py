"""What a generation is told: how many tokens, which samplers, which context, when to stop."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from wavelet_core.config import ComponentOf, Section


class LookaheadSettings(Section):
    """Search: roll out the best candidates of every token and take the one with the best future."""

    candidates: int = Field(3, ge=2, description="k, most probable tokens that are tried at every position")
    depth: int = Field(5, ge=1, description="d, tokens that each candidate is continued by, greedily")


class GenerationSettings(Section):
    """How texts are generated, apart from the model, the prompts and the seeds."""

    tokens: int | None = Field(256, ge=1, description="tokens to generate after the prompt; null goes on until stopped")
    samplers: list[Annotated[Any, ComponentOf("sampler")]] = Field(
        default_factory=list, description="what reshapes the distribution before a token is drawn, in this order"
    )
    context: str = Field(
        "stream",
        description="stream: the state runs on; hop:N: it is rebuilt from the last context_length tokens every N "
        "tokens; window: rebuilt for every token",
    )
    stop_tokens: list[int] = Field(default_factory=list, description="token ids that end a text")
    stop_strings: list[str] = Field(default_factory=list, description="strings that end a text and are left out of it")
    lookahead: LookaheadSettings | None = Field(None, description="search among the continuations of every token")
    best_of: int = Field(1, ge=1, description="texts drawn per prompt, of which the most probable one is kept")
    metrics: bool = Field(False, description="report the log-probability and the entropy of every token")

    @field_validator("context")
    @classmethod
    def _known_context(cls, value: str) -> str:
        if not re.fullmatch(r"stream|window|hop:[1-9][0-9]*", value):
            raise ValueError("must be stream, window or hop:N with a number of tokens N of at least 1, as in hop:64")
        return value

    @field_validator("stop_strings")
    @classmethod
    def _no_empty_stop(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty stop string would end every text at once; leave it out")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> GenerationSettings:
        if self.best_of > 1 and self.tokens is None:
            raise ValueError(f"best_of={self.best_of} compares finished texts and needs a number of tokens")
        if self.lookahead is None:
            return self
        if self.best_of > 1:
            raise ValueError(
                f"best_of={self.best_of} draws several texts, but lookahead finds the same one every time; "
                "leave out one of the two"
            )
        if any(sampler.kind == "temperature" and sampler.temperature == 0 for sampler in self.samplers):
            raise ValueError(
                "lookahead needs candidates, but temperature=0 leaves a single one; leave the temperature out: "
                "lookahead draws nothing at random"
            )
        return self
