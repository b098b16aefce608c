"""Joining, leaving, files, and what a fleet refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

import audiolora
from audiolora.layers.participation import BypassedModuleWarning
from tests.fleet.nets import TARGETS, Net, make_data, make_net

IDS = ["a", "b", "c"]


def make_config(**settings: Any) -> LoraConfig:
    return LoraConfig(**({"r": 2, "target_modules": TARGETS, "bias": "all", "modules_to_save": ["head"]} | settings))


def make_fleet(ids: list[str] = IDS, **settings: Any) -> audiolora.Fleet:
    fleet = audiolora.Fleet(make_net(), make_config(**settings), ids)
    fleet.values += torch.randn(fleet.values.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    return fleet


def classes(net: nn.Module) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in net.named_modules()]


X = make_data(["x"], [4])["x"][0]


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"bias": "none", "lora_bias": True}])
def test_an_exported_adapter_is_peft_s(settings: dict[str, Any], tmp_path: Path) -> None:
    fleet = make_fleet(**settings)
    fleet.save_adapter("b", tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with audiolora.enabled():
        model = PeftModel.from_pretrained(make_net(), str(tmp_path / "b")).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(X), fleet(X, "b"), rtol=1e-4, atol=1e-5)


def test_plain_peft_reads_what_it_gets_right(tmp_path: Path) -> None:
    fleet = make_fleet(target_modules=["stem", "mix"])
    fleet.save_adapter("b", tmp_path / "b")
    audiolora.disable()
    model = PeftModel.from_pretrained(make_net(), str(tmp_path / "b")).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(X), fleet(X, "b"), rtol=1e-4, atol=1e-5)


def test_devices_join_and_leave() -> None:
    fleet = make_fleet()
    outputs = {id: fleet(X, id) for id in IDS}
    fleet.add(["d", "e"], start="b")
    fleet.add(["f"], start="mean")
    fleet.add(["g"])
    torch.testing.assert_close(fleet(X, "e"), outputs["b"])
    torch.testing.assert_close(fleet.tensors()["base_model.model.head.bias"][5], fleet.values[:5].mean(0)[-3:])
    torch.testing.assert_close(fleet(X, "g"), fleet.net(X))
    fleet.remove(["a", "d"])
    assert fleet.ids == ["b", "c", "e", "f", "g"] and len(fleet) == 5
    torch.testing.assert_close(fleet(X, "c"), outputs["c"])
    with pytest.raises(ValueError, match="not in the fleet: a"):
        fleet(X, "a")
    with pytest.raises(ValueError, match="twice: b"):
        fleet.add(["h", "b"])
    with pytest.raises(ValueError, match="twice: h"):
        fleet.add(["h", "h"])
    with pytest.raises(ValueError, match="start must be"):
        fleet.add(["h"], start="median")
    with pytest.raises(ValueError, match="4 samples"):
        fleet(X, ["b", "c"])


def test_training_only_some_leaves_the_rest() -> None:
    fleet = make_fleet()
    before = fleet.values.clone()
    fleet.fit(make_data(["c", "a"], [4, 4]), steps=2, progress=False)
    assert torch.equal(fleet.values[1], before[1])
    assert not torch.equal(fleet.values[0], before[0])


def test_saved_and_loaded_whole_or_in_part(tmp_path: Path) -> None:
    fleet = make_fleet()
    fleet.save(tmp_path / "fleet")
    fleet.save(tmp_path / "fleet")  # over the old one
    assert [path.name for path in tmp_path.iterdir()] == ["fleet"]
    loaded = audiolora.Fleet.load(make_net(), tmp_path / "fleet")
    assert loaded.ids == IDS and torch.equal(loaded.values, fleet.values)
    part = audiolora.Fleet.load(make_net(), tmp_path / "fleet", ids=["c", "a"])
    torch.testing.assert_close(part(X, "c"), fleet(X, "c"))
    torch.testing.assert_close(part(X, "a"), fleet(X, "a"))
    with pytest.raises(ValueError, match=r"not in .*: z"):
        audiolora.Fleet.load(make_net(), tmp_path / "fleet", ids=["z"])
    with pytest.raises(FileNotFoundError, match=r"fleet.json is missing"):
        audiolora.Fleet.load(make_net(), tmp_path)


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    make_fleet().save(tmp_path / "fleet")
    path = tmp_path / "fleet" / "fleet.safetensors"
    tensors = load_file(path)
    tensors["strange"] = torch.zeros(3)
    del tensors["base_model.model.head.bias"]
    tensors["base_model.model.stem.lora_A.weight"] = torch.zeros(3, 2, 1, 3)
    save_file(tensors, path)
    net = make_net()
    with pytest.raises(ValueError) as error:
        audiolora.Fleet.load(net, tmp_path / "fleet")
    for part in ("strange: not in", "head.bias: missing", "(3, 2, 1, 3) in the file, (3, 2, 2, 3) here"):
        assert part in str(error.value)
    assert classes(net) == classes(make_net())


def test_a_failed_write_leaves_the_old_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet()
    fleet.save(tmp_path / "fleet")
    fleet.add(["new"])

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("audiolora.fleet.storage.save_file", full)
    with pytest.raises(OSError, match="no space"):
        fleet.save(tmp_path / "fleet")
    assert json.loads((tmp_path / "fleet" / "fleet.json").read_text())["ids"] == IDS
    assert [path.name for path in tmp_path.iterdir()] == ["fleet"]
    shutil.rmtree(tmp_path / "fleet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_dropout": 0.1}, "without dropout"),
        ({"target_modules": ["conv2"]}, "conv2: a fleet adapts"),
        ({"modules_to_save": ["norm"]}, "norm: in modules_to_save a fleet takes"),
        ({"target_modules": ["nothing"]}, "No modules were targeted"),
    ],
)
def test_what_a_fleet_refuses_leaves_the_network_alone(settings: dict[str, Any], message: str) -> None:
    class Planar(Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv2 = nn.Conv2d(1, 1, 1)

    net = Planar()
    before = classes(net)
    with pytest.raises(ValueError, match=message):
        audiolora.Fleet(net, make_config(**settings), IDS)
    assert classes(net) == before
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not hasattr(net, "peft_config")


def test_wrong_ids_and_networks() -> None:
    with pytest.raises(ValueError, match="twice: a"):
        audiolora.Fleet(make_net(), make_config(), ["a", "a"])
    with pytest.raises(ValueError, match="not empty"):
        audiolora.Fleet(make_net(), make_config(), [""])
    with pytest.raises(TypeError, match="adapted already"):
        audiolora.Fleet(audiolora.adapt(make_net(), targets="conv"), make_config(), IDS)
    with pytest.raises(TypeError, match=r"peft.LoraConfig, got dict"):
        audiolora.Fleet(make_net(), {}, IDS)  # type: ignore[arg-type]
    audiolora.disable()


def test_a_bypassed_module_is_named() -> None:
    class Idle(Net):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Conv1d(2, 2, 3)

    fleet = audiolora.Fleet(make_net(Idle), make_config(target_modules=["stem", "idle"]), IDS)
    with pytest.warns(BypassedModuleWarning, match="idle"):
        fleet(X, ["a", "b", "a", "c"])


def test_a_forward_that_loses_its_batch_says_so() -> None:
    class Folds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x.flatten(0, 1)[:, None]).unflatten(0, x.shape[:2])

    fleet = audiolora.Fleet(Folds(), LoraConfig(r=1, target_modules=["conv"]), IDS)
    with pytest.raises(ValueError, match=r"the batch has 2 samples of 2 devices"):
        fleet(X[:2], ["a", "b"])
