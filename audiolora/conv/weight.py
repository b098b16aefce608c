"""The adapted weight as a value that knows its factors.

An `AdaptedWeight` stands where a convolution's weight stands. ``conv1d`` and ``conv_transpose1d`` ask it to convolve;
to every other operation it is the plain sum. So any forward that a model writes around its convolution (padding modes,
causal subclasses, derived weights) is right by construction, and whichever ends in one of the two is fast.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from audiolora.conv.factors import LowRank, adapted_weight, inverse_norm, lora_weight
from audiolora.conv.fused import fused_conv1d
from audiolora.conv.geometry import ConvGeometry, first, resolve_padding
from audiolora.conv.lowrank import lowrank_add
from audiolora.conv.native import convolve, without_autocast
from audiolora.conv.packed import PackedWeight, Weight, unpacked

# Questions about the tensor that W and W' answer alike: no need to form the sum for them.
_METADATA = {
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
    torch.Tensor.dtype.__get__,  # type: ignore[attr-defined]
    torch.Tensor.device.__get__,
    torch.Tensor.ndim.__get__,  # type: ignore[attr-defined]
    torch.Tensor.layout.__get__,  # type: ignore[attr-defined]
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.is_floating_point,
}


class AdaptedWeight(torch.Tensor):
    """W' in parts: what a subclass makes of `dense` and `convolve`."""

    base: Weight
    transposed_groups: int | None

    def dense(self) -> torch.Tensor:
        """W' as an ordinary tensor, stored as the base is."""
        raise NotImplementedError

    def convolve(self, x: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry) -> torch.Tensor:
        """y (N, C_out, L_out) of x (N, C_in, L), both in the dtype the convolution runs in."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _METADATA:
                return func(*args, **kwargs)
            if func is F.linear:
                weight = args[1] if len(args) > 1 else kwargs["weight"]
                if isinstance(weight, FactoredWeight):
                    return weight.linear(*args, **kwargs)
            if func in _CONVOLUTIONS and not isinstance(args[0] if args else kwargs["input"], AdaptedWeight):
                return _CONVOLUTIONS[func](*args, **kwargs)
            return func(*_plain(args), **{name: _plain(value) for name, value in kwargs.items()})


class FactoredWeight(AdaptedWeight):
    """W' = c · (W + s·B·A), the same for the whole batch."""

    term: LowRank
    magnitude: torch.Tensor | None
    dropout_p: float

    @staticmethod
    def make(
        base: Weight, term: LowRank, magnitude: torch.Tensor | None = None, dropout_p: float = 0.0
    ) -> "FactoredWeight":
        """Wrap a weight and its low-rank term.

        Args:
            base: W (C_out, C_in/g, k), or (C_in, C_out/g, k) if transposed; without dropout it must not require a
                gradient. A packed one stays so until it is used.
            term: the factors.
            magnitude: DoRA's m, C_out elements, or None.
            dropout_p: dropout on the low-rank path's input (LoRA's section 4 leaves it open; PEFT's meaning).
        """
        # Of a packed weight the wrapper has shape, dtype and device, and one element of memory.
        carrier = base.blank() if isinstance(base, PackedWeight) else base.detach()
        weight = carrier.as_subclass(FactoredWeight)
        weight.base, weight.term, weight.magnitude, weight.dropout_p = base, term, magnitude, dropout_p
        weight.transposed_groups = term.transposed_groups
        return weight

    def dense(self) -> torch.Tensor:
        """The adapted weight as an ordinary tensor, differentiable in the factors.

        Raises:
            ValueError: with dropout, which acts on the input of the low-rank path and cannot be put into a weight.
        """
        if self.dropout_p:
            raise ValueError(
                f"lora_dropout={self.dropout_p} needs a convolution that is called with its own weight, but here the "
                "weight is read or transformed first; set lora_dropout=0"
            )
        return adapted_weight(self.base, self.term, self.magnitude)

    def convolve(self, x: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry) -> torch.Tensor:
        """Through the fused operator; with dropout, as two paths."""
        if not self.dropout_p:
            return fused_conv1d(x, self.base, bias, self.term, geometry, self.magnitude)
        # c · (W ∗ x + s·B·(A ∗ dropout(x))) + bias. Without a magnitude this is PEFT's LoRA to the letter. PEFT's DoRA
        # also re-runs the base on the dropped input; here the base path stays whole, as in LoRA.
        term, c = self.term, None
        if self.magnitude is not None:
            V = lora_weight(self.base, term).detach()
            c = (self.magnitude.flatten() * inverse_norm(V, term.transposed_groups))[None]
        y = convolve(x, unpacked(self.base).to(x.dtype), None, geometry)
        dropped = F.dropout(x, self.dropout_p, training=True)
        return lowrank_add(y, dropped, term.A[None], (term.B * term.scaling)[None], c, bias, geometry)

    def linear(self, input: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
        """c · (x·Wᵀ + s·dropout(x)·Aᵀ·Bᵀ) + bias, for a linear layer's weight; argument names are torch's."""
        if self.base.dim() != 2 or isinstance(input, AdaptedWeight):
            return F.linear(_plain(input), self.dense(), bias)
        term, y = self.term, F.linear(input, unpacked(self.base))
        x = F.dropout(input, self.dropout_p) if self.dropout_p else input
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(term.A.dtype)
        y = y + F.linear(F.linear(x, term.A), term.B * term.scaling).to(y.dtype)
        if self.magnitude is not None:
            y = y * (self.magnitude.flatten() * inverse_norm(lora_weight(self.base, term).detach())).to(y.dtype)
        return y if bias is None else y + bias.to(y.dtype)


def _plain(value: Any) -> Any:
    """The same value with every AdaptedWeight inside it as a plain tensor."""
    if isinstance(value, AdaptedWeight):
        return value.dense()
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value


def _conv1d(
    input: torch.Tensor,
    weight: AdaptedWeight,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """``F.conv1d`` on an AdaptedWeight; argument names are torch's."""
    if weight.transposed_groups is not None:  # a transposed convolution's weight, put to another use
        return torch.conv1d(input, weight.dense(), bias, stride, padding, dilation, groups)
    x, bias = _operands(input, weight, bias)
    x, geometry = resolve_padding(x, weight.base.shape[-1], stride, padding, dilation, groups)
    return _run(x, weight, bias, geometry, input)


def _conv_transpose1d(
    input: torch.Tensor,
    weight: AdaptedWeight,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> torch.Tensor:
    """``F.conv_transpose1d`` on an AdaptedWeight; argument names and order are torch's."""
    if weight.transposed_groups != groups:
        return torch.conv_transpose1d(input, weight.dense(), bias, stride, padding, output_padding, groups, dilation)
    x, bias = _operands(input, weight, bias)
    geometry = ConvGeometry(first(stride), first(padding), first(dilation), groups, True, first(output_padding))
    return _run(x, weight, bias, geometry, input)


_CONVOLUTIONS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.conv1d: _conv1d,
    torch.conv_transpose1d: _conv_transpose1d,
}


def _operands(
    input: torch.Tensor, weight: AdaptedWeight, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x (N, C_in, L) and the bias as the convolution takes them, under autocast too.

    Raises:
        TypeError: input and weight differ in dtype.
    """
    device = input.device.type
    if torch.is_autocast_enabled(device):
        # What autocast does to conv1d itself; the adapted weight is summed in float32 and cast inside the operator.
        dtype = torch.get_autocast_dtype(device)
        input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
    elif input.dtype != weight.base.dtype:
        raise TypeError(
            f"the input is {input.dtype} and the convolution's weight {weight.base.dtype}; cast one, or use autocast"
        )
    return (input if input.dim() == 3 else input.unsqueeze(0)), bias


def _run(
    x: torch.Tensor, weight: AdaptedWeight, bias: torch.Tensor | None, geometry: ConvGeometry, input: torch.Tensor
) -> torch.Tensor:
    with without_autocast(x):
        y = weight.convolve(x, bias, geometry)
    return y if input.dim() == 3 else y.squeeze(0)
