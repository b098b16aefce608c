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

import audiolora
from audiolora import cli
from audiolora.edge import Session
from audiolora.export import add_adapter, export, make_keys, runs
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


def test_an_adapter_for_a_signed_bundle_is_signed(tmp_path: Path) -> None:
    private, _ = make_keys(tmp_path / "k")
    model, x = adapted_net(), torch.randn(2, 3, 9)
    export(model, tmp_path / "b", x, key=private)
    with pytest.raises(ValueError, match="is signed, and a device that has its key refuses .* sign it: key="):
        add_adapter(model, tmp_path / "b", id="more")
    assert add_adapter(model, tmp_path / "b", id="more", key=private).is_dir()


def test_a_rank_above_the_bundle_s_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapter 'default' has rank 3, and this base takes at most 2; .*max_rank=3"):
        export(adapted_net(r=3), tmp_path / "b", torch.randn(2, 3, 9), max_rank=2)
    assert not (tmp_path / "b").exists()


def test_a_bundle_that_is_not_for_streams_says_so(tmp_path: Path) -> None:
    export(adapted_net(), tmp_path / "b", torch.randn(2, 3, 9))
    session = Session(tmp_path / "b", threads=1)
    for make in (session.stream, session.bind().stream):
        with pytest.raises(ValueError, match="not for streams; export a causal network with streaming=True"):
            make()


def adapted_net(r: int = 2) -> nn.Module:
    return audiolora.adapt(nn.Sequential(nn.Conv1d(3, 4, 3)), r=r).eval()
