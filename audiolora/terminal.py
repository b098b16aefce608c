"""Where a command's results and its remarks go: results to stdout or a file, remarks to stderr."""

from __future__ import annotations

import sys
from pathlib import Path


def write_result(text: str, out: Path | None) -> None:
    """To the file, whole or not at all; to stdout without one, or where the file cannot be written."""
    from audiolora.files import write_text

    if out is None:
        sys.stdout.write(text)
        return
    try:
        write_text(out, text)
    except OSError:
        sys.stdout.write(text)  # the work took long: what it found is not thrown away
        raise


def say(line: str) -> None:
    """A remark to whoever sits at the terminal."""
    print(line, file=sys.stderr, flush=True)
