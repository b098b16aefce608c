"""A causal network on a chunk: zeros that it pads on the left become the last steps that passed there.

Offline, a tensor is padded on its left by p zeros and then convolved. On a chunk that begins at step s the same p
places must hold the steps s - p … s - 1 of the same tensor; everything else in a network of convolutions and pointwise
operations stays as it is, and so does what cuts surplus steps off on the right. So it is enough to watch two functions
of torch, ``pad`` and ``conv1d``, in the order in which the network calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class StatesDoNotFit(ValueError):
    """The network pads in a way that has no state."""


class PaddingStates:
    """Runs a causal network chunk by chunk, with a state at each of its paddings.

    Args:
        forward: the network; (N, C, L) to (N, …, L).
        time_dim: the axis of time in input and output; within the network it is the last wherever something is padded.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], time_dim: int) -> None:
        self._forward, self._time_dim = forward, time_dim

    def step(self, x: torch.Tensor, state: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The outputs of a chunk and the state after it; ``{}`` is the state before the first step.

        Raises:
            StatesDoNotFit: a padding that has no state, or other paddings than those the state is of.
        """
        watch = Paddings(x.shape[self._time_dim], state)
        with watch:
            y = self._forward(x)
        if state and watch.after.keys() != state.keys():
            raise StatesDoNotFit(f"the network has {len(watch.after)} paddings, the state is of {len(state)}")
        return y, watch.after


class Paddings(TorchFunctionMode):
    """Replaces what is padded on the left; ``after`` is the state that follows.

    Args:
        steps: of the chunk.
        before: the state, or ``{}`` before the first step.
    """

    def __init__(self, steps: int, before: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.steps, self.before = steps, before
        self.after: dict[str, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.pad or func is torch._C._nn.pad:
            return self._pad(*args, **kwargs)
        if func is torch.conv1d:
            return self._conv1d(*args, **kwargs)
        return func(*args, **kwargs)

    def _pad(self, input: torch.Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> torch.Tensor:
        left, right, *others = pad
        if any(others) or left < 0 or mode not in ("constant", "replicate"):
            raise StatesDoNotFit(f"F.pad(…, {tuple(pad)}, mode={mode!r}) has no state")
        if left:
            input = self._with_past(input, left, mode, value or 0.0)
        return F.pad(input, (0, right), mode, value) if right else input

    def _conv1d(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> torch.Tensor:
        if padding == "same":
            total = (weight.shape[2] - 1) * _one(dilation)
            left, right = total // 2, total - total // 2
        else:
            left = right = 0 if padding == "valid" else _one(padding)
        if left:
            input = F.pad(self._with_past(input, left, "constant", 0.0), (0, right))
        elif right:
            input = F.pad(input, (0, right))
        return torch.conv1d(input, weight, bias, stride, 0, dilation, groups)

    def _with_past(self, input: torch.Tensor, left: int, mode: str, value: float) -> torch.Tensor:
        """The tensor with its last ``left`` steps before this chunk in front: (…, left + L)."""
        if input.shape[-1] < self.steps:
            raise StatesDoNotFit(f"a tensor of {input.shape[-1]} steps is padded, and the chunk has {self.steps}")
        name = f"padding{len(self.after)}"
        joined = torch.cat([self.past(name, input, left, mode, value), input], -1)
        # To the right of the chunk's own steps there may be some that the network cuts off later. Where there are none,
        # the same is said without the number of steps, which a graph would have to compute.
        whole = input.shape[-1] == self.steps
        self.keep(name, joined[..., -left:] if whole else joined[..., self.steps : self.steps + left])
        return joined

    def past(self, name: str, input: torch.Tensor, left: int, mode: str, value: float) -> torch.Tensor:
        """What stands to the left of this chunk's tensor: (…, left)."""
        if self.before and name not in self.before:
            raise StatesDoNotFit(f"the state has no {name}")
        return self.before[name] if self.before else start(input, left, mode, value)

    def keep(self, name: str, steps: torch.Tensor) -> None:
        """Remember what will stand to the left of the next chunk's: (…, left)."""
        self.after[name] = steps.clone()


def start(input: torch.Tensor, left: int, mode: str, value: float) -> torch.Tensor:
    """What the network itself pads before the first step: (…, left)."""
    first = input[..., :1].expand(*input.shape[:-1], left)
    return first if mode == "replicate" else torch.full_like(first, value)


def _one(number: Any) -> int:
    return int(number[0] if isinstance(number, (tuple, list)) else number)
