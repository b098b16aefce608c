"""What an adapter on disk adapts, read from its two files alone: no base model, no torch, in no time.

`audiolora.inspect` says the same of a model in memory, with the geometry that only the base knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_METHODS = {"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr", "ADALORA": "AdaLoRA"}
_OURS = "AUDIOLORA_"  # before PEFT's type where plain PEFT must not load it: audiolora.layers.interchange
_PREFIX = "base_model.model."
_A, _B = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")
_FACTOR = re.compile(r"(.*)\.((?:lora|hada|lokr)_\w+?)(?:\.weight)?")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class AdaptedWeight:
    """One adapted module.

    Attributes:
        module: its name.
        weight_shape: (C_out, C_in/g, k), or (C_out, C_in/g · k) where the factors are of the kernel as a matrix.
        r: the rank; None for LoKr's factors that are whole.
        parameters: of the adapter here.
    """

    module: str
    weight_shape: Shape
    r: int | None
    parameters: int


@dataclass(frozen=True)
class AdapterFile:
    """An adapter in PEFT's format.

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
        """``"LoRA"``, ``"DoRA"``, ``"LoHa"``, ``"LoKr"`` or ``"AdaLoRA"``."""
        return "DoRA" if self.config.get("use_dora") else _METHODS[_type(self.config)]

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
            table.add_row(_common(names) + times, sizes, "–" if r is None else str(r), f"{parameters:,}{times}")
        return table


def read_adapter(folder: Path) -> AdapterFile:
    """Read what an adapter holds; no tensor is loaded.

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
    if not isinstance(config, dict) or _type(config) not in _METHODS:
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{folder}: a PEFT adapter of type {found}; audiolora knows {', '.join(_METHODS)}")
    size_bytes = (folder / WEIGHTS_FILE).stat().st_size
    return AdapterFile(config, _adapted_weights(shapes, folder), size_bytes)


def _type(config: dict[str, Any]) -> str:
    return str(config.get("peft_type")).removeprefix(_OURS)


def _adapted_weights(shapes: dict[str, Shape], folder: Path) -> tuple[AdaptedWeight, ...]:
    modules: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        if found := _FACTOR.fullmatch(key.removeprefix(_PREFIX)):
            modules.setdefault(found[1], {})[found[2]] = shape
    weights = []
    for module, factors in modules.items():
        try:
            shape, r = _weight_and_rank(factors)
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"{folder}: the adapter is damaged: {module} has {sorted(factors)} alone") from None
        weights.append(AdaptedWeight(module, shape, r, sum(_size(shape) for shape in factors.values())))
    if not weights:
        raise ValueError(f"{folder}: the adapter is damaged: {WEIGHTS_FILE} holds no factors")
    return tuple(weights)


def _weight_and_rank(factors: dict[str, Shape]) -> tuple[Shape, int | None]:
    """From the shapes of one module's factors, by PEFT's names without their prefix.

    Raises:
        KeyError, IndexError, ValueError: factors are missing, or of other dimensions.
    """
    if any(name.startswith("lokr_") for name in factors):
        (a, c), w1 = _kronecker_factor(factors, "lokr_w1")
        (b, d, *kernel), w2 = _kronecker_factor(factors, "lokr_w2")
        return (a * b, c * d, *kernel), w1 or w2
    if "hada_t1" in factors:  # Tucker: (r, r, k, 1 or a second size) between (r, C_out) and (r, C_in/g)
        r, _, *kernel = factors["hada_t1"]
        return (factors["hada_w1_a"][1], factors["hada_w1_b"][1], *_without_one(kernel)), r
    if "hada_w1_a" in factors:
        out, r = factors["hada_w1_a"]
        return (out, factors["hada_w1_b"][1]), r
    A, B = (next(factors[name] for name in names if name in factors) for names in (_A, _B))
    r, _, *kernel = factors.get("lora_core", A)  # Tucker: (r, q, k) between (q, C_in/g, 1) and (C_out, r, 1)
    return (B[0], A[1], *kernel), r


def _kronecker_factor(factors: dict[str, Shape], name: str) -> tuple[Shape, int | None]:
    """The shape of LoKr's ``name``, and its rank if it has one."""
    if name in factors:
        return factors[name], None
    first, second = factors[f"{name}_a"], factors[f"{name}_b"]
    core = factors.get(f"{name.replace('w', 't')}")
    if core is None:
        return (first[0], second[1]), second[0]
    return (first[1], second[1], *_without_one(core[2:])), core[0]


def _without_one(kernel: Sequence[int]) -> Sequence[int]:
    """PEFT keeps a core of a one-dimensional kernel as (…, k, 1)."""
    return kernel[:-1] if kernel[-1] == 1 else kernel


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _common(names: list[str]) -> str:
    """``model.encoder.layers.*.q_proj`` for names of one depth that differ in some parts."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)
