"""The table that every method must pass: 1-D convolutions as real models have them, each with its dense formula.

A row makes its convolution (the same one at each call), an input, and a reference: the output as a plain function of
(x, W, b), written here with ``F.conv1d`` and never with the module itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

C_IN, C_OUT, LENGTH = 4, 6, 17

Reference = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]


class Causal(nn.Conv1d):
    """Pads on the left in its forward; the constructor is torch's."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(input, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Chomped(nn.Conv1d):
    """The TCN's: a constructor (in, out, k, dilation), pads on both sides and cuts the right."""

    def __init__(self, n_in: int, n_out: int, k: int, dilation: int) -> None:
        super().__init__(n_in, n_out, k, padding=(k - 1) * dilation, dilation=dilation)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)[..., : -self.padding[0]]


class CachedCausal(nn.Conv1d):
    """Streaming models' constructor: the fourth argument is a cache's name."""

    def __init__(self, n_in: int, n_out: int, k: int, cache_key: str, stride: int = 1) -> None:
        super().__init__(n_in, n_out, k, stride=stride)
        self.cache_key = cache_key

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(input, (self.kernel_size[0] - self.stride[0], 0)))


class Transposing(nn.Conv1d):
    """A CTC head's: takes and gives (N, L, C)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class WeightStandardised(nn.Conv1d):
    """Derives its weight in forward (Qiao et al., arXiv 1903.10520)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, standardised(self.weight), self.bias)


class Gained(nn.Conv1d):
    """Takes a second argument."""

    def forward(self, input: torch.Tensor, gain: float) -> torch.Tensor:
        return gain * super().forward(input)


class ChoppedTransposed(nn.ConvTranspose1d):
    """A causal decoder's: cuts what the kernel reaches beyond, on the right."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)[..., : -(self.kernel_size[0] - self.stride[0])]


class OfItsOwn(nn.Module):
    """No nn.Conv1d: a weight, a bias and ``F.conv1d``, and of its settings two numbers (neuralforecast's BiTCN)."""

    def __init__(self, n_in: int, n_out: int, k: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in // groups, k) / 4)
        self.bias = nn.Parameter(torch.randn(n_out) / 4)
        self.dilation, self.groups = dilation, groups

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        padded = F.pad(input, ((self.weight.shape[2] - 1) * self.dilation, 0))
        return F.conv1d(padded, self.weight, self.bias, dilation=self.dilation, groups=self.groups)


def standardised(W: torch.Tensor) -> torch.Tensor:
    flat = W.flatten(1)
    return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(W)


def weight_norm(conv: Any, dim: int = 0) -> Any:
    """As a parametrization, and as after training: ‖v‖ is not g, as it is at the start."""
    parametrizations.weight_norm(conv, dim=dim)
    with torch.no_grad():
        conv.parametrizations.weight.original1.mul_(1.7)
    return conv


def old_weight_norm(conv: Any, dim: int = 0) -> Any:
    """The hook of torch before 2.0, which many vocoders still carry."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(conv, dim=dim)
    with torch.no_grad():
        conv.weight_v.mul_(1.7)
    return conv


@dataclass(frozen=True)
class Convolution:
    """One row.

    Args:
        name: the row's name.
        build: makes the convolution, in float32.
        reference: y as a function of (x, W, b).
        shape: of the input.
        r: the rank.
        arguments: of the convolution's forward, after x.
    """

    name: str
    build: Callable[[], nn.Conv1d | nn.ConvTranspose1d]
    reference: Reference
    shape: tuple[int, ...] = (2, C_IN, LENGTH)
    r: int = 3
    arguments: dict[str, Any] = field(default_factory=dict)

    def model(self) -> Net:
        """The convolution in a model, float64, eval; the same numbers at each call."""
        torch.manual_seed(0)
        conv = self.build()
        return Net(conv, self.arguments).double().eval()

    def input(self, seed: int = 1) -> torch.Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    @property
    def transposed_groups(self) -> int | None:
        """g if the weight is stored (C_in, C_out/g, k)."""
        conv = self.build()
        return conv.groups if isinstance(conv, nn.ConvTranspose1d) else None

    @property
    def in_per_group(self) -> int:
        conv = self.build()
        transposed = isinstance(conv, nn.ConvTranspose1d)
        return conv.in_channels // conv.groups if transposed else base_weight(conv).shape[1]

    def stored(self, kernel: torch.Tensor) -> torch.Tensor:
        """A kernel (C_out, C_in/g, k) as this convolution stores it."""
        if self.transposed_groups is None:
            return kernel
        return torch.cat([group.transpose(0, 1) for group in kernel.chunk(self.transposed_groups)])

    @property
    def batched(self) -> bool:
        return len(self.shape) == 3


class Net(nn.Module):
    """A model that is one convolution and an activation in place."""

    def __init__(self, conv: nn.Conv1d, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.conv, self.arguments = conv, arguments

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.conv(x, **self.arguments), 0.1, inplace=True)


def base_weight(conv: nn.Conv1d) -> torch.Tensor:
    """W of a convolution that no adapter has touched; with weight norm g · v / ‖v‖, computed here."""
    tensors = conv.state_dict()
    pairs = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
    for g, v in pairs:
        if g in tensors:
            over = [axis for axis in range(3) if tensors[g].shape[axis] == 1]
            return tensors[g] * tensors[v] / tensors[v].square().sum(over, keepdim=True).sqrt()
    return tensors["weight"]


def conv(**settings: Any) -> Reference:
    return lambda x, W, b: F.conv1d(x, W, b, **settings)


def transposed(**settings: Any) -> Reference:
    return lambda x, W, b: F.conv_transpose1d(x, W, b, **settings)


def padded(left: int, right: int, mode: str = "constant", **settings: Any) -> Reference:
    return lambda x, W, b: F.conv1d(F.pad(x, (left, right), mode=mode), W, b, **settings)


def _row(name: str, reference: Reference, *arguments: Any, wrap: Any = None, cls: Any = nn.Conv1d, **more: Any) -> Any:
    kept = {key: more.pop(key) for key in ("shape", "r", "arguments") if key in more}
    sizes = arguments if len(arguments) > 1 else (C_IN, C_OUT, *arguments)

    def build() -> Any:
        module = cls(*sizes, **more)
        return module if wrap is None else wrap(module)

    return Convolution(name, build, reference, **kept)


OF_THEIR_OWN: tuple[Convolution, ...] = (
    _row("a class of its own", padded(4, 0, dilation=2), 3, cls=OfItsOwn, dilation=2),
    _row("a class of its own, groups 2", padded(2, 0, groups=2), 3, cls=OfItsOwn, groups=2),
    _row("a class of its own, weight_norm", padded(2, 0), 3, cls=OfItsOwn, wrap=weight_norm),
    _row("a class of its own, old weight_norm", padded(2, 0), 3, cls=OfItsOwn, wrap=old_weight_norm),
)
"""Modules that are no convolution of torch's: what PEFT refuses by its class, so no row beside it."""

CONVOLUTIONS: tuple[Convolution, ...] = (
    _row("plain", conv(padding=1), 3, padding=1),
    _row("k=1", conv(), 1),
    _row("no bias", conv(padding=1), 3, padding=1, bias=False),
    _row("stride 2", conv(stride=2, padding=2), 5, stride=2, padding=2),
    _row("unbatched", conv(padding=1), 3, padding=1, shape=(C_IN, LENGTH)),
    _row("dilation 2", conv(dilation=2), 3, dilation=2),
    _row("dilation 2, padding 2", conv(dilation=2, padding=2), 3, dilation=2, padding=2),
    _row("dilation 2, padding same", padded(2, 2, dilation=2), 3, dilation=2, padding="same"),
    _row("even kernel, padding same", padded(1, 2), 4, padding="same"),
    _row("dilation 2, stride 4", conv(dilation=2, stride=4), 3, dilation=2, stride=4),
    _row("dilation 2, L_out=1", conv(dilation=2), 3, dilation=2, shape=(2, C_IN, 5)),
    _row("circular", padded(1, 1, "circular"), 3, padding=1, padding_mode="circular"),
    _row("reflect", padded(2, 2, "reflect"), 5, padding=2, padding_mode="reflect"),
    _row("replicate", padded(1, 1, "replicate"), 3, padding=1, padding_mode="replicate"),
    _row("groups 2", conv(padding=1, groups=2), 3, padding=1, groups=2, r=4),
    _row("depthwise", conv(padding=1, groups=C_IN), C_IN, C_IN, 3, padding=1, groups=C_IN, r=2),
    _row("groups 2, rank 3", conv(padding=1, groups=2, stride=2), 3, padding=1, groups=2, stride=2, r=3),
    _row("weight_norm dim 0", conv(padding=1), 3, padding=1, wrap=weight_norm),
    _row("weight_norm dim 2", conv(padding=1), 3, padding=1, wrap=lambda module: weight_norm(module, dim=2)),
    _row("old weight_norm", conv(padding=1), 3, padding=1, wrap=old_weight_norm),
    _row("old weight_norm dim 2", conv(padding=1), 3, padding=1, wrap=lambda module: old_weight_norm(module, dim=2)),
    _row(
        "wav2vec2's positions",
        conv(padding=64, groups=16),
        *(32, 32, 128),
        padding=64,
        groups=16,
        shape=(1, 32, 9),
        wrap=lambda module: weight_norm(module, dim=2),
    ),
    _row("causal subclass", padded(2, 0), 3, cls=Causal),
    _row("causal subclass, dilation 2", padded(4, 0, dilation=2), 3, cls=Causal, dilation=2),
    _row("causal, other constructor", padded(4, 0, dilation=2), C_IN, C_OUT, 3, 2, cls=Chomped),
    _row("causal with a cache key", padded(1, 0, stride=2), C_IN, C_OUT, 3, "key", cls=CachedCausal, stride=2),
    _row(
        "transposing subclass",
        lambda x, W, b: F.conv1d(x.mT, W, b).mT,
        1,
        cls=Transposing,
        shape=(2, LENGTH, C_IN),
    ),
    _row(
        "derived weight",
        lambda x, W, b: F.conv1d(x, standardised(W), b, padding=1),
        3,
        padding=1,
        cls=WeightStandardised,
    ),
    _row(
        "transposed",
        transposed(stride=2, padding=1, output_padding=1),
        *(4,),
        cls=nn.ConvTranspose1d,
        stride=2,
        padding=1,
        output_padding=1,
    ),
    _row(
        "transposed, groups 2, dilation 2",
        transposed(stride=3, groups=2, dilation=2, padding=2, output_padding=2),
        *(3,),
        cls=nn.ConvTranspose1d,
        **{"stride": 3, "groups": 2, "dilation": 2, "padding": 2, "output_padding": 2},
    ),
    _row(
        "transposed depthwise",
        transposed(stride=2, groups=C_IN),
        *(C_IN, C_IN, 4),
        cls=nn.ConvTranspose1d,
        stride=2,
        groups=C_IN,
        shape=(C_IN, LENGTH),
    ),
    _row(
        "transposed, weight_norm",
        transposed(stride=4, padding=2),
        *(8,),
        cls=nn.ConvTranspose1d,
        stride=4,
        padding=2,
        wrap=weight_norm,
    ),
    _row(
        "transposed, old weight_norm dim 1",
        transposed(stride=2),
        *(4,),
        cls=nn.ConvTranspose1d,
        stride=2,
        wrap=lambda module: old_weight_norm(module, dim=1),
    ),
    _row(
        "transposed, causal subclass",
        lambda x, W, b: F.conv_transpose1d(x, W, b, stride=2)[..., :-2],
        *(4,),
        cls=ChoppedTransposed,
        stride=2,
    ),
    _row("extra argument", lambda x, W, b: 0.5 * F.conv1d(x, W, b), 3, cls=Gained, arguments={"gain": 0.5}),
)

METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "lora_bias": {"lora_bias": True},
    "dora": {"use_dora": True},
}

CELLS = [
    pytest.param(row, method, id=f"{row.name}-{method}")
    for row in (*CONVOLUTIONS, *OF_THEIR_OWN)
    for method in METHODS
    if not (row.name == "no bias" and method == "lora_bias")  # an error, tested by itself
]
