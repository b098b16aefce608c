"""``export(quantize=…)``: what is asked for, checked before any work, and the graphs that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from audiolora.export import onnx as graphs
from audiolora.export.accuracy import check_evaluation, windows_of
from audiolora.export.int8 import with_int8_weights
from audiolora.export.manifests import QUANTIZED, TOLERANCE, GraphSpec
from audiolora.export.parts import Part
from audiolora.export.prepared import Prepared
from audiolora.export.qdq import MARGIN, quantized_statically, worst_difference
from audiolora.export.slots import filled

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Quantization:
    """What is asked for.

    Args:
        kind: None, ``"int8"`` or ``"qdq"``.
        calibration: by graph, inputs of runs to calibrate on.
        evaluate: as `export` has it.
    """

    kind: str | None = None
    calibration: Mapping[str, Sequence[Arrays]] = field(default_factory=dict)
    evaluate: Any = None

    @classmethod
    def of(
        cls, kind: str | None, calibration: Any, evaluate: Any, *, form: str, parts: Sequence[Part], forecaster: Any
    ) -> Quantization:
        """From the arguments of `export`.

        Raises:
            ValueError: one that is missing, not for this, or of another form.
        """
        if kind is not None and kind not in QUANTIZED:
            raise ValueError(f"quantize must be one of {', '.join(QUANTIZED)}, or None, got {kind!r}")
        if evaluate is not None and kind is None:
            raise ValueError("evaluate measures what quantising costs; give quantize='int8' or 'qdq' with it")
        if (calibration is not None) != (kind == "qdq"):
            raise ValueError(
                "quantize='qdq' and calibration go together: inputs of the kind that the device will see"
                if kind == "qdq"
                else f"calibration is for quantize='qdq', and quantize is {kind!r}; leave it out"
            )
        if kind == "qdq" and form == "wsum":
            raise ValueError(
                "quantize='qdq' needs weights that are constants, and in form 'wsum' they depend on the adapter; take "
                "form='fact' (adapters) or 'merged' (one, fixed)"
            )
        if kind == "int8" and form == "merged":
            raise ValueError(
                "quantize='int8' keeps the base's weights, and form 'merged' has an adapter in them; take form='wsum' "
                "and bind, or merge_and_unload() the adapter and export the merged network"
            )
        check_evaluation(evaluate, forecaster, len(parts))
        return cls(kind, _calibration(calibration, parts, forecaster) if kind == "qdq" else {}, evaluate)

    def applied(
        self, work: Prepared, protos: Mapping[str, Any], specs: Mapping[str, GraphSpec], runtime: str
    ) -> tuple[dict[str, Any], float]:
        """The graphs, slots without defaults, and the tolerance of their self-test."""
        if self.kind == "qdq":
            return self._static(work, protos, specs, runtime)
        if self.kind == "int8":
            found = sum(with_int8_weights(proto, work.coded) for proto in protos.values())
            if not found:
                raise ValueError("no weight of the network stands in its graphs as it is; export without quantize")
        return dict(protos), TOLERANCE

    def _static(
        self, work: Prepared, protos: Mapping[str, Any], specs: Mapping[str, GraphSpec], runtime: str
    ) -> tuple[dict[str, Any], float]:
        import onnx

        made, worst = {}, 0.0
        for part in work.parts:
            slots = specs[part.name].slots
            ways: dict[str | None, Arrays] = {work.merged: {}}
            ways |= {name: filled(slots, _only(folds, slots)) for name, folds in work.folds.items()} if slots else {}
            feeds = [{**x, **tensors} for x in self.calibration[part.name] for tensors in ways.values()]
            whole = onnx.load_model_from_string(graphs.optional(protos[part.name], slots))
            made[part.name] = quantized_statically(whole, [slot.name for slot in slots], feeds)
            graphs.strip(made[part.name])
            runs = [
                ({**{key: value.numpy() for key, value in x.items()}, **tensors}, work.reference(part, x, adapter))
                for x in work.trials(part)
                for adapter, tensors in ways.items()
            ]
            worst = max(worst, worst_difference(graphs.optional(made[part.name], slots), runs, runtime))
        return made, max(TOLERANCE, MARGIN * worst)


def _only(folds: Mapping[str, Any], slots: Sequence[Any]) -> dict[str, Any]:
    """Of an adapter what a graph has slots for: the rest is another graph's."""
    names = {slot.name.rpartition(".")[0] for slot in slots}
    return {name: fold for name, fold in folds.items() if name in names}


def _calibration(calibration: Any, parts: Sequence[Part], forecaster: Any) -> dict[str, Sequence[Arrays]]:
    if forecaster is not None and hasattr(calibration, "columns"):
        return {parts[0].name: windows_of(forecaster, calibration)}
    if len(parts) == 1 and not isinstance(calibration, Mapping):
        calibration = {parts[0].name: calibration}
    if not isinstance(calibration, Mapping) or set(calibration) != {part.name for part in parts}:
        raise ValueError(
            "calibration must be a list of inputs, for several graphs such a list by graph "
            f"({', '.join(part.name for part in parts)}), or long-form rows for a Forecaster"
        )
    return {part.name: [_named(one, part) for one in _several(calibration[part.name])] for part in parts}


def _several(inputs: Any) -> Sequence[Any]:
    found = [inputs] if isinstance(inputs, (torch.Tensor, np.ndarray)) else list(inputs)
    if not found:
        raise ValueError("calibration is empty; give at least a few inputs of the kind that the device will see")
    return found


def _named(one: Any, part: Part) -> dict[str, np.ndarray]:
    """Inputs of one run by name, checked against the example."""
    given = one if isinstance(one, Mapping) else {next(iter(part.inputs)): one}
    if set(given) != set(part.inputs):
        raise ValueError(f"calibration of {part.name} must have {', '.join(part.inputs)}, got {', '.join(given)}")
    found = {}
    for name, example in part.inputs.items():
        tensor = torch.as_tensor(given[name]).detach().cpu().to(example.dtype).contiguous()
        free = part.dynamic.get(name, {})
        fixed = [axis for axis in range(example.dim()) if axis not in free]
        if tensor.dim() != example.dim() or any(tensor.shape[axis] != example.shape[axis] for axis in fixed):
            raise ValueError(
                f"calibration of {part.name}: {name} has the shape {tuple(tensor.shape)}, and the example's is "
                f"{tuple(example.shape)}; sizes may differ along the axes {sorted(free) or 'none'}"
            )
        found[name] = tensor.numpy()
    return found
