"""Lists of whole numbers as the value of an option."""

from __future__ import annotations

import re
from typing import Any

import click


class Numbers(click.ParamType):
    """Whole numbers from 1 to 999,999,999, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        words = str(value).split(",")
        if not all(re.fullmatch("0*[1-9][0-9]{0,8}", word.strip()) for word in words):
            from wavelet_core.messages import shown

            self.fail(
                f"{shown(str(value))} must be whole numbers from 1 to 999,999,999 separated by commas, as in 100,1000",
                param,
                ctx,
            )
        return [int(word) for word in words]
