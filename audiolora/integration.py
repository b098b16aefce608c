"""Where PEFT gets its layers: ``enable()`` makes it put ours where a 1-D convolution stands.

PEFT asks a chain of dispatchers for a layer and looks the last one up by name at each call; that name is what we
rebind. So every injection goes through here: ``get_peft_model``, ``add_adapter``, ``PeftModel.from_pretrained``.
``inject_adapter``, which all of them call, is rebound too: what it adapted is watched until the first forward.
Importing audiolora changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import model as lora_model
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from audiolora.layers.lora import LoraConv1d
from audiolora.layers.participation import watch_participation

_peft_dispatch_default = lora_model.dispatch_default
_peft_inject_adapter = BaseTuner.inject_adapter


def _dispatch(
    target: nn.Module, adapter_name: str, config: Any, parameter_name: str | None = None, **kwargs: Any
) -> Any:
    base = target.get_base_layer() if hasattr(target, "get_base_layer") else target  # type: ignore[operator]
    if parameter_name is None and isinstance(base, (nn.Conv1d, nn.ConvTranspose1d)):
        return LoraConv1d(target, adapter_name, config=config, **kwargs)
    if ".parametrizations." in kwargs.get("target_name", ""):
        return target  # "0" also names x.0.parametrizations.weight.0: a part of a weight, not a layer
    return _peft_dispatch_default(target, adapter_name, config=config, parameter_name=parameter_name, **kwargs)


def _inject_adapter(self: BaseTuner, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
    _peft_inject_adapter(self, model, adapter_name, *args, **kwargs)
    watch_participation(model, adapter_name)


def enable() -> None:
    """Make PEFT use audiolora's layers for 1-D convolutions, from now on; calling it again changes nothing.

    Models that are adapted already keep the layers they have. A model adapted from now on is watched until its first
    forward; adapted modules that took no part in it, PEFT's too, are then named in a ``BypassedModuleWarning``
    (`audiolora.layers.participation`).

    Example:
        >>> import audiolora
        >>> audiolora.enable()
        >>> audiolora.disable()
    """
    lora_model.dispatch_default = _dispatch
    BaseTuner.inject_adapter = _inject_adapter


def disable() -> None:
    """Give PEFT its own layers back for what is adapted from now on.

    Example:
        >>> import audiolora
        >>> audiolora.disable()
    """
    lora_model.dispatch_default = _peft_dispatch_default
    BaseTuner.inject_adapter = _peft_inject_adapter


@contextmanager
def enabled() -> Iterator[None]:
    """``enable()`` for the length of a ``with`` block, then whatever stood before.

    Example:
        >>> import audiolora
        >>> with audiolora.enabled():
        ...     pass
    """
    before = lora_model.dispatch_default, BaseTuner.inject_adapter
    enable()
    try:
        yield
    finally:
        lora_model.dispatch_default, BaseTuner.inject_adapter = before
