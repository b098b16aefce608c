"""Every convolution of the contract table as a program for XNNPACK: parity with torch at export, DoRA included."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiolora.export import export
from tests.export.test_geometries import ROWS, model_of
from tests.layers.convolutions import Convolution

pytest.importorskip("executorch", reason="needs ExecuTorch: make test-executorch")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", [row for row in ROWS if row.id != "derived weight"])
def test_a_bundle_of_each_convolution(row: Convolution, tmp_path: Path) -> None:
    dynamic = {"x": {0: "batch"}} if row.batched else {}
    x = {"x": row.input().float()}
    made = export(model_of(row, "dora"), tmp_path / "b", x, target="executorch", dynamic=dynamic)
    assert max(made.differences.values()) <= 1e-5
