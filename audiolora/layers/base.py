"""What every audiolora layer shares: the base's own forward, run with an adapted weight.

PEFT replaces a module by a layer that holds it as ``base_layer``. Ours adds a parametrization on the base's weight
(and its bias, where a method adapts that) that asks the layer for W' = f(W; θ), and otherwise leaves the base alone.
Whoever runs or reads the base sees W'. The alternative, a forward of our own beside the base's, has to follow every
subclass and drifts.

A method derives from `WeightSpaceLayer` and says what its map is: `adapt_weight` and, if it has one, `adapt_bias`.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.nn.utils import parametrize

from audiolora.conv.batched import Adapter, BatchedWeight
from audiolora.conv.packed import Weight
from audiolora.layers.cache import WeightCache
from audiolora.layers.mixed_batch import Samples, mixed_batch, samples_outside_of_forward
from audiolora.layers.quantized import QuantizedWeight, dtype_of, pass_codes_on, quantization_of, refuse_merge
from audiolora.layers.weight_norm import (
    assign,
    is_close,
    is_weight_norm,
    modernise_weight_norm,
    own_class,
    parametrizations_of,
    restore_old_weight_norm,
)


class WeightMap(nn.Module):
    """The parametrization: one tensor of the base as its layer wants it."""

    layer: "WeightSpaceLayer"

    def __init__(self, layer: "WeightSpaceLayer", name: str) -> None:
        super().__init__()
        # Not as a submodule: the layer holds the base, which holds this map.
        object.__setattr__(self, "layer", layer)
        self.name = name

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.layer.mapped(self.name, tensor)

    def right_inverse(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor  # assigned while merged, when forward is the identity too


class WeightSpaceLayer(nn.Module, BaseTunerLayer):
    """A layer whose adapter is a map on ``base_layer``'s weight; see the module's text.

    ``path`` is the module's name in its model, ``tied_to`` the other modules whose tensors are the same objects.
    """

    path: str
    tied_to: tuple[str, ...] = ()
    takes_packed = False
    """Whether `adapt_weight` takes a quantised base's `PackedWeight` as it is; else it gets a float tensor."""
    _old_weight_norm: bool
    _originals: dict[str, torch.Tensor]

    def adapt_weight(self, weight: Weight, adapters: list[str]) -> torch.Tensor:
        """W' of the shape of W (C_out, C_in/g, k), with these adapters on, in order."""
        raise NotImplementedError

    def merged_weight(self, weight: Weight, adapters: list[str]) -> torch.Tensor:
        """W' to be kept: as `adapt_weight` has it in evaluation, whatever the mode."""
        return self.adapt_weight(weight, adapters)

    def adapt_bias(self, bias: torch.Tensor, adapters: list[str]) -> torch.Tensor:
        """The bias with these adapters on; the same unless the method says otherwise."""
        return bias

    def factors_of(self, adapter: str) -> list[torch.Tensor]:
        """The tensors that this adapter's weight is a function of, beside the base."""
        raise NotImplementedError

    def settings_of(self, adapter: str) -> Hashable:
        """Whatever else it is a function of."""
        raise NotImplementedError

    def batched_adapter(self, adapter: str) -> Adapter | None:
        """This adapter as one of many in a batch; None if the method has no such form."""
        return None

    def attach(self) -> None:
        """Put the map onto the base's weight.

        Raises:
            ValueError: the weight is neither a parameter nor parametrized (something recomputes it, and would undo the
                map in silence), has no shape yet, is mapped by another method's layer, or is not of a floating-point
                type that a sum can be formed in.
        """
        base = self.get_base_layer()
        self._originals = {}
        self._only: tuple[str, ...] | None = None
        self._samples: Samples | None = None
        self._cache = WeightCache()
        self._order = list(base._parameters)
        self._old_weight_norm = modernise_weight_norm(base)
        if base._parameters.get("weight") is None and not parametrize.is_parametrized(base, "weight"):
            raise ValueError(
                f"{self.path}: its weight is set by something else (spectral_norm, pruning, …), and a map on "
                "it would be lost; take that off first, or use its form in torch.nn.utils.parametrizations"
            )
        if self.is_mapped("weight"):
            raise ValueError(
                f"{self.path}: it has an adapter of another method already, and audiolora puts one method on a "
                "convolution; leave the module out of this config's target_modules, or add the adapter by itself"
            )
        if isinstance(base._parameters.get("weight"), nn.UninitializedParameter):
            raise ValueError(
                f"{self.path}: its weight has no shape before the model has run; run the model once before adapting it"
            )
        dtype = dtype_of(base)
        if not dtype.is_floating_point or dtype.itemsize == 1:
            raise ValueError(
                f"{self.path}: its weight is {dtype}, and W + ΔW can be formed in float16, bfloat16, float32 or "
                "float64 only; leave the module out of target_modules, or adapt it before it is quantised"
            )
        self.map_tensor("weight")

    def map_tensor(self, name: str) -> None:
        """Put the map onto one tensor of the base; nothing happens where it is already."""
        base = self.get_base_layer()
        if self.is_mapped(name):
            return
        own_class(base)
        parameter = base._parameters.get(name)
        parametrize.register_parametrization(base, name, WeightMap(self, name), unsafe=True)
        if parameter is not None:
            # torch registers the parameter anew; accelerate's empty-weights context would send that to `meta`.
            parametrizations_of(base, name)._parameters["original"] = parameter
        pass_codes_on(base, name, True)

    def unmap_tensor(self, name: str) -> None:
        """Take the map off one tensor of the base; nothing happens where there is none."""
        base = self.get_base_layer()
        if not self.is_mapped(name) or parametrizations_of(base, name)[-1].layer is not self:  # another method's
            return
        own_class(base)
        chain = parametrizations_of(base, name)
        if len(chain) == 1:
            parameter = chain._parameters["original"]
            parametrize.remove_parametrizations(base, name, leave_parametrized=False)
            base._parameters[name] = parameter  # as in `map_tensor`
        else:
            pass_codes_on(base, name, False)
            del chain[len(chain) - 1]

    def is_mapped(self, name: str) -> bool:
        """Whether the map is on this tensor of the base."""
        base = self.get_base_layer()
        return parametrize.is_parametrized(base, name) and isinstance(parametrizations_of(base, name)[-1], WeightMap)

    def detach_map(self) -> nn.Module:
        """Take the map off and return the base with the class and the keys it came with."""
        base = self.get_base_layer()
        for name in ("weight", "bias"):
            self.unmap_tensor(name)
        if self._old_weight_norm:
            restore_old_weight_norm(base)
        for name in filter(base._parameters.__contains__, self._order):  # optimisers know parameters by their order
            base._parameters[name] = base._parameters.pop(name)
        self._originals = {}
        self._cache.clear()
        return base

    def mapped(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What the tensor ``name`` is now: adapted, or as it stands; ``tensor``: of a quantised weight the codes."""
        quantized = None if tensor.is_floating_point() else quantization_of(self.get_base_layer())
        samples = self._samples or samples_outside_of_forward(self)
        if samples is not None:
            tensor = tensor if quantized is None else quantized.unpacked(tensor)
            plain = name == "bias" or samples[0] == [None]
            return tensor if plain else BatchedWeight.make(tensor, *samples)
        adapters = self._on()
        if not adapters:
            return tensor if quantized is None else quantized.unpacked(tensor)
        if name == "bias":
            return self.adapt_bias(tensor, adapters)
        made_of = self._base_of(tensor)
        if made_of is None:
            return self.adapt_weight(tensor, adapters)
        return self._cache.get(
            [factor for adapter in adapters for factor in self.factors_of(adapter)],
            made_of,
            lambda: tuple((adapter, self.settings_of(adapter)) for adapter in adapters),
            lambda: self.adapt_weight(tensor if quantized is None else self._packed(quantized, tensor), adapters),
        )

    def _packed(self, quantized: QuantizedWeight, codes: torch.Tensor) -> Weight:
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return quantized.packed(codes) if self.takes_packed and not traced else quantized.unpacked(codes)

    def _base_of(self, tensor: torch.Tensor) -> list[torch.Tensor] | None:
        """What the weight is made of: itself, codes and scales, or weight norm's tensors; None if nobody knows."""
        chain = parametrizations_of(self.get_base_layer(), "weight")
        if len(chain) == 1:
            return [tensor]
        if len(chain) == 2 and isinstance(chain[0], QuantizedWeight):
            return [tensor, chain[0].scale]
        return list(chain.parameters()) if is_weight_norm(chain) else None

    def train(self, mode: bool = True) -> "WeightSpaceLayer":
        """As in torch; training gives the memory of the weight kept for inference back."""
        self._cache.clear()
        return super().train(mode)

    def _on(self) -> list[str]:
        """The adapters at work; this runs at every look at the weight, so it goes past properties."""
        if self._disable_adapters or self.merged_adapters or self._only == ():
            return []
        names = self.active_adapters if self._only is None else self._only
        return [name for name in names if self.has_adapter(name)]

    def has_adapter(self, name: str) -> bool:
        """Whether this layer has an adapter of that name."""
        return name in self._get_available_adapters()

    @contextmanager
    def _with_only(self, adapters: tuple[str, ...]) -> Iterator[None]:
        """The base as if just these adapters were active (``()``: none)."""
        before, self._only = self._only, adapters
        try:
            yield
        finally:
            self._only = before

    def base_tensor(self, name: str = "weight") -> torch.Tensor:
        """The base's own weight or bias, without the adapters, through weight norm if it has one."""
        with self._with_only(()):
            return getattr(self.get_base_layer(), name)

    def base_key(self, key: str) -> str:
        """What the base called its tensor ``key`` before the map: ``parametrizations.weight.original`` → ``weight``."""
        quantized = quantization_of(self.get_base_layer()) is not None
        for name in filter(self.is_mapped, ("weight", "bias")):
            if key == f"parametrizations.{name}.original" and not (quantized and name == "weight"):
                return name
        old = {f"parametrizations.weight.original{i}": part for i, part in enumerate(("weight_g", "weight_v"))}
        return old.get(key, key) if self._old_weight_norm else key

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapter_names = kwargs.pop("adapter_names", None)
        if "_is_replica" in self.__dict__:  # DataParallel's, with factors of its own, on its device
            for name in filter(self.is_mapped, ("weight", "bias")):
                object.__setattr__(parametrizations_of(self.base_layer, name)[-1], "layer", self)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if adapter_names is None or self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        return mixed_batch(self, x, *args, adapter_names=adapter_names, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write W' into the base; the base's own tensors are kept, so that `unmerge` restores them bit for bit.

        Raises:
            ValueError: ``safe_merge`` and the merged weight is not finite, another module shares the tensors, or the
                base cannot hold the merged weight (it is quantised; a spectral norm would scale it back); the base is
                then left as it was.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self._get_available_adapters()]
        if not names:
            return
        base = self.get_base_layer()
        refuse_merge(base, self.path)
        if self.tied_to:
            raise ValueError(
                f"{self.path}: its tensors are also those of {', '.join(self.tied_to)}, and merging would change that "
                "too; leave the adapter unmerged, or untie them before adapting: "
                "module.weight = nn.Parameter(module.weight.detach().clone())"
            )
        with torch.no_grad():
            merged = {"weight": self.merged_weight(self.base_tensor("weight"), names)}
            if self.is_mapped("bias"):
                merged["bias"] = self.adapt_bias(self.base_tensor("bias"), names)
            broken = [name for name, value in merged.items() if safe_merge and not value.isfinite().all()]
            if broken:
                raise ValueError(
                    f"{self.path}: NaNs detected in the merged {broken[0]}; adapter {names} seems to be broken, "
                    "take another checkpoint of it"
                )
            for name, parameter in base.named_parameters():
                self._originals.setdefault(name, parameter.detach().clone())
            self.merged_adapters.extend(names)
            self._cache.clear()
            for name, value in merged.items():
                assign(base, name, value)
            lost = [name for name, value in merged.items() if not is_close(self.base_tensor(name), value)]
            if lost and all(value.isfinite().all() for value in merged.values()):
                self.unmerge()
                raise ValueError(
                    f"{self.path}: its parametrization cannot hold the merged {lost[0]}; take it "
                    "off with torch.nn.utils.parametrize.remove_parametrizations before adapting, or leave the adapter "
                    "unmerged"
                )

    def unmerge(self) -> None:
        """Put the base's own tensors back, bit for bit."""
        with torch.no_grad():
            for name, parameter in self.get_base_layer().named_parameters():
                if name in self._originals:
                    parameter.copy_(self._originals[name])
        self._originals = {}
        self.merged_adapters.clear()

    def is_merged(self, adapter_names: list[str] | None) -> bool:
        """Whether these adapters (None: the active ones) are in the base's weight already."""
        return set(self.active_adapters if adapter_names is None else adapter_names) <= set(self.merged_adapters)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT's way out: the base itself, merged or not, as it was before adaptation."""
        if merge and not self.is_merged(adapter_names):
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        return self.detach_map()

    def get_base_layer(self) -> Any:
        """The module underneath every adapter; PEFT's name."""
        return self.base_layer.get_base_layer() if isinstance(self.base_layer, BaseTunerLayer) else self.base_layer

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules:  # torch looks among parameters and buffers first, and this runs a dozen times a step
            return modules[name]
        try:
            return super().__getattr__(name)
        except AttributeError:  # models read their convolution's settings (Whisper: conv1.stride): the base's
            if name == "base_layer" or name.startswith("_") or "base_layer" not in modules:
                raise
            value = getattr(self.base_layer, name)
            return _Parametrizations(value) if name == "parametrizations" else value


class _Parametrizations(nn.Module):
    """The base's, for who goes through modules by their names (PEFT does). Not the ``ModuleDict`` itself: torch's
    functions on parametrizations would take the layer for its base, and leave a wreck."""

    def __init__(self, chains: nn.Module) -> None:
        super().__init__()
        self._modules = chains._modules
