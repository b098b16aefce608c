"""What quantising costs: the quantised bundle against the float network, on the user's data where there is any."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from audiolora.edge.network import Inputs, Network, Outputs, States, checked, initial
from audiolora.edge.session import Session
from audiolora.export.forecast_settings import ForecastSettings
from audiolora.export.parts import Part
from audiolora.export.prepared import Prepared
from audiolora.export.reference import Reference
from audiolora.export.spoken import Spoken
from audiolora.export.tasks import Task
from audiolora.speech.texts.metrics import ErrorRates, Interval

Run = Callable[[Inputs], Outputs]
"""A network with one adapter or none, on NumPy's arrays."""

Evaluate = Callable[[Run], Mapping[str, float]]
"""From a network to its scores on the user's data; smaller may be better or worse, both are shown."""

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Accuracy:
    """A quantised bundle against the float network it came from.

    Args:
        relative_error: by adapter, and of ``"base"``: ‖y - y_float‖ / ‖y_float‖ over the outputs for the example.
        scores: by adapter and metric: (float, quantised) on the evaluation data; {} where none was given.
        rates: by adapter, of speech: (float, quantised). Both are the device's features, decoding and text; the float
            network under them is run by torch.
    """

    relative_error: Mapping[str, float]
    scores: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    rates: Mapping[str, tuple[ErrorRates, ErrorRates]] = field(default_factory=dict)

    def __str__(self) -> str:
        errors = self.relative_error.items()
        lines = [f"{name:<20} off the float network by {off:.2%} on the example" for name, off in errors]
        for name, metrics in self.scores.items():
            lines += [f"{name:<20} {metric} {a:.4g} float, {b:.4g} quantised ({_change(a, b)})"
                      for metric, (a, b) in metrics.items()]  # fmt: skip
        for name, (a, b) in self.rates.items():
            lines.append(f"{name:<20} WER {_told(a.wer)} float, {_told(b.wer)} quantised")
            lines.append(f"{'':<20} CER {_told(a.cer)} float, {_told(b.cer)} quantised; {a.utterances} utterances, "
                         f"{a.reference_words} words, {a.confidence:.0%} intervals")  # fmt: skip
        if not self.scores and not self.rates:
            lines.append("no evaluation data was given: what this costs on yours is not known")
        return "\n".join(lines)


def measured(
    bundle: Path,
    work: Prepared,
    ids: Mapping[str, str],
    *,
    evaluate: Any = None,
    forecaster: Any = None,
    tasks: Mapping[str, Task] | None = None,
) -> Accuracy:
    """Run both, with each adapter and with none.

    Args:
        bundle: just written; its signature is not looked at.
        work: with the float network.
        ids: bundle's id → PEFT's name of an adapter.
        evaluate: `Evaluate`, for a forecaster long-form rows, for speech `Spoken`.
        forecaster: whose network it is, if it is one's.
        tasks: by PEFT's name, settings of adapters that have their own.
    """
    assert work.original is not None, "of a quantised export"
    session = Session(bundle, check_signature=False, threads=1)
    for each in ids:
        session.load(each)
    both: dict[str, tuple[str | None, str | None]] = {"base": (None, work.merged)}
    both |= {name: (name, peft) for name, peft in ids.items() if name != "base"}
    errors: dict[str, float] = {}
    scores: dict[str, dict[str, tuple[float, float]]] = {}
    rates: dict[str, tuple[ErrorRates, ErrorRates]] = {}
    for name, (loaded, peft) in both.items():
        device = session.network(loaded)
        errors[name] = max(_relative(device, work.original, part, peft) for part in work.parts)
        if evaluate is None:
            continue
        floats = OverTorch(device, work.original, work.parts, peft)
        if isinstance(evaluate, Spoken):
            rates[name] = (evaluate.rates(floats, name), evaluate.rates(device, name))
            continue
        score = _of_forecaster(evaluate, forecaster, name, (tasks or {}).get(peft or ""))
        before, after = ({key: float(value) for key, value in score(each.run).items()} for each in (floats, device))
        scores[name] = {metric: (before[metric], after[metric]) for metric in before}
    return Accuracy(errors, scores, rates)


class OverTorch(Network):
    """A network as the device has it, whose graphs torch runs.

    Args:
        device: whose settings and files are taken.
        original: what torch runs.
        parts: of the bundle.
        adapter: PEFT's name; None for none.
    """

    def __init__(self, device: Network, original: Reference, parts: Sequence[Part], adapter: str | None) -> None:
        super().__init__(device.manifest, {}, {}, device.task, device.assets)
        self._original, self._adapter = original, adapter
        self._parts = {part.name: part for part in parts}

    def step(self, x: Inputs, states: States | None = None, graph: str | None = None) -> tuple[Outputs, States]:
        """As `Network.step`."""
        name, spec = self.graph(graph)
        part, sizes = self._parts[name], dict[str, int]()
        values = checked(spec.inputs, x if isinstance(x, Mapping) else {spec.inputs[0].name: x}, "inputs", sizes)
        if spec.states:
            values |= initial(spec.states, sizes) if states is None else states
        found = self._original(part, {key: torch.from_numpy(values[key]) for key in part.inputs}, self._adapter)
        by_name = dict(zip(part.named(found), found, strict=True))
        outputs = tuple(by_name[output.name] for output in spec.outputs)
        return outputs[0] if len(outputs) == 1 else outputs, {
            state.input: by_name[state.output] for state in spec.states
        }


def check_evaluation(evaluate: Any, forecaster: Any, parts: int) -> None:
    """Nothing if it can be evaluated.

    Raises:
        ValueError: rows without a forecaster, something that cannot be called, or a callable for several graphs.
    """
    if evaluate is None or isinstance(evaluate, Spoken):
        return
    if callable(evaluate):
        if parts > 1:
            raise ValueError("evaluate takes a network of one graph; measure a bundle of several with audiolora.edge")
        return
    if forecaster is None or not _is_frame(evaluate):
        raise ValueError(
            "evaluate must be a function from a network to its scores, or, for a Forecaster, long-form rows with "
            f"unique_id, ds and y, got {type(evaluate).__name__}"
        )


def _is_frame(value: Any) -> bool:
    pandas = sys.modules.get("pandas")  # whoever has a frame has imported it
    return pandas is not None and isinstance(value, pandas.DataFrame)


def windows_of(forecaster: Any, frame: Any, most: int = 128) -> list[dict[str, np.ndarray]]:
    """Scaled windows of rows, evenly spread, as the network sees them: {"x": (1, C, lookback)} each."""
    from audiolora.series.windows import windows

    rows, spans = forecaster._columns(frame), (forecaster.lookback, forecaster.horizon)
    seen = windows(rows, *spans, freq=forecaster.freq, known=forecaster.known)
    if not len(seen):
        raise ValueError(
            f"calibration: no window of {forecaster.lookback} + {forecaster.horizon} steps is whole; give more rows"
        )
    x = forecaster.scaler.statistics(seen).transform(seen.x)
    chosen = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).round().astype(int))
    return [{"x": x[i : i + 1].astype(np.float32)} for i in chosen]


def _relative(network: Network, original: Reference, part: Part, adapter: str | None) -> float:
    arrays = {name: tensor.numpy() for name, tensor in part.inputs.items()}
    states = {name: arrays.pop(name) for name in part.states}
    y, after = network.step(arrays, states, part.name)
    found = (*(y if isinstance(y, tuple) else (y,)), *after.values())
    wanted = original(part, part.inputs, adapter)
    off, size = (sum(float(np.square(v.astype(np.float64)).sum()) for v in values) for values in (
        [a.astype(np.float64) - b for a, b in zip(found, wanted, strict=True)], wanted))  # fmt: skip
    return float(np.sqrt(off / size)) if size else float(np.sqrt(off))


def _of_forecaster(evaluate: Any, forecaster: Any, name: str, task: Task | None) -> Evaluate:
    """MAE and MASE of a rolling origin; of an adapter that is named after a device, over that device alone."""
    if callable(evaluate):
        scored: Evaluate = evaluate
        return scored
    from audiolora.series.metrics import score
    from audiolora.series.scaling import scaler_from_dict

    own = {"scaler": scaler_from_dict(dict(task.scaler))} if isinstance(task, ForecastSettings) else {}
    rows = evaluate[evaluate["unique_id"] == name] if name in set(evaluate["unique_id"]) else evaluate

    def of(run: Run) -> dict[str, float]:
        device = forecaster.over(_OnDevice(run), **own)
        steps = int(rows.groupby("unique_id").size().max())
        origins = max(1, (steps - forecaster.lookback) // forecaster.horizon)
        forecasts = device.backtest(rows, origins=origins)
        found = score(forecasts, rows, seasonality=1)
        return {metric: float(found[metric].mean()) for metric in ("mae", "mase") if metric in found}

    return of


class _OnDevice(nn.Module):
    """A network in NumPy where a forecaster expects one of torch."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.of_arrays = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.of_arrays(np.ascontiguousarray(part.numpy())) for part in x.split(_ROWS_AT_ONCE)]
        return torch.from_numpy(np.concatenate([np.asarray(part) for part in parts]))


def _change(before: float, after: float) -> str:
    return f"{after / before - 1:+.2%}" if before else f"{after - before:+.2g}"


def _told(rate: Interval) -> str:
    return f"{rate.value:.2f} % [{rate.low:.1f}, {rate.high:.1f}]"
