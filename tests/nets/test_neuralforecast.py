"""neuralforecast's TCN, BiTCN and TimesNet with adapters in them: `fit`, `predict`, `cross_validation` go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from torch import nn

import audiolora
from audiolora.layers.lora import LoraConv1d
from tests.nets.lifecycle import adapted_names, assert_unmoved, check_life, frozen, needs

pytestmark = [*needs("neuralforecast"), pytest.mark.filterwarnings("ignore")]

HORIZON, LOOKBACK = 6, 24
COMMON = {
    "h": HORIZON,
    "input_size": LOOKBACK,
    "max_steps": 2,
    "learning_rate": 0.02,
    "batch_size": 2,
    "windows_batch_size": 32,
    "random_seed": 1,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
}


@dataclass(frozen=True)
class Net:
    """A model, its settings, what to name as targets, and how many modules that is: of ours, and of PEFT's."""

    model: str
    settings: dict[str, Any]
    targets: Any
    ours: int
    peft_s: int = 0

    def make(self, **more: Any) -> Any:
        import neuralforecast.models

        torch.manual_seed(0)
        return getattr(neuralforecast.models, self.model)(**COMMON, **self.settings, **more)


NETS = {
    "TCN": Net("TCN", {"encoder_hidden_size": 8, "decoder_hidden_size": 8, "dilations": [1, 2]}, "both", 2),
    "BiTCN": Net("BiTCN", {"hidden_size": 8, "dropout": 0.0}, ["conv1", "conv2"], 10),
    "TimesNet": Net(
        "TimesNet",
        {
            "hidden_size": 8,
            "conv_hidden_size": 8,
            "encoder_layers": 1,
            "num_kernels": 2,
            "top_k": 2,
            "dropout": 0.0,
        },
        ["conv", *(f"model.0.conv.{i}.kernels.{j}" for i in (0, 2) for j in (0, 1))],
        1,
        4,
    ),
}
everyone = pytest.mark.parametrize("name", NETS)


@pytest.fixture(autouse=True)
def in_a_quiet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def frame(seed: int, n: int = 100) -> pd.DataFrame:
    """Two devices in long form."""
    devices = []
    for device in range(2):
        noise = np.random.default_rng([seed, device]).standard_normal(n)
        y = np.sin(np.arange(n) * np.pi / 6 + device + seed) + 0.1 * noise
        stamps = pd.date_range("2024-01-01", periods=n, freq="h")
        devices.append(pd.DataFrame({"unique_id": f"meter {device}", "ds": stamps, "y": y}))
    return pd.concat(devices, ignore_index=True)


def fitted(name: str) -> Any:
    from neuralforecast import NeuralForecast

    nf = NeuralForecast([NETS[name].make()], freq="h")
    nf.fit(frame(0))
    return nf


def predicted(nf: Any, df: pd.DataFrame | None = None) -> np.ndarray:
    return nf.predict(df=frame(1) if df is None else df).iloc[:, -1].to_numpy()


def windows(futr_exog: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    batch: dict[str, Any] = dict.fromkeys(("hist_exog", "futr_exog", "stat_exog"))
    batch["insample_y"] = torch.randn(3, LOOKBACK, 1, generator=generator)
    if futr_exog:
        batch["futr_exog"] = torch.randn(3, LOOKBACK + HORIZON, futr_exog, generator=generator)
    return batch


@everyone
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_its_life(name: str, method: str, tmp_path: Path) -> None:
    net = NETS[name]
    run = lambda module: module(windows())  # noqa: E731
    model = check_life(lambda: net.make().eval(), run, tmp_path, method=method, r=2, targets=net.targets)
    ours = [module for module in model.modules() if isinstance(module, LoraConv1d)]
    assert (len(ours), len(adapted_names(model)) - len(ours)) == (net.ours, net.peft_s)


def test_bitcn_looks_forward_through_adapted_convolutions_too(tmp_path: Path) -> None:
    make = lambda: NETS["BiTCN"].make(futr_exog_list=["hour"]).eval()  # noqa: E731
    model = check_life(make, lambda net: net(windows(futr_exog=1)), tmp_path, r=2, targets=["conv1", "conv2"])
    assert {name.split(".")[0] for name in adapted_names(model)} == {"net_bwd", "net_fwd"}


def test_bitcn_is_refused_unless_its_convolutions_are_named() -> None:
    net = NETS["BiTCN"].make()
    with pytest.raises(ValueError, match=r"BiTCN has no nn.Conv1d .* Name them: targets=\['conv1', 'conv2'\]"):
        audiolora.adapt(net)
    assert not any(hasattr(module, "lora_A") for module in net.modules())


def test_timesnet_has_one_convolution_in_one_dimension() -> None:
    net = NETS["TimesNet"].make()
    assert adapted_names(audiolora.adapt(net)) == ["enc_embedding.value_embedding.tokenConv"]
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 4


@everyone
def test_its_life_in_neuralforecast(name: str) -> None:
    from neuralforecast import NeuralForecast

    nf = fitted(name)
    nf.save("base", save_dataset=False)
    plain, net = predicted(nf), nf.models[0]
    model = audiolora.adapt(net, r=2, targets=NETS[name].targets)
    np.testing.assert_allclose(predicted(nf), plain, atol=1e-6)

    before = frozen(model)
    nf.fit(frame(1))
    assert nf.models[0] is net, "neuralforecast goes on with the network that it has"
    assert_unmoved(model, before)
    after = predicted(nf)
    assert np.abs(after - plain).max() > 1e-3
    with model.disable_adapter():
        np.testing.assert_allclose(predicted(nf), plain, atol=1e-6)

    model.save_pretrained("adapter")
    other = NeuralForecast.load("base", verbose=False)
    with audiolora.enabled():
        PeftModel.from_pretrained(other.models[0], "adapter")
    np.testing.assert_allclose(predicted(other), after, atol=1e-6)

    model.merge_and_unload()
    np.testing.assert_allclose(predicted(nf), after, atol=1e-5)
    nf.save("merged", save_dataset=False)
    np.testing.assert_allclose(predicted(NeuralForecast.load("merged", verbose=False)), after, atol=1e-5)


@everyone
def test_a_backtest_is_made_of_the_adapted_forecasts(name: str) -> None:
    nf = fitted(name)
    model = audiolora.adapt(nf.models[0], r=2, targets=NETS[name].targets)
    nf.fit(frame(1))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    table = nf.cross_validation(df=frame(1), n_windows=2, step_size=HORIZON, use_fitted=True)
    assert_unmoved(model, before)
    column = next(each for each in table if each not in ("unique_id", "ds", "cutoff", "y"))
    for cutoff, forecasts in table.groupby("cutoff"):
        history = frame(1)
        alone = predicted(nf, history[history.ds <= cutoff])
        np.testing.assert_allclose(forecasts[column].to_numpy(), alone, atol=1e-5)

    kept = frozen(model)
    nf.cross_validation(df=frame(1), n_windows=1, step_size=HORIZON)  # fits before it forecasts
    assert_unmoved(model, kept)
    factors = [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])]
    assert factors and all("lora_" in key for key in factors)


def test_initial_models_have_no_adapters() -> None:
    """docs/nets.md: `use_init_models=True` starts from the models as they were given, before any fit."""
    nf = fitted("TCN")
    audiolora.adapt(nf.models[0], r=2)
    nf.fit(frame(1), use_init_models=True)
    assert adapted_names(nf.models[0]) == []


def test_neuralforecast_s_own_file_of_an_adapted_network_loads_nowhere_in_silence() -> None:
    from neuralforecast import NeuralForecast

    nf = fitted("TCN")
    audiolora.adapt(nf.models[0], r=2)
    nf.save("adapted", save_dataset=False)
    with pytest.raises(Exception, match="Checkpoint does not match the model"):
        NeuralForecast.load("adapted", verbose=False)
