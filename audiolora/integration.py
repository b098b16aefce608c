"""Where PEFT gets its layers: ``enable()`` makes it put ours where a 1-D convolution stands.

PEFT asks a chain of dispatchers for a layer and looks the last one up by name at each call; that name is what we
rebind. LoHa and LoKr have no such chain: there the method of PEFT's model class that makes one layer is ours. So every
injection goes through here: ``get_peft_model``, ``add_adapter``, ``PeftModel.from_pretrained``.
A few more names are rebound with it (`_REBOUND`): what PEFT leaves half done after an error is then undone, PEFT reads
the files that it must not read without us, what was adapted is watched until the first forward, and functions of PEFT
that know its own layers alone know ours (`audiolora.layers.peft_methods`). Importing audiolora changes nothing.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel, peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.loha import LoHaModel
from peft.tuners.lokr import LoKrModel
from peft.tuners.lora import model as lora_model
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, save_and_load
from peft.utils.other import get_pattern_key
from torch import nn

from audiolora import all_or_nothing, fitting
from audiolora.allocation import WeightSpaceAdaLoraModel, validate_adapter_state_dict
from audiolora.layers import eva
from audiolora.layers.any_convolution import STOCK, channels_of, has_convolution_weight
from audiolora.layers.interchange import CONFIGS
from audiolora.layers.loha import LoHaConv1d
from audiolora.layers.lokr import LoKrConv1d
from audiolora.layers.lora import LoraConv1d
from audiolora.layers.lora_linear import LoraLinear, is_computed_linear
from audiolora.layers.lycoris import LycorisConv1d
from audiolora.layers.lycoris_linear import compilable
from audiolora.layers.participation import stop_watching, watch_participation
from audiolora.layers.peft_methods import REPLACEMENTS
from audiolora.layers.quantized import packed_elsewhere
from audiolora.layers.quantized_linear import refuses_merge

_peft_dispatch_default = lora_model.dispatch_default
_peft_inject_adapter = BaseTuner.inject_adapter
_peft_merge_adapter = BaseTuner.merge_adapter
_peft_unload_and_optionally_merge = BaseTuner._unload_and_optionally_merge


def _dispatch(
    target: nn.Module, adapter_name: str, config: Any, parameter_name: str | None = None, **kwargs: Any
) -> Any:
    base = target.get_base_layer() if hasattr(target, "get_base_layer") else target  # type: ignore[operator]
    if parameter_name is None and isinstance(base, (nn.Conv1d, nn.ConvTranspose1d)):
        return LoraConv1d(target, adapter_name, config=config, **kwargs)
    if parameter_name is None and is_computed_linear(base):
        return LoraLinear(target, adapter_name, config=config, **kwargs)
    name = kwargs.get("target_name", "")
    layer = _peft_dispatch_default(target, adapter_name, config=config, parameter_name=parameter_name, **kwargs)
    if layer is not None:
        return refuses_merge(layer, name)
    try:  # ours is the last dispatcher
        channels_of(base)
    except ValueError as error:
        raise ValueError(
            f"{name}: Target module {type(base).__name__} is not supported; an adapter fits nn.Conv1d, "
            "nn.ConvTranspose1d, nn.Linear, nn.Embedding, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention and modules with "
            f"a convolution's weight, and {error}; leave it out of target_modules"
        ) from error
    return LoraConv1d(target, adapter_name, config=config, **kwargs)


def _lycoris_layer(model_class: type[BaseTuner], layer_class: type[LycorisConv1d]) -> Callable[..., None]:
    """``LoHaModel._create_and_replace`` and LoKr's, with our layer for a convolution."""
    create_and_replace = model_class._create_and_replace

    @functools.wraps(create_and_replace)
    def ours(
        self: Any, config: Any, adapter_name: str, target: Any, target_name: str, parent: nn.Module, current_key: str
    ) -> None:
        base = target.get_base_layer() if hasattr(target, "get_base_layer") else target
        convolution = isinstance(base, STOCK) or has_convolution_weight(base)
        if isinstance(target, model_class.tuner_layer_cls) or not convolution:
            if isinstance(base, nn.Linear) and (packed := packed_elsewhere(base._parameters.get("weight"))):
                raise ValueError(
                    f"{current_key}: its weight is {packed}, quantised by something else, which LoHa and LoKr of PEFT "
                    "cannot merge into; take LoRA, or audiolora.quantize(model) over the float weights"
                )
            try:
                create_and_replace(self, config, adapter_name, target, target_name, parent, current_key)
            except TypeError as error:
                raise TypeError(f"{current_key}: {error}; leave it out of target_modules") from error
            compilable(parent.get_submodule(target_name))
            return
        r = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), current_key), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), current_key), config.alpha)
        layer = layer_class(target, adapter_name, config, r=r, alpha=alpha, target_name=current_key)
        self._replace_module(parent, target_name, layer, target)

    return ours


def _inject_adapter(self: BaseTuner, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
    _peft_inject_adapter(self, model, adapter_name, *args, **kwargs)
    watch_participation(model, adapter_name)


def _merge_adapter(self: BaseTuner, *args: Any, **kwargs: Any) -> None:
    all_or_nothing.refuse_lost_merges(self.model)
    _peft_merge_adapter(self, *args, **kwargs)


def _unload_and_optionally_merge(self: BaseTuner, merge: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
    if merge:
        all_or_nothing.refuse_lost_merges(self.model)
    unloaded = _peft_unload_and_optionally_merge(self, merge, *args, **kwargs)
    stop_watching(unloaded)
    return unloaded


_ABSENT = object()
# What enable() rebinds: (holder, name, ours). A holder is a module or a class, or a dict.
_REBOUND: list[tuple[Any, str, Any]] = [
    (lora_model, "dispatch_default", _dispatch),
    (LoHaModel, "_create_and_replace", _lycoris_layer(LoHaModel, LoHaConv1d)),
    (LoKrModel, "_create_and_replace", _lycoris_layer(LoKrModel, LoKrConv1d)),
    *[(model, "inject_adapter", all_or_nothing.inject_adapter) for model in all_or_nothing.WEIGHT_SPACE],
    (BaseTuner, "inject_adapter", _inject_adapter),
    (BaseTuner, "merge_adapter", _merge_adapter),
    (BaseTuner, "_unload_and_optionally_merge", _unload_and_optionally_merge),
    (PeftModel, "load_adapter", all_or_nothing.load_adapter),
    (PeftModel, "from_pretrained", classmethod(all_or_nothing.from_pretrained)),
    (peft_model, "set_peft_model_state_dict", fitting.set_peft_model_state_dict),
    *[(PEFT_TYPE_TO_CONFIG_MAPPING, name, config) for name, config in CONFIGS.items()],
    (PEFT_TYPE_TO_TUNER_MAPPING, PeftType.ADALORA, WeightSpaceAdaLoraModel),
    (save_and_load, "_validate_lora_adapter_state_dict", validate_adapter_state_dict),
    *REPLACEMENTS,
    *eva.REPLACEMENTS,
]


def _bound() -> list[Any]:
    """What the names of `_REBOUND` stand for now."""
    return [(holder if isinstance(holder, dict) else vars(holder)).get(name, _ABSENT) for holder, name, _ in _REBOUND]


def _bind(values: list[Any]) -> None:
    for (holder, name, _), value in zip(_REBOUND, values, strict=True):
        if isinstance(holder, dict):
            holder.pop(name, None)
            if value is not _ABSENT:
                holder[name] = value
        elif value is not _ABSENT:
            setattr(holder, name, value)
        elif name in vars(holder):
            delattr(holder, name)


_PEFT_S = _bound()


def enable() -> None:
    """Make PEFT use audiolora's layers for 1-D convolutions, from now on; calling it again changes nothing.

    Models that are adapted already keep the layers they have; combining and hot-swapping adapters on ours, and
    reading the base's state dict, wants audiolora enabled. A model adapted from now on is watched until its first
    forward; adapted modules that took no part in it, PEFT's too, are then named in a ``BypassedModuleWarning``
    (`audiolora.layers.participation`).

    Example:
        >>> import audiolora
        >>> audiolora.enable()
        >>> audiolora.disable()
    """
    _bind([ours for _, _, ours in _REBOUND])


def disable() -> None:
    """Give PEFT its own layers back for what is adapted from now on.

    Example:
        >>> import audiolora
        >>> audiolora.disable()
    """
    _bind(_PEFT_S)


@contextmanager
def enabled() -> Iterator[None]:
    """``enable()`` for the length of a ``with`` block, then whatever stood before.

    Example:
        >>> import audiolora
        >>> with audiolora.enabled():
        ...     pass
    """
    before = _bound()
    enable()
    try:
        yield
    finally:
        _bind(before)
