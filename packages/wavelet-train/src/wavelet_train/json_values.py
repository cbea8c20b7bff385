"""What JSON can hold of a value."""

from __future__ import annotations

import math
from typing import Any


def json_value(value: Any) -> Any:
    """The value with null for numbers that JSON does not have: infinity, and what is not a number."""
    if isinstance(value, dict):
        return {key: json_value(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
