"""A causal network as a graph of a stream's next chunk: x and states in, y and the states after it out.

One graph does both: an offline run is a stream's first chunk, from states that are zeros. Which states there are is
`series.streaming`'s choice. ``"states"``: at each padding the last steps that passed there; whatever a network pads
with there before the first step that is not zero (a value, the first step again) is told from them by one more state,
``started``, zero until the first chunk. ``"context"``: the last inputs, at the start none of them, so that the network
never sees a step that was not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from audiolora.series.causality import Forward, NotCausal, random_input
from audiolora.series.padding_states import Paddings, start
from audiolora.series.streaming import Stream

CONTEXT, STARTED = "context", "started"
PAST = "past"
"""The name of the context's free size: as long as what has been seen, up to the receptive field less one."""

_CHUNK = 4  # steps of the run that finds the paddings


@dataclass(frozen=True)
class Padding:
    """A place where the network pads on the left, (…, L) with batch somewhere in front.

    Args:
        rest: its size over batch and time.
        left: steps.
        mode: of ``F.pad``.
        value: what it pads with in mode ``"constant"``.
        dtype: of the tensor.
        plain: the tensor is (N, rest, L) itself, and not of another shape with as many numbers.
    """

    rest: int
    left: int
    mode: str
    value: float
    dtype: torch.dtype
    plain: bool

    @property
    def from_zeros(self) -> bool:
        """Zeros are what stands there before the first step."""
        return self.mode == "constant" and self.value == 0


@dataclass(frozen=True)
class StreamPlan:
    """How a network is streamed; from `stream_plan`. Called with a network it is the view of a `Part`.

    Args:
        mode: see above.
        receptive_field: steps, the present one included.
        time_dim: the axis of time, 1 or 2, in input and output.
        channels: of the input.
        method: of the network, called instead of its forward.
        paddings: in the order in which the network comes to them; () in mode ``"context"``.
    """

    mode: Literal["states", "context"]
    receptive_field: int
    time_dim: int
    channels: int
    method: str | None
    paddings: tuple[Padding, ...] = ()

    def __call__(self, net: nn.Module) -> StreamingView:
        return StreamingView(net, self)

    def offline(self, net: nn.Module) -> nn.Module:
        """The view whose forward(x) is the network on all of x at once."""
        return Offline(net, self)

    def states(self, batch: int, past: int = 0) -> dict[str, torch.Tensor]:
        """The states before the first step, all zeros: (batch, rest, left) each, ``started`` (batch, 1, 1).

        Args:
            batch: streams.
            past: steps in the context.
        """
        if self.mode == "context":
            shape = (batch, self.channels, past) if self.time_dim == 2 else (batch, past, self.channels)
            return {CONTEXT: torch.zeros(shape)}
        zeros = {
            f"padding{i}": torch.zeros(batch, padding.rest, padding.left, dtype=padding.dtype)
            for i, padding in enumerate(self.paddings)
        }
        started = {} if all(p.from_zeros for p in self.paddings) else {STARTED: torch.zeros(batch, 1, 1)}
        return zeros | started

    def dynamic(self) -> dict[str, dict[int, str]]:
        """The free sizes of the states."""
        if self.mode == "context":
            return {CONTEXT: {0: "batch", self.time_dim: PAST}}
        return {name: {0: "batch"} for name in self.states(1)}


def stream_plan(net: nn.Module, channels: int, time_dim: int = 2, method: str | None = None) -> StreamPlan:
    """Find out how a network is to be streamed.

    Args:
        net: float32, on the CPU, in evaluation mode; maps (N, channels, L) to (N, …, L), causally.
        channels: of its input.
        time_dim: 2, or 1 for (N, L, channels) to (N, L, …).
        method: of the network, to be called instead of its forward.

    Raises:
        NotCausal: it looks ahead (the first such module is named), changes the number of steps, has a memory without
            end, depends on the absolute step, or depends on the present step alone. A ``ValueError``.

    Example:
        >>> net = nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(1, 2, 3)).eval()
        >>> stream_plan(net, 1).states(batch=5)["padding0"].shape
        torch.Size([5, 1, 2])
    """
    axis = -1 if time_dim == 2 else time_dim
    forward = net if method is None else getattr(net, method)
    stream = Stream(net, channels, forward=forward, time_dim=axis)
    field = stream.receptive_field
    if field == 1:
        raise NotCausal(
            f"{type(net).__name__}: an output depends on its own step alone, so there is nothing to remember; export "
            "it without streaming, and run it on the steps as they come"
        )
    found = _paddings(net, forward, channels, time_dim) if stream.mode == "states" else None
    if found is None:
        return StreamPlan("context", field, time_dim, channels, method)
    return StreamPlan("states", field, time_dim, channels, method, found)


class Offline(nn.Module):
    """The network, or that method of it which the plan names."""

    def __init__(self, net: nn.Module, plan: StreamPlan) -> None:
        super().__init__()
        self.net, self.plan = net, plan

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.net(x) if self.plan.method is None else getattr(self.net, self.plan.method)(x)
        return y


class StreamingView(nn.Module):
    """The network on a chunk: forward(x, *states) → (y, *states after it).

    Args:
        net: the network, adapters in it or not.
        plan: how it is streamed.
    """

    def __init__(self, net: nn.Module, plan: StreamPlan) -> None:
        super().__init__()
        self.net, self.plan = Offline(net, plan), plan

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.plan.mode == "context":
            return self._with_context(x, *states)
        watch = _GivenStates(x.shape[self.plan.time_dim], x.shape[0], self.plan, states)
        with watch:
            y = self.net(x)
        assert len(watch.after) == len(self.plan.paddings)
        started = (torch.ones_like(watch.before[STARTED]),) if STARTED in watch.before else ()
        return (y, *watch.after.values(), *started)

    def _with_context(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        axis = self.plan.time_dim
        seen = torch.cat([past, x], axis)
        y = self.net(seen)
        # Time is the last axis of an output without one of channels.
        y = y.narrow(min(axis, y.dim() - 1), past.shape[axis], x.shape[axis])
        length = seen.shape[axis]
        begin = torch.sym_max(length - (self.plan.receptive_field - 1), 0)
        return y, seen.narrow(axis, begin, length - begin)


class _GivenStates(Paddings):
    """With the graph's inputs for what stands on the left."""

    def __init__(self, steps: int, batch: int, plan: StreamPlan, states: tuple[torch.Tensor, ...]) -> None:
        names = [f"padding{i}" for i in range(len(plan.paddings))]
        names += [STARTED] if len(states) > len(names) else []
        super().__init__(steps, dict(zip(names, states, strict=True)))
        self.batch, self.plan = batch, plan

    def past(self, name: str, input: torch.Tensor, left: int, mode: str, value: float) -> torch.Tensor:
        padding, past = self.plan.paddings[len(self.after)], self.before[name]
        if not padding.from_zeros:
            begin = self._stored(padding, start(input, left, mode, value))
            past = torch.where(self.before[STARTED] > 0, past, begin)
        return past if padding.plain else past.reshape(*input.shape[:-1], left)

    def keep(self, name: str, steps: torch.Tensor) -> None:
        self.after[name] = self._stored(self.plan.paddings[len(self.after)], steps)

    def _stored(self, padding: Padding, steps: torch.Tensor) -> torch.Tensor:
        # No reshape where none is needed: a runtime takes a microsecond for one.
        return steps if padding.plain else steps.reshape(self.batch, padding.rest, padding.left)


class _Seen(Paddings):
    """Notes what is padded, from the first step on."""

    def __init__(self, steps: int, batch: int) -> None:
        super().__init__(steps, {})
        self.batch = batch
        self.found: list[Padding | None] = []

    def past(self, name: str, input: torch.Tensor, left: int, mode: str, value: float) -> torch.Tensor:
        size = math.prod(input.shape[:-1])
        plain = input.dim() == 3 and input.shape[0] == self.batch
        fits = size % self.batch == 0
        one = Padding(size // self.batch, left, mode, value, input.dtype, plain) if fits else None
        self.found.append(one)
        return super().past(name, input, left, mode, value)


def _paddings(net: nn.Module, forward: Forward, channels: int, time_dim: int) -> tuple[Padding, ...] | None:
    """Where the network pads; None if a tensor that is padded does not grow with the batch."""
    found = []
    for batch in (2, 3):
        seen = _Seen(_CHUNK, batch)
        with torch.no_grad(), seen:
            forward(random_input(net, batch, channels, _CHUNK, time_dim))
        found.append(tuple(seen.found))
    first, second = found
    return None if first != second or None in first else tuple(p for p in first if p is not None)


def split_run(
    view: StreamingView, x: torch.Tensor, sizes: list[int], states: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """All of x in chunks of these sizes: the outputs joined, and the states after them.

    Example:
        >>> net = nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(1, 2, 3)).eval()
        >>> plan, x = stream_plan(net, 1), torch.randn(1, 1, 9)
        >>> y, _ = split_run(StreamingView(net, plan), x, [2, 3, 4], plan.states(1))
        >>> torch.allclose(y, net(x), atol=1e-5)
        True
    """
    pieces, now = [], dict(states)
    with torch.no_grad():
        for chunk in x.split(sizes, view.plan.time_dim):
            y, *after = view(chunk, *now.values())
            pieces.append(y)
            now = dict(zip(now, after, strict=True))
    return torch.cat(pieces, min(view.plan.time_dim, pieces[0].dim() - 1)), now
