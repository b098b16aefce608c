"""Causal networks written in the usual ways, and some that are not causal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

CHANNELS = 3


class Chomp(nn.Module):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : -self.steps]


class CausalConv1d(nn.Conv1d):
    """Pads on the left in its own forward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(input, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class ChannelNorm(nn.LayerNorm):
    """Over the channels of (N, C, L)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.mT).mT


class Residual(nn.Module):
    def __init__(self, branch: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.branch, self.skip = branch, skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch(x) + self.skip(x))


class PadOnce(nn.Module):
    """Pads for all its convolutions at once, and cuts the residual to what is left (WaveNet's way)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 2, dilation=d) for d in (1, 2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (7, 0))
        for conv in self.convs:
            y = torch.tanh(conv(x))
            x = x[..., -y.shape[-1] :] + y
        return x


class Shift(nn.Module):
    """Looks back by slicing: no padding that anything could watch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.cat([torch.zeros_like(x[..., :3]), x[..., :-3]], -1)[..., : x.shape[-1]]


class Positions(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(x.shape[-1])


class CumulativeMean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(-1) / torch.arange(1, x.shape[-1] + 1)


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.gate = nn.AdaptiveAvgPool1d(1), nn.Conv1d(CHANNELS, CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.gate(self.pool(x)))


class EachChannel(nn.Module):
    """The same convolution over every channel by itself: what it pads is (N · C, 1, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = CausalConv1d(1, 4, 3, dilation=2), nn.Conv1d(4 * CHANNELS, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, length = x.shape
        return self.mix(self.conv(x.reshape(n * channels, 1, length)).reshape(n, -1, length))


class TransposedConv1d(nn.ConvTranspose1d):
    """Its surplus steps cut off on the right: causal, and nothing is padded."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)[..., : input.shape[-1]]


class StepsFirst(nn.Module):
    """(N, L, C) in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = CausalConv1d(CHANNELS, 5, 3, dilation=2), nn.LayerNorm(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.mT).mT)


def weight_norm(conv: nn.Conv1d) -> nn.Conv1d:
    return nn.utils.parametrizations.weight_norm(conv)


def pytorch_tcn(causal: bool = True) -> nn.Module:
    from pytorch_tcn import TCN

    return TCN(CHANNELS, [6, 4], kernel_size=3, dilations=(1, 4), causal=causal, output_projection=2)


C = CHANNELS
CAUSAL: dict[str, Callable[[], nn.Module]] = {
    "left pad": lambda: nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(C, 4, 3, dilation=2), nn.GELU()),
    "pad with a value": lambda: nn.Sequential(nn.ConstantPad1d((2, 0), -0.7), nn.Conv1d(C, 4, 3)),
    "pad with the first": lambda: nn.Sequential(nn.ReplicationPad1d((2, 0)), nn.Conv1d(C, 4, 3)),
    "chomp": lambda: nn.Sequential(weight_norm(nn.Conv1d(C, 4, 3, padding=4, dilation=2)), Chomp(4), nn.ReLU()),
    "one chomp for two": lambda: nn.Sequential(
        nn.Conv1d(C, 4, 3, padding=2), nn.ReLU(), nn.Conv1d(4, 4, 2, padding=1), Chomp(3)
    ),
    "subclass, depthwise, norm": lambda: nn.Sequential(
        CausalConv1d(C, 6, 5), ChannelNorm(6), nn.SiLU(), CausalConv1d(6, 6, 3, dilation=3, groups=6)
    ),
    "residual": lambda: Residual(nn.Sequential(CausalConv1d(C, 5, 3, dilation=4), nn.ReLU()), nn.Conv1d(C, 5, 1)),
    "pad once": PadOnce,
    "batch norm": lambda: nn.Sequential(CausalConv1d(C, 4, 2), nn.BatchNorm1d(4), nn.Dropout(0.5)),
    "pointwise": lambda: nn.Sequential(nn.Conv1d(C, 4, 1), nn.Tanh()),
    "each channel by itself": EachChannel,
    "pytorch-tcn": pytorch_tcn,
}

CONTEXT: dict[str, Callable[[], nn.Module]] = {
    "shifted by slicing": lambda: nn.Sequential(Shift(), CausalConv1d(C, 2, 3)),
    "transposed": lambda: nn.Sequential(TransposedConv1d(C, 4, 3), nn.GELU(), CausalConv1d(4, 2, 2)),
}

NOT_CAUSAL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "symmetric padding": (
        lambda: nn.Sequential(CausalConv1d(C, C, 3), nn.Conv1d(C, 4, 3, padding=1)),
        r"^1 \(Conv1d\)",
    ),
    "same": (lambda: nn.Sequential(nn.Conv1d(C, 4, 4, padding="same")), r"^0 \(Conv1d\) looks ahead"),
    "circular": (
        lambda: nn.Sequential(nn.Conv1d(C, 4, 3, padding=2, padding_mode="circular"), Chomp(2)),
        r"^0 \(Conv1d\) looks ahead",
    ),
    "reflected": (lambda: nn.Sequential(nn.ReflectionPad1d((2, 0)), nn.Conv1d(C, 4, 3)), r"^0 \(ReflectionPad1d\)"),
    "instance norm": (lambda: nn.Sequential(CausalConv1d(C, 4, 3), nn.InstanceNorm1d(4)), r"^1 \(InstanceNorm1d\)"),
    "group norm": (lambda: nn.Sequential(CausalConv1d(C, 4, 3), nn.GroupNorm(2, 4)), r"^1 \(GroupNorm\) looks ahead"),
    "squeeze and excite": (lambda: nn.Sequential(Squeeze()), r"^0.pool \(AdaptiveAvgPool1d\) looks ahead"),
    "pooled": (lambda: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool1d(1)), r"change in 1 \(AdaptiveAvgPool1d\)"),
    "stride": (lambda: nn.Sequential(nn.Conv1d(C, 4, 2, stride=2)), r"change in 0 \(Conv1d\).*use stride 1"),
    "flipped": (lambda: _Flip(), r"^the network \(_Flip\) looks ahead"),
    "pytorch-tcn": (lambda: pytorch_tcn(causal=False), r"^network.0.conv1.* \(TemporalPad1d|TemporalConv1d\)"),
    "cumulative": (CumulativeMean, "no end"),
    "positions": (lambda: nn.Sequential(CausalConv1d(C, C, 3), Positions()), "how many steps came before"),
}


class _Flip(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1)
