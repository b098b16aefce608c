"""What a stranger gives `audiolora export` that it cannot use: told, not left unread."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cyclopts import App
from torch import nn

from audiolora import cli
from audiolora.export import runs
from audiolora.export.executorch import check_version
from audiolora.export.prepared import named_inputs


@pytest.mark.parametrize("given", [{"shape": "2,5,168"}, {"processor": Path("processor")}], ids=str)
def test_what_a_run_of_forecasters_knows_is_not_given(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "is_forecast_run", lambda run: True)
    with pytest.raises(ValueError, match="a run of forecasters knows what it takes; leave --shape and --processor out"):
        runs.export_runs([Path("run")], Path("out"), **given)


def test_a_run_of_forecasters_is_exported_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "is_forecast_run", lambda run: run.name == "homes")
    with pytest.raises(ValueError, match="homes: a run of forecasters .* by itself"):
        runs.export_runs([Path("speech"), Path("homes")], Path("out"))


@pytest.mark.parametrize(
    "example", [np.zeros((1, 1, 9), np.float32), {"x": np.zeros(3)}, torch.full((1, 1, 9), np.nan)]
)
def test_an_example_is_a_tensor_of_finite_values(example: Any) -> None:
    with pytest.raises(ValueError, match="got (ndarray|values that are not finite)"):
        named_inputs(nn.Conv1d(1, 1, 3), example)


def test_an_extra_that_is_not_installed_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    app = App()
    app.default(check_version)
    with pytest.raises(SystemExit) as end:
        cli.run_app(app, [])
    told = capsys.readouterr().err.replace("\n", " ")
    assert end.value.code == 2 and "audiolora[executorch]" in told and "Traceback" not in told
