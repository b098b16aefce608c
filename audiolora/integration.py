"""Where PEFT gets its layers: ``enable()`` makes it put ours where a 1-D convolution stands.

PEFT asks a chain of dispatchers for a layer and looks the last one up by name at each call; that name is what we
rebind. So every injection goes through here: ``get_peft_model``, ``add_adapter``, ``PeftModel.from_pretrained``.
Importing audiolora changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import model as lora_model
from torch import nn

from audiolora.layers.lora import LoraConv1d

_peft_dispatch_default = lora_model.dispatch_default


def _dispatch(
    target: nn.Module, adapter_name: str, config: Any, parameter_name: str | None = None, **kwargs: Any
) -> Any:
    base = target.get_base_layer() if hasattr(target, "get_base_layer") else target  # type: ignore[operator]
    if parameter_name is None and isinstance(base, (nn.Conv1d, nn.ConvTranspose1d)):
        return LoraConv1d(target, adapter_name, config=config, **kwargs)
    if ".parametrizations." in kwargs.get("target_name", ""):
        return target  # "0" also names x.0.parametrizations.weight.0: a part of a weight, not a layer
    return _peft_dispatch_default(target, adapter_name, config=config, parameter_name=parameter_name, **kwargs)


def enable() -> None:
    """Make PEFT use audiolora's layers for 1-D convolutions, from now on; calling it again changes nothing.

    Models that are adapted already keep the layers they have.

    Example:
        >>> import audiolora
        >>> audiolora.enable()
        >>> audiolora.disable()
    """
    lora_model.dispatch_default = _dispatch


def disable() -> None:
    """Give PEFT its own layers back for what is adapted from now on.

    Example:
        >>> import audiolora
        >>> audiolora.disable()
    """
    lora_model.dispatch_default = _peft_dispatch_default


@contextmanager
def enabled() -> Iterator[None]:
    """``enable()`` for the length of a ``with`` block, then whatever stood before.

    Example:
        >>> import audiolora
        >>> with audiolora.enabled():
        ...     pass
    """
    before = lora_model.dispatch_default
    enable()
    try:
        yield
    finally:
        lora_model.dispatch_default = before
