"""The columns of `conv_step.py`: a convolution frozen, adapted by us, by PEFT, the dense way, and tuned in full."""

import json
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import audiolora
from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.plan import gradient_path

R = 8
OURS = ("LoRA", "DoRA")


@dataclass(frozen=True)
class Shape:
    """A convolution as a real model has it; one entry of conv_shapes.json."""

    name: str
    N: int
    in_channels: int
    length: int
    out_channels: int
    kernel_size: int
    stride: int
    padding: int
    dilation: int
    groups: int
    padding_mode: str
    transposed: bool
    output_padding: int
    note: str

    @property
    def is_wide(self) -> bool:
        """At least 64 channels a group on both sides."""
        return min(self.in_channels, self.out_channels) // self.groups >= 64

    @property
    def peft_is_right(self) -> bool:
        """Where PEFT's layer computes the adapted convolution."""
        return self.groups == self.dilation == 1 and self.padding_mode == "zeros" and not self.transposed

    def conv(self, device: str, dtype: str) -> nn.Module:
        torch.manual_seed(0)
        common = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        sizes = (self.in_channels, self.out_channels, self.kernel_size)
        if self.transposed:
            conv: nn.Module = nn.ConvTranspose1d(*sizes, **common, output_padding=self.output_padding)
        else:
            conv = nn.Conv1d(*sizes, **common, padding_mode=self.padding_mode)
        return conv.to(device, getattr(torch, dtype)).requires_grad_(False)

    def input(self, device: str, dtype: str, n: int | None = None) -> torch.Tensor:
        return torch.randn(n or self.N, self.in_channels, self.length, device=device, dtype=getattr(torch, dtype))


SHAPES = tuple(Shape(**entry) for entry in json.loads(Path(__file__).with_name("conv_shapes.json").read_text()))


@dataclass(frozen=True)
class Step:
    """Something to time."""

    run: Callable[[], Any]
    note: str = ""


class DenseLora(nn.Module):
    """loralib's way: autograd through W + s·B·A, so that the dense ∂W is formed whatever the shape."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv = conv
        self.A = nn.Parameter(torch.randn(R, *conv.weight.shape[1:]).to(conv.weight))
        self.B = nn.Parameter(torch.randn(conv.weight.shape[0], R).to(conv.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        W = self.conv.weight + (self.B @ self.A.flatten(1)).view(self.conv.weight.shape)
        return torch.func.functional_call(self.conv, {"weight": W}, (x,))


def adapted(model: nn.Module, ours: bool, targets: Any, dora: bool = False) -> nn.Module:
    config = LoraConfig(r=R, lora_alpha=R, target_modules=targets, use_dora=dora, init_lora_weights=False)
    with audiolora.enabled() if ours else nullcontext():
        return get_peft_model(model, config)


def adapted_conv(shape: Shape, ours: bool, dora: bool, device: str, dtype: str) -> nn.Module:
    """The adapted layer itself, out of a model that has run once: audiolora watches the first forward."""
    model = adapted(nn.Sequential(OrderedDict(conv=shape.conv(device, dtype))), ours, ["conv"], dora)
    with torch.no_grad():
        model(shape.input(device, dtype, n=1))
    return model.base_model.model.conv


def training_steps(shape: Shape, device: str, dtype: str, only: str | None = None) -> dict[str, Step]:
    """The columns of a training step, or one of them."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "frozen": lambda: shape.conv(device, dtype),
        "LoRA": lambda: adapted_conv(shape, True, False, device, dtype),
        "DoRA": lambda: adapted_conv(shape, True, True, device, dtype),
        "dense ∂W": lambda: DenseLora(shape.conv(device, dtype)),
        "full": lambda: shape.conv(device, dtype).requires_grad_(True),
    }
    if shape.peft_is_right:
        makers["PEFT LoRA"] = lambda: adapted_conv(shape, False, False, device, dtype)
        makers["PEFT DoRA"] = lambda: adapted_conv(shape, False, True, device, dtype)
    stored = shape.conv("meta", dtype).weight.shape
    geometry = ConvGeometry(shape.stride, 0, shape.dilation, shape.groups, shape.transposed)
    note = gradient_path(stored, R, geometry).value
    x = shape.input(device, dtype).requires_grad_()
    return {
        name: training_step(make(), x, note if name in OURS else "")
        for name, make in makers.items()
        if only in (None, name)
    }


def training_step(module: nn.Module, x: torch.Tensor, note: str = "") -> Step:
    """Forward and backward to the input and the trained parameters."""
    module.eval()  # nothing here has dropout; PEFT's layers would warn
    with torch.no_grad():
        dy = torch.randn_like(module(x))
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    return Step(lambda: torch.autograd.grad(module(x), leaves, dy), note)


def inference_steps(shape: Shape, device: str, dtype: str) -> dict[str, Step]:
    """The base, and the same with an unmerged adapter."""
    x, base = shape.input(device, dtype), shape.conv(device, dtype)
    layers = {"base": base}
    for name in OURS:
        layers[name] = adapted_conv(shape, True, name == "DoRA", device, dtype).eval()
    return {name: Step(inference(layer, x)) for name, layer in layers.items()}


MIXED = (
    "wav2vec2.conv4",
    "whisper-tiny.conv2.short",
    "tcn64.d16",
    "informer.distil",
    "conformer.dw31",
    "hifigan.up",
)
"""The shapes that mixed batches are measured on."""


def mixed_steps(shape: Shape, device: str, dtype: str) -> dict[str, Step]:
    """32 samples with 32 different adapters, against one adapter for all; nothing for shapes not in `MIXED`."""
    if shape.name not in MIXED:
        return {}
    x, columns = shape.input(device, dtype, n=32), {}
    for method in OURS:
        dora = method == "DoRA"
        model = adapted(nn.ModuleDict({"conv": shape.conv(device, dtype)}), True, ["conv"], dora=dora).eval()
        config = LoraConfig(r=R, target_modules=["conv"], use_dora=dora, init_lora_weights=False)
        with audiolora.enabled():
            for i in range(1, 32):
                model.add_adapter(str(i), config)
        layer, names = model.base_model.model["conv"], ["default", *map(str, range(1, 32))]
        if not dora:
            columns["one adapter"] = Step(inference(layer, x))
        columns[f"{method}, 32 adapters"] = Step(inference(layer, x, adapter_names=names))
    return columns


def inference(layer: nn.Module, x: torch.Tensor, **arguments: Any) -> Callable[[], Any]:
    return torch.no_grad()(lambda: layer(x, **arguments))


def encoder_steps(device: str, dtype: str) -> dict[str, Step]:
    """wav2vec2-base's whole feature encoder, seven convolutions, on 4 × 5 s of audio."""
    from transformers import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder

    def encoder() -> nn.Module:
        torch.manual_seed(0)
        net = Wav2Vec2FeatureEncoder(Wav2Vec2Config()).to(device, getattr(torch, dtype))
        return net.requires_grad_(False)

    targets = r"conv_layers\.\d+\.conv"
    x = torch.randn(4, 80_000, device=device, dtype=getattr(torch, dtype), requires_grad=True)
    modules = {
        "frozen": encoder(),
        "LoRA": adapted(encoder(), True, targets),
        "DoRA": adapted(encoder(), True, targets, dora=True),
        "PEFT LoRA": adapted(encoder(), False, targets),
        "PEFT DoRA": adapted(encoder(), False, targets, dora=True),
        "full": encoder().requires_grad_(True),
    }
    return {name: training_step(module, x) for name, module in modules.items()}
