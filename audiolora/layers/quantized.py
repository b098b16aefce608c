"""A weight that is kept in 8 or 4 bits, under a parametrization: whoever reads ``module.weight`` sees it in float.

The codes take the place of the parametrization's ``original`` and the scales are a buffer of it, so that ``state_dict``
holds both (``conv.weight`` becomes ``conv.parametrizations.weight.original`` and ``….weight.0.scale``) and no float
weight is kept. Scales stay float32 in ``model.half()``: what was trained on is then bit for bit what is exported.

Under an adapter the codes go past the parametrization to our layer, which unpacks them when it forms W', and only then:
a weight kept for inference (`layers.cache`) is a function of the codes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from audiolora.conv.packed import PackedWeight
from audiolora.conv.quantized import dequantize_4bit, dequantize_int8, quantize_4bit, quantize_int8
from audiolora.layers.weight_norm import modernise_weight_norm, own_class, parametrizations_of

KINDS = {8: ("int8",), 4: ("nf4", "int4")}
"""By bits, the default first."""


class QuantizedWeight(nn.Module):
    """The parametrization from codes to W, and what belongs to it.

    Args:
        weight: W as its module stores it, for its shape and dtype.
        scale: its scales, float32.
        kind: ``"int8"``, ``"nf4"`` or ``"int4"``; formulas in `conv.quantized`.
        group_size: values that share a scale; of 4 bits alone.
        transposed_groups: g of a transposed convolution; else None.

    ``passed_on`` is True while an adapter's map follows, which takes the codes themselves.
    """

    scale: torch.Tensor

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, kind: str, group_size: int, transposed_groups: int | None
    ) -> None:
        super().__init__()
        self.kind, self.group_size, self.transposed_groups = kind, group_size, transposed_groups
        self.shape, self.dtype = weight.shape, weight.dtype
        self.passed_on = False
        self.register_buffer("scale", scale)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return codes if self.passed_on else self.unpacked(codes)

    def unpacked(self, codes: torch.Tensor) -> torch.Tensor:
        """W: a new tensor of the module's dtype."""
        if self.kind == "int8":
            return dequantize_int8(codes, self.scale, self.transposed_groups, self.dtype)
        form = (self.kind, self.group_size, self.transposed_groups, self.dtype)
        return dequantize_4bit(codes, self.scale, self.shape, *form)

    def packed(self, codes: torch.Tensor) -> PackedWeight:
        """W for `conv.fused` to unpack."""
        return PackedWeight(self.shape, self.dtype, codes.device, lambda: self.unpacked(codes))

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(  # torch takes that for "none" when the parametrization is made
            f"a weight in {self.kind} takes no float weight; call audiolora.dequantize(model) first"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "QuantizedWeight":
        """As in torch, but of a change of dtype W's alone follows: rounded scales would be another weight."""
        before = self.scale
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=before.device)).dtype
        if self.scale.dtype != before.dtype:
            self.scale = before.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        return self.kind + (f", group_size={self.group_size}" if self.kind != "int8" else "")


def quantization_of(module: nn.Module) -> QuantizedWeight | None:
    """What keeps this module's weight in few bits, adapted or not; None if nothing does."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    first = parametrizations_of(module, "weight")[0]
    return first if isinstance(first, QuantizedWeight) else None


def packed_elsewhere(weight: torch.Tensor | None) -> str | None:
    """What another library keeps a weight in ("torch.int8", "torchao's Int8Tensor"); None if it is plain floats."""
    if weight is None:
        return None
    kind = type(weight.data)  # torchao's tensors say that they are float32
    if kind.__module__.partition(".")[0] == "torchao":
        return f"torchao's {kind.__name__}"
    return None if weight.is_floating_point() and weight.dtype.itemsize > 1 else str(weight.dtype)


def pass_codes_on(module: nn.Module, name: str, on: bool) -> None:
    """Whether an adapter's map on the tensor ``name`` takes the codes themselves; nothing if there are none."""
    quantization = quantization_of(module) if name == "weight" else None
    if quantization is not None:
        quantization.passed_on = on


def codes_of(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes and scales of a quantised module: the tensors themselves."""
    quantization = quantization_of(module)
    assert quantization is not None, "a quantised module"
    codes: Any = parametrizations_of(module, "weight").original
    return codes, quantization.scale


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a module's weight, adapted, parametrized, quantised or not.

    The weight itself is not read: of a spectrally normed one that takes a step of its power iteration.
    """
    quantization, weight = quantization_of(module), module._parameters.get("weight")
    if quantization is not None:
        return quantization.dtype
    return (next(parametrizations_of(module, "weight").parameters()) if weight is None else weight).dtype


def refuse_merge(module: nn.Module, path: str) -> None:
    """Nothing, unless the weight is quantised.

    Raises:
        ValueError: it is: rounded to its codes W + ΔW would be another function than the one that was trained.
    """
    quantization = quantization_of(module)
    if quantization is not None:
        raise ValueError(
            f"{path}: its weight is kept in {quantization.kind}, which cannot hold the merged weight; call "
            "audiolora.dequantize(model) first (float weights, of which the merged ones may be quantised anew, at the "
            "cost of rounding the adapter too), or leave the adapter unmerged"
        )


@torch.no_grad()
def quantize_weight(module: nn.Module, kind: str, group_size: int) -> None:
    """Replace the weight of a convolution or linear map by its codes; weight norm is folded in, adapters stay."""
    _fold_weight_norm(module)
    adapted = parametrize.is_parametrized(module, "weight")
    weight = parametrizations_of(module, "weight")._parameters["original"] if adapted else module._parameters["weight"]
    assert weight is not None, "a weight of its own"
    groups = module.groups if isinstance(module, nn.ConvTranspose1d) else None
    if kind == "int8":
        codes, scale = quantize_int8(weight, groups)
    else:
        codes, scale = quantize_4bit(weight, kind, group_size, groups)
    quantization = QuantizedWeight(weight, scale, kind, group_size, groups)
    if adapted:
        parametrizations_of(module, "weight").insert(0, quantization)
        quantization.passed_on = True
    else:
        own_class(module)
        parametrize.register_parametrization(module, "weight", quantization, unsafe=True)
    chain: Any = parametrizations_of(module, "weight")
    del chain._parameters["original"]
    chain.register_buffer("original", codes)


@torch.no_grad()
def dequantize_weight(module: nn.Module) -> None:
    """The float weight as a frozen parameter in place of its codes; adapters on it stay."""
    quantization, chain = quantization_of(module), parametrizations_of(module, "weight")
    assert quantization is not None, "a quantised module"
    weight = nn.Parameter(quantization.unpacked(chain.original), requires_grad=False)
    del chain._buffers["original"]
    chain._parameters["original"] = weight
    if len(chain) > 1:
        del chain[0]
        return
    own_class(module)
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    # As in `base.map_tensor`, and first, as the constructor had it: optimisers know parameters by their order.
    module._parameters.pop("weight")
    module._parameters = {"weight": weight, **module._parameters}


def _fold_weight_norm(module: nn.Module) -> None:
    """A frozen weight norm gives a constant; that is what is quantised."""
    modernise_weight_norm(module)
    if not parametrize.is_parametrized(module, "weight"):
        return
    chain: Any = parametrizations_of(module, "weight")
    if type(chain[0]) is not parametrizations._WeightNorm:
        return
    weight = nn.Parameter(chain[0](chain.original0, chain.original1).detach(), requires_grad=False)
    if len(chain) == 1:
        own_class(module)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        module._buffers.pop("weight", None)  # where torch puts a frozen one
        module._parameters.pop("weight", None)
        module._parameters = {"weight": weight, **module._parameters}
        return
    del chain._parameters["original0"], chain._parameters["original1"], chain[0]
    chain._parameters["original"], chain.is_tensor, chain.ntensors = weight, True, 1
    chain[-1].layer._old_weight_norm = False
