"""`audiolora.adapt` on networks without a preset: which modules, which ranks, and every refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

import audiolora
from audiolora.layers.lora import LoraConv1d


class Tiny(nn.Module):
    """Convolutions, a norm, attention-like projections, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"conv1": nn.Conv1d(4, 6, 3, padding=1), "conv2": nn.Conv1d(6, 6, 3, groups=2)})
        self.norm = nn.LayerNorm(6)
        self.q_proj, self.v_proj = nn.Linear(6, 6), nn.Linear(6, 6)
        self.up = nn.ConvTranspose2d(6, 4, (1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.encoder["conv2"](torch.relu(self.encoder["conv1"](x))).mT
        return self.up((self.q_proj(self.norm(h)) * self.v_proj(h)).mT.unsqueeze(2)).squeeze(2)


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def sample() -> torch.Tensor:
    return torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1))


def ranks(model: nn.Module) -> dict[str, int]:
    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    return {name: module.r["default"] for name, module in modules.items() if hasattr(module, "lora_A")}


def test_both_are_the_convolutions_and_the_projections() -> None:
    plain = tiny()
    y = plain(sample())
    model = audiolora.adapt(plain)
    assert isinstance(model, PeftModel)
    assert ranks(model) == dict.fromkeys(["encoder.conv1", "encoder.conv2", "q_proj", "v_proj"], 8)
    assert isinstance(model.base_model.model.encoder["conv2"], LoraConv1d)
    torch.testing.assert_close(model(sample()), y)
    assert {p.requires_grad for name, p in model.named_parameters() if "lora_" not in name} == {False}


@pytest.mark.parametrize(
    "r, targets, expected",
    [
        (4, "conv", {"encoder.conv1": 4, "encoder.conv2": 4}),
        (4, "attention", {"q_proj": 4, "v_proj": 4}),
        (2, ["conv1", "v_proj"], {"encoder.conv1": 2, "v_proj": 2}),
        (
            {"conv": 16, "attention": 4},
            "both",
            {"encoder.conv1": 16, "encoder.conv2": 16, "q_proj": 4, "v_proj": 4},
        ),
        ({"conv": 3, "conv2": 5}, ["conv", "conv2"], {"encoder.conv1": 3, "encoder.conv2": 5}),
        ({"encoder.conv1": 3}, ["encoder.conv1"], {"encoder.conv1": 3}),
    ],
)
def test_ranks_and_targets(r: Any, targets: Any, expected: dict[str, int]) -> None:
    model = audiolora.adapt(tiny(), r=r, targets=targets)
    assert ranks(model) == expected
    scalings = {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}
    assert scalings == {2.0}, "alpha follows the rank: 2·r"


def test_numbered_modules_are_not_confused_with_deeper_ones() -> None:
    """PEFT takes "0" as a suffix, which would also be "1.0"."""
    nested = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1)))
    assert ranks(audiolora.adapt(nested, targets="conv", r={"conv": 2})) == {"0": 2, "1.1": 2}
    nested = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)))
    assert ranks(audiolora.adapt(nested, targets=["conv", "1.1"], r={"conv": 2, "1.1": 3})) == {
        "0": 2,
        "1.0": 2,
        "1.1": 3,
    }


def test_a_number_is_not_a_part_of_a_weight_norm() -> None:
    """A weight-normed "0" has a module "0.parametrizations.weight.0" inside."""
    net = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3)), nn.ReLU())
    assert ranks(audiolora.adapt(net, targets=["0"], r=2)) == {"0": 2}


def test_method_alpha_rslora_and_dropout_reach_the_layers() -> None:
    model = audiolora.adapt(
        tiny(), "dora", r=4, alpha=6, dropout=0.25, use_rslora=True, targets="conv", adapter_name="a"
    )
    layer = model.base_model.model.encoder["conv1"]
    assert layer.use_dora == {"a": True} and layer.scaling == {"a": 3.0} and layer.lora_dropout["a"].p == 0.25
    assert audiolora.lora_config(tiny(), r=4).lora_alpha == 8


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_trains(method: str) -> None:
    model = audiolora.adapt(tiny(), method, r=2, dropout=0.5)
    model(sample()).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "conv" in name and "lora_B" in name}
    assert len(gradients) == 2 and all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_unloaded_it_can_be_adapted_again() -> None:
    model = audiolora.adapt(tiny(), r=2).unload()
    assert ranks(audiolora.adapt(model, r=3, targets="conv")) == {"encoder.conv1": 3, "encoder.conv2": 3}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "vera"}, r"method must be one of \('lora', 'dora', 'loha', 'lokr', 'adalora'\), got 'vera'"),
    ({"method": "loha", "dropout": 0.1}, "dropout=0.1 acts on.*loha.*rank_dropout or module_dropout"),
    ({"method": "lokr", "use_rslora": True}, "use_rslora is LoRA's; lokr is scaled by alpha / r"),
    ({"r": 0}, "conv: r must be a positive integer, got 0; try r=8"),
    ({"r": -1}, "conv: r must be a positive integer, got -1; try r=8"),
    ({"r": True}, "conv: r must be a positive integer, got True; try r=8"),
    ({"r": 2.5}, "conv: r must be a positive integer, got 2.5; try r=8"),
    ({"r": {"conv": 8, "attention": 0}}, "attention: r must be a positive integer, got 0"),
    ({"r": {"conv": 8}}, r"rank for each target: \['attention', 'conv'\]; \['attention'\] have none"),
    ({"r": {"conv": 8, "attention": 4, "ffn": 4}}, r"\['ffn'\] are no targets"),
    ({"r": {}}, r"\['attention', 'conv'\] have none"),
    ({"targets": []}, r"targets is empty; name a group such as 'conv'"),
    ({"targets": "fc9"}, r"\['fc9'\] match no module of Tiny.*conv1, conv2, q_proj, v_proj"),
    ({"targets": ["conv", "fc9"]}, r"\['fc9'\] match no module of Tiny"),
    ({"targets": "norm"}, "norm: no adapter fits a LayerNorm; targets may be Conv1d, ConvTranspose1d, Linear"),
    ({"targets": ["conv1", "up"]}, "up: no adapter fits a ConvTranspose2d; targets may be Conv1d"),
    ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0; try dropout=0.05"),
    ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
]


@pytest.mark.parametrize("arguments, message", REFUSED, ids=[str(arguments) for arguments, _ in REFUSED])
def test_a_refusal_says_why_and_leaves_the_model_alone(arguments: dict[str, Any], message: str) -> None:
    model = tiny()
    assert_untouched_after(model, lambda: audiolora.adapt(model, **arguments), ValueError, message)


def assert_untouched_after(model: nn.Module, call: Any, error: type[Exception], message: str) -> None:
    modules, y = dict(model.named_modules()), model(sample())
    kinds = {name: type(module) for name, module in modules.items()}
    tensors = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    with pytest.raises(error, match=message):
        call()
    assert dict(model.named_modules()) == modules
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert {name: (id(p), p.requires_grad) for name, p in model.named_parameters()} == tensors
    assert list(model.state_dict()) == list(tensors)
    assert not hasattr(model, "peft_config")
    assert torch.equal(model(sample()), y)


class WithImage(Tiny):
    """A grouped Conv2d, whose adapter PEFT refuses when its turn comes: after the others are in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.utils.parametrizations.weight_norm(self.encoder["conv1"])
        self.image = nn.Conv2d(4, 4, 3, groups=4)


def test_an_injection_that_fails_midway_is_undone() -> None:
    torch.manual_seed(0)
    model = WithImage().requires_grad_(True)
    model.norm.requires_grad_(False)
    keys = [f"encoder.conv1.parametrizations.weight.original{i}" for i in (0, 1)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="rank|groups"):
        audiolora.adapt(model, r=3, targets=["conv1", "conv2", "q_proj", "image"])
    assert set(keys) < set(model.state_dict())
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert type(model.encoder["conv2"]) is nn.Conv1d and type(model.q_proj) is nn.Linear
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"norm.weight", "norm.bias"}
    assert ranks(audiolora.adapt(model, r=4, targets=["conv1", "conv2", "q_proj", "image"]))["image"] == 4


def test_an_adapter_name_that_peft_refuses_leaves_the_model_alone() -> None:
    model = tiny()
    assert_untouched_after(model, lambda: audiolora.adapt(model, adapter_name="a.b"), KeyError, "a.b")


@pytest.mark.parametrize("inner", [False, True], ids=["PeftModel", "its base model"])
def test_an_adapted_model_is_not_adapted_twice(inner: bool) -> None:
    adapted = audiolora.adapt(tiny(), r=2)
    model = adapted.get_base_model() if inner else adapted
    y = adapted(sample())
    with pytest.raises(TypeError, match="adapted already; add another adapter with.*add_adapter.*unload"):
        audiolora.adapt(model, r=4)
    assert torch.equal(adapted(sample()), y)


def test_a_second_adapter_as_that_error_says() -> None:
    model = audiolora.adapt(tiny(), r=2)
    model.add_adapter("second", audiolora.lora_config(model.get_base_model(), r=4, targets="conv"))
    assert model.base_model.model.encoder["conv1"].r == {"default": 2, "second": 4}


def test_the_package_names_what_it_has() -> None:
    with pytest.raises(AttributeError, match="it has .*adapt, adapter_config, dequantize, disable"):
        getattr(audiolora, "adopt")  # noqa: B009
