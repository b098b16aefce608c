"""The section of docs/edge.md on ExecuTorch: its Python is run after the page's first ten lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("executorch", reason="needs ExecuTorch: make test-executorch")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def section(title: str) -> str:
    found = re.search(rf"^## {title}$(.*?)^## ", (ROOT / "docs" / "edge.md").read_text("utf-8"), re.M | re.S)
    assert found is not None
    return found.group(1)


def test_the_section_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    blocks = [
        text
        for title in ("In ten lines", "ExecuTorch")
        for text in re.findall(r"```python\n(.*?)```", section(title), re.S)
    ]
    assert len(blocks) == 3
    for text in blocks:
        exec(compile(text, "edge.md", "exec"), names)


def test_the_pages_cpp_is_the_examples() -> None:
    """Its words, that is: the page shows the calls, and the example is compiled and run."""
    (shown,) = re.findall(r"```cpp\n(.*?)```", section("ExecuTorch"), re.S)
    program = (ROOT / "examples" / "executorch" / "run.cpp").read_text("utf-8")
    for call in (
        "BackendOptions<1> options",
        "set_option(",
        "weight_cache_enabled",
        "forward(",
        "from_blob(",
        "Module",
    ):
        assert call in shown and call in program
