"""A forecaster on disk: it comes back the same, and never onto another network."""

from __future__ import annotations

import copy
import json

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import audiolora
from audiolora.series.forecaster import Forecaster
from audiolora.series.saving import INFO_FILE, base_fingerprint
from audiolora.series.scaling import Standard
from tests.series.tiny_fleet import LOOKBACK, adapted, fleet, forecaster, tiny_net


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return fleet(2)


@pytest.mark.parametrize("kind", ["network", "adapter"])
def test_it_comes_back_the_same(frame, tmp_path, kind):
    base = tiny_net(quantiles=3)
    net = base if kind == "network" else adapted(copy.deepcopy(base))
    each = forecaster(net, quantiles=(0.1, 0.5, 0.9), scaler=Standard(), name="tcn")
    each.fit(frame, epochs=1, stride=6, quiet=True)
    each.save(tmp_path / "pumps" / "all")
    fresh = tiny_net(quantiles=3, seed=7) if kind == "network" else base
    again = Forecaster.load(fresh, tmp_path / "pumps" / "all", lookback=LOOKBACK, quantiles=(0.1, 0.5, 0.9))
    assert again.settings() == each.settings()
    pd.testing.assert_frame_equal(again.predict(frame), each.predict(frame))
    files = {path.name for path in (tmp_path / "pumps" / "all").iterdir()}
    assert INFO_FILE in files and ("adapter_model.safetensors" in files) == (kind == "adapter")
    again.save(tmp_path / "pumps" / "all")  # in place of the old one
    assert [path.name for path in (tmp_path / "pumps").iterdir()] == ["all"]


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_the_fingerprint_is_the_base_s_alone(method):
    net = tiny_net()
    before = base_fingerprint(net)
    model = audiolora.adapt(net, method=method, r=2)
    assert base_fingerprint(model) == before
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(1.0)
    assert base_fingerprint(model) == before
    model.get_base_model().head.bias.data.add_(1e-3)
    assert base_fingerprint(model) != before


def test_an_adapter_is_never_put_on_another_base(tmp_path):
    base = tiny_net()
    forecaster(adapted(copy.deepcopy(base))).save(tmp_path / "pump")
    with pytest.raises(ValueError, match="trained over another base: weights .* there, .* in this TCNForecaster"):
        Forecaster.load(tiny_net(seed=1), tmp_path / "pump")
    with pytest.raises(ValueError, match="adapted already"):
        Forecaster.load(adapted(base), tmp_path / "pump")


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"lookback": 96}, "another forecaster: lookback: 48 in the file, 96 expected"),
        ({"horizon": 24, "freq": "D"}, "horizon: 6 in the file, 24 expected; freq: 'h' in the file, 'D' expected"),
        ({"known": ["load"]}, r"known: \[\] in the file, \['load'\] expected"),
        ({"look_back": 96}, "look_back: no setting of a forecaster"),
    ],
)
def test_another_setting_than_expected_is_refused(tmp_path, expected, said):
    forecaster().save(tmp_path / "pump")
    with pytest.raises(ValueError, match=said):
        Forecaster.load(tiny_net(), tmp_path / "pump", **expected)


def test_another_network_is_refused_with_every_shape(tmp_path):
    forecaster().save(tmp_path / "pump")
    with pytest.raises(ValueError, match=r"head.bias: \(6,\) in the file, \(18,\) in the network"):
        Forecaster.load(tiny_net(quantiles=3), tmp_path / "pump")
    with pytest.raises(ValueError, match=r"head.bias: \(6,\) in the file, nothing in the network"):
        Forecaster.load(nn.Sequential(nn.Linear(2, 2)), tmp_path / "pump")


def test_a_file_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="holds no forecaster"):
        Forecaster.load(tiny_net(), tmp_path)
    (tmp_path / INFO_FILE).write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        Forecaster.load(tiny_net(), tmp_path)
    (tmp_path / INFO_FILE).write_text(json.dumps({"format": 9}))
    with pytest.raises(ValueError, match="format 9.*upgrade"):
        Forecaster.load(tiny_net(), tmp_path)


def test_what_cannot_be_told_from_the_base_is_refused(tmp_path):
    each = forecaster(adapted(tiny_net()))
    each.net.merge_adapter()
    with pytest.raises(ValueError, match="merged into the base"):
        each.save(tmp_path / "pump")
    assert not (tmp_path / "pump").exists()
    with audiolora.enabled():
        biased = get_peft_model(tiny_net(), LoraConfig(r=1, target_modules=["conv1"], bias="all"))
    with pytest.raises(ValueError, match=r"bias='all' trains the base's own biases.*lora_bias=True"):
        forecaster(biased)


def test_a_failure_while_saving_leaves_the_old_folder(tmp_path, monkeypatch):
    each = forecaster()
    each.save(tmp_path / "pump")
    before = (tmp_path / "pump" / INFO_FILE).read_text()
    monkeypatch.setattr("audiolora.series.saving.write_json", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forecaster(name="other").save(tmp_path / "pump")
    assert (tmp_path / "pump" / INFO_FILE).read_text() == before
    assert torch.equal(Forecaster.load(tiny_net(seed=3), tmp_path / "pump").net.head.weight, each.net.head.weight)
