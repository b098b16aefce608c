"""Training a fleet is training each device alone: with a fleet of one, and with PEFT and torch.optim.AdamW."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import nn

import audiolora
from tests.fleet.nets import TARGETS, Net, make_data, make_net, peft_model, train_alone

IDS, COUNTS = ["a", "b", "c", "d"], [9, 6, 9, 3]
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora, bias": {"use_rslora": True, "lora_bias": True},
    "r1, bias, head": {"r": 1, "bias": "all", "modules_to_save": ["head"]},
    "lora_only": {"bias": "lora_only", "rank_pattern": {"mix": 3}},
}


def make_config(name: str) -> LoraConfig:
    return LoraConfig(**({"r": 2, "lora_alpha": 3, "target_modules": TARGETS} | CONFIGS[name]))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fleet_trains_as_each_alone(name: str) -> None:
    data = make_data(IDS, COUNTS)
    fleet = audiolora.Fleet(make_net(), make_config(name), IDS)
    training: dict[str, Any] = {"epochs": 3, "batch_size": 3, "lr": 1e-2, "progress": False}
    history = fleet.fit(data, **training, lr_scale={"b": 0.5})
    for id in IDS:
        lr = 5e-3 if id == "b" else 1e-2
        model = peft_model(make_config(name), make_net())
        alone = train_alone(model, id, data[id], epochs=3, batch_size=3, lr=lr)
        np.testing.assert_allclose(history[id].losses, alone, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            expected = model(data["a"][0])
        torch.testing.assert_close(fleet(data["a"][0], id), expected, rtol=1e-4, atol=1e-4)
        one = audiolora.Fleet(make_net(), make_config(name), [id])
        losses = one.fit({id: data[id]}, **training, lr_scale={id: 0.5} if id == "b" else {})[id].losses
        np.testing.assert_allclose(history[id].losses, losses, rtol=1e-5, atol=1e-5)


class Wide(nn.Module):
    """Enough channels for the form with a shared convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(2, 64, 3, stride=2, padding=1)
        self.conv = nn.Conv1d(64, 64, 3, padding=8, dilation=8)
        self.up = nn.ConvTranspose1d(64, 64, 3)
        self.mix = nn.Linear(64, 64)
        self.out = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu_(self.conv(torch.relu_(self.down(x))))
        return self.out(self.mix(torch.relu_(self.up(h)).mean(2)))


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_wide_layers(name: str) -> None:
    settings = {"target_modules": ["down", "conv", "up", "mix"], "r": 1, **CONFIGS[name]}
    data = make_data(IDS, [4, 4, 4, 4])
    fleet = audiolora.Fleet(make_net(Wide), LoraConfig(**settings), IDS)
    history = fleet.fit(data, epochs=2, batch_size=2, lr=1e-2, progress=False, devices_at_once=3)
    for id in IDS:
        model = peft_model(LoraConfig(**settings), make_net(Wide))
        alone = train_alone(model, id, data[id], epochs=2, batch_size=2, lr=1e-2)
        np.testing.assert_allclose(history[id].losses, alone, rtol=1e-5, atol=1e-5)


def test_the_network_is_given_back_as_it_was() -> None:
    net = make_net().train()
    before, mode = copy.deepcopy(net.state_dict()), {n: m.training for n, m in net.named_modules()}
    classes = {name: type(module).__name__ for name, module in net.named_modules()}
    fleet = audiolora.Fleet(net, make_config("r1, bias, head"), IDS)
    fleet.fit(make_data(IDS, COUNTS), steps=1, progress=False)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not net.training
    x = make_data(["a"], [2])["a"][0]
    torch.testing.assert_close(net(x), make_net()(x))  # outside of the fleet: the base
    assert fleet.unload() is net
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert {n: m.training for n, m in net.named_modules()} == mode
    assert {name: type(module).__name__ for name, module in net.named_modules()} == classes
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_old_weight_norm_comes_back() -> None:
    net = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv1d(2, 4, 3)), nn.Flatten(), nn.Linear(88, 3))
    keys = list(net.state_dict())
    fleet = audiolora.Fleet(net, LoraConfig(r=1, target_modules=["0"]), ["a", "b"])
    fleet.fit(make_data(["a", "b"], [2, 2]), steps=1, progress=False)
    assert list(fleet.unload().state_dict()) == keys


def test_each_sample_by_its_device_in_any_order() -> None:
    fleet = audiolora.Fleet(make_net(), make_config("r1, bias, head"), IDS)
    fleet.values += torch.randn(fleet.values.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    x, ids = make_data(["x"], [7])["x"][0], ["b", "d", "b", "a", "c", "c", "b"]
    expected = torch.cat([fleet(x[i : i + 1], id) for i, id in enumerate(ids)])
    torch.testing.assert_close(fleet(x, ids), expected)
    assert not torch.allclose(expected[0], fleet(x[:1], "a")[0])


def test_a_loss_of_ones_own() -> None:
    def pinball(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        error = targets - outputs
        return torch.maximum(0.9 * error, -0.1 * error).mean()

    def mse(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()

    data = make_data(IDS, COUNTS)
    losses = [
        audiolora.Fleet(make_net(), make_config("lora"), IDS)
        .fit(data, steps=3, loss=loss, progress=False)["c"]
        .losses.tolist()
        for loss in ("mse", mse, pinball)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert losses[2] != losses[0]


def test_base_layers_of_other_classes() -> None:
    class Causal(nn.Conv1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.pad(x, (2, 0)))

    def build() -> nn.Module:
        return nn.Sequential(Causal(2, 4, 3), nn.Flatten(), nn.Linear(96, 3))

    config, data = {"r": 2, "target_modules": ["0"]}, make_data(["a", "b"], [4, 4])
    fleet = audiolora.Fleet(make_net(build), LoraConfig(**config), ["a", "b"])
    history = fleet.fit(data, epochs=2, batch_size=2, lr=1e-2, progress=False)
    model = peft_model(LoraConfig(**config), make_net(build))
    alone = train_alone(model, "b", data["b"], epochs=2, batch_size=2, lr=1e-2)
    np.testing.assert_allclose(history["b"].losses, alone, rtol=1e-5, atol=1e-5)


def test_the_same_seed_starts_as_peft() -> None:
    fleet = audiolora.Fleet(make_net(), make_config("lora"), IDS, seed=5)
    state = {k: v for k, v in peft_model(make_config("lora"), Net(), seed=5).state_dict().items() if "lora_A" in k}
    found = fleet.adapter("c")
    assert state
    for key, value in state.items():
        torch.testing.assert_close(found[key.replace(".default", "")], value, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["lora", "dora", "r1, bias, head"])
def test_on_cuda_as_on_cpu(name: str) -> None:
    data = make_data(IDS, COUNTS)
    training: dict[str, Any] = {"epochs": 2, "batch_size": 3, "progress": False}
    on_cpu = audiolora.Fleet(make_net(), make_config(name), IDS).fit(data, **training)
    fleet = audiolora.Fleet(make_net().cuda(), make_config(name), IDS)
    on_cuda = fleet.fit({id: (x.cuda(), y.cuda()) for id, (x, y) in data.items()}, **training)
    for id in IDS:
        np.testing.assert_allclose(on_cuda[id].losses, on_cpu[id].losses, rtol=1e-2)  # cuDNN's convolutions are TF32
