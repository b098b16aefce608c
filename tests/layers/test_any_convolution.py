"""Modules that are no nn.Conv1d and hold a convolution's weight: adapted when named, refused when unclear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.layers.any_convolution import Channels, channels_of, has_convolution_weight
from audiolora.layers.lora import LoraConv1d
from tests.nets.lifecycle import adapted_names, check_life


class LeftPadded(nn.Module):
    """As forecasters write it (neuralforecast's BiTCN): a weight, a bias, and F.conv1d."""

    def __init__(self, n_in: int, n_out: int, k: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in // groups, k) / 4)
        self.bias = nn.Parameter(torch.randn(n_out) / 4)
        self.dilation, self.groups = dilation, groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (self.dilation * (self.weight.shape[-1] - 1), 0))
        return F.conv1d(padded, self.weight, self.bias, dilation=self.dilation, groups=self.groups)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = LeftPadded(4, 6, 3, dilation=2), LeftPadded(6, 8, 2, groups=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv2(torch.relu(self.conv1(x)))).mT)


def build() -> Net:
    torch.manual_seed(0)
    return Net().double().eval()


def weight_normed() -> Net:
    net = build()
    torch.nn.utils.parametrizations.weight_norm(net.conv1)
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(net.conv2)
    return net


def sample(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 4, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("make", [build, weight_normed])
def test_its_life(make: Callable[[], Net], method: str, tmp_path: Path) -> None:
    model = check_life(make, lambda net: net(sample()), tmp_path, method=method, r=2, targets=["conv1", "conv2"])
    assert adapted_names(model) == ["conv1", "conv2"]
    assert isinstance(model.base_model.model.conv1, LoraConv1d)


def randomised(method: str = "lora") -> PeftModel:
    model = audiolora.adapt(build(), method, r=2, alpha=3, targets=["conv1", "conv2"]).double().eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_it_is_the_dense_formula_with_its_gradients(method: str) -> None:
    model = randomised(method)
    leaves: dict[str, torch.Tensor] = {}
    weights = {}
    for name in ("conv1", "conv2"):
        layer = model.base_model.model.get_submodule(name)
        for kind in ("lora_A", "lora_B") + (("lora_magnitude_vector",) if method == "dora" else ()):
            leaf = getattr(layer, kind)["default"].weight.detach().clone().requires_grad_()
            leaves[f"base_model.model.{name}.{kind}.default.weight"] = leaf
        A, B, *m = list(leaves.values())[-3 if method == "dora" else -2 :]
        V = build().get_submodule(name).weight.detach() + 3 / 2 * torch.einsum("or,rik->oik", B[..., 0], A)
        weights[f"{name}.weight"] = V if not m else m[0].view(-1, 1, 1) * V / V.detach().norm(dim=(1, 2), keepdim=True)
    expected = torch.func.functional_call(build(), weights, (sample(),))
    actual = model(sample())
    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad(expected.square().sum(), list(leaves.values()))
    actual.square().sum().backward()
    for name, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_a_mixed_batch() -> None:
    model = randomised()
    with torch.no_grad():
        mixed = model(sample(), adapter_names=["default", "__base__", "default"])
        torch.testing.assert_close(mixed[[0, 2]], model(sample()[[0, 2]]))
        torch.testing.assert_close(mixed[[1]], build()(sample()[[1]]))


def test_its_row_in_the_table() -> None:
    rows = audiolora.inspect(randomised("dora")).rows
    assert [(row.name, row.kind, row.geometry, row.method) for row in rows] == [
        ("conv1", "LeftPadded", "4→6 k3 d2", "DoRA"),
        ("conv2", "LeftPadded", "6→8 k2 g2", "DoRA"),
    ]


def test_plain_peft_does_not_read_its_file(tmp_path: Path) -> None:
    randomised().save_pretrained(tmp_path)
    audiolora.disable()
    with pytest.raises(KeyError, match="AUDIOLORA_LORA"):
        PeftModel.from_pretrained(build(), tmp_path)


def test_nobody_adapts_it_unasked() -> None:
    with pytest.raises(ValueError, match=r"Net has no nn.Conv1d and .*adapted when they are named: conv1, conv2; Lin"):
        audiolora.adapt(build())
    mixed = nn.ModuleDict({"own": LeftPadded(4, 4, 3), "torchs": nn.Conv1d(4, 4, 3)})
    assert adapted_names(audiolora.adapt(mixed, r=2)) == ["torchs"]
    with audiolora.enabled():
        model = get_peft_model(build(), LoraConfig(r=2, target_modules="all-linear"))
    assert adapted_names(model) == ["head"]


def test_conv_may_be_its_name() -> None:
    net = nn.Sequential(nn.ModuleDict({"conv": LeftPadded(4, 4, 3), "head": nn.Linear(4, 4)}))
    with pytest.raises(ValueError, match=r"Name them: targets=\['conv'\]"):
        audiolora.adapt(net)
    assert adapted_names(audiolora.adapt(net, r=2, targets=["conv"])) == ["0.conv"]


def test_a_bias_can_be_adapted_where_it_is_a_tensor() -> None:
    with audiolora.enabled():
        model = get_peft_model(build(), LoraConfig(r=2, target_modules=["conv1"], lora_bias=True))
    assert model(sample()).shape == (3, 20, 3)
    net = build()
    del net.conv1.bias
    net.conv1.bias = True
    with audiolora.enabled(), pytest.raises(ValueError, match="lora_bias=True needs a convolution with a bias"):
        get_peft_model(net, LoraConfig(r=2, target_modules=["conv1"], lora_bias=True))


def module(weight: Any = None, **settings: Any) -> nn.Module:
    made = nn.Module()
    if isinstance(weight, tuple):
        weight = nn.Parameter(torch.zeros(weight))
    if weight is not None:
        made.weight = weight
    for name, value in settings.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"groups": 1}, Channels(4, 6, 1, 3)),
        ({"groups": 2}, Channels(8, 6, 2, 3)),
        ({"in_channels": 4}, Channels(4, 6, 1, 3)),
        ({"in_channels": 8, "out_channels": 6}, Channels(8, 6, 2, 3)),
        ({"groups": 3, "in_channels": 12, "out_channels": 6, "kernel_size": (3,)}, Channels(12, 6, 3, 3)),
        ({"groups": 1, "kernel_size": 3, "transposed": False}, Channels(4, 6, 1, 3)),
    ],
    ids=str,
)
def test_what_a_module_says_of_itself(settings: dict[str, Any], expected: Channels) -> None:
    assert channels_of(module((6, 4, 3), **settings)) == expected


REFUSED: list[tuple[nn.Module, str]] = [
    (module(), "has no convolution's weight: .* got none"),
    (module((6, 4), groups=1), r"got \(6, 4\) torch.float32"),
    (module(nn.Parameter(torch.zeros(6, 4, 3, dtype=torch.int8), requires_grad=False), groups=1), "torch.int8"),
    (module((6, 4, 3)), r"says neither `groups` nor `in_channels`.*set module.groups = 1"),
    (module((6, 4, 3), groups=True), "says neither `groups`"),
    (module((6, 4, 3), groups=4), "groups=4, which does not divide the 6 output channels"),
    (module((6, 4, 3), groups=-1), "groups=-1, which does not divide"),
    (module((6, 4, 3), in_channels=6, out_channels=4), "says in_channels=6, and its weight"),
    (module((6, 4, 3), groups=1, in_channels=8), "says in_channels=8, and its weight"),
    (module((6, 4, 3), groups=1, out_channels=4), "says out_channels=4, and its weight"),
    (module((6, 4, 3), groups=1, kernel_size=5), "says kernel_size=5, and its weight"),
    (module((6, 4, 3), groups=1, transposed=True), "is transposed; of transposed convolutions"),
]


@pytest.mark.parametrize("refused, message", REFUSED, ids=[message for _, message in REFUSED])
def test_a_module_that_is_unclear_is_refused(refused: nn.Module, message: str) -> None:
    net = nn.ModuleDict({"own": refused, "head": nn.Linear(2, 2)})
    assert not has_convolution_weight(refused)
    with pytest.raises(ValueError, match=message):
        audiolora.adapt(net, targets=["head", "own"])
    with audiolora.enabled(), pytest.raises(ValueError, match=f"own: Target module Module is not.*{message}"):
        get_peft_model(net, LoraConfig(target_modules=["own"]))
    assert net["own"] is refused and type(net["head"]) is nn.Linear


def test_torch_s_own_convolutions_are_not_asked() -> None:
    assert channels_of(nn.ConvTranspose1d(4, 6, 5, groups=2)) == Channels(4, 6, 2, 5)
    assert not has_convolution_weight(nn.Conv1d(4, 6, 3))


def test_looking_at_a_spectral_norm_takes_no_step_of_it() -> None:
    net = build().train()
    torch.nn.utils.parametrizations.spectral_norm(net.conv1)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    assert before and has_convolution_weight(net.conv1) and net.conv1.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
