"""The page's numbers are Python's, for every kind of bundle that it runs; a refusal changes nothing of what runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import audiolora
from audiolora.edge import Session
from audiolora.export import export, make_keys
from audiolora.export.forecast_runs import forecaster_task
from audiolora.export.tensors import read_tensors
from audiolora.series.scaling import Standard, WindowScaler
from tests.browser.opened import NEEDS, Opened, chromium, served
from tests.edge.test_forecasting import KNOWN, PAST, columns_of, frame, measured
from tests.export.networks import adapted as everything
from tests.export.networks import randomise, sample
from tests.series.tiny_fleet import HORIZON, adapted, fleet, forecaster, tiny_net

pytestmark = NEEDS
QUANTILES = (0.1, 0.5, 0.9)
RATE_HZ = 16000


def hearing() -> nn.Module:
    """Sound (N, L) → (N, 3, frames), with an adapter."""

    class Hearing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(1, 4, 16, stride=8), nn.Conv1d(4, 3, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.tanh(self.first(x[:, None])))

    torch.manual_seed(0)
    model = audiolora.adapt(Hearing(), r=2, targets=["first", "second"], adapter_name="voice")
    randomise(model)
    return model


def networks() -> Any:
    """An adapted forecasting network of one channel, two adapters."""
    net = adapted(tiny_net(seed=4))
    with audiolora.enabled():
        net.add_adapter("second", net.peft_config["default"])
    randomise(net)
    return net


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder that is served, with bundles of every kind."""
    folder = tmp_path_factory.mktemp("site")
    private, _ = make_keys(folder / "ours")
    make_keys(folder / "other")
    export(forecaster(networks()), folder / "signed", key=private, web=True)
    export(forecaster(networks()), folder / "plain", web=True)
    channels, columns = 1 + len(PAST) + len(KNOWN), {"past": PAST, "known": KNOWN}
    for name, scaler in (("standard", Standard().fit(measured())), ("window", WindowScaler(unscaled=KNOWN))):
        net = adapted(tiny_net(channels, len(QUANTILES), seed=4))
        randomise(net)
        made = forecaster(net, scaler=scaler, quantiles=QUANTILES, **columns)
        export(made, folder / name, web=True, task=forecaster_task(made.settings(), "Asia/Kolkata"))
    export(everything("first", "dora"), folder / "everything", sample(), web=True)
    export(hearing(), folder / "hearing", torch.randn(1, 4000), dynamic={"x": {0: "batch", 1: "time"}}, web=True)
    fleet().to_csv(folder / "fleet.csv", index=False)
    frame().to_csv(folder / "covariates.csv", index=False)
    measured().drop(columns=list(KNOWN)).to_csv(folder / "no_calendar.csv", index=False)
    with served(folder) as url:
        yield folder, url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(site: tuple[Path, str], browser: Any) -> Iterator[Opened]:
    opened = Opened(browser, site[1])
    yield opened
    opened.page.close()


def session(bundle: Path) -> Session:
    made = Session(bundle, threads=1, check_signature=False)
    for name in made.available():
        made.load(name)
    return made


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))


def y_of(device: str) -> np.ndarray:
    table = fleet()
    return table.loc[table["unique_id"] == device, "y"].to_numpy(copy=True)


def test_a_forecast_is_pythons_for_each_adapter_and_series(page: Opened, site: tuple[Path, str]) -> None:
    folder, _ = site
    python = session(folder / "signed")
    page.bundle("../signed", folder / "ours.pub.pem")
    assert page.error == "" and "signed by this key" in page.page.text_content("#status")
    page.file(folder / "fleet.csv")
    found = {}
    for device in ("pump0", "pump1"):
        page.series(device)
        for adapter in (None, "default", "second"):
            page.adapter(adapter)
            assert (page.error, page.running) == ("", adapter or "")
            found[device, adapter] = page.numbers[:, 0]
            close(page.numbers[:, 0], python.forecast(y_of(device), adapter))
    assert len({tuple(values) for values in found.values()}) == 6
    assert "ms" in page.page.text_content("#took") and page.page.query_selector("#chart svg polyline.active")


@pytest.mark.parametrize("bundle", ["standard", "window"])
def test_covariates_quantiles_and_every_scaler(page: Opened, site: tuple[Path, str], bundle: str) -> None:
    folder, _ = site
    python = session(folder / bundle)
    page.bundle(f"../{bundle}")
    page.file(folder / "covariates.csv")
    for device in ("pump1", "pump0"):
        page.series(device)
        page.adapter("default")
        wanted = python.forecast(
            columns_of(frame(), device), "default", device=device if bundle == "standard" else None
        )
        assert page.error == "" and page.numbers.shape == (HORIZON, len(QUANTILES))
        close(page.numbers, wanted)


def test_the_calendar_is_filled_in(page: Opened, site: tuple[Path, str]) -> None:
    folder, _ = site
    page.bundle("../window")
    page.file(folder / "no_calendar.csv")
    page.adapter("default")
    rows = measured().query("unique_id == 'pump0'")
    columns = {name: rows[name].to_numpy(copy=True) for name in ("y", *PAST)}
    wanted = session(folder / "window").forecast(columns, "default", ends=str(rows["ds"].iloc[-1]))
    assert page.error == ""
    close(page.numbers, wanted)


def test_the_stored_input_of_a_network_without_a_task(page: Opened, site: tuple[Path, str]) -> None:
    folder, _ = site
    python = session(folder / "everything")
    stored = read_tensors((folder / "everything/base/selftest.safetensors").read_bytes(), "stored")
    page.bundle("../everything")
    page.click("#stored")
    for adapter in (None, "first", "dora"):
        page.adapter(adapter)
        close(page.numbers.T, python.run(stored["base.input.x"], adapter))


def test_columns_of_a_csv_are_channels(page: Opened, site: tuple[Path, str], tmp_path: Path) -> None:
    x = sample(1, 33).numpy()
    pd.DataFrame(x[0].T, columns=["a", "b", "c"]).to_csv(tmp_path / "x.csv", index=False)
    page.bundle("../everything")
    page.adapter("first")
    page.file(tmp_path / "x.csv")
    close(page.numbers.T, session(site[0] / "everything").run(x, "first"))


def test_sound_from_a_file(page: Opened, site: tuple[Path, str], tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = (np.sin(np.arange(RATE_HZ) / 20) / 4).astype(np.float32)
    # Floats: of 16-bit samples Chromium divides positive ones by 32767, others by 32768.
    soundfile.write(tmp_path / "sound.wav", samples, RATE_HZ, subtype="FLOAT")
    page.bundle("../hearing")
    page.adapter("voice")
    page.file(tmp_path / "sound.wav")
    close(page.numbers.T, session(site[0] / "hearing").run(samples[None], "voice")[0])


def test_sound_from_the_microphone(page: Opened) -> None:
    page.bundle("../hearing")
    page.click("#record")
    page.page.wait_for_timeout(1500)
    page.click("#record")
    assert page.error == "" and page.numbers.shape[1] == 3
    assert RATE_HZ // 8 * 0.5 < len(page.numbers) and np.isfinite(page.numbers).all() and np.ptp(page.numbers) > 0


def test_a_folder_on_this_machine(page: Opened, site: tuple[Path, str]) -> None:
    folder, _ = site
    page.folder(folder / "signed", folder / "ours.pub.pem")
    page.file(folder / "fleet.csv")
    page.adapter("second")
    close(page.numbers[:, 0], session(folder / "signed").forecast(y_of("pump0"), "second"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def exchange(site: Path, adapter: Path) -> None:
    shutil.rmtree(adapter)
    shutil.copytree(site / "signed/adapters/default", adapter)


DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a flipped bit in the tensors": (lambda s, a: flip(a / "adapter.safetensors"), "its size or sha256"),
    "a flipped bit in the manifest": (lambda s, a: flip(a / "manifest.json"), "manifest.sha256"),
    "a flipped bit in the signature": (lambda s, a: flip(a / "manifest.sig"), "the signature is not that of this key"),
    "half of a file": (lambda s, a: (a / "adapter.safetensors").write_bytes(b"half"), "its size or sha256"),
    "a file that is missing": (lambda s, a: (a / "adapter.safetensors").unlink(), "not there"),
    "no signature": (lambda s, a: (a / "manifest.sig").unlink(), "it is not signed"),
    "another adapter under its name": (exchange, "its manifest says it is default"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_refused_adapter_leaves_the_running_one(
    page: Opened, site: tuple[Path, str], damage: str, request: pytest.FixtureRequest
) -> None:
    folder, _ = site
    name = f"damaged{list(DAMAGE).index(damage)}"
    shutil.copytree(folder / "signed", folder / name)
    do, says = DAMAGE[damage]
    do(folder, folder / name / "adapters/second")
    page.bundle(f"../{name}", folder / "ours.pub.pem")
    page.file(folder / "fleet.csv")
    page.adapter("default")
    before = page.numbers
    page.adapter("second")
    assert says in page.error and page.running == "default"
    np.testing.assert_array_equal(page.numbers, before)
    page.series("pump1")  # and it still runs
    close(page.numbers[:, 0], session(folder / "signed").forecast(y_of("pump1"), "default"))


def test_a_base_needs_its_key(page: Opened, site: tuple[Path, str]) -> None:
    folder, _ = site
    for bundle, key, says in (
        ("signed", None, "it is signed; give the public key"),
        ("signed", "other", "the signature is not that of this key"),
        ("plain", "ours", "it is not signed, and a key was given"),
        ("nowhere", None, "not there"),
    ):
        page.bundle(f"../{bundle}", None if key is None else folder / f"{key}.pub.pem")
        assert says in page.error and page.page.is_hidden("#rest")
    page.bundle("../signed", folder / "ours.pub.pem")
    assert page.error == "" and page.page.is_visible("#rest")


def test_an_adapter_of_another_base_is_refused(page: Opened, site: tuple[Path, str]) -> None:
    folder, _ = site
    shutil.copytree(folder / "plain", folder / "foreign")
    shutil.copytree(folder / "signed/adapters/second", folder / "foreign/adapters/second", dirs_exist_ok=True)
    (folder / "foreign/adapters/second/manifest.sig").unlink()
    page.bundle("../foreign")
    page.adapter("second")
    assert "made for another base" in page.error and page.running == ""


@pytest.mark.parametrize(("key", "value", "says"), [
    ("task", {"kind": "music"}, "this bundle is for music, and this page runs"),
    ("target", "executorch", "this bundle is for executorch, and a browser runs onnx"),
    ("format", 2, "of format 2, and base of 1 is needed"),
])  # fmt: skip
def test_a_bundle_for_something_else_is_told(
    page: Opened, site: tuple[Path, str], key: str, value: Any, says: str
) -> None:
    base = shutil.copytree(site[0] / "plain", site[0] / f"other_{key}") / "base"
    text = json.dumps(json.loads((base / "manifest.json").read_text()) | {key: value}).encode()
    (base / "manifest.json").write_bytes(text)
    (base / "manifest.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")
    page.bundle(f"../other_{key}")
    assert says in page.error and page.page.is_hidden("#rest")


def test_a_history_that_will_not_do_is_told(page: Opened, site: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = site
    page.bundle("../plain")
    for text, says in (
        ("y\n1\n2\n", "48 steps"),
        ("a,b\n1,2\n3,4\n", "no column y"),
        ("y\n" + "1\n" * 47 + '""\n1\n' + "1\n", "a gap"),
        ("", "no rows"),
    ):
        (tmp_path / "x.csv").write_text(text)
        page.file(tmp_path / "x.csv")
        assert says in page.error
    fleet(1).to_csv(tmp_path / "x.csv", index=False, sep=";")
    page.file(tmp_path / "x.csv")
    assert page.error == ""
    close(page.numbers[:, 0], session(folder / "plain").forecast(y_of("pump0")))
