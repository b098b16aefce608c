"""Atomic files: a reader sees the old file or the new one, whatever happens while it is written."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WHOLE = "whole"
"""The file that says a checkpoint was written to its end."""


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically: a new file beside it, synced to disk, then renamed over it.

    A failure at any moment (full disk, kill) leaves the file that was there before, whole.

    Args:
        path: file to write; its directory is made if need be.
        text: the whole content.

    Raises:
        OSError: the directory or the file could not be written.

    Example:
        >>> write_text("runs/demo/split.txt", "train 386\\n")  # doctest: +SKIP
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same directory, since a rename is atomic only inside one file system; opened with "x" so that the file gets
    # the mode that the user's umask asks for (mkstemp would make it private).
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    try:
        with open(partial, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. Dataclasses become objects, paths strings, NumPy scalars numbers.

    Args:
        path: file to write; its directory is made if need be.
        obj: dicts, lists, strings, finite numbers, booleans, None, dataclasses, paths, NumPy scalars and arrays.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold; write None instead.
        TypeError: a value of another type.

    Example:
        >>> write_json("runs/demo/summary.json", {"wer_after": rates.wer})  # doctest: +SKIP
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        raise ValueError(
            f"{path}: cannot be written as JSON: {error}; write None for a number that is missing"
        ) from None
    write_text(path, text + "\n")


def _plain(value: Any) -> Any:
    """The JSON form of what `json` does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy and torch scalars and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder ``new`` where ``target`` is, whole: at no moment is ``target`` half written.

    Args:
        new: a folder beside ``target``, on the same file system.
        target: replaced if it exists.

    Raises:
        OSError: it could not be put there; ``target`` is what it was.

    Example:
        >>> replace_folder(Path("runs/demo/adapter.new"), Path("runs/demo/adapter"))  # doctest: +SKIP
    """
    if not target.exists():
        os.rename(new, target)
        return
    old = target.with_name(f".{target.name}.{secrets.token_hex(6)}.old")
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old)


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A folder beside ``target``, gone afterwards, whatever happens."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{secrets.token_hex(6)}.new")
    new.mkdir()
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
