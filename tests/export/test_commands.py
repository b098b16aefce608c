"""``audiolora export``, ``verify`` and ``keys``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from audiolora import cli
from audiolora.edge import Session
from audiolora.series.scaling import Standard
from tests.export.networks import randomise
from tests.export.small_bundle import write_adapter, write_base
from tests.series.tiny_fleet import adapted, fleet, forecaster, tiny_net

NETWORK = """
from tests.series.tiny_fleet import tiny_net

def network():
    return tiny_net(seed=3)

def nothing():
    return 3
"""


@pytest.fixture
def audiolora(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Runs a command line: what it returns, writes to stdout and to stderr."""

    def run(*words: object) -> SimpleNamespace:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run_app(cli.app, [str(word) for word in words])
        return SimpleNamespace(status=end.value.code, **dict(zip(("out", "err"), capsys.readouterr(), strict=True)))

    return run


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that makes the untrained net, the base's weights, and two devices' adapters."""
    (tmp_path / "pumps_network.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    forecaster(tiny_net(seed=4)).save("base")
    for i, device in enumerate(("pump0", "pump1")):
        model = adapted(tiny_net(seed=4))
        randomise(model, seed=i)
        rows = fleet()[lambda t, device=device: t["unique_id"] == device]
        forecaster(model, scaler=Standard().fit(rows)).save(f"devices/{device}")
    return tmp_path


def test_runs_are_exported_signed_verified_and_run(trained: Path, audiolora: Callable[..., SimpleNamespace]) -> None:
    assert audiolora("keys", "ours").status == 0
    words = ("--network", "pumps_network:network", "--base", "base", "--sign", "ours.key.pem")
    said = audiolora("export", "devices/pump0", "devices/pump1", "--out", "bundle", *words)
    assert said.status == 0, said.err
    assert "audiolora verify bundle --key ours.pub.pem" in said.out and "pump1" in said.out
    said = audiolora("verify", "bundle", "--key", "ours.pub.pem", "--self-test")
    assert (said.status, said.out) == (0, "base: well\nadapters/pump0: well\nadapters/pump1: well\n")

    session = Session("bundle", key="ours.pub.pem", threads=1)
    rows = fleet()[lambda t: t["unique_id"] == "pump1"]
    model = adapted(tiny_net(seed=4))
    randomise(model, seed=1)
    wanted = forecaster(model, scaler=Standard().fit(rows)).predict(rows)["forecast"].to_numpy()
    session.load("pump1")
    np.testing.assert_allclose(session.forecast(rows["y"].to_numpy(), "pump1"), wanted, rtol=1e-5)

    said = audiolora("export", "devices/pump0", "--out", "bundle", *words)
    assert said.status == 2 and "there already" in said.err
    said = audiolora("export", "devices/pump0", "--out", "other", "--network", "pumps_network:network")
    assert said.status == 2 and "trained over another base" in said.err and not Path("other").exists()


@pytest.mark.parametrize(
    "network", ["nowhere:network", "pumps_network:other", "pumps_network", "pumps_network:nothing"]
)
def test_a_network_that_cannot_be_made_is_told(
    trained: Path, audiolora: Callable[..., SimpleNamespace], network: str
) -> None:
    said = audiolora("export", "devices/pump0", "--out", "bundle", "--network", network)
    assert said.status == 2 and said.err.startswith(f"error: --network {network}") and said.err.count("\n") == 1


def test_a_folder_without_an_adapter_is_told(trained: Path, audiolora: Callable[..., SimpleNamespace]) -> None:
    said = audiolora("export", "base", "--out", "bundle", "--network", "pumps_network:network")
    assert said.status == 2 and "base holds no adapter" in said.err


def test_verify_says_what_is_wrong(tmp_path: Path, audiolora: Callable[..., SimpleNamespace]) -> None:
    assert audiolora("keys", tmp_path / "ours").status == 0
    write_base(tmp_path, key=tmp_path / "ours.key.pem")
    path = write_adapter(tmp_path, key=tmp_path / "ours.key.pem")
    said = audiolora("verify", tmp_path)
    assert said.status == 2 and "it is signed; give the public key" in said.out
    assert audiolora("verify", tmp_path, "--no-signature", "--self-test").status == 0
    (path / "adapter.safetensors").write_bytes(b"")
    said = audiolora("verify", tmp_path, "--key", tmp_path / "ours.pub.pem", "--self-test")
    assert said.status == 2 and "base: well" in said.out and "adapters/user1: " in said.out and "cut off" in said.out
    assert audiolora("keys", tmp_path / "ours").status == 2


@pytest.mark.slow
def test_what_int8_costs_is_printed(trained: Path, audiolora: Callable[..., SimpleNamespace]) -> None:
    fleet().to_csv("rows.csv", index=False)
    words = ("devices/pump0", "devices/pump1", "--network", "pumps_network:network", "--base", "base")
    said = audiolora("export", *words, "--out", "int8", "--quantize", "int8", "--evaluate", "rows.csv")
    assert said.status == 0, said.err
    assert "pump1                mase" in said.out and "float," in said.out and "quantised (" in said.out
    static = ("--form", "fact", "--quantize", "qdq", "--calibrate", "rows.csv", "--evaluate", "rows.csv")
    said = audiolora("export", *words, "--out", "qdq", *static)
    assert said.status == 0, said.err
    assert audiolora("verify", "qdq", "--self-test").status == 0

    session = Session("qdq", threads=1)
    session.load("pump1")
    rows = fleet()[lambda t: t["unique_id"] == "pump1"]
    model = adapted(tiny_net(seed=4))
    randomise(model, seed=1)
    wanted = forecaster(model, scaler=Standard().fit(rows)).predict(rows)["forecast"].to_numpy()
    found = session.forecast(rows["y"].to_numpy(), adapter="pump1", device="pump1")
    assert 0 < np.abs(found - wanted).max() < 0.05 * np.ptp(wanted)


def test_rows_are_a_forecaster_s(trained: Path, audiolora: Callable[..., SimpleNamespace]) -> None:
    fleet().to_csv("rows.csv", index=False)
    (trained / "devices/pump0/forecaster.json").unlink()
    words = ("devices/pump0", "--network", "pumps_network:network", "--out", "b", "--shape", "1,1,24")
    said = audiolora("export", *words, "--quantize", "int8", "--evaluate", "rows.csv")
    assert said.status and "are rows of a forecaster" in said.err and not Path("b").exists()
