"""What a manifest's fields may hold: checks that name the field, the value and the rule."""

from __future__ import annotations

import math
import re
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check(fine: Any, name: str, value: Any, rule: str) -> None:
    """Nothing if ``fine``.

    Raises:
        ValueError: it is not; field, rule and value are named.
    """
    if not fine:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def check_id(name: Any) -> None:
    """Nothing if this may be the name of a folder and of an adapter.

    Raises:
        ValueError: it may not.

    Example:
        >>> check_id("user42")
    """
    rule = "1 to 100 letters, digits, '.', '_' and '-', of which the first is a letter or digit, and no separators"
    check(is_name(name), "id", name, rule)


def is_name(value: Any) -> bool:
    """Whether this may name a file, a folder, an adapter: no path."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def is_count(value: Any) -> bool:
    """Whether it is a whole number, 0 included; True is none."""
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def as_list(value: Any) -> list[Any]:
    """A JSON list.

    Raises:
        ValueError: something else.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"a list is needed, got {value!r}")
    return list(value)
