"""Names that mean a part: `train`, `dev`, `validation`, `test-clean`, `train-00000-of-00004`."""

from __future__ import annotations

import re

_PARTS = {
    "train": "train", "training": "train",
    "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_FIRST_WORD = re.compile(r"[a-z]+(?=$|[-_.])")


def part_of(name: str) -> str | None:
    """The part that a folder or a file of this name holds; None where the name is not just that of a part.

    >>> part_of("train"), part_of("validation"), part_of("train_station")
    ('train', 'dev', None)
    """
    return _PARTS.get(name.lower())


def part_of_split(name: str) -> str | None:
    """The part that a split or a shard of this name belongs to: what it begins with, up to `-`, `_` or `.`.

    >>> part_of_split("train-clean-100"), part_of_split("validation.other"), part_of_split("test-00000-of-00002")
    ('train', 'dev', 'test')
    >>> part_of_split("trains")
    """
    first = _FIRST_WORD.match(name.lower())
    return _PARTS.get(first[0]) if first else None
