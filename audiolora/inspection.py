"""``audiolora.inspect``: what is adapted, how, and what it costs."""

import io
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.loha.layer import LoHaLayer
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from rich.console import Console
from rich.table import Table
from torch import nn

from audiolora.allocation import kept_ranks
from audiolora.conv.geometry import ConvGeometry, first
from audiolora.conv.plan import Path, gradient_path, training_overhead
from audiolora.layers.any_convolution import channels_of
from audiolora.layers.base import WeightSpaceLayer
from audiolora.layers.quantized import quantization_of


@dataclass(frozen=True)
class AdaptedModule:
    """One row: an adapted module and one of its adapters.

    ``r`` is the rank; of AdaLoRA, once it has begun to take ranks away, what is kept of it now (``parameters`` counts
    what is in memory: the rest goes when the adapter is saved). ``gradients`` is the way they take, ``"low-rank"``, or
    ``"dense"`` (LoHa, LoKr, and where r is not small against the channels); ``overhead`` is the extra work of a
    training step as a share of the frozen module's own (`conv.plan`).
    """

    name: str
    kind: str
    geometry: str
    method: str
    r: int
    parameters: int
    gradients: str
    overhead: float


@dataclass(frozen=True)
class Inspection:
    """The rows, and the totals; ``str()`` of it is a table."""

    rows: tuple[AdaptedModule, ...]
    trainable_parameters: int
    total_parameters: int

    def table(self) -> Table:
        """As a table for ``rich``; modules that differ in nothing but their index share a line."""
        table = Table(title="adapted modules", title_justify="left", caption=self._caption(), caption_justify="left")
        for heading in ("module", "geometry", "method"):
            table.add_column(heading, overflow="fold")
        for heading in ("r", "parameters", "extra work"):
            table.add_column(heading, justify="right", no_wrap=True)
        for names, row in _grouped(self.rows):
            times = f" ×{len(names)}" if len(names) > 1 else ""
            table.add_row(
                row.name if len(names) == 1 else _common(names) + times,
                f"{row.kind} {row.geometry}",
                row.method,
                str(row.r),
                f"{row.parameters:,}{times}",
                f"{row.overhead:.1%}" + (" dense" if row.gradients == Path.DENSE else ""),
            )
        return table

    def _caption(self) -> str:
        share = self.trainable_parameters / max(1, self.total_parameters)
        return f"{self.trainable_parameters:,} of {self.total_parameters:,} parameters are trained ({share:.2%})"

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=110, no_color=True).print(self.table())
        return buffer.getvalue()


def inspect(model: nn.Module) -> Inspection:
    """A table of what is adapted: module, geometry, method, rank, parameters, extra work in training.

    Args:
        model: adapted by `audiolora.adapt` or by PEFT's ``get_peft_model``.

    Raises:
        ValueError: nothing in the model is adapted.

    Example:
        >>> import torch, audiolora
        >>> net = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3))
        >>> audiolora.inspect(audiolora.adapt(net, r=2)).rows[0].parameters
        40
    """
    prefix = "base_model.model." if isinstance(model, PeftModel) else ""
    kept = kept_ranks(model)
    rows = tuple(
        _row(name.removeprefix(prefix), layer, adapter, kept.get((name.removeprefix(prefix), adapter)))
        for name, layer in model.named_modules()
        if isinstance(layer, (LoraLayer, LycorisLayer))
        for adapter in layer.r
    )
    if not rows:
        raise ValueError(f"nothing is adapted in this {type(model).__name__}; call audiolora.adapt(model) first")
    parameters = list(model.parameters())
    quantized = (found.shape.numel() for module in model.modules() if (found := quantization_of(module)) is not None)
    total = sum(p.numel() for p in parameters) + sum(quantized)
    return Inspection(rows, sum(p.numel() for p in parameters if p.requires_grad), total)


def _row(name: str, layer: LoraLayer | LycorisLayer, adapter: str, kept: int | None) -> AdaptedModule:
    base = layer.get_base_layer()
    mapped, whole = isinstance(layer, WeightSpaceLayer), isinstance(layer, LycorisLayer)
    shape = tuple((layer.base_tensor() if mapped else base.weight).shape)
    ours = mapped and len(shape) == 3
    geometry = _conv_geometry(base) if ours else ConvGeometry()
    path = gradient_path(shape, layer.r[adapter], geometry) if ours else Path.LOW_RANK
    path = Path.DENSE if whole else path
    holders = (getattr(layer, name) for name in layer.adapter_layer_names)
    parameters = {parameter for holder in holders for parameter in _parameters_of(holder, adapter)}
    quantized = quantization_of(base)
    return AdaptedModule(
        name=name,
        kind=type(base).__name__.removeprefix("Parametrized") + ("" if quantized is None else f" {quantized.kind}"),
        geometry=_geometry(base, shape, geometry if ours else None),
        method=_method(layer, adapter) + ("" if mapped else " (PEFT)"),
        r=layer.r[adapter] if kept is None else kept,
        parameters=sum(parameter.numel() for parameter in parameters),
        gradients=path.value,
        overhead=training_overhead(shape, layer.r[adapter], geometry, path),
    )


def _method(layer: LoraLayer | LycorisLayer, adapter: str) -> str:
    if isinstance(layer, LycorisLayer):
        return "LoHa" if isinstance(layer, LoHaLayer) else "LoKr"
    if isinstance(layer, AdaLoraLayer):
        return "AdaLoRA"
    tucker = ", Tucker" if adapter in getattr(layer, "lora_core", ()) else ""
    return ("DoRA" if layer.use_dora.get(adapter) else "LoRA") + tucker


def _parameters_of(holder: Any, adapter: str) -> list[nn.Parameter]:
    """Of one adapter, from PEFT's ``ModuleDict`` of factors or ``ParameterDict`` (embeddings)."""
    if adapter not in holder:
        return []
    factor = holder[adapter]
    return [factor] if isinstance(factor, nn.Parameter) else list(factor.parameters())


def _conv_geometry(base: nn.Module) -> ConvGeometry:
    """Of torch's convolutions, and of other classes as far as they say it by torch's names."""
    said = (getattr(base, name, 1) for name in ("stride", "dilation"))
    stride, dilation = (first(value) if isinstance(value, (int, tuple, list)) else 1 for value in said)
    return ConvGeometry(stride, 0, dilation, channels_of(base).groups, isinstance(base, nn.ConvTranspose1d))


def _geometry(base: nn.Module, shape: tuple[int, ...], geometry: ConvGeometry | None) -> str:
    """``80→384 k3 s2``: channels, kernel, and whatever is not the default."""
    if isinstance(base, nn.Embedding):
        return f"{shape[0]}→{shape[1]}"
    if geometry is None:
        return f"{shape[1]}→{shape[0]}"
    channels = channels_of(base)
    parts = [f"{channels.in_channels}→{channels.out_channels}", f"k{channels.kernel_size}"]
    settings = (("s", geometry.stride), ("d", geometry.dilation), ("g", geometry.groups))
    parts += [f"{letter}{n}" for letter, n in settings if n != 1]
    mode = getattr(base, "padding_mode", "zeros")
    return " ".join(parts if mode == "zeros" else [*parts, str(mode)])


def _grouped(rows: tuple[AdaptedModule, ...]) -> list[tuple[list[str], AdaptedModule]]:
    groups: dict[tuple[object, ...], tuple[list[str], AdaptedModule]] = {}
    for row in rows:
        key = (row.name.rpartition(".")[2], row.kind, row.geometry, row.method, row.r)
        groups.setdefault(key, ([], row))[0].append(row.name)
    return list(groups.values())


def _common(names: list[str]) -> str:
    """``model.encoder.layers.*.q_proj`` for names that differ in some parts."""
    split = [name.split(".") for name in names]
    if len({len(parts) for parts in split}) > 1:
        return "*." + split[0][-1]
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*split, strict=True))
