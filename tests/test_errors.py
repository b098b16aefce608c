"""What goes wrong is said once, with the module, the value, the rule and the remedy, and the model is as it was."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

import audiolora
from tests.layers.convolutions import old_weight_norm, weight_norm

TARGETS = ["conv1", "conv2", "conv3", "q_proj"]


class Tiny(nn.Module):
    """Convolutions plain and weight-normed, one without a bias, a projection, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "conv1": nn.Conv1d(4, 6, 3, padding=1),
                "conv2": old_weight_norm(nn.Conv1d(6, 6, 3, padding=1, groups=2)),
                "conv3": weight_norm(nn.Conv1d(6, 6, 3, padding=1)),
                "bare": nn.Conv1d(6, 6, 1, bias=False),
            }
        )
        self.q_proj, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.norm.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.encoder.values():
            x = torch.relu(conv(x))
        return self.q_proj(self.norm(x.mT))


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


def sample() -> torch.Tensor:
    return torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1))


def adapted(**settings: Any) -> PeftModel:
    with audiolora.enabled():
        model = get_peft_model(tiny(), LoraConfig(**{"r": 2, "target_modules": TARGETS, **settings})).eval()
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a failure may not change; what it holds is compared by `same`."""
    modules = dict(model.named_modules())
    return {
        "modules": {name: (id(module), type(module).__qualname__) for name, module in modules.items()},
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "trained": {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()},
        "adapters": list(getattr(model, "peft_config", {})),
        "has_config": "peft_config" in vars(model),
        "active": {name: m.active_adapters for name, m in modules.items() if hasattr(m, "lora_A")},
        "merged": {name: list(m.merged_adapters) for name, m in modules.items() if hasattr(m, "lora_A")},
    }


def same(model: nn.Module, before: dict[str, Any]) -> None:
    after = everything(model)
    tensors, kept = after.pop("tensors"), dict(before)
    wanted = kept.pop("tensors")
    assert after == kept
    assert list(tensors) == list(wanted)
    assert [name for name in wanted if not torch.equal(tensors[name], wanted[name])] == []


def refused(model: nn.Module, call: Callable[[], Any], *named: str, error: type[Exception] = ValueError) -> str:
    """The one error, in which each of ``named`` stands; the model is untouched by it."""
    before, y = everything(model), model(sample())
    with pytest.raises(error) as raised:
        call()
    said = str(raised.value)
    assert [part for part in named if part not in said] == [], said
    same(model, before)
    assert torch.equal(model(sample()), y)
    return said


CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "r=0": ({"r": 0}, ("encoder.conv1: r must be a positive integer, got 0; try r=8",)),
    "r=-1": ({"r": -1}, ("encoder.conv1", "positive integer, got -1", "try r=8")),
    "r=True": ({"r": True}, ("encoder.conv1", "positive integer, got True", "try r=8")),
    "r=2.5": ({"r": 2.5}, ("encoder.conv1", "positive integer, got 2.5", "try r=8")),
    "rank_pattern": ({"rank_pattern": {"conv3": 0}}, ("encoder.conv3: r must be", "got 0", "try r=8")),
    "alpha=0": ({"lora_alpha": 0}, ("encoder.conv1: alpha must be a positive number, got 0; try lora_alpha=4",)),
    "alpha=-1": ({"lora_alpha": -1}, ("encoder.conv1", "positive number, got -1", "try lora_alpha=4")),
    "alpha=nan": ({"lora_alpha": math.nan}, ("encoder.conv1", "positive number, got nan", "try lora_alpha=4")),
    "alpha=inf": ({"lora_alpha": math.inf}, ("encoder.conv1", "positive number, got inf")),
    "alpha=True": ({"lora_alpha": True}, ("encoder.conv1", "positive number, got True")),
    "alpha='8'": ({"lora_alpha": "8"}, ("encoder.conv1", "positive number, got '8'")),
    "alpha_pattern": ({"alpha_pattern": {"conv2": 0}}, ("encoder.conv2: alpha must be", "got 0", "try lora_alpha=4")),
    "no target": ({"target_modules": ["fc9"]}, ("{'fc9'} not found", "bare, conv1, conv2, conv3, q_proj")),
    "no target, a regex": ({"target_modules": "fc.*"}, ("fc.* not found", "Tiny has modules named bare, conv1")),
    "not a layer": (
        {"target_modules": ["conv1", "norm"]},
        ("norm: Target module LayerNorm is not supported", "nn.Conv1d, nn.Linear", "leave it out of target_modules"),
    ),
    "a container": ({"target_modules": ["encoder"]}, ("encoder: Target module ModuleDict is not supported",)),
    "init": (
        {"init_lora_weights": "olora", "target_modules": ["conv2"]},
        ("encoder.conv2: init_lora_weights='olora'", "use one of"),
    ),
    "lora_bias without a bias": (
        {"lora_bias": True, "target_modules": ["conv1", "conv2", "bare"]},
        ("encoder.bare: lora_bias=True needs a convolution with a bias", "set lora_bias=False or leave the module out"),
    ),
    "lora_bias and bias": ({"lora_bias": True, "bias": "all"}, ("encoder.conv1: lora_bias=True", "set bias='none'")),
    # PEFT's own error, late: the layers are in place by then.
    "a module to save that cannot be": ({"modules_to_save": ["encoder"]}, ()),
}


@pytest.mark.parametrize("settings, named", CONFIGS.values(), ids=CONFIGS)
def test_get_peft_model(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    model = tiny()
    config = LoraConfig(**{"r": 2, "target_modules": TARGETS, **settings})
    with audiolora.enabled():
        refused(model, lambda: get_peft_model(model, config), *named, error=Exception)
        assert get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS))(sample()).isfinite().all()


@pytest.mark.parametrize("settings, named", CONFIGS.values(), ids=CONFIGS)
def test_get_peft_model_on_empty_weights(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    """PEFT then works where whatever is registered goes to ``meta``; what is put back must not."""
    model = tiny()
    config = LoraConfig(**{"r": 2, "target_modules": TARGETS, **settings})
    with audiolora.enabled():
        refused(model, lambda: get_peft_model(model, config, low_cpu_mem_usage=True), *named, error=Exception)


@pytest.mark.parametrize("settings, named", CONFIGS.values(), ids=CONFIGS)
def test_a_second_adapter(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    model = adapted()
    config = LoraConfig(**{"r": 2, "target_modules": TARGETS, **settings})
    with audiolora.enabled():
        refused(model, lambda: model.add_adapter("second", config), *named, error=Exception)
        model.add_adapter("second", LoraConfig(r=2, lora_bias=True, target_modules=["conv1", "conv2"]))
    model.set_adapter("second")
    assert model(sample()).isfinite().all()


ADAPT: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "alpha=0": ({"alpha": 0}, ("alpha must be a positive number, got 0", "try alpha=16")),
    "alpha=nan": ({"alpha": math.nan}, ("alpha must be a positive number, got nan", "try alpha=16")),
    "r=0": ({"r": 0}, ("conv: r must be a positive integer, got 0", "try r=8")),
    "no target": ({"targets": ["conv1", "fc9"]}, ("['fc9'] match no module of Tiny", "conv1, conv2")),
    "not a layer": ({"targets": ["conv1", "norm"]}, ("norm: no adapter fits a LayerNorm", "targets may be Conv1d")),
}


@pytest.mark.parametrize("arguments, named", ADAPT.values(), ids=ADAPT)
def test_adapt(arguments: dict[str, Any], named: tuple[str, ...]) -> None:
    model = tiny()
    refused(model, lambda: audiolora.adapt(model, **arguments), *named)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_weight_that_no_sum_can_be_formed_in(dtype: torch.dtype) -> None:
    model = tiny()
    model.encoder["conv1"] = model.encoder["bare"]
    conv = nn.Conv1d(6, 6, 3)
    conv.weight = nn.Parameter(torch.zeros(6, 6, 3).to(dtype), requires_grad=False)
    model.spare = nn.ModuleDict({"conv4": conv})
    before = everything(model)
    with (
        audiolora.enabled(),
        pytest.raises(ValueError, match=rf"spare.conv4: its weight is {dtype}.*float32.*leave the module out"),
    ):
        get_peft_model(model, LoraConfig(r=2, target_modules=["bare", "conv4"]))
    same(model, before)


def test_a_file_with_any_finite_alpha_loads(tmp_path: Path) -> None:
    """Subtracting an adapter by turning its alpha round is a function like any other, and PEFT loads it."""
    model = adapted(lora_alpha=4, target_modules=["conv1"])
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    for alpha, scaling in ((-4, -2), (0, 0)):
        path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": alpha}))
        with audiolora.enabled():
            loaded = PeftModel.from_pretrained(tiny(), tmp_path)
        assert loaded.base_model.model.encoder["conv1"].scaling["default"] == scaling
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": math.nan}))
    base = tiny()
    with audiolora.enabled():
        refused(
            base,
            lambda: PeftModel.from_pretrained(base, tmp_path),
            "encoder.conv1: alpha must be a finite number, got nan",
        )


def damaged(folder: Path) -> Path:
    """An adapter with one tensor of another shape, one cut short, one missing and one too many."""
    adapted(use_dora=True).save_pretrained(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    encoder = "base_model.model.encoder."
    tensors[f"{encoder}conv1.lora_A.weight"] = torch.zeros(2, 4, 5)
    tensors[f"{encoder}conv2.lora_B.weight"] = torch.zeros(4, 2, 1)
    del tensors[f"{encoder}conv3.lora_magnitude_vector"]
    tensors[f"{encoder}conv9.lora_A.weight"] = torch.zeros(2, 6, 3)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


MISFITS = (
    "does not fit this Tiny: 4 of its tensors differ",
    "encoder.conv1.lora_A.weight: the adapter has (2, 4, 5), the model needs (2, 4, 3)",
    "encoder.conv2.lora_B.weight: the adapter has (4, 2, 1), the model needs (6, 2, 1)",
    "encoder.conv3.lora_magnitude_vector.weight: the adapter has no such tensor, the model needs (1, 6, 1)",
    "encoder.conv9.lora_A.weight: the adapter has (2, 6, 3), the model has no such tensor",
    "load it over the base model it was trained on",
)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_from_pretrained_names_every_tensor_that_does_not_fit(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    base, folder = tiny(), damaged(tmp_path)
    with audiolora.enabled():
        said = refused(
            base, lambda: PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=low_cpu_mem_usage), *MISFITS
        )
    assert said.count("\n") == 4


def test_load_adapter_names_every_tensor_that_does_not_fit(tmp_path: Path) -> None:
    model = adapted(lora_bias=True)
    with audiolora.enabled():
        refused(model, lambda: model.load_adapter(damaged(tmp_path), "second"), *MISFITS, "'second'")
    adapted(use_dora=True).save_pretrained(tmp_path / "whole")
    with audiolora.enabled():
        model.load_adapter(tmp_path / "whole", "second")


def test_loading_over_an_adapter_that_is_there_keeps_it(tmp_path: Path) -> None:
    model = adapted(use_dora=True)
    with audiolora.enabled():
        refused(model, lambda: model.load_adapter(damaged(tmp_path), "default"), *MISFITS, "'default'")


def test_an_adapter_of_another_model_is_named(tmp_path: Path) -> None:
    adapted(target_modules=["conv1"]).save_pretrained(tmp_path)
    torch.manual_seed(0)
    base = tiny()
    base.encoder["conv1"] = nn.Conv1d(4, 6, 5, padding=2)
    with audiolora.enabled():
        said = refused(base, lambda: PeftModel.from_pretrained(base, tmp_path), "1 of its tensors")
    assert "encoder.conv1.lora_A.weight: the adapter has (2, 4, 3), the model needs (2, 4, 5)" in said


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_an_adapter_that_fits_loads_without_a_word(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = adapted(use_dora=True)
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(tiny(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(loaded(sample()), model(sample()).detach())
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def spectral() -> tuple[Tiny, tuple[str, ...]]:
    model = tiny()
    parametrizations.spectral_norm(model.encoder["bare"])
    return model, ("encoder.bare: its parametrization", "cannot hold the merged weight", "remove_parametrizations")


def tied() -> tuple[Tiny, tuple[str, ...]]:
    model = tiny()
    model.encoder["twin"] = nn.Conv1d(6, 6, 1, bias=False)
    model.encoder["twin"].weight = model.encoder["bare"].weight
    return model, ("encoder.bare: its tensors are also those of encoder.twin", "leave the adapter unmerged", "untie")


def broken() -> tuple[Tiny, tuple[str, ...]]:
    return tiny(), ("encoder.bare: NaNs detected in the merged weight", "['default']")


MERGES: dict[str, Callable[[PeftModel], Any]] = {
    "merge_adapter": lambda model: model.merge_adapter(safe_merge=True),
    "merge_and_unload": lambda model: model.merge_and_unload(safe_merge=True),
}


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
@pytest.mark.parametrize("situation", [spectral, tied, broken])
def test_a_merge_that_cannot_be_exact(situation: Any, merge: Callable[[PeftModel], Any]) -> None:
    """The convolution that refuses is the fourth: the three before it are unmerged again, bit for bit."""
    base, named = situation()
    with audiolora.enabled():
        model = get_peft_model(base.eval(), LoraConfig(r=2, target_modules=["conv1", "conv2", "conv3", "bare"])).eval()
    randomise(model)
    if situation is broken:
        with torch.no_grad():
            model.base_model.model.encoder["bare"].lora_B["default"].weight[0] = math.nan
        before = everything(model)
        with pytest.raises(ValueError) as raised:
            merge(model)
        assert all(part in str(raised.value) for part in named)
        assert {name: after for name, after in everything(model).items() if name != "tensors"} == {
            name: value for name, value in before.items() if name != "tensors"
        }
        return
    refused(model, lambda: merge(model), *named)


def test_a_tied_weight_that_is_adapted_twice_and_unloaded_stays_tied() -> None:
    base, _ = tied()
    tensors = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with audiolora.enabled():
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["bare", "twin"]))
    randomise(model)
    model(sample())
    refused(model.eval(), model.merge_adapter, "encoder.bare: its tensors are also those of encoder.twin")
    plain = model.unload()
    assert plain.encoder["bare"].weight is plain.encoder["twin"].weight
    assert list(plain.state_dict()) == list(tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in plain.state_dict().items())


def test_one_convolution_under_two_names_is_no_tie() -> None:
    """The module itself is shared: what is merged is what both names mean."""
    shared = nn.Conv1d(4, 4, 3, padding=1)
    with audiolora.enabled():
        model = get_peft_model(nn.Sequential(shared, nn.ReLU(), shared), LoraConfig(r=2, target_modules=["0"])).eval()
    randomise(model)
    y = model(sample())
    model.merge_adapter()
    torch.testing.assert_close(model(sample()), y)


def test_low_precision_rounds_and_that_is_no_error() -> None:
    with audiolora.enabled():
        model = get_peft_model(tiny().bfloat16(), LoraConfig(r=2, target_modules=["conv1", "conv3"])).eval()
    randomise(model)
    y = model(sample().bfloat16())
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(sample().bfloat16()), y, rtol=0.1, atol=0.1)


def test_the_second_of_two_merges_fails_and_the_first_stays() -> None:
    model = adapted(target_modules=["conv1", "conv3"])
    model.add_adapter("second", LoraConfig(r=2, target_modules=["conv1", "conv3"]))
    randomise(model)
    model.merge_adapter(["default"])
    with torch.no_grad():
        model.base_model.model.encoder["conv3"].lora_B["second"].weight.fill_(math.inf)
    before = everything(model)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="encoder.conv3: NaNs detected"):
        warnings.simplefilter("ignore")
        model.merge_adapter(["second"], safe_merge=True)
    same(model, before)
