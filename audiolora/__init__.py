"""audiolora: low-rank adapters inside 1-D convolutions, and beside them in attention.

    import audiolora
    model = audiolora.adapt(whisper, r={"conv": 32, "attention": 4})
    print(audiolora.inspect(model))

Importing this patches nothing and loads nothing heavy; ``enable()`` (which ``adapt`` calls) tells PEFT to use
audiolora's layers where a convolution stands.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiolora import geometric
    from audiolora.adalora_callback import AdaLoraCallback
    from audiolora.adapting import adapt, adapter_config, lora_config
    from audiolora.allocation import orthogonality_penalty
    from audiolora.fleet import Fleet
    from audiolora.inspection import inspect
    from audiolora.integration import disable, enable, enabled
    from audiolora.layers.participation import BypassedModuleWarning
    from audiolora.quantizing import dequantize, quantize
    from audiolora.rank_schedule import RankSchedule
    from audiolora.running_statistics import hold_statistics

_HOMES = {
    "AdaLoraCallback": "audiolora.adalora_callback",
    "BypassedModuleWarning": "audiolora.layers.participation",
    "Fleet": "audiolora.fleet",
    "RankSchedule": "audiolora.rank_schedule",
    "adapt": "audiolora.adapting",
    "adapter_config": "audiolora.adapting",
    "dequantize": "audiolora.quantizing",
    "disable": "audiolora.integration",
    "enable": "audiolora.integration",
    "enabled": "audiolora.integration",
    "hold_statistics": "audiolora.running_statistics",
    "inspect": "audiolora.inspection",
    "lora_config": "audiolora.adapting",
    "orthogonality_penalty": "audiolora.allocation",
    "quantize": "audiolora.quantizing",
}

_MODULES = ("geometric",)

__version__ = "0.1.0"
__all__ = [
    "AdaLoraCallback",
    "BypassedModuleWarning",
    "Fleet",
    "RankSchedule",
    "adapt",
    "adapter_config",
    "dequantize",
    "disable",
    "enable",
    "enabled",
    "geometric",
    "hold_statistics",
    "inspect",
    "lora_config",
    "orthogonality_penalty",
    "quantize",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"audiolora.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'audiolora' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
