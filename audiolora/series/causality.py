"""How far back a network looks, and whether it looks ahead: measured on the network itself.

A NaN put into one step of the input comes out at every step that reads it: NaN · 0 is NaN, so it goes through a pruned
tap, a closed ReLU and an adapter that is still zero, where a gradient would see nothing. What it shows is the network's
structure and not its present weights. Shown are thus the receptive field, and by hooks on every module the first one
whose output at a step depends on later steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

LONGEST = 2**16
"""A receptive field beyond this many steps is taken for one without end."""

_SHORTEST = 256
_SINGLES, _SUFFIXES = 4, 4

Forward = Callable[[torch.Tensor], torch.Tensor]


class NotCausal(ValueError):
    """The network cannot be run step by step; the message names the module and the remedy."""


def receptive_field(
    net: nn.Module, channels: int, *, forward: Forward | None = None, time_dim: int = -1, longest: int = LONGEST
) -> int:
    """How many steps of the input, the present one included, an output step of a causal network depends on.

    Args:
        net: in evaluation mode; maps (N, channels, L) to (N, …, L), or with ``time_dim=1`` (N, L, channels) to
            (N, L, …).
        channels: of its input.
        forward: what to call instead of ``net``: a method of it.
        time_dim: the axis of time in its input and in its output.
        longest: give up beyond this many steps.

    Raises:
        NotCausal: a module looks ahead (it is named), the output has another number of steps than the input, one
            sample of a batch depends on another, or the memory has no end (recurrence, a mean over all of time).

    Example:
        >>> conv = nn.Conv1d(1, 4, 3, dilation=2)
        >>> net = nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), conv).eval()
        >>> receptive_field(net, 1)
        5
    """
    refuse_training_mode(net)
    run = forward or net
    length = _SHORTEST
    while length <= 4 * longest:
        x, starts = _probes(net, channels, length, time_dim)
        with plain_kernels():
            y = run(x)
        _check_length(net, run, x, y, time_dim)
        seen = _nan_steps(y, time_dim)
        _check_seen(net, run, x, seen, starts, time_dim)
        singles = [(seen[i].nonzero(), start) for i, start in enumerate(starts[:_SINGLES])]
        ends = [int(steps.max()) - start + 1 if len(steps) else 1 for steps, start in singles]
        if max(start + end for (_, start), end in zip(singles, ends, strict=True)) < length:
            return max(ends)
        length *= 4
    raise NotCausal(
        f"{type(net).__name__}: an output still depends on the input {longest} steps before, so its memory seems to "
        "have no end (a recurrent layer, a cumulative sum, a mean over all of the past); stream it with its own state"
    )


def refuse_training_mode(net: nn.Module) -> None:
    """Raise `NotCausal` if some module is in training mode, where dropout draws and a batch norm looks at all of time.

    Example:
        >>> refuse_training_mode(nn.ReLU().eval())
    """
    for name, module in net.named_modules():
        if module.training and (not name or isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout))):
            names = [n for n, m in net.named_modules() if m.training and isinstance(m, nn.modules.batchnorm._BatchNorm)]
            why = f"; {readable(names[0])} takes its statistics over all of time there" if names else ""
            raise NotCausal(
                f"{readable(name)} ({type(module).__name__}) is in training mode{why}; call net.eval() first"
            )


def readable(name: str) -> str:
    """A module's path as its author wrote it, without PEFT's wrappers."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "") or "the network"


@contextmanager
def plain_kernels() -> Iterator[None]:
    """No gradients, and convolutions as sums over their taps: FFT and Winograd kernels would spread a NaN."""
    before = torch.backends.mkldnn.set_flags(False)  # its flags() warns of a TF32 that nobody asked for
    try:
        # NNPACK would take over from oneDNN for batches of 16 and more.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.backends.mkldnn.set_flags(before[0])


def tensor_like(net: nn.Module) -> dict[str, Any]:
    """Device and dtype of a network's input: those of its first floating-point tensor."""
    tensors = (t for group in (net.parameters(), net.buffers()) for t in group if t.is_floating_point())
    first = next(tensors, torch.empty(0))
    return {"device": first.device, "dtype": first.dtype}


def random_input(net: nn.Module, batch: int, channels: int, length: int, time_dim: int) -> torch.Tensor:
    """Standard normal numbers in the network's input layout, the same at every call."""
    drawn = torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(0))
    return drawn.movedim(-1, time_dim).contiguous().to(**tensor_like(net))


def _probes(net: nn.Module, channels: int, length: int, time_dim: int) -> tuple[torch.Tensor, list[int]]:
    """Samples with a NaN at one step, then samples with NaN from a step on, then one without; and those steps."""
    singles = [length // 8 + i for i in range(_SINGLES)]
    suffixes = [1, 2, *(length // 2 + i for i in range(_SUFFIXES)), length - 1]
    x = random_input(net, len(singles) + len(suffixes) + 1, channels, length, time_dim)
    steps = x.movedim(time_dim, 1)  # a view
    for row, start in enumerate(singles):
        steps[row, start] = torch.nan
    for row, start in enumerate(suffixes, start=len(singles)):
        steps[row, start:] = torch.nan
    return x, singles + suffixes


def _check_length(net: nn.Module, run: Forward, x: torch.Tensor, y: Any, time_dim: int) -> None:
    length = x.shape[time_dim]
    if isinstance(y, torch.Tensor) and y.dim() > 1 and y.shape[time_dim] == length:
        return
    got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
    lost: list[tuple[str, str]] = []

    def look(name: str, module: nn.Module, inputs: list[torch.Tensor], output: torch.Tensor) -> None:
        if name and any(length in tensor.shape[1:] for tensor in inputs) and length not in output.shape[1:]:
            lost.append((name, f"; the steps change in {readable(name)} ({type(module).__name__})"))

    _look_at_modules(net, run, x, look)
    names = [name for name, _ in lost]
    innermost = [said for name, said in lost if not any(other.startswith(f"{name}.") for other in names if name)]
    where = next((said for said in reversed(innermost)), "")
    raise NotCausal(
        f"{length} steps of input gave an output {got}{where}. Step by step there must be one output a step of input "
        f"along axis {time_dim}: pad on the left by (kernel_size - 1) · dilation, use stride 1, and leave out what "
        "picks or pools steps (or in a method of its own: forward= of a Stream, at_every_step of a network in a bundle)"
    )


def _nan_steps(y: torch.Tensor, time_dim: int) -> torch.Tensor:
    """(N, L): at which steps some number of the sample is NaN."""
    return y.isnan().movedim(time_dim, 1).flatten(2).any(2) if y.dim() > 2 else y.isnan()


def _check_seen(
    net: nn.Module, run: Forward, x: torch.Tensor, seen: torch.Tensor, starts: list[int], time_dim: int
) -> None:
    if seen[-1].any():
        clean = torch.cat([x[-1:], x[-1:]])
        with plain_kernels():
            broken = bool(run(clean).isnan().any())
        raise NotCausal(
            f"{type(net).__name__}: its output is NaN for an input without one; its weights are broken, take another "
            "checkpoint"
            if broken
            else f"{type(net).__name__}: one sample of a batch depends on another, so streams cannot share a batch; "
            "look for a normalisation over the batch"
        )
    for row, start in enumerate(starts):
        if seen[row, :start].any():
            name, module = _first_that_looks_ahead(net, run, x[row : row + 1], time_dim)
            first = int(seen[row].nonzero().min())
            raise NotCausal(
                f"{name} ({module}) looks ahead: an output depends on the input up to {start - first} or more steps "
                "later. Causal networks pad on the left alone, (kernel_size - 1) · dilation zeros, and normalise over "
                "channels, never over time"
            )


def _first_that_looks_ahead(net: nn.Module, run: Forward, x: torch.Tensor, time_dim: int) -> tuple[str, str]:
    """Path and class of the first module to finish whose output has a NaN before its input does."""
    length = x.shape[time_dim]
    found: list[tuple[str, str]] = []

    def look(name: str, module: nn.Module, inputs: list[torch.Tensor], output: torch.Tensor) -> None:
        befores = [first for tensor in inputs if (first := _first_nan(tensor, length)) is not None]
        after = _first_nan(output, length)
        if not befores or after is None:
            return
        before, steps_in = min(befores)
        # A convolution without padding is shorter by what its parent has padded, and so begins that much earlier.
        shift = max(0, steps_in - after[1])
        if after[0] < before - shift or (before > 0 and bool(output.isnan().all())):
            found.append((readable(name), type(module).__name__.removeprefix("Parametrized")))

    _look_at_modules(net, run, x, look)
    return found[0] if found else ("the network", type(net).__name__)


def _look_at_modules(net: nn.Module, run: Forward, x: torch.Tensor, look: Callable[..., None]) -> None:
    """Run, and show ``look`` each module's path, itself, its input tensors and its output, in the order they finish."""

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            inputs = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.dim() > 1]
            if isinstance(output, (tuple, list)):
                output = output[0]
            if inputs and isinstance(output, torch.Tensor) and output.dim() > 1:
                look(name, module, inputs, output)

        return hook

    handles = [m.register_forward_hook(watch(name), with_kwargs=True) for name, m in net.named_modules()]
    try:
        with plain_kernels():
            run(x)
    finally:
        for handle in handles:
            handle.remove()


def _first_nan(tensor: torch.Tensor, length: int) -> tuple[int, int] | None:
    """The first step with a NaN and the number of steps; time is the axis that is nearest to ``length`` long."""
    axis = min(range(1, tensor.dim()), key=lambda dim: (abs(tensor.shape[dim] - length), -dim))
    steps = tensor.isnan().movedim(axis, 0).flatten(1).any(1).nonzero()
    return (int(steps.min()), tensor.shape[axis]) if len(steps) else None
