"""A causal network on a stream, chunk by chunk, its left context kept between them.

    stream = session.stream("pump7")
    y = stream.push(chunk)         # what the network gives at these steps when it sees all that came before

The states lie in two sets of buffers that take turns: a run reads one and writes the other, so that a step allocates
nothing but its result. The adapter's tensors are bound as inputs beside them: ONNX Runtime leaves its own way of giving
an adapter (`RunOptions.add_active_adapter`) out of a run with bound inputs, and would run the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np

from audiolora.edge.forecasting import History
from audiolora.edge.network import checked, initial
from audiolora.edge.runtime import onnxruntime
from audiolora.edge.stream_forecasting import forecast_steps
from audiolora.export.forecast_settings import ForecastSettings
from audiolora.export.manifests import GraphSpec, TensorSpec
from audiolora.export.tasks import Task

BATCH, TIME = "batch", "time"
"""The names of the free sizes of a streaming graph."""


class Stream:
    """One stream, or a batch of them, over one adapter: from `Session.stream` and `Network.stream`.

    The adapter is the one that was there when the stream was made. Another one needs a new stream: what this one
    remembers was computed with its own.

    Args:
        session: ONNX Runtime's.
        graph: what it takes and gives.
        slots: the adapter's tensors; {} where they are in the weights, or for none.
        task: the adapter's settings.

    Raises:
        ValueError: the graph is not a stream's.
    """

    def __init__(self, session: Any, graph: GraphSpec, slots: Mapping[str, np.ndarray], task: Task | None) -> None:
        self._session, self._graph, self._slots, self._task = session, graph, dict(slots), task
        self._x, self._y = graph.inputs[0], graph.outputs[0]
        sizes = {TIME, BATCH} - set(self._x.shape)
        if not graph.states or sizes or len(graph.inputs) > 1 or len(graph.outputs) > 1:
            raise ValueError("this bundle's graph keeps no left context; export it for streams (streaming=True)")
        self._axis = self._x.shape.index(TIME)
        self._channels = self._x.shape[3 - self._axis]
        self._dtype = np.dtype(self._x.dtype)
        self._runs: _Swapping | _Growing | None = None

    def push(self, x: np.ndarray) -> np.ndarray:
        """The outputs that belong to the next chunk of every stream.

        Args:
            x: (N, channels, n) float32, as the manifest has it; n ≥ 0 steps of N streams.

        Returns:
            (N, …, n): what the network gives at these steps when it sees all that came before.

        Raises:
            ValueError: another shape or type, or another number of streams than before (`reset` begins anew).
        """
        if not isinstance(x, np.ndarray) or x.dtype != self._dtype or x.ndim != 3 or self._odd(x.shape):
            told = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise ValueError(f"a chunk must be {self._x.dtype} ({', '.join(map(str, self._x.shape))}), got {told}")
        if self._runs is None:
            self._runs = self._begun(len(x), None)
        elif self._runs.streams != len(x):
            raise ValueError(
                f"{self._runs.streams} streams so far, and a chunk of {len(x)}; push as many as before, or begin anew "
                "with reset()"
            )
        return self._runs.push(x) if x.shape[self._axis] else self._runs.empty()

    def forecast(
        self,
        values: History,
        *,
        device: str | None = None,
        ends: datetime | str | None = None,
        time_zone: str | None = None,
    ) -> np.ndarray:
        """As `push` for a forecaster's bundle: at each step the forecast that follows it, in the unit of y.

        Args:
            values: the next n of y, (n,), or by column as in `Session.forecast`, known ones ``horizon`` steps ahead:
                what they will be when y is forecast. (N, n) for N streams.
            device: whose scaling to use; the same at every call.
            ends, time_zone: when the last of these values was measured, for the calendar; as in `Session.forecast`.

        Returns:
            (n, horizon), or (n, horizon, Q) with quantiles; float64; (N, n, …) for N streams.

        Raises:
            ValueError: no forecaster's bundle, other columns, unequal lengths, or values that are not finite.
        """
        if not isinstance(self._task, ForecastSettings):
            raise ValueError("this bundle is not a forecaster's, so it does not say how to scale; use push")
        return forecast_steps(self._task, values, device, self.push, ends=ends, time_zone=time_zone)

    def reset(self) -> None:
        """Forget: the next chunk is the first of new streams, of any number."""
        self._runs = None

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What the streams remember, by name, (N, …) each: to be kept with ``np.savez`` and set again, here or in
        another stream of the same base and adapter. {} before the first chunk, and setting {} is `reset`.

        Raises:
            ValueError: when set, arrays of another name, shape or type.
        """
        return {} if self._runs is None else self._runs.state()

    @state.setter
    def state(self, arrays: Mapping[str, np.ndarray]) -> None:
        if not arrays:
            self.reset()
            return
        specs = tuple(TensorSpec(state.input, state.shape, state.dtype) for state in self._graph.states)
        sizes: dict[str, int] = {}
        taken = checked(specs, arrays, "states", sizes)
        self._runs = self._begun(sizes[BATCH], {name: value.copy() for name, value in taken.items()})

    def _odd(self, shape: tuple[int, ...]) -> bool:
        return shape[3 - self._axis] != self._channels or not shape[0]

    def _begun(self, streams: int, states: dict[str, np.ndarray] | None) -> _Swapping | _Growing:
        states = initial(self._graph.states, {BATCH: streams}) if states is None else states
        free = {size for state in self._graph.states for size in state.shape if isinstance(size, str)} - {BATCH}
        free |= {size for size in self._y.shape if isinstance(size, str)} - {BATCH, TIME}
        made = _Growing if free else _Swapping
        return made(self._session, self._graph, self._slots, states, streams)


class _Swapping:
    """States of a fixed size, in two sets of buffers that take turns."""

    def __init__(
        self,
        session: Any,
        graph: GraphSpec,
        slots: Mapping[str, np.ndarray],
        states: dict[str, np.ndarray],
        streams: int,
    ) -> None:
        self.streams = streams
        self._session, self._graph = session, graph
        self._axis = graph.inputs[0].shape.index(TIME)
        self._sets = (states, {name: np.empty_like(value) for name, value in states.items()})
        self._slots = slots
        before, after = ({name: _value(array) for name, array in one.items()} for one in self._sets)
        given = {name: _value(array) for name, array in slots.items()}
        self._bindings = (self._bound(before, after, given), self._bound(after, before, given))
        self._turn, self._steps = 0, 0

    def push(self, x: np.ndarray) -> np.ndarray:
        if x.shape[self._axis] != self._steps:
            self._resize(x)
        np.copyto(self._chunk, x)
        self._session.run_with_iobinding(self._bindings[self._turn])
        self._turn ^= 1
        return self._out.copy()

    def empty(self) -> np.ndarray:
        return np.zeros(_shape(self._graph.outputs[0], self.streams, 0), self._graph.outputs[0].dtype)

    def state(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._sets[self._turn].items()}

    def _bound(self, before: dict[str, Any], after: dict[str, Any], slots: dict[str, Any]) -> Any:
        binding = self._session.io_binding()
        for name, value in (before | slots).items():
            binding.bind_ortvalue_input(name, value)
        for state in self._graph.states:
            binding.bind_ortvalue_output(state.output, after[state.input])
        return binding

    def _resize(self, x: np.ndarray) -> None:
        """Buffers for chunks of another size."""
        spec, steps = self._graph.outputs[0], x.shape[self._axis]
        chunk, out = np.empty(x.shape, x.dtype), np.empty(_shape(spec, self.streams, steps), spec.dtype)
        for binding in self._bindings:
            binding.bind_ortvalue_input(self._graph.inputs[0].name, _value(chunk))
            binding.bind_ortvalue_output(spec.name, _value(out))
        self._chunk, self._out, self._steps = chunk, out, steps


class _Growing:
    """States whose size changes from run to run: the last inputs, until there are as many as the network reads."""

    def __init__(
        self,
        session: Any,
        graph: GraphSpec,
        slots: Mapping[str, np.ndarray],
        states: dict[str, np.ndarray],
        streams: int,
    ) -> None:
        self.streams = streams
        self._session, self._graph, self._slots, self._states = session, graph, slots, states
        self._outputs = [graph.outputs[0].name, *(state.output for state in graph.states)]

    def push(self, x: np.ndarray) -> np.ndarray:
        feeds = {self._graph.inputs[0].name: np.ascontiguousarray(x), **self._states, **self._slots}
        y, *after = self._session.run(self._outputs, feeds)
        self._states = dict(zip([state.input for state in self._graph.states], after, strict=True))
        found: np.ndarray = y
        return found

    def empty(self) -> np.ndarray:
        return np.zeros(_shape(self._graph.outputs[0], self.streams, 0), self._graph.outputs[0].dtype)

    def state(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._states.items()}


def _shape(spec: TensorSpec, streams: int, steps: int) -> list[int]:
    sizes = {BATCH: streams, TIME: steps}
    return [size if isinstance(size, int) else sizes.get(size, 0) for size in spec.shape]


def _value(array: np.ndarray) -> Any:
    """ONNX Runtime's view of an array, which must outlive it."""
    return onnxruntime().OrtValue.ortvalue_from_numpy(array)
