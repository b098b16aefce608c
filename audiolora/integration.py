"""Where PEFT gets its layers: ``enable()`` makes it put ours where a 1-D convolution stands.

PEFT asks a chain of dispatchers for a layer and looks the last one up by name at each call; that name is what we
rebind. So every injection goes through here: ``get_peft_model``, ``add_adapter``, ``PeftModel.from_pretrained``. The
few functions of PEFT that know its own layers alone are rebound with it (`audiolora.layers.peft_methods`).
Importing audiolora changes nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import model as lora_model
from torch import nn

from audiolora.layers.lora import LoraConv1d
from audiolora.layers.peft_methods import REPLACEMENTS

_peft_dispatch_default = lora_model.dispatch_default


def _dispatch(
    target: nn.Module, adapter_name: str, config: Any, parameter_name: str | None = None, **kwargs: Any
) -> Any:
    base = target.get_base_layer() if hasattr(target, "get_base_layer") else target  # type: ignore[operator]
    if parameter_name is None and isinstance(base, nn.Conv1d):
        return LoraConv1d(target, adapter_name, config=config, **kwargs)
    if ".parametrizations." in kwargs.get("target_name", ""):
        return target  # "0" also names x.0.parametrizations.weight.0: a part of a weight, not a layer
    return _peft_dispatch_default(target, adapter_name, config=config, parameter_name=parameter_name, **kwargs)


_BINDINGS = ((lora_model, "dispatch_default", _dispatch), *REPLACEMENTS)
_STOCK = tuple(getattr(owner, name) for owner, name, _ in _BINDINGS)


def _bind(functions: Iterable[Any]) -> None:
    for (owner, name, _), function in zip(_BINDINGS, functions, strict=True):
        setattr(owner, name, function)


def enable() -> None:
    """Make PEFT use audiolora's layers for 1-D convolutions, from now on; calling it again changes nothing.

    Models that are adapted already keep the layers they have; combining and hot-swapping adapters on ours, and
    reading the base's state dict, wants audiolora enabled.

    Example:
        >>> import audiolora
        >>> audiolora.enable()
        >>> audiolora.disable()
    """
    _bind(ours for _, _, ours in _BINDINGS)


def disable() -> None:
    """Give PEFT its own layers back for what is adapted from now on.

    Example:
        >>> import audiolora
        >>> audiolora.disable()
    """
    _bind(_STOCK)


@contextmanager
def enabled() -> Iterator[None]:
    """``enable()`` for the length of a ``with`` block, then whatever stood before.

    Example:
        >>> import audiolora
        >>> with audiolora.enabled():
        ...     pass
    """
    before = [getattr(owner, name) for owner, name, _ in _BINDINGS]
    enable()
    try:
        yield
    finally:
        _bind(before)
