"""The adapted weight as a value that knows its factors.

A `FactoredWeight` stands where a convolution's weight stands. ``conv1d`` consumes it through the fused operator; to
every other operation it is the plain sum. So any forward that a model writes around its convolution (padding modes,
causal subclasses, derived weights) is right by construction, and whichever ends in ``conv1d`` is fast.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from audiolora.conv.factors import LowRank, dora_scale, lora_weight
from audiolora.conv.fused import fused_conv1d
from audiolora.conv.geometry import resolve_padding

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


class FactoredWeight(torch.Tensor):
    """W' = c · (W + s·B·A) (C_out, C_in/g, k), kept as its parts until something other than ``conv1d`` asks for it."""

    base: torch.Tensor
    term: LowRank
    magnitude: torch.Tensor | None
    dropout_p: float

    @staticmethod
    def make(
        base: torch.Tensor, term: LowRank, magnitude: torch.Tensor | None = None, dropout_p: float = 0.0
    ) -> "FactoredWeight":
        """Wrap a weight and its low-rank term.

        Args:
            base: W (C_out, C_in/g, k); without dropout it must not require a gradient.
            term: the factors.
            magnitude: DoRA's m, C_out elements, or None.
            dropout_p: dropout on the low-rank path's input (LoRA's section 4 leaves it open; PEFT's meaning).
        """
        weight = base.detach().as_subclass(FactoredWeight)
        weight.base, weight.term, weight.magnitude, weight.dropout_p = base, term, magnitude, dropout_p
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

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _METADATA:
                return func(*args, **kwargs)
            if func is torch.conv1d and not isinstance(args[0] if args else kwargs["input"], FactoredWeight):
                return _conv1d(*args, **kwargs)
            return func(*_plain(args), **{name: _plain(value) for name, value in kwargs.items()})


def adapted_weight(base: torch.Tensor, term: LowRank, magnitude: torch.Tensor | None = None) -> torch.Tensor:
    """W' (C_out, C_in/g, k) in W's dtype: LoRA, or DoRA where a magnitude is given."""
    V = lora_weight(base, term)
    if magnitude is None:
        return V
    return V * dora_scale(V, magnitude).to(V.dtype).view(-1, *[1] * (V.dim() - 1))


def _plain(value: Any) -> Any:
    """The same value with every FactoredWeight inside it as a plain tensor."""
    if isinstance(value, FactoredWeight):
        return value.dense()
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value


def _conv1d(
    input: torch.Tensor,
    weight: FactoredWeight,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """``F.conv1d`` on a FactoredWeight; argument names are torch's."""
    device = input.device.type
    autocast = torch.is_autocast_enabled(device)
    if autocast:
        # What autocast does to conv1d itself; the adapted weight is summed in float32 and cast inside the operator.
        dtype = torch.get_autocast_dtype(device)
        input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
    elif input.dtype != weight.base.dtype:
        raise TypeError(
            f"the input is {input.dtype} and the convolution's weight {weight.base.dtype}; cast one, or use autocast"
        )
    x = input if input.dim() == 3 else input.unsqueeze(0)
    with torch.autocast(device_type=device, enabled=False):
        x, geometry = resolve_padding(x, weight.base.shape[-1], stride, padding, dilation, groups)
        if weight.dropout_p:
            y = _conv1d_with_dropout(x, weight, bias, geometry)
        else:
            scale = None
            if weight.magnitude is not None:
                V = lora_weight(weight.base, weight.term).detach()
                scale = dora_scale(V, weight.magnitude)
            y = fused_conv1d(x, weight.base, bias, weight.term, geometry, scale)
    return y if input.dim() == 3 else y.squeeze(0)


def _conv1d_with_dropout(x: torch.Tensor, weight: FactoredWeight, bias: torch.Tensor | None, g: Any) -> torch.Tensor:
    """c · (W ∗ x + s·B·(A ∗ dropout(x))) + bias: dropout acts on the low-rank path only.

    Without a magnitude this is PEFT's LoRA to the letter. PEFT's DoRA also re-runs the base on the dropped input;
    here the base path stays whole, as in LoRA, and no second convolution runs.
    """
    term, n = weight.term, x.shape[0]
    dropped = F.dropout(x, weight.dropout_p, training=True)
    dropped = dropped.reshape(n * g.groups, x.shape[1] // g.groups, x.shape[2])
    z = F.conv1d(dropped, term.A.to(x.dtype), None, g.stride, g.padding, g.dilation)
    B = (term.B * term.scaling).to(x.dtype).view(1, g.groups, -1, term.B.shape[1])
    low = (B @ z.view(n, g.groups, *z.shape[1:])).flatten(1, 2)
    y = F.conv1d(x, weight.base.to(x.dtype), None, g.stride, g.padding, g.dilation, g.groups) + low
    if weight.magnitude is not None:
        V = lora_weight(weight.base, term).detach()
        y = y * dora_scale(V, weight.magnitude).to(y.dtype)[:, None]
    return y if bias is None else y + bias[:, None]
