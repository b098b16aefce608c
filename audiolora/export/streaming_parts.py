"""The part of a streaming bundle: its example, what a forecaster's stream needs, and its check against torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from audiolora.edge.network import difference
from audiolora.edge.streaming import Stream
from audiolora.export.forecast_settings import ForecastSettings
from audiolora.export.manifests import BaseManifest
from audiolora.export.parts import Dynamic, Part
from audiolora.export.prepared import named_inputs
from audiolora.export.reference import Reference
from audiolora.export.slots import copied, plain_network
from audiolora.export.streaming import StreamPlan, split_run, stream_plan
from audiolora.export.tasks import Task

EVERY_STEP = "at_every_step"
"""The method of a network with a head over the last step that gives what the head would at each: (N, K, L)."""

BATCH, TIME = "batch", "time"
_NEXT = "_next"
_MORE, _LONGEST_CHECK = 40, 4096


def streaming_part(
    network: nn.Module, example: Any, dynamic: Dynamic | None, settings: ForecastSettings | None
) -> Part:
    """A causal network as one graph of a stream's chunk.

    Args:
        network: adapters in it or not. One with a method ``at_every_step`` is streamed with that.
        example: of its input, (N, channels, L).
        dynamic: the axes of batch and time, if time is not the last.
        settings: of the forecaster around it, if there is one.

    Raises:
        ValueError: a network that cannot be streamed, or a forecaster whose windows no stream can have.
    """
    inputs = named_inputs(network, example)
    name, x = next(iter(inputs.items()))
    axis = _time_axis(inputs, dynamic)
    plain = plain_network(copied(network))
    plan = _plan(plain, x.shape[3 - axis], axis)
    if settings is not None:
        _check_forecaster(settings, plan, plain, x)
    free = {name: {0: BATCH, axis: TIME}, **plan.dynamic()}
    states = {state: f"{state}{_NEXT}" for state in plan.states(1)}
    return Part(
        {name: x, **_with_a_past(plan, plain, x)}, free, view=plan, states=states, outputs=("y", *states.values())
    )


def plan_of(manifest: BaseManifest, network: nn.Module) -> StreamPlan | None:
    """How an adapter's network is streamed over a base that is out already; None where the base is no stream's.

    Raises:
        ValueError: the network has not the base's states.
    """
    graph = manifest.graphs.get("base")
    if graph is None or not graph.states or TIME not in graph.inputs[0].shape:
        return None
    shape = graph.inputs[0].shape
    axis = shape.index(TIME)
    plan = _plan(plain_network(copied(network)), int(shape[3 - axis]), axis)
    found = {name: tuple(state.shape[1:]) for name, state in plan.states(1).items()}
    wanted = {state.input: state.shape[1:] for state in graph.states}
    if found.keys() != wanted.keys() or (plan.mode == "states" and found != wanted):
        raise ValueError(f"the network's states are {found}, the base's {wanted}: it is over another base")
    return plan


def stream_difference(streams: list[Stream], part: Part, reference: Reference, adapter: str | None) -> float:
    """How far streams in chunks of drawn sizes, from their beginning, are off the network on all of the input in torch.

    Args:
        streams: new ones.
        part: of which they are.
        reference: the network.
        adapter: PEFT's name of the streams' adapter.
    """
    plan = part.view
    assert isinstance(plan, StreamPlan)
    draw = np.random.default_rng(0)
    steps = min(plan.receptive_field, _LONGEST_CHECK) + _MORE
    shape = (2, plan.channels, steps) if plan.time_dim == 2 else (2, steps, plan.channels)
    x = draw.normal(size=shape).astype(np.float32)
    cuts = np.sort(draw.integers(3, steps, size=6))
    whole = Part({"x": torch.from_numpy(x)}, {}, view=plan.offline)
    (wanted,) = reference(whole, whole.inputs, adapter)
    off = 0.0
    for stream in streams:
        chunks = np.split(x, [1, 2, *cuts], axis=plan.time_dim)
        y = np.concatenate([stream.push(chunk) for chunk in chunks], axis=min(plan.time_dim, wanted.ndim - 1))
        off = max(off, difference(y, wanted))
    return off


def _time_axis(inputs: Mapping[str, torch.Tensor], dynamic: Dynamic | None) -> int:
    name, x = next(iter(inputs.items()))
    if len(inputs) > 1 or x.dim() != 3 or x.dtype != torch.float32:
        told = ", ".join(f"{n} {x.dtype} {tuple(x.shape)}" for n, x in inputs.items())
        raise ValueError(f"a stream is of one float32 input (N, channels, L), got {told}; export without streaming")
    axes = set({0: BATCH, 2: TIME} if dynamic is None else dynamic.get(name, {}))
    if axes not in ({0, 1}, {0, 2}):
        raise ValueError(
            f"the free axes of a stream's input are those of batch (0) and time (2, or 1 for (N, L, channels)), got "
            f"{sorted(axes)} of {name}; a network of a fixed length cannot be streamed"
        )
    return max(axes)


def _plan(plain: nn.Module, channels: int, axis: int) -> StreamPlan:
    return stream_plan(plain, channels, axis, EVERY_STEP if hasattr(plain, EVERY_STEP) else None)


def _with_a_past(plan: StreamPlan, plain: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """States after some noise, for an example: zeros would check less."""
    axis, length = plan.time_dim, min(plan.receptive_field, _LONGEST_CHECK)
    noise = torch.randn(*x.shape[:axis], length, *x.shape[axis + 1 :], generator=torch.Generator().manual_seed(0))
    _, states = split_run(plan(plain), noise, [length], plan.states(len(x)))
    return {name: state.contiguous() for name, state in states.items()}


def check_scalers(tasks: Iterable[Task | None]) -> None:
    """Nothing if no forecaster scales by the window, which every step of a stream would change.

    Raises:
        ValueError: one does.
    """
    if any(isinstance(task, ForecastSettings) and task.scaler["kind"] == "window" for task in tasks):
        raise ValueError(
            "a forecaster that scales each window by itself (scaler 'window') cannot be streamed: every step would "
            "change the scale of all that is remembered; train it with the scaler 'standard' or 'robust', or export "
            "its network (forecaster.net) and scale outside"
        )


def _check_forecaster(settings: ForecastSettings, plan: StreamPlan, plain: nn.Module, x: torch.Tensor) -> None:
    if plan.receptive_field > settings.lookback:
        raise ValueError(
            f"the network reads {plan.receptive_field} steps and the forecaster's windows have {settings.lookback}: a "
            "stream would show it what no window did; take a lookback that is not shorter, or smaller dilations"
        )
    with torch.no_grad():
        last, forward = plan.offline(plain)(x)[..., -1], plain(x)
    if (
        plan.method is None
        or last.numel() != forward.numel()
        or not torch.allclose(last.view_as(forward), forward, atol=1e-5)
    ):
        raise ValueError(
            f"{type(plain).__name__}: a forecaster is streamed with its network's method {EVERY_STEP}(x), "
            "(N, channels, L) → (N, horizon · quantiles, L), whose last step is what forward gives; write one as in "
            "audiolora.series.nets.TCNForecaster"
        )
