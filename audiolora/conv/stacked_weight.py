"""Weights and biases that differ from device to device, standing where one weight and one bias stand.

A forward reads its module's ``weight`` and ``bias`` and hands them to ``conv1d``, ``conv_transpose1d`` or ``linear``,
which ask these tensors for the result: `StackedWeight` for a weight, `StackedBias` for a bias (of a normalisation too).
The batch holds the same number of samples of each device, device after device. Any other use says so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from audiolora.conv.batched import PerSampleWeightError
from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.native import without_autocast
from audiolora.conv.plan import Path, gradient_path
from audiolora.conv.stacked import Stack, each_conv1d, stacked_conv1d
from audiolora.conv.weight import AdaptedWeight


class _Stacked(AdaptedWeight):
    """What a weight and a bias have in common."""

    base: torch.Tensor
    devices: int
    samples: int
    """In the whole batch."""

    def dense(self) -> torch.Tensor:
        raise PerSampleWeightError(
            "a tensor for each device is not one tensor, and here it is read, transformed or handed to an operation "
            "that a fleet has no form of (it has conv1d, conv_transpose1d, linear, and the biases of batch_norm, "
            "layer_norm and group_norm); leave the module out of target_modules and modules_to_save, or set bias='none'"
        )

    def check_batch(self, x: torch.Tensor, least: int) -> torch.Tensor:
        """x, if its first dimension is the fleet's batch.

        Raises:
            PerSampleWeightError: it is not.
        """
        if x.dim() < least or (x.shape[0] != self.samples and self.devices > 1):
            raise PerSampleWeightError(
                f"the batch has {self.samples} samples of {self.devices} devices, and a module was called with "
                f"{tuple(x.shape)}: with an adapter for each device its first dimension must be the batch; leave the "
                "module out of target_modules"
            )
        return x


class StackedWeight(_Stacked):
    """A weight for each device: low-rank terms over a shared one, or weights of their own."""

    stack: Stack | None
    own: torch.Tensor | None

    @staticmethod
    def make(
        base: torch.Tensor, adapted: Stack | torch.Tensor, samples: int, transposed_groups: int | None = None
    ) -> "StackedWeight":
        """Wrap a weight.

        Args:
            base: W, stored as its module stores it.
            adapted: the factors of n devices, or their weights (n, *W.shape).
            samples: in the batch, the same number of each device.
            transposed_groups: as in `Stack`, for weights of their own.
        """
        weight = base.detach().as_subclass(StackedWeight)
        stacked = isinstance(adapted, Stack)
        weight.stack, weight.own = (adapted, None) if stacked else (None, adapted)  # type: ignore[assignment]
        weight.base, weight.devices, weight.samples = base, len(adapted), samples
        weight.transposed_groups = adapted.transposed_groups if isinstance(adapted, Stack) else transposed_groups
        return weight

    def convolve(self, x: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry) -> torch.Tensor:
        self.check_batch(x, 3)
        if self.stack is not None:
            return stacked_conv1d(x, self.base, bias, self.stack, geometry)
        assert self.own is not None, "a stacked weight is one or the other"
        return each_conv1d(x, self.own, bias, geometry)

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """y (n·m, …, out) of x (n·m, …, in)."""
        self.check_batch(x, 2)
        flat = x.reshape(self.devices, -1, x.shape[-1])
        if self.stack is None:
            assert self.own is not None, "a stacked weight is one or the other"
            y = torch.bmm(flat, self.own.to(x.dtype).mT)
        else:
            y = _linear_of(flat, self.base, self.stack)
        if bias is not None:
            bias = bias.to(y.dtype)
            y = y + (bias[:, None] if bias.dim() == 2 else bias)
        return y.view(*x.shape[:-1], y.shape[-1])

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear or func in _CONVOLUTIONS:
            args, kwargs = _unwrapped_bias(args, kwargs)
        if func is F.linear and isinstance(_argument(args, kwargs, 1, "weight"), StackedWeight):
            with torch._C.DisableTorchFunctionSubclass():
                return _linear(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)


class StackedBias(_Stacked):
    """A bias for each device."""

    of_devices: torch.Tensor

    @staticmethod
    def make(base: torch.Tensor, values: torch.Tensor, samples: int) -> "StackedBias":
        """Wrap a bias (C,), of which ``values`` (n, C) has one for each device."""
        bias = base.detach().as_subclass(StackedBias)
        bias.base, bias.of_devices, bias.transposed_groups = base, values, None
        bias.devices, bias.samples = values.shape[0], samples
        return bias

    def add_to(self, y: torch.Tensor, axis: int) -> torch.Tensor:
        """y (n·m, …) plus each device's bias along ``axis``."""
        self.check_batch(y, 2)
        shape = [1] * y.dim()
        shape[axis] = -1
        folded = y.view(self.devices, -1, *y.shape[1:])
        return (folded + self.of_devices.to(y.dtype).view(self.devices, 1, *shape[1:])).view(y.shape)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _BIAS and not isinstance(_argument(args, kwargs, 0, "input"), AdaptedWeight):
            position, axis = _BIAS[func]
            bias = _argument(args, kwargs, position, "bias")
            if isinstance(bias, StackedBias):
                without = (*args[:position], None, *args[position + 1 :]) if len(args) > position else args
                if len(args) <= position:
                    kwargs = {**kwargs, "bias": None}
                return bias.add_to(func(*without, **kwargs), axis)
        return super().__torch_function__(func, types, args, kwargs)


_CONVOLUTIONS = (torch.conv1d, torch.conv_transpose1d)

# Where these take their bias, and along which axis of the result they add it.
_BIAS: dict[Any, tuple[int, int]] = {
    torch.conv1d: (2, 1),
    torch.conv_transpose1d: (2, 1),
    torch.conv2d: (2, 1),
    F.linear: (2, -1),
    F.batch_norm: (4, 1),
    F.layer_norm: (3, -1),
    F.group_norm: (3, 1),
}


def _argument(args: Sequence[Any], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _unwrapped_bias(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """The same call with the values (n, C) of a stacked bias in its place."""
    if len(args) > 2 and isinstance(args[2], StackedBias):
        return (*args[:2], args[2].of_devices, *args[3:]), kwargs
    if isinstance(kwargs.get("bias"), StackedBias):
        return args, {**kwargs, "bias": kwargs["bias"].of_devices}
    return args, kwargs


def _linear(input: torch.Tensor, weight: StackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``F.linear`` on a StackedWeight; argument names are torch's."""
    device = input.device.type
    if torch.is_autocast_enabled(device):
        input = input.to(torch.get_autocast_dtype(device))
    elif input.dtype != weight.base.dtype:
        raise TypeError(f"the input is {input.dtype} and the weight {weight.base.dtype}; cast one, or use autocast")
    with without_autocast(input):
        return weight.linear(input, bias)


def _linear_of(x: torch.Tensor, W: torch.Tensor, stack: Stack) -> torch.Tensor:
    """y (n, T, out) of x (n, T, in) by W (out, in) and its low-rank terms, by autograd; forms as for a convolution."""
    if gradient_path(W.shape, stack.A.shape[1], ConvGeometry()) is Path.DENSE:
        return torch.bmm(x, stack.weights(W).flatten(2).to(x.dtype).mT)
    z = torch.bmm(x, stack.A.to(x.dtype).mT)
    y = torch.baddbmm(F.linear(x, W.to(x.dtype)), z, stack.B.to(x.dtype).mT, alpha=stack.scaling)
    if stack.magnitude is None:
        return y
    return y * (stack.magnitude * stack.inverse_norms(W)).to(x.dtype)[:, None]
