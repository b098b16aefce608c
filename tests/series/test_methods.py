"""What each way of adapting trains, that it begins as the base, and that the best on the validation days is used."""

import pytest
import torch
from peft import PeftModel

from audiolora.series.adaptation import Adapted, adapt
from audiolora.series.methods import ADAPTERS, LR_FACTOR, METHODS, prepared
from audiolora.series.settings import AdaptSettings
from tests.series.tiny_fleet import LOOKBACK, fleet, forecaster, tiny_net

QUICK = AdaptSettings(epochs=2, own_epochs=1, val_days=3, stride=4, r=1)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_begins_as_the_base_and_trains_what_its_name_says(method):
    base, x = tiny_net().eval(), torch.randn(3, 1, LOOKBACK)
    before = {name: p.clone() for name, p in base.named_parameters()}
    net = prepared(base, method, r=2, seed=1).eval()
    torch.testing.assert_close(net(x), base(x))
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert isinstance(net, PeftModel) == (method in ADAPTERS) and method in LR_FACTOR
    wanted = {
        "head": lambda name: name.startswith("head."),
        "bias": lambda name: name.endswith("bias"),
        "full": lambda name: True,
        "lora": lambda name: "lora_" in name,
        "dora": lambda name: "lora_" in name,
        "lora+head+bias": lambda name: "lora_" in name or "modules_to_save" in name,
    }[method]
    assert trained and all(map(wanted, trained))
    if method in ("head", "bias", "full"):
        assert trained == [name for name, _ in base.named_parameters() if wanted(name)]
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in base.named_parameters())


def test_lora_with_head_and_bias_has_all_three():
    names = [name for name, p in prepared(tiny_net(), "lora+head+bias").named_parameters() if p.requires_grad]
    for part in ("lora_A.default.weight", "lora_B.default.bias", "head.modules_to_save.default.weight"):
        assert any(part in name for name in names)


def test_wrong_methods_and_heads():
    with pytest.raises(ValueError, match="method must be one of head, .*, got 'loha'"):
        prepared(tiny_net(), "loha")
    with pytest.raises(ValueError, match="Conv1d has no module 'head'"):
        prepared(torch.nn.Conv1d(1, 1, 1), "head")
    with pytest.raises(ValueError, match="has no parameters for method 'bias'"):
        prepared(torch.nn.Conv1d(1, 1, 1, bias=False), "bias")


def test_a_device_begins_where_the_fleet_left_off():
    frame, base = fleet(devices=2, steps=24 * 12), forecaster()
    shared = adapt(base, frame, "lora+head+bias", QUICK)
    assert set(shared.losses) == {"own", "base"}
    own = adapt(base, frame[frame["unique_id"] == "pump1"], "lora+head+bias", QUICK, shared=shared.forecaster)
    assert set(own.losses) == {"own", "base", "shared"}
    # What its validation days say of each is what the forecasters themselves say of them.
    history = frame[frame["unique_id"] == "pump1"]
    after = history["ds"].max() - QUICK.val_days * (history["ds"].iloc[24] - history["ds"].iloc[0])
    for name, one in (("own", own.forecaster), ("shared", shared.forecaster), ("base", base)):
        assert own.losses[name] == one.validation_loss(history, after=after)
    assert own.losses["own"] < own.losses["base"]


@pytest.mark.parametrize(
    ("losses", "uses"),
    [
        ({"own": 1.0, "base": 1.0}, "base"),
        ({"own": 0.9, "base": 1.0}, "own"),
        ({"own": 0.9, "shared": 0.9, "base": 1.0}, "shared"),
        ({"own": float("nan"), "shared": 1.1, "base": 1.0}, "base"),
    ],
)
def test_the_simplest_of_the_best_is_used(losses, uses):
    assert Adapted(forecaster(), 1, losses, 0.0).uses == uses
