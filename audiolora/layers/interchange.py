"""Adapter files that plain PEFT must not run: what it would compute is another function.

Where every adapted convolution is one that plain PEFT gets right, the file is PEFT's own to the letter. Elsewhere
``adapter_config.json`` names a ``peft_type`` that PEFT does not have, so that every way of loading it without audiolora
ends in ``KeyError: 'AUDIOLORA_LORA'``, and an extra key says which modules are meant and why::

    "peft_type": "AUDIOLORA_LORA",
    "audiolora": {"version": 1, "weight_space": {"encoder.conv1": "dilation=2, which …"}}

An extra key alone would only draw a warning, after which PEFT goes on. While audiolora is enabled PEFT knows the type:
such a file loads as the ``LoraConfig`` it is, of type ``LORA``. LoHa and LoKr have types of their own in the same way.
"""

from dataclasses import dataclass, field
from typing import Any

from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from torch import nn

from audiolora.layers.plain_peft import why_plain_peft_differs

PEFT_TYPE = "AUDIOLORA_LORA"
"""Stands in ``adapter_config.json`` for ``LORA``."""

LOHA_TYPE, LOKR_TYPE = "AUDIOLORA_LOHA", "AUDIOLORA_LOKR"
"""For ``LOHA`` and ``LOKR``."""

VERSION = 1
"""Of what the key holds."""


@dataclass
class WeightSpaceLoraConfig(LoraConfig):
    """A ``LoraConfig`` whose adapter plain PEFT would run as another function.

    Args:
        audiolora: ``{"version": …, "weight_space": {module path: reason}}``, and ``"conv_factors"`` where they are not
            the shared ones; the rest is `LoraConfig`'s.
    """

    audiolora: dict[str, Any] = field(default_factory=dict, metadata={"help": "What plain PEFT would get wrong"})

    def to_dict(self) -> dict[str, Any]:
        """As PEFT's, under the type that plain PEFT refuses."""
        return {**super().to_dict(), "peft_type": PEFT_TYPE}


@dataclass
class WeightSpaceLoHaConfig(LoHaConfig):
    """A ``LoHaConfig`` whose adapter plain PEFT would run as another function; as `WeightSpaceLoraConfig`."""

    audiolora: dict[str, Any] = field(default_factory=dict, metadata={"help": "What plain PEFT would get wrong"})

    def to_dict(self) -> dict[str, Any]:
        """As PEFT's, under the type that plain PEFT refuses."""
        return {**super().to_dict(), "peft_type": LOHA_TYPE}


@dataclass
class WeightSpaceLoKrConfig(LoKrConfig):
    """A ``LoKrConfig`` whose adapter plain PEFT would run as another function; as `WeightSpaceLoraConfig`."""

    audiolora: dict[str, Any] = field(default_factory=dict, metadata={"help": "What plain PEFT would get wrong"})

    def to_dict(self) -> dict[str, Any]:
        """As PEFT's, under the type that plain PEFT refuses."""
        return {**super().to_dict(), "peft_type": LOKR_TYPE}


CONV_FACTORS = ("shared", "tucker")
"""Of a LoRA config: A (r, C_in/g, k), shared by the groups, or a core between two 1×1 (`audiolora.layers.lora`)."""


def conv_factors(config: PeftConfig) -> str:
    """The form of a config's factors, one of `CONV_FACTORS`.

    Raises:
        ValueError: the config, or the file that it came from, names another.
    """
    said: str = getattr(config, "audiolora", {}).get("conv_factors", CONV_FACTORS[0])
    if said not in CONV_FACTORS:
        raise ValueError(f"conv_factors must be one of {CONV_FACTORS}, got {said!r}")
    return said


CONFIGS: dict[str, type[PeftConfig]] = {
    PEFT_TYPE: WeightSpaceLoraConfig,
    LOHA_TYPE: WeightSpaceLoHaConfig,
    LOKR_TYPE: WeightSpaceLoKrConfig,
}
"""The class that reads a file, by the type that stands in it."""

_MARKED: dict[type[PeftConfig], type[PeftConfig]] = {cls.__bases__[0]: cls for cls in CONFIGS.values()}


def mark(config: PeftConfig, path: str, base: nn.Module) -> None:
    """Make the config, and the file it goes into, say so if plain PEFT would get its adapter on this module wrong.

    In place: PEFT's model classes go on using the object that they were given. What the config says already (it came
    from a file, or serves other modules) stays.

    Args:
        config: of the adapter; its class becomes `WeightSpaceLoraConfig`, which is a ``LoraConfig`` (LoHa's and
            LoKr's likewise).
        path: of the module in its model.
        base: the module, with or without audiolora's map on its weight.

    Raises:
        TypeError: a subclass of PEFT's class, whose file audiolora would not know how to read.

    Example:
        >>> config = LoraConfig()
        >>> mark(config, "conv1", nn.Conv1d(4, 4, 3))
        >>> config.to_dict()["peft_type"].value
        'LORA'
        >>> mark(config, "conv2", nn.Conv1d(4, 4, 3, groups=2))
        >>> config.to_dict()["peft_type"], list(config.audiolora["weight_space"])
        ('AUDIOLORA_LORA', ['conv2'])
    """
    why = _own_factors(config) or why_plain_peft_differs(base, config)
    if why is None:
        return
    marked = _MARKED.get(type(config), type(config))
    if marked not in CONFIGS.values():
        raise TypeError(
            f"{path}: plain PEFT would load this adapter as another function ({why}), and a {type(config).__name__} "
            f"cannot say so in its file; use a peft.{_plain(config).__name__}"
        )
    said = getattr(config, "audiolora", {})
    config.__class__ = marked
    config.audiolora = {**said, "version": VERSION, "weight_space": {**said.get("weight_space", {}), path: why}}


def _own_factors(config: PeftConfig) -> str | None:
    if getattr(config, "init_lora_weights", None) == "lora_ga":
        return "init_lora_weights='lora_ga', whose correction of the base PEFT leaves out when it loads"
    return "Tucker factors, which PEFT's LoRA does not have" if conv_factors(config) == "tucker" else None


def _plain(config: PeftConfig) -> type[PeftConfig]:
    """PEFT's own class that this one derives from."""
    return next(cls for cls in type(config).__mro__ if cls in _MARKED)
