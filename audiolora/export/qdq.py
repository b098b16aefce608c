"""Activations in int8, too: static quantisation by ONNX Runtime's own tool, calibrated with the adapters on.

Ranges that were seen on the base alone are wrong for what an adapter makes of it: on a Whisper encoder the output was
then off by .22 instead of .012. So every adapter runs over the user's data, and the base besides. An adapter's own
products stay float: the graph has them beside the convolutions (form ``fact``), whose weights are constants.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.edge.network import difference
from audiolora.edge.runtime import inference_session, onnxruntime

Arrays = Mapping[str, np.ndarray]

MARGIN = 1.5
"""Between what was measured here and the tolerance of the self-test: other processors round elsewhere."""

_WORST = 0.5
_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_FATAL = 4
_WARNING = 2


def quantized_statically(proto: Any, slots: Sequence[str], feeds: Sequence[Arrays]) -> Any:
    """The graph with QuantizeLinear and DequantizeLinear around its operators; slots as before.

    Args:
        proto: ``onnx.ModelProto`` whose slots have defaults.
        slots: their names.
        feeds: of each calibration run: inputs and slots by name.

    Returns:
        An ``onnx.ModelProto`` whose slots have no defaults.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    named = onnx.ModelProto()
    named.CopyFrom(proto)
    for i, node in enumerate(named.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    with tempfile.TemporaryDirectory(prefix="audiolora-qdq-") as folder, _quiet():
        given, made = Path(folder) / "float.onnx", Path(folder) / "qdq.onnx"
        onnx.save_model(named, given)
        quantize_static(
            given,
            made,
            _reader(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_of_adapters(named, slots),
        )
        found = onnx.load_model(made)
    kept = [constant for constant in found.graph.initializer if constant.name not in set(slots)]
    del found.graph.initializer[:]
    found.graph.initializer.extend(kept)
    return found


def worst_difference(model: bytes, runs: Sequence[tuple[Arrays, Sequence[np.ndarray]]], runtime: str) -> float:
    """The largest difference of a graph's outputs from those wanted (`edge.network.difference`).

    Args:
        model: the graph, slots with defaults.
        runs: of each run: inputs and slots by name, and the outputs in order.
        runtime: the smallest version.

    Raises:
        ValueError: it is so large that the quantised graph is another function.
    """
    session = inference_session(
        model, runtime, file="the quantised graph", threads=1, providers=("CPUExecutionProvider",)
    )
    off = 0.0
    for feeds, wanted in runs:
        found = session.run(None, dict(feeds))
        off = max(off, *(difference(y, right) for y, right in zip(found, wanted, strict=True)))
    if not off <= _WORST:
        raise ValueError(
            f"the quantised graph is off by {off:.2g} of the largest output; calibrate on more data, of the kind that "
            "the device will see, or take quantize='int8', which leaves activations in float"
        )
    return off


def _of_adapters(proto: Any, slots: Sequence[str]) -> list[str]:
    """The nodes that work on an adapter's tensors alone, and products whose weight is no constant."""
    constants = {constant.name for constant in proto.graph.initializer} - set(slots)
    theirs, excluded = set(slots), []
    for node in proto.graph.node:
        taken = [name for name in node.input if name]
        if any(name in theirs for name in taken) and all(name in theirs | constants for name in taken):
            theirs.update(node.output)
            excluded.append(node.name)
        elif node.op_type in _WEIGHTED and any(name in theirs for name in taken):
            excluded.append(node.name)
    return excluded


def _reader(feeds: Sequence[Arrays]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Arrays] = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            found = next(self.rest, None)
            return None if found is None else dict(found)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning for each slot that it can be overridden, and advice to preprocess."""
    import logging

    ort = onnxruntime()
    root = logging.getLogger()
    before = root.manager.disable
    ort.set_default_logger_severity(_FATAL)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        ort.set_default_logger_severity(_WARNING)
