"""darts' TCNModel with adapters in its network: `fit`, `predict` and `historical_forecasts` go on as ever."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

import audiolora
from tests.nets.lifecycle import adapted_names, assert_unmoved, frozen, needs

pytestmark = [*needs("darts"), pytest.mark.filterwarnings("ignore")]

QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}


@pytest.fixture(autouse=True)
def in_a_quiet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def settings(**more: Any) -> dict[str, Any]:
    return {
        "input_chunk_length": 24,
        "output_chunk_length": 6,
        "num_filters": 8,
        "kernel_size": 3,
        "num_layers": 2,
        "dropout": 0.0,
        "n_epochs": 1,
        "batch_size": 16,
        "random_state": 0,
        "pl_trainer_kwargs": QUIET,
    } | more


def series(seed: int, n: int = 120) -> Any:
    from darts import TimeSeries

    noise = np.random.default_rng(seed).standard_normal(n)
    return TimeSeries.from_values((np.sin(np.arange(n) * np.pi / 6 + seed) + 0.1 * noise).astype(np.float32))


def fitted(**more: Any) -> Any:
    from darts.models import TCNModel

    model = TCNModel(**settings(**more))
    model.fit(series(0))
    return model


def predicted(model: Any, of: Any = None) -> np.ndarray:
    return model.predict(6, series=series(1) if of is None else of).values()


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("weight_norm", [False, True], ids=["plain", "weight norm"])
def test_its_life_in_darts(weight_norm: bool, method: str) -> None:
    from darts.models import TCNModel

    forecaster = fitted(weight_norm=weight_norm)
    forecaster.save("base.pt")
    plain = predicted(forecaster)
    net = forecaster.model
    model = audiolora.adapt(net, method, r=2)
    assert adapted_names(model) == [f"res_blocks.{block}.conv{i}" for block in (0, 1) for i in (1, 2, 3)]
    np.testing.assert_allclose(predicted(forecaster), plain, atol=1e-6)

    before = frozen(model)
    forecaster.fit(series(1), epochs=2)
    assert forecaster.model is net, "darts goes on with the network that it has"
    assert_unmoved(model, before)
    after = predicted(forecaster)
    assert np.abs(after - plain).max() > 1e-3
    with model.disable_adapter():
        np.testing.assert_allclose(predicted(forecaster), plain, atol=1e-6)

    model.save_pretrained("adapter")
    other = TCNModel.load("base.pt", pl_trainer_kwargs=QUIET)
    with audiolora.enabled():
        PeftModel.from_pretrained(other.model, "adapter")
    np.testing.assert_allclose(predicted(other), after, atol=1e-6)

    model.merge_and_unload()
    np.testing.assert_allclose(predicted(forecaster), after, atol=1e-5)
    forecaster.save("merged.pt")
    np.testing.assert_allclose(predicted(TCNModel.load("merged.pt", pl_trainer_kwargs=QUIET)), after, atol=1e-5)


def test_a_backtest_is_made_of_the_adapted_forecasts() -> None:
    forecaster = fitted(weight_norm=True)
    history = series(1)
    cut = {"start": 60, "forecast_horizon": 6, "stride": 24, "retrain": False, "last_points_only": False}
    plain = forecaster.historical_forecasts(history, **cut)
    audiolora.adapt(forecaster.model, r=2)
    forecaster.fit(history, epochs=2)
    adapted = forecaster.historical_forecasts(history, **cut)
    assert len(adapted) == len(plain) == 3
    for forecast, without in zip(adapted, plain, strict=True):
        alone = predicted(forecaster, history[: int(forecast.start_time())])
        np.testing.assert_allclose(forecast.values(), alone, atol=1e-5)
        assert np.abs(forecast.values() - without.values()).max() > 1e-3


def test_retraining_starts_from_darts_own_network() -> None:
    """docs/nets.md: `historical_forecasts(retrain=True)` makes the network anew, from nothing and without adapters."""
    from darts.models import TCNModel

    cut = {"start": 100, "forecast_horizon": 6, "stride": 8, "retrain": True, "last_points_only": False}
    expected = TCNModel(**settings()).historical_forecasts(series(1), **cut)
    forecaster = fitted()
    audiolora.adapt(forecaster.model, r=2)
    retrained = forecaster.historical_forecasts(series(1), **cut)
    for forecast, anew in zip(retrained, expected, strict=True):
        np.testing.assert_allclose(forecast.values(), anew.values(), atol=1e-6)


def adapted_class(base: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Any:
    from darts.models import TCNModel

    class AdaptedTCN(TCNModel):
        def _create_model(self, train_sample: Any) -> Any:
            net = super()._create_model(train_sample)
            net.load_state_dict(base)
            audiolora.adapt(net, r=2)
            return net

    AdaptedTCN.__qualname__ = "AdaptedTCN"  # darts pickles its models, so the class must be found by its name
    monkeypatch.setitem(globals(), "AdaptedTCN", AdaptedTCN)
    return AdaptedTCN


def test_a_class_of_one_s_own_retrains_the_adapters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {name: tensor.clone() for name, tensor in fitted(weight_norm=True).model.state_dict().items()}
    kind = adapted_class(base, monkeypatch)
    forecaster = kind(**settings(weight_norm=True))
    nets = []
    create = kind._create_model

    def remember(self: Any, sample: Any) -> Any:
        nets.append(create(self, sample))
        return nets[-1]

    kind._create_model = remember
    cut = {"start": 100, "forecast_horizon": 6, "stride": 8, "retrain": True, "last_points_only": False}
    forecasts = forecaster.historical_forecasts(series(1), **cut)
    assert len(nets) == len(forecasts) == 2
    for net in nets:
        kept = {name.replace("base_layer.", ""): tensor for name, tensor in net.state_dict().items()}
        bias = [name for name in base if name.endswith("bias")]
        assert bias and all(torch.equal(kept[name], base[name]) for name in bias)
        assert all(layer.any() for name, layer in net.state_dict().items() if "lora_B" in name), "trained"

    forecaster.fit(series(1))
    forecaster.save("adapted.pt")
    again = kind(**settings(weight_norm=True))
    again.load_weights("adapted.pt", load_encoders=False, skip_checks=True)
    np.testing.assert_allclose(predicted(again), predicted(forecaster), atol=1e-6)


def test_darts_own_file_of_an_adapted_network_loads_nowhere_in_silence() -> None:
    from darts.models import TCNModel

    forecaster = fitted()
    audiolora.adapt(forecaster.model, r=2)
    predicted(forecaster)
    forecaster.save("adapted.pt")
    with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict"):
        TCNModel.load("adapted.pt", pl_trainer_kwargs=QUIET)
