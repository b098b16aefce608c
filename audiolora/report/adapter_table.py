"""What an adapter on disk adapts, read from its two files alone: no base model, no torch, in no time.

`audiolora.inspect` says the same of a model in memory, with the geometry that only the base knows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PEFT_TYPES = ("LORA", "AUDIOLORA_LORA")  # the second where plain PEFT must not load it: audiolora.layers.interchange
_PREFIX = "base_model.model."
_A, _B = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")


@dataclass(frozen=True)
class AdaptedWeight:
    """One adapted module: its name, the shape of its weight (C_out, C_in/g, k), the rank, the adapter's parameters."""

    module: str
    weight_shape: tuple[int, ...]
    r: int
    parameters: int


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA or DoRA adapter in PEFT's format.

    Attributes:
        config: ``adapter_config.json``.
        weights: its adapted modules, in the file's order.
        size_bytes: of the weights' file.
    """

    config: dict[str, Any]
    weights: tuple[AdaptedWeight, ...]
    size_bytes: int

    @property
    def method(self) -> str:
        """``"LoRA"`` or ``"DoRA"``."""
        return "DoRA" if self.config.get("use_dora") else "LoRA"

    @property
    def parameters(self) -> int:
        """Of the whole adapter."""
        return sum(weight.parameters for weight in self.weights)

    def table(self) -> Table:
        """As a table for ``rich``; modules that differ in their index alone share a line."""
        from rich.table import Table

        table = Table(title="adapted modules", title_justify="left", caption_justify="left")
        table.caption = f"{self.parameters:,} parameters of {self.method}, {self.size_bytes / 1000:,.0f} KB"
        table.add_column("module", overflow="fold")
        for heading in ("weight", "r", "parameters"):
            table.add_column(heading, justify="right", no_wrap=True)
        groups: dict[tuple[object, ...], list[str]] = {}
        for weight in self.weights:
            last = weight.module.rpartition(".")[2]
            key = (last, weight.module.count("."), weight.weight_shape, weight.r, weight.parameters)
            groups.setdefault(key, []).append(weight.module)
        for (_, _, shape, r, parameters), names in groups.items():
            times = f" ×{len(names)}" if len(names) > 1 else ""
            sizes = " × ".join(map(str, shape))  # type: ignore[call-overload]
            table.add_row(_common(names) + times, sizes, str(r), f"{parameters:,}{times}")
        return table


def read_adapter(folder: Path) -> AdapterFile:
    """Read what a LoRA adapter holds; no tensor is loaded.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ValueError: the folder holds no such adapter, one of another method, or a damaged one.

    Example:
        >>> read_adapter(Path("runs/demo/adapter")).parameters  # doctest: +SKIP
        144672
    """
    from safetensors import SafetensorError, safe_open

    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no PEFT adapter in the safetensors format: there is no {name} in it")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS_FILE, framework="numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: the adapter is damaged: {error}; take another copy of it") from error
    if not isinstance(config, dict) or config.get("peft_type") not in _PEFT_TYPES:
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{folder}: a PEFT adapter of type {found}; audiolora knows LORA (LoRA and DoRA)")
    size_bytes = (folder / WEIGHTS_FILE).stat().st_size
    return AdapterFile(config, _adapted_weights(shapes, folder), size_bytes)


def _adapted_weights(shapes: dict[str, tuple[int, ...]], folder: Path) -> tuple[AdaptedWeight, ...]:
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        module, dot, factor = key.removeprefix(_PREFIX).partition(".lora_")
        if dot:
            modules.setdefault(module, {})[f"lora_{factor.removesuffix('.weight')}"] = shape
    weights = []
    for module, factors in modules.items():
        a = next((factors[name] for name in _A if name in factors), None)
        b = next((factors[name] for name in _B if name in factors), None)
        if a is None or b is None:
            raise ValueError(f"{folder}: the adapter is damaged: {module} has {sorted(factors)}, not lora_A and lora_B")
        parameters = sum(_size(shape) for shape in factors.values())
        r, _, *kernel = factors.get(
            "lora_core", a
        )  # Tucker factors: (r, q, k) between (q, C_in/g, 1) and (C_out, r, 1)
        weights.append(AdaptedWeight(module, (b[0], a[1], *kernel), r, parameters))
    if not weights:
        raise ValueError(f"{folder}: the adapter is damaged: {WEIGHTS_FILE} holds no LoRA factors")
    return tuple(weights)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _common(names: list[str]) -> str:
    """``model.encoder.layers.*.q_proj`` for names of one depth that differ in some parts."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)
