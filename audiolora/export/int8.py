"""Weights of a graph as int8: q and one scale an output channel, and ONNX's DequantizeLinear in front of their use.

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

from audiolora.layers.quantized import codes_of, quantization_of, quantize_weight
from audiolora.presets.preset import modules_of
from audiolora.quantizing import quantizable

_FEWEST = 64
"""Elements below which a weight stays float: its node would cost more than it saves."""


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


def quantize_network(net: nn.Module) -> None:
    """Quantise what is float and can be, in place; adapters stay on.

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
    if not any(quantization_of(module) for module in net.modules()):
        raise ValueError(
            f"{type(net).__name__} has no convolution or Linear of {_FEWEST} weights or more to quantise; export it "
            "without quantize"
        )


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
    kept, made, nodes = [], [], []
    for constant in proto.graph.initializer:
        value = numpy_helper.to_array(constant)
        codes = known.get((value.shape, value.tobytes())) if value.dtype == np.float32 else None
        if codes is None:
            kept.append(constant)
            continue
        constants, steps = codes.written(constant.name)
        made += constants
        nodes += steps
    found = len(proto.graph.initializer) - len(kept)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, *made])
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *rest])
    return found


@dataclass(frozen=True)
class _Constant:
    """Codes in the order in which a graph has the weight; ``groups`` where they are a kernel to be put in order."""

    codes: np.ndarray
    scale: np.ndarray
    axis: int
    shape: tuple[int, ...]
    groups: int | None = None

    def written(self, name: str) -> tuple[list[Any], list[Any]]:
        """The constants and the nodes that give the weight ``name``."""
        from onnx import helper, numpy_helper

        q, s = f"{name}.int8", f"{name}.scale"
        constants = [numpy_helper.from_array(self.codes, q), numpy_helper.from_array(self.scale, s)]
        if self.groups is None and len(self.shape) > 2:
            return constants, [helper.make_node("DequantizeLinear", [q, s], [name], axis=self.axis)]
        if self.groups is None:
            # One axis more, and it is taken off: ONNX Runtime makes a DequantizeLinear right before a MatMul into an
            # operator that rounds the activations to int8 besides.
            constants[0] = numpy_helper.from_array(self.codes[None], q)
            constants.append(numpy_helper.from_array(np.array([0]), f"{name}.axis"))
            return constants, [
                helper.make_node("DequantizeLinear", [q, s], [f"{name}.stacked"], axis=self.axis + 1),
                helper.make_node("Squeeze", [f"{name}.stacked", f"{name}.axis"], [name]),
            ]
        (in_channels, out_per_group, k), g = self.shape, self.groups
        apart = np.array([g, out_per_group, in_channels // g, k])
        constants += [
            numpy_helper.from_array(apart, f"{name}.apart"),
            numpy_helper.from_array(np.array(self.shape), f"{name}.shape"),
        ]
        kernel, split, turned = (f"{name}.{part}" for part in ("kernel", "split", "turned"))
        return constants, [
            helper.make_node("DequantizeLinear", [q, s], [kernel], axis=0),
            helper.make_node("Reshape", [kernel, f"{name}.apart"], [split]),
            helper.make_node("Transpose", [split], [turned], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [turned, f"{name}.shape"], [name]),
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
