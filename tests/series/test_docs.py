"""docs/series.md: its Python is run, its commands name what exists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_readme import SHELLS, blocks_of, check_command, commands_of

PAGE = Path(__file__).parents[2] / "docs" / "series.md"
BLOCKS = blocks_of(PAGE.read_text(encoding="utf-8"))


def test_the_python_runs(tmp_path: Path) -> None:
    script = "\n".join(block.code for block in BLOCKS if block.language == "python")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": str(PAGE.parents[1]), "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [block.code for block in BLOCKS if block.language in SHELLS])
def test_the_commands_name_what_exists(code: str) -> None:
    for words in commands_of(code):
        check_command(words)
