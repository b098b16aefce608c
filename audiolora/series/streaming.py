"""Causal networks step by step: a stream in chunks of any size gives what the whole input gives, adapters on.

Two ways, and the network decides which:

- ``"states"``: at each padding of the network its zeros on the left are replaced by the last steps that passed there,
  so a step costs a step. It is right for networks of left-padded (or padded and cut) convolutions and pointwise
  operations; whether it is right for this one is tried when the stream is made, on values and on what depends on what.
- ``"context"``: the last receptive_field - 1 inputs are kept and the network runs over them and the chunk. An output
  depends on nothing else, so this holds for every causal network whose memory ends; a step costs a receptive field.

A network that is not causal is refused, and the first module that looks ahead is named (`audiolora.series.causality`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from audiolora.series.causality import (
    Forward,
    NotCausal,
    plain_kernels,
    random_input,
    receptive_field,
    refuse_training_mode,
    tensor_like,
)
from audiolora.series.padding_states import PaddingStates, StatesDoNotFit

State = dict[str, torch.Tensor]
"""What a batch of streams remembers: named tensors, to be kept with safetensors or ``torch.save``; {} at the start."""

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_TOLERANCE_HALF = 5e-2
_TRIAL_CHUNKS = (1, 1, 2, 5, 3)


class Stream:
    """A causal network run on a stream, chunk by chunk, for one stream or a batch of them.

    Args:
        net: in evaluation mode; maps (N, channels, L) to (N, …, L) for any L, causally. Adapters in it stay as they
            are, merged or not, and may be changed or switched between chunks: what is remembered in ``"states"`` was
            computed with the old ones until `reset`.
        channels: of its input.
        forward: a method of ``net`` to call instead of it.
        time_dim: the axis of time in input and output; 1 for (N, L, channels).
        mode: ``"states"``, ``"context"``, or ``"auto"``: the first that is right for this network.

    Attributes:
        mode: the one that was taken.
        receptive_field: steps, the present one included.
        state: what the streams of `push` remember; may be saved and set.

    Raises:
        NotCausal: the network looks ahead, has a memory without end, or depends on the absolute step; or it cannot be
            run with ``mode="states"`` that was asked for. A ``ValueError``.

    Example:
        >>> net = nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(1, 2, 3)).eval()
        >>> stream = Stream(net, channels=1)
        >>> x = torch.randn(1, 1, 50)
        >>> pieces = [stream.push(chunk) for chunk in x.split([1, 9, 40], dim=-1)]
        >>> torch.allclose(torch.cat(pieces, -1), net(x), atol=1e-5)
        True
    """

    def __init__(
        self,
        net: nn.Module,
        channels: int,
        *,
        forward: Forward | None = None,
        time_dim: int = -1,
        mode: Literal["auto", "states", "context"] = "auto",
    ) -> None:
        if mode not in ("auto", "states", "context"):
            raise ValueError(f"mode must be 'auto', 'states' or 'context', got {mode!r}")
        self.net, self.channels, self.time_dim = net, channels, time_dim
        self._forward = forward or net
        self.receptive_field = receptive_field(net, channels, forward=forward, time_dim=time_dim)
        self.state: State = {}
        self._states = PaddingStates(self._forward, time_dim)
        self._rows: dict[str, int] = {}
        self._empty = self._check_context()
        why = "" if mode == "context" else self._why_no_states()
        if mode == "states" and why:
            raise NotCausal(f"{type(net).__name__}: mode='states' is not right for it: {why}; use mode='context'")
        self.mode: Literal["states", "context"] = "context" if mode == "context" or why else "states"

    def __repr__(self) -> str:
        return f"Stream({type(self.net).__name__}, mode={self.mode!r}, receptive_field={self.receptive_field})"

    def push(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs that belong to the next chunk of every stream.

        Args:
            x: (N, channels, n), or (N, n, channels) for ``time_dim=1``; n ≥ 0 steps of N streams.

        Returns:
            (N, …, n): what the network gives at these steps when it sees all that came before.

        Raises:
            ValueError: another shape, or another number of streams than before (`reset` begins anew).
        """
        y, self.state = self.step(x, self.state)
        return y

    def reset(self) -> None:
        """Forget: the next chunk is the first of new streams, of any number."""
        self.state = {}

    def step(self, x: torch.Tensor, state: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, State]:
        """As `push`, with the state given and returned; ``{}`` begins a stream. Nothing is kept in this object."""
        refuse_training_mode(self.net)
        self._check_chunk(x, state)
        if x.shape[self.time_dim] == 0:
            return self._empty.expand(x.shape[0], *self._empty.shape[1:]).clone(), dict(state)
        return self._run(x, state, self.mode)

    def _run(self, x: torch.Tensor, state: Mapping[str, torch.Tensor], mode: str) -> tuple[torch.Tensor, State]:
        with torch.no_grad():
            if mode == "states":
                return self._states.step(x, state)
            length = x.shape[self.time_dim]
            seen = torch.cat([state["context"], x], self.time_dim) if "context" in state else x
            y = self._forward(seen)
            kept = min(self.receptive_field - 1, seen.shape[self.time_dim])
            context = seen.narrow(self.time_dim, seen.shape[self.time_dim] - kept, kept).clone()
            return y.narrow(self.time_dim, y.shape[self.time_dim] - length, length), {"context": context}

    def _check_chunk(self, x: torch.Tensor, state: Mapping[str, torch.Tensor]) -> None:
        channel_dim = 1 if self.time_dim in (-1, 2) else 2
        if x.dim() != 3 or x.shape[channel_dim] != self.channels:
            layout = f"(N, {self.channels}, n)" if channel_dim == 1 else f"(N, n, {self.channels})"
            raise ValueError(f"a chunk must be {layout}, got {tuple(x.shape)}")
        wanted = "context" if self.mode == "context" else "padding0"
        for name, tensor in state.items():
            if wanted not in state or tensor.shape[0] != x.shape[0] * self._rows.get(name, 1):
                raise ValueError(
                    f"the state ({name}: {tuple(tensor.shape)}) is not one of {x.shape[0]} streams in mode "
                    f"{self.mode!r}; push as many streams as before, or begin anew with reset()"
                )

    def _check_context(self) -> torch.Tensor:
        """An output without steps; raises `NotCausal` if the network is another function at another absolute step."""
        past, extra = self.receptive_field - 1, 16
        x = random_input(self.net, 2, self.channels, past + extra, self.time_dim)
        with torch.no_grad():
            whole = self._forward(x)
            for cut in (1, 2, 3, 7):
                late = self._forward(x.narrow(self.time_dim, cut, past + extra - cut))
                n = extra - cut
                if not self._close(_last(late, n, self.time_dim), _last(whole, n, self.time_dim)):
                    raise NotCausal(
                        f"{type(self.net).__name__}: its output depends on how many steps came before, beyond the "
                        f"{self.receptive_field} that it reads (a position embedding, a stride and its inverse, a "
                        "shape that is fixed), so it cannot be run step by step"
                    )
        return whole.narrow(self.time_dim, 0, 0)[:1].clone()

    def _why_no_states(self) -> str:
        """Empty if chunks with states give what the whole input gives, values and dependencies, else what was wrong."""
        length = min(self.receptive_field, 512) + 32
        x = random_input(self.net, 2, self.channels, length, self.time_dim)
        x[1].movedim(self.time_dim if self.time_dim < 0 else self.time_dim - 1, 0)[1] = torch.nan
        with plain_kernels():
            whole = self._forward(x)
            pieces: list[torch.Tensor] = []
            state: State = {}
            begin = 0
            sizes = [*_TRIAL_CHUNKS, *[max(1, length // 6)] * 6]
            try:
                while begin < length:
                    n = min(sizes.pop(0) if sizes else 1, length - begin)
                    y, state = self._run(x.narrow(self.time_dim, begin, n), state, "states")
                    pieces.append(y)
                    begin += n
            except (StatesDoNotFit, RuntimeError, IndexError) as error:
                return str(error).splitlines()[0]
        # A network that runs each channel by itself pads N · C rows.
        self._rows = {name: max(1, tensor.shape[0] // x.shape[0]) for name, tensor in state.items()}
        chunked = torch.cat(pieces, self.time_dim)
        if chunked.shape != whole.shape or not torch.equal(chunked.isnan(), whole.isnan()):
            return "something other than a padded convolution looks back in time"
        return "" if self._close(chunked.nan_to_num(), whole.nan_to_num()) else "values differ"

    def _close(self, actual: torch.Tensor, expected: torch.Tensor) -> bool:
        tolerance = _TOLERANCE.get(tensor_like(self.net)["dtype"], _TOLERANCE_HALF)
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        return bool(((actual - expected).abs() <= tolerance * scale).all())


def _last(y: torch.Tensor, n: int, time_dim: int) -> torch.Tensor:
    return y.narrow(time_dim, y.shape[time_dim] - n, n)
