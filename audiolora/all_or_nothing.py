"""An injection, a load or a merge either comes to its end or leaves the model as it was.

PEFT replaces, fills and merges one module after the other; an error at the fifth leaves four behind. While audiolora is
enabled these functions stand where PEFT's own are looked up (`audiolora.integration`) and call them.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, NoMatchingPeftModuleError, PeftModel
from peft.tuners.loha import LoHaModel
from peft.tuners.lokr import LoKrModel
from peft.tuners.lora import LoraModel
from peft.tuners.mixed import MixedModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, onload_layer
from torch import nn
from torch.nn.utils import parametrize

from audiolora.layers.base import WeightSpaceLayer
from audiolora.layers.lora import LoraConv1d
from audiolora.layers.participation import stop_watching
from audiolora.layers.quantized import quantization_of
from audiolora.layers.starts import CORRECTING, kind_of

_from_pretrained = PeftModel.from_pretrained.__func__
_load_adapter = PeftModel.load_adapter


@contextmanager
def undone_on_error(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """Whatever the block puts into the model is taken out again if it raises.

    That is: weights that a start was taken out of, adapted or wrapped modules, an adapter of this name in layers that
    were there, maps on biases, buffers that a parametrization changes when it is read, and ``requires_grad``.

    Args:
        model: any network, adapted or not.
        adapter_name: what the block adds.
    """
    modules = dict(model.named_modules())
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # .data: a correction puts another storage there (PEFT's and ours); what stands here costs no copy
    weights = [(p, p.data) for p in model.parameters() if not isinstance(p, nn.UninitializedParameter)]
    buffers = [(b, b.clone()) for name, b in model.named_buffers() if "parametrizations" in name and _may_change(b)]
    layers = {id(module): module for module in modules.values() if isinstance(module, BaseTunerLayer)}
    had = {key for key, layer in layers.items() if adapter_name in _adapters(layer)}
    with_bias = {key for key, layer in layers.items() if _bias_is_mapped(layer)}
    try:
        yield
    except Exception:
        stop_watching(model)
        for parameter, data in weights:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
        for layer in [module for module in model.modules() if isinstance(module, WeightSpaceLayer)]:
            if id(layer) not in layers:
                layer.detach_map()
        for name, module in modules.items():  # a parent comes before its children
            parent, _, child = name.rpartition(".")
            if name and model.get_submodule(parent)._modules[child] is not module:
                model.get_submodule(parent)._modules[child] = module
        for key, layer in layers.items():
            if key not in had and adapter_name in _adapters(layer):
                layer.delete_adapter(adapter_name)
            if isinstance(layer, WeightSpaceLayer) and key not in with_bias:
                layer.unmap_tensor("bias")
        for parameter, requires_grad in trainable:
            parameter.requires_grad = requires_grad  # the method would refuse a lazy module's
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        raise


def _may_change(buffer: torch.Tensor) -> bool:
    return not buffer.is_meta and buffer.is_floating_point()  # a quantised weight's codes do not


def _adapters(layer: BaseTunerLayer) -> set[str]:
    return {name for holder in layer.adapter_layer_names + layer.other_param_names for name in getattr(layer, holder)}


def _bias_is_mapped(layer: BaseTunerLayer) -> bool:
    return isinstance(layer, WeightSpaceLayer) and layer.is_mapped("bias")


def inject_adapter(self: BaseTuner, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
    """``BaseTuner.inject_adapter``: every way to a new adapter comes through here.

    Raises:
        ValueError: what PEFT or a layer refuses; the model is then as it was, and the adapter unknown to it.
    """
    known = set(self.peft_config) - {adapter_name}
    written = _written_in_place(self, model, self.peft_config.get(adapter_name))
    try:
        with undone_on_error(model, adapter_name):
            try:
                BaseTuner.inject_adapter(self, model, adapter_name, *args, **kwargs)
            except NoMatchingPeftModuleError as error:
                raise NoMatchingPeftModuleError(f"{error} {_what_it_has(model)}") from None
            _note_ties(model)
            _check_ties(model, self.peft_config.get(adapter_name))
            ours = any(isinstance(module, WeightSpaceLayer) for module in model.modules())
            self.__class__ = WEIGHT_SPACE.get(type(self), type(self)) if ours else type(self)
    except Exception:
        for parameter, value in written:
            parameter.data.copy_(value)
        if known:  # with no other adapter the tuner itself is given up
            self.peft_config.pop(adapter_name, None)
        raise


def _written_in_place(tuner: BaseTuner, model: nn.Module, config: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Copies of the weights that PEFT's OLoRA writes to; its other starts, and ours, put another storage there."""
    if not isinstance(config, LoraConfig) or kind_of(config) != "olora":
        return []
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets = [linear for name, linear in linears.items() if tuner._check_target_module_exists(config, name)]
    return [(linear.weight, linear.weight.detach().clone()) for linear in targets if not linear.weight.is_meta]


def _what_it_has(model: nn.Module) -> str:
    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.Linear, nn.Embedding, nn.Conv2d, nn.Conv3d, BaseTunerLayer)
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    fitting = [n for n, module in model.named_modules() if isinstance(module, kinds) and not n.startswith(inside)]
    names = {name.rpartition(".")[2] for name in fitting if name}
    return f"{type(model).__name__} has modules named {', '.join(sorted(names)) or '(none that can be adapted)'}."


def _note_ties(model: nn.Module) -> None:
    """Tell each of our layers which other modules hold the very tensors that a merge would write to."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(name)
    for path, layer in model.named_modules():
        if not isinstance(layer, WeightSpaceLayer):
            continue
        chains = [chain for name, chain in layer.get_base_layer().parametrizations.items() if layer.is_mapped(name)]
        names = {name for chain in chains for p in chain.parameters() for name in owners[id(p)]}
        paths = {name.partition(".parametrizations.")[0].removesuffix(".base_layer") for name in names}
        layer.tied_to = tuple(sorted(paths - {path}))


def _check_ties(model: nn.Module, config: Any) -> None:
    """A start that is taken out of a weight changes every module that has this weight."""
    if not isinstance(config, LoraConfig) or kind_of(config) not in CORRECTING:
        return
    for layer in (module for module in model.modules() if isinstance(module, LoraConv1d) and module.tied_to):
        raise ValueError(
            f"{layer.path}: init_lora_weights={config.init_lora_weights!r} changes its weight, which is also that of "
            f"{', '.join(layer.tied_to)}; untie them before adapting, or take init_lora_weights=True"
        )


@functools.wraps(_load_adapter, assigned=(), updated=())  # for whoever asks for its signature
def load_adapter(
    self: PeftModel, model_id: str | os.PathLike[str], adapter_name: str, *args: Any, **kwargs: Any
) -> Any:
    """``PeftModel.load_adapter``; an adapter that does not fit is not added.

    Raises:
        ValueError: it does not fit (`audiolora.fitting`).
    """
    new = adapter_name not in self.peft_config
    try:
        with undone_on_error(self, adapter_name):
            return _load_adapter(self, model_id, adapter_name, *args, **kwargs)
    except Exception:
        if new:
            self.peft_config.pop(adapter_name, None)
        raise


@functools.wraps(_from_pretrained, assigned=(), updated=())
def from_pretrained(
    cls: type[PeftModel], model: nn.Module, model_id: Any, adapter_name: str = "default", *args: Any, **kwargs: Any
) -> PeftModel:
    """``PeftModel.from_pretrained``; a model that the adapter does not fit is as it was.

    Raises:
        ValueError: it does not fit (`audiolora.fitting`).
    """
    had_config = hasattr(model, "peft_config")
    try:
        with undone_on_error(model, adapter_name):
            return _from_pretrained(cls, model, model_id, adapter_name, *args, **kwargs)
    except Exception:
        if not had_config:
            model.__dict__.pop("peft_config", None)
        raise


@contextmanager
def unmerged_on_error(model: nn.Module) -> Iterator[None]:
    """Layers that the block merges are unmerged again if it raises; ours bit for bit, PEFT's by subtraction."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [list(layer.merged_adapters) for layer in layers]
    try:
        yield
    except Exception:
        for layer, names in zip(layers, before, strict=True):
            if list(layer.merged_adapters) != names:
                layer.unmerge()
                if names:
                    layer.merge(adapter_names=names)
        raise


def refuse_lost_merges(model: nn.Module) -> None:
    """Whether PEFT's own layers can merge, which write to ``weight.data``: a computed weight forgets that in silence.

    Raises:
        ValueError: one of them lies over a parametrized weight.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or isinstance(layer, WeightSpaceLayer):
            continue
        base: Any = layer.get_base_layer()
        if parametrize.is_parametrized(base, "weight") and quantization_of(base) is None:
            raise ValueError(
                f"{name}: PEFT's {type(layer).__name__} cannot merge into a weight that is computed "
                f"({type(base.parametrizations.weight[0]).__name__.lstrip('_')}), the update would be lost; leave "
                "the adapter unmerged, or adapt this module with LoRA, DoRA or AdaLoRA while audiolora is enabled"
            )


class WeightSpaceTuner(BaseTuner):
    """What a tuner of PEFT's becomes once our layers are in it, whether audiolora is enabled or not."""

    inject_adapter = inject_adapter

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """PEFT's; where one of our layers is unloaded the base goes back, and no weight is assigned to itself: that
        would rewrite weight norm's g and v."""
        if isinstance(child, WeightSpaceLayer) and child.get_base_layer() is new_module:
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """PEFT's, of all layers or of none.

        Raises:
            ValueError: a merge that cannot be exact.
        """
        _note_ties(self.model)
        with unmerged_on_error(self.model):
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """PEFT's, with every layer merged before any is unloaded, ours first: a merge may be refused."""
        with unmerged_on_error(self.model), warnings.catch_warnings():
            if merge:
                self._check_merge_allowed()
                _note_ties(self.model)
                for layer in (module for module in self.model.modules() if isinstance(module, WeightSpaceLayer)):
                    if not layer.is_merged(adapter_names):
                        with onload_layer(layer):
                            layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
                warnings.filterwarnings("ignore", message="All adapters are already merged")  # by the lines above
                super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
            unloaded = super()._unload_and_optionally_merge(
                merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
            )
            stop_watching(unloaded)  # our hooks would go into its pickles, and torch.jit.script takes none
            return unloaded


class WeightSpaceLoraModel(WeightSpaceTuner, LoraModel):
    """PEFT's ``LoraModel`` with our layers in it."""


class WeightSpaceLoHaModel(WeightSpaceTuner, LoHaModel):
    """PEFT's ``LoHaModel`` with our layers in it."""


class WeightSpaceLoKrModel(WeightSpaceTuner, LoKrModel):
    """PEFT's ``LoKrModel`` with our layers in it."""


class WeightSpaceMixedModel(WeightSpaceTuner, MixedModel):
    """PEFT's ``MixedModel``, of several methods, with our layers in it."""

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, WeightSpaceLayer) and child.get_base_layer() is new_module:
            child.detach_map()  # PEFT's unloading asks each layer to; its mixed model's takes the base by itself
        super()._replace_module(parent, child_name, new_module, child)


WEIGHT_SPACE: dict[type[BaseTuner], type[BaseTuner]] = {
    LoraModel: WeightSpaceLoraModel,
    LoHaModel: WeightSpaceLoHaModel,
    LoKrModel: WeightSpaceLoKrModel,
    MixedModel: WeightSpaceMixedModel,
}
"""PEFT's tuners that our layers go into, and what each becomes then."""
