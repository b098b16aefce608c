"""Weights of a graph as int8: q and one scale an output channel, and ONNX's DequantizeLinear in front of their use.

An embedding that is a Linear's weight too (Whisper's table of tokens) is the Linear's codes; of those the rows that are
looked up are dequantised alone.

The network is quantised first (`layers.quantized`), and the graph is traced from its rounded float weights. So torch
runs the very numbers that the device does, and the codes and scales of a network that was trained as
`audiolora.quantize` left it go into the graph as they are. An adapter's product is added to what is dequantised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from audiolora.export.onnx import consumed
from audiolora.layers.quantized import codes_of, quantization_of, quantize_weight
from audiolora.presets.preset import modules_of
from audiolora.quantizing import quantizable, refused

_FEWEST = 64
"""Elements below which a weight stays float: its node would cost more than it saves."""


Tied = tuple[nn.Linear, list[nn.Embedding]]
"""A Linear whose weight is the table of these embeddings."""


@dataclass(frozen=True)
class Coded:
    """A weight in int8.

    Args:
        weight: the rounded float weight, as its module stores it; how it is found in a graph.
        codes: int8 in the same order.
        scale: (C_out,) float32.
        transposed_groups: as in `conv.factors.LowRank`.
    """

    weight: np.ndarray
    codes: np.ndarray
    scale: np.ndarray
    transposed_groups: int | None


def quantize_network(net: nn.Module) -> list[Tied]:
    """Quantise what is float and can be, in place; adapters stay on.

    Returns:
        The Linears that shared their weight with embeddings, and do no more: both have the rounded one, apart.

    Raises:
        ValueError: a weight is kept in 4 bits, which the device's graph has no form of, or nothing can be quantised.
    """
    four = [name for name, module in modules_of(net).items() if (q := quantization_of(module)) and q.kind != "int8"]
    if four:
        raise ValueError(
            f"{', '.join(four[:8])}: kept in 4 bits, and a device's graph has int8; export it without quantize (as "
            "float), or train over audiolora.quantize(model, bits=8)"
        )
    for name, module in quantizable(net).items():
        if "modules_to_save" in name.split("."):
            continue  # an adapter's own head: its difference from the base's is what is exported
        if module.weight.numel() >= _FEWEST:  # type: ignore[operator]
            quantize_weight(module, "int8", 0)
    tied = list(_tied(net))
    for linear, tables in tied:
        quantize_weight(linear, "int8", 0)
        quantization = quantization_of(linear)
        assert quantization is not None
        rounded = nn.Parameter(quantization.unpacked(codes_of(linear)[0]), requires_grad=False)
        for table in tables:
            table.weight = rounded
    if not any(quantization_of(module) for module in net.modules()):
        raise ValueError(
            f"{type(net).__name__} has no convolution or Linear of {_FEWEST} weights or more to quantise; export it "
            "without quantize"
        )
    return tied


def tie_again(tied: Sequence[Tied]) -> None:
    """One tensor, and one constant of the graph, for what was tied; once the network is plain."""
    for linear, tables in tied:
        linear.weight = tables[0].weight


def _tied(net: nn.Module) -> Iterator[Tied]:
    """Linears whose weight is the table of embeddings and nobody else's; one that an adapter reparametrises is none."""
    holders: dict[int, list[nn.Module]] = {}
    for module in net.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(module)
    for several in holders.values():
        linears = [module for module in several if isinstance(module, nn.Linear) and refused(module) is None]
        tables = [module for module in several if isinstance(module, nn.Embedding) and module.max_norm is None]
        if len(linears) == 1 and tables and len(tables) == len(several) - 1:
            yield linears[0], tables


def coded_weights(net: nn.Module) -> list[Coded]:
    """The weights of a network that are in int8."""
    found = []
    for module in net.modules():
        quantization = quantization_of(module)
        if quantization is not None:
            codes, scale = codes_of(module)
            weight = quantization.unpacked(codes)
            found.append(Coded(weight.numpy(), codes.numpy(), scale.numpy(), quantization.transposed_groups))
    return found


def with_int8_weights(proto: Any, coded: Sequence[Coded]) -> int:
    """Put int8 in the place of each constant of the graph that is one of these weights, in place.

    The exporter may have turned a Linear's weight over; both ways are found, by their values.

    Args:
        proto: ``onnx.ModelProto`` of a network whose weights are the rounded ones.
        coded: of that network.

    Returns:
        How many were found.
    """
    from onnx import numpy_helper

    known = {(array.shape, array.tobytes()): codes for one in coded for array, codes in _orders(one)}
    kept, found = [], {}
    for constant in proto.graph.initializer:
        value = numpy_helper.to_array(constant)
        codes = known.get((value.shape, value.tobytes())) if value.dtype == np.float32 else None
        if codes is None:
            kept.append(constant)
        else:
            found[constant.name] = codes
    nodes = list(proto.graph.node)
    del proto.graph.initializer[:], proto.graph.node[:]
    for node in nodes:
        codes = found.get(node.input[0]) if node.op_type == "Gather" else None
        rows = codes is not None and codes.in_rows and not any(a.name == "axis" and a.i for a in node.attribute)
        proto.graph.node.extend(codes.rows(*node.input, *node.output) if codes and rows else [node])
    used, steps = consumed(proto), []
    for name, codes in found.items():
        kept += codes.constants(name)
        steps += codes.nodes(name) if name in used else []
    proto.graph.initializer.extend(kept)
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*steps, *rest])
    return len(found)


@dataclass(frozen=True)
class _Constant:
    """Codes in the order in which a graph has the weight; ``groups`` where they are a kernel to be put in order."""

    codes: np.ndarray
    scale: np.ndarray
    axis: int
    shape: tuple[int, ...]
    groups: int | None = None

    @property
    def in_rows(self) -> bool:
        """Whether a row of the weight has one scale."""
        return len(self.shape) == 2 and self.axis == 0

    def constants(self, name: str) -> list[Any]:
        """What the nodes take."""
        from onnx import numpy_helper

        codes, more = self.codes, {}
        if self.groups is not None:
            (in_channels, out_per_group, k), g = self.shape, self.groups
            more = {"apart": np.array([g, out_per_group, in_channels // g, k]), "shape": np.array(self.shape)}
        elif len(self.shape) == 2:
            # One axis more, and it is taken off: ONNX Runtime makes a DequantizeLinear right before a MatMul into an
            # operator that rounds the activations to int8 besides.
            codes, more = codes[None], {"axis": np.array([0])}
        if self.in_rows:
            more["last"] = np.array([-1])
        arrays = {"int8": codes, "scale": self.scale, **more}
        return [numpy_helper.from_array(array, f"{name}.{part}") for part, array in arrays.items()]

    def nodes(self, name: str) -> list[Any]:
        """Those that give the weight ``name``."""
        from onnx import helper

        taken = [f"{name}.int8", f"{name}.scale"]
        if self.groups is None and len(self.shape) > 2:
            return [helper.make_node("DequantizeLinear", taken, [name], axis=self.axis)]
        if self.groups is None:
            return [
                helper.make_node("DequantizeLinear", taken, [f"{name}.stacked"], axis=self.axis + 1),
                helper.make_node("Squeeze", [f"{name}.stacked", f"{name}.axis"], [name]),
            ]
        kernel, split, turned = (f"{name}.{part}" for part in ("kernel", "split", "turned"))
        return [
            helper.make_node("DequantizeLinear", taken, [kernel], axis=0),
            helper.make_node("Reshape", [kernel, f"{name}.apart"], [split]),
            helper.make_node("Transpose", [split], [turned], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [turned, f"{name}.shape"], [name]),
        ]

    def rows(self, name: str, at: str, out: str) -> list[Any]:
        """Those that give the weight's rows at indices: codes and scales are looked up, and multiplied."""
        from onnx import TensorProto, helper

        codes, floats, scale, column, rows = (f"{out}.{part}" for part in ("int8", "codes", "scale", "column", "rows"))
        return [
            helper.make_node("Gather", [f"{name}.int8", at], [codes], axis=1),
            helper.make_node("Cast", [codes], [floats], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}.scale", at], [scale]),
            helper.make_node("Unsqueeze", [scale, f"{name}.last"], [column]),
            helper.make_node("Mul", [floats, column], [rows]),
            helper.make_node("Squeeze", [rows, f"{name}.axis"], [out]),
        ]


def _orders(one: Coded) -> Iterator[tuple[np.ndarray, _Constant]]:
    """The weight as a graph may have it."""
    weight, codes, groups = one.weight, one.codes, one.transposed_groups
    if groups is not None and groups > 1:  # two axes of the stored weight name the output channel
        in_channels, out_per_group, k = weight.shape
        kernel = codes.reshape(groups, in_channels // groups, out_per_group, k).transpose(0, 2, 1, 3)
        kernel = np.ascontiguousarray(kernel.reshape(groups * out_per_group, -1, k))
        yield weight, _Constant(kernel, one.scale, 0, weight.shape, groups)
        return
    yield weight, _Constant(codes, one.scale, 0 if groups is None else 1, weight.shape)
    if weight.ndim == 2:
        yield np.ascontiguousarray(weight.T), _Constant(np.ascontiguousarray(codes.T), one.scale, 1, weight.T.shape)
