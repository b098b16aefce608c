"""docs/nets.md is run: each section's Python is a module of its own, in an empty folder."""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path

import pytest

from tests.nets.lifecycle import needs

PAGE = Path(__file__).parents[2] / "docs" / "nets.md"
NEEDS = {"darts": "darts", "neuralforecast": "neuralforecast", "tsai": "tsai"}
"""Sections that need a library which the development environment does not have."""


def sections() -> dict[str, str]:
    """Heading → the Python under it."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    blocks = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return {title: "\n\n".join(blocks.findall(text)) for title, text in zip(parts[1::2], parts[2::2], strict=True)}


SECTIONS = [pytest.param(title, marks=needs(NEEDS[title]) if title in NEEDS else ()) for title in sections()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "snippet_" + re.sub(r"\W+", "_", title)
    (tmp_path / f"{name}.py").write_text(sections()[title], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.WARNING)
    try:
        importlib.import_module(name)
    finally:
        logging.disable(logging.NOTSET)


def test_every_library_of_this_folder_has_a_section() -> None:
    tested = {path.stem.removeprefix("test_").replace("_", "-") for path in Path(__file__).parent.glob("test_*.py")}
    assert tested - {"docs"} <= set(sections()) and set(NEEDS) <= set(sections())
