"""From an adapted network to the plain one, and the tensors that an adapter puts into it.

Whatever the method, an adapter changes tensors of the base, and each change folds to

    W' = (1 + gain) ⊙ (W + B·A) + delta          A (r, K), B (C_out, r), gain (C_out,), delta like W

with W as the matrix (C_out, K) that `conv.factors` takes it for. LoRA and rslora are A and B, with the scaling in B;
AdaLoRA is the same of the singular values that its budget left;
DoRA has c = m / ‖V‖ = 1 + gain besides, a constant once it is trained; LoHa and LoKr on a convolution are an exact A
and B too, of a higher rank, while that has fewer numbers than W; ``lora_bias`` is a delta of the bias; a head in
``modules_to_save`` is a delta of each of its tensors, and so is every other method that PEFT has a ``get_delta_weight``
for. Zeros everywhere are the base itself, which is what "no adapter" is in every runtime.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.adalora.layer import AdaLoraLayer, SVDLinear
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from torch.nn.utils import parametrize

from audiolora.conv.factors import LowRank, inverse_norm, lora_delta, lora_weight, scaled, stored
from audiolora.export.manifests import TensorSpec
from audiolora.layers.adalora import RANKNUM_EPSILON, AdaLoraConv1d
from audiolora.layers.any_convolution import STOCK
from audiolora.layers.base import WeightSpaceLayer
from audiolora.layers.lora import LoraConv1d
from audiolora.layers.lycoris import LycorisConv1d
from audiolora.layers.participation import stop_watching
from audiolora.layers.quantized import packed_elsewhere, quantization_of
from audiolora.layers.weight_norm import modernise_weight_norm
from audiolora.quantizing import dequantize

_PRODUCT_RANK = 64
"""A product of a higher rank is exported as ΔW; `exporting.export` takes ranks up to this unless told otherwise."""


@dataclass(frozen=True)
class Fold:
    """What one adapter does to one tensor; None for a part that it leaves alone."""

    A: torch.Tensor | None = None
    B: torch.Tensor | None = None
    gain: torch.Tensor | None = None
    delta: torch.Tensor | None = None


@dataclass(frozen=True)
class Target:
    """A tensor of the plain network that the graph lets adapters change.

    Args:
        name: in the plain network, ``encoder.conv1.weight``.
        shape: as it is stored.
        transposed_groups: as in `conv.factors.LowRank`.
        low_rank, gain, delta: which parts have slots.
    """

    name: str
    shape: tuple[int, ...]
    transposed_groups: int | None
    low_rank: bool
    gain: bool
    delta: bool

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(C_out, C_in/g, k), or (out, in): also where the tensor is stored the other way round."""
        if self.transposed_groups is None:
            return self.shape
        in_channels, out_per_group, k = self.shape
        return out_per_group * self.transposed_groups, in_channels // self.transposed_groups, k

    def slots(self, rank: str) -> list[TensorSpec]:
        """The graph's inputs for it, in the order that `applied` takes them; ``rank`` names the free size."""
        out, columns = self.kernel_shape[0], math.prod(self.kernel_shape[1:])
        shapes: dict[str, tuple[int | str, ...]] = {}
        if self.low_rank:
            shapes |= {"lora_A": (rank, columns), "lora_B": (out, rank)}
        if self.gain:
            shapes["gain"] = (out,)
        if self.delta:
            shapes["delta"] = self.shape
        return [TensorSpec(f"{self.name}.{part}", shape, "float32") for part, shape in shapes.items()]

    def applied(self, tensor: torch.Tensor, slots: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """W' from W and the tensors of its slots, by their names."""
        if self.low_rank:
            # Not lora_weight: its sum is over W as a matrix, which a runtime would keep beside W.
            product = lora_delta(LowRank(slots[f"{self.name}.lora_A"], slots[f"{self.name}.lora_B"], 1.0))
            tensor = tensor + stored(product.view(self.kernel_shape), self.transposed_groups)
        if self.gain:
            tensor = scaled(tensor, 1 + slots[f"{self.name}.gain"], self.transposed_groups)
        return tensor + slots[f"{self.name}.delta"] if self.delta else tensor


def inner_network(model: nn.Module) -> nn.Module:
    """What PEFT is wrapped around, adapters in it; the model itself if they were injected."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def adapter_names(model: nn.Module) -> list[str]:
    """PEFT's names of the adapters in a network, in the order they were added."""
    if isinstance(model, PeftModel):
        return list(model.peft_config)
    names: dict[str, None] = {}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            names.update(dict.fromkeys(sorted(module._get_available_adapters())))
    return list(names)


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network to work on: float32, on the CPU, in evaluation mode.

    Raises:
        ValueError: a weight that another library has quantised, whose numbers no graph would have.
    """
    for path, module in model.named_modules():
        if isinstance(module, (*STOCK, nn.Linear)) and (packed := packed_elsewhere(module._parameters.get("weight"))):
            raise ValueError(
                f"{path}: its weight is {packed}, quantised by something else, and no exported graph would be equal to "
                "it; train over audiolora.quantize(model) instead, whose weights are the very ones exported, or export "
                "over the float base"
            )
    attributes = (value for module in model.modules() for value in vars(module).values())
    # The old weight norm keeps its result as an attribute, with a graph, which torch does not copy.
    computed = [value for value in attributes if isinstance(value, torch.Tensor) and not value.is_leaf]
    twin = copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})
    return twin.float().cpu().eval().requires_grad_(False)


def plain_network(twin: nn.Module) -> nn.Module:
    """The network as it was before adapters, with plain tensors for weight norm's; ``twin`` is used up.

    Args:
        twin: from `copied`.
    """
    net = inner_network(twin)
    stop_watching(net)
    for path, module in list(net.named_modules()):
        base: nn.Module | None = None
        if isinstance(module, WeightSpaceLayer):
            base = module.detach_map()
        elif isinstance(module, BaseTunerLayer):
            base = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            base = module.original_module
        if base is not None:
            parent, _, child = path.rpartition(".")
            net.get_submodule(parent)._modules[child] = base
    for module in net.modules():
        _make_plain(module)
    return net


def _make_plain(module: nn.Module) -> None:
    """Whatever is computed from other tensors (weight norm, …) becomes a tensor: in evaluation it is a constant."""
    modernise_weight_norm(module)
    if not parametrize.is_parametrized(module):
        return
    assert isinstance(module.parametrizations, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    # Not remove_parametrizations: it would take the properties off a class that the copied network shares.
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    for name, value in values.items():
        module._parameters[name] = nn.Parameter(value, requires_grad=False)


@torch.no_grad()
def fold(twin: nn.Module, adapter: str) -> dict[str, Fold]:
    """What an adapter does, by the names of the plain network's tensors.

    Args:
        twin: from `copied`, adapters in it.
        adapter: PEFT's name.

    Raises:
        ValueError: a method that does not fold to the form above; the module is named.
    """
    found: dict[str, Fold] = {}
    for path, module in inner_network(twin).named_modules():
        if isinstance(module, BaseTunerLayer):
            if module.merged:
                raise ValueError(f"{path}: adapters are merged into the base; call unmerge_adapter() before the export")
            found |= {f"{path}.{name}": part for name, part in _layer_folds(path, module, adapter).items()}
        elif isinstance(module, ModulesToSaveWrapper):
            found |= {f"{path}.{name}": part for name, part in _saved_folds(path, module, adapter).items()}
        elif isinstance(module, AuxiliaryTrainingWrapper) and adapter in module._adapters:
            raise ValueError(f"{path}: a {type(module).__name__} has no form for export; leave it out of the adapter")
    return found


def _layer_folds(path: str, layer: BaseTunerLayer, adapter: str) -> dict[str, Fold]:
    if adapter not in layer._get_available_adapters():
        return {}
    if isinstance(layer, LoraConv1d):
        return _lora_folds(layer, adapter, layer.term(adapter), layer.base_tensor())
    if isinstance(layer, LycorisConv1d):
        return {"weight": _lycoris_fold(layer, adapter)}
    base = layer.get_base_layer()
    linear = _is_linear(base) and not getattr(layer, "fan_in_fan_out", False)
    if isinstance(layer, LoraLinear) and linear:
        term = LowRank(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])
        return _lora_folds(layer, adapter, term, base.weight)
    if isinstance(layer, AdaLoraConv1d) or (isinstance(layer, SVDLinear) and linear):
        return {"weight": _adalora_fold(layer, adapter)}
    weight = getattr(base, "weight", None)
    plain = not (getattr(layer, "use_dora", {}).get(adapter) or getattr(layer, "lora_bias", {}).get(adapter))
    delta = layer.get_delta_weight(adapter) if plain and hasattr(layer, "get_delta_weight") else None
    if not isinstance(delta, torch.Tensor) or not isinstance(weight, torch.Tensor) or delta.shape != weight.shape:
        raise ValueError(
            f"{path}: this method over a {type(base).__name__} ({type(layer).__name__}) has no update of the weight "
            "that could be exported; merge it (merge_and_unload) and export the merged network"
        )
    return {"weight": Fold(delta=delta)}


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or (isinstance(module, nn.Linear) and quantization_of(module) is not None)


def _lycoris_fold(layer: LycorisConv1d, adapter: str) -> Fold:
    """ΔW as the exact product that it is, or as it stands where that has fewer numbers (depthwise kernels, large r)."""
    product = layer.as_lora(adapter)
    if product is not None:
        A, B = product
        if len(A) <= _PRODUCT_RANK and A.numel() + B.numel() < layer.base_tensor().numel():
            return Fold(A, B)
    return Fold(delta=layer.get_delta_weight(adapter))


def _lora_folds(layer: BaseTunerLayer, adapter: str, term: LowRank, weight: torch.Tensor) -> dict[str, Fold]:
    holder, gain = layer.lora_B[adapter], None
    if layer.use_dora[adapter]:
        magnitude = layer.lora_magnitude_vector[adapter].weight
        gain = magnitude.flatten() * inverse_norm(lora_weight(weight, term), term.transposed_groups) - 1
    folds = {"weight": Fold(term.A.flatten(1), term.B * term.scaling, gain)}
    if layer.lora_bias[adapter]:
        folds["bias"] = Fold(delta=holder.bias * term.scaling)
    return folds


def _adalora_fold(layer: AdaLoraLayer, adapter: str) -> Fold:
    """The triplets whose λ is not zero: A = Q, B = s·P·Λ; one of zeros where none is left (rank 0 is not run)."""
    values, P, Q = layer.lora_E[adapter].flatten(), layer.lora_B[adapter], layer.lora_A[adapter]
    kept = values.nonzero().flatten()
    if not len(kept):
        return Fold(Q.new_zeros(1, Q.shape[1]), P.new_zeros(P.shape[0], 1))
    scaling = layer.scaling[adapter] / (layer.ranknum[adapter] + RANKNUM_EPSILON)
    return Fold(Q[kept], P[:, kept] * (values[kept] * scaling))


def _saved_folds(path: str, wrapper: ModulesToSaveWrapper, adapter: str) -> dict[str, Fold]:
    if adapter not in wrapper.modules_to_save:
        return {}
    own, base = (_floats(module) for module in (wrapper.modules_to_save[adapter], wrapper.original_module))
    for name in base:
        if own[name].shape != base[name].shape:
            raise ValueError(
                f"{path}.{name}: {tuple(own[name].shape)} in adapter {adapter!r}, {tuple(base[name].shape)} in the "
                "base, and a graph has one size (an alphabet of another size is another head): give the base this head "
                "before the adapters are made, or export a bundle of its own"
            )
    return {name: Fold(delta=own[name] - base[name]) for name in base if base[name].is_floating_point()}


def _floats(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors by name, quantised weights among them."""
    if any(quantization_of(part) for part in module.modules()):
        module = dequantize(copy.deepcopy(module))
    return module.state_dict()


def targets(plain: nn.Module, folds: Iterable[Mapping[str, Fold]], *, dora: bool = False) -> list[Target]:
    """The slots that these adapters need, all of them together.

    Args:
        plain: from `plain_network`.
        folds: of each adapter.
        dora: give every low-rank target a gain, for DoRA adapters that come later.
    """
    tensors = dict(plain.named_parameters(remove_duplicate=False)) | dict(plain.named_buffers(remove_duplicate=False))
    parts: dict[str, list[Fold]] = {}
    for one in folds:
        for name, found in one.items():
            parts.setdefault(name, []).append(found)
    made = []
    for name in sorted(parts):
        if name not in tensors:
            raise ValueError(f"{name}: computed by the network's own code, so that no graph can take it as an input")
        module = plain.get_submodule(name.rpartition(".")[0])
        low_rank = any(part.A is not None for part in parts[name])
        gain = any(part.gain is not None for part in parts[name]) or (dora and low_rank)
        groups = module.groups if isinstance(module, nn.ConvTranspose1d) and low_rank else None
        delta = any(part.delta is not None for part in parts[name])
        made.append(Target(name, tuple(tensors[name].shape), groups, low_rank, gain, delta))
    return made


def slots_of(made: Iterable[Target]) -> list[TensorSpec]:
    """All slots; each target's rank is free by itself, so that no module pays for the rank of another."""
    return [slot for i, target in enumerate(made) for slot in target.slots(f"r{i}")]


def filled(slots: Iterable[TensorSpec], folds: Mapping[str, Fold]) -> dict[str, np.ndarray]:
    """An adapter as NumPy has it: a tensor for each slot, zeros for what it leaves alone (rank 1: rank 0 is not run).

    Raises:
        ValueError: the adapter changes what has no slot; all such tensors are named.
    """
    parts = {
        f"{name}.{part}": tensor
        for name, one in folds.items()
        for part, tensor in (("lora_A", one.A), ("lora_B", one.B), ("gain", one.gain), ("delta", one.delta))
        if tensor is not None
    }
    found: dict[str, np.ndarray] = {}
    for slot in slots:
        part = parts.pop(slot.name, None)
        zeros = np.zeros([1 if isinstance(size, str) else size for size in slot.shape], np.float32)
        found[slot.name] = zeros if part is None else part.detach().float().contiguous().numpy()
    if parts:
        raise ValueError(
            f"the graph has no slots for {', '.join(parts)}; export the base again with an adapter that has them "
            "(for DoRA: dora=True)"
        )
    return found
