"""docs/geometric.md is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "geometric.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S):
        exec(compile(block, PAGE.name, "exec"), {"__name__": "page"})
    assert {path.name for path in tmp_path.iterdir()} == {"geometric.pt", "plain.pt"}
