"""The graphs of a base with one adapter or none, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from audiolora.edge.ctc import Audio, Word, transcribe_ctc, words_ctc
from audiolora.edge.forecasting import History, forecast_from
from audiolora.edge.runtime import Active
from audiolora.edge.stream_forecasting import last_step
from audiolora.edge.whisper import Assets, transcribe_whisper
from audiolora.export.ctc_settings import CtcSettings
from audiolora.export.errors import BundleError
from audiolora.export.forecast_settings import ForecastSettings
from audiolora.export.manifests import BaseManifest, GraphSpec, StateSpec, TensorSpec
from audiolora.export.tasks import Task
from audiolora.export.whisper_settings import WhisperSettings

if TYPE_CHECKING:
    from audiolora.edge.streaming import Stream

Inputs = np.ndarray | Mapping[str, np.ndarray]
"""The one input of a graph, or its inputs by name."""

Outputs = np.ndarray | tuple[np.ndarray, ...]
"""The one output of a graph, or its outputs in order."""

States = Mapping[str, np.ndarray]
"""What a graph remembers, by the names of the inputs that take it."""


class Network:
    """A base's graphs with one adapter or none: what `Session.bind` gives, and what a session runs.

    Args:
        manifest: the base's.
        sessions: ONNX Runtime's, by graph.
        active: the adapter's tensors for each graph that has slots; {} for none, or where they are in the weights.
        task: the adapter's settings, or the base's.
        assets: what the base's task needs besides its settings.
    """

    def __init__(
        self,
        manifest: BaseManifest,
        sessions: Mapping[str, Any],
        active: Mapping[str, Active],
        task: Task | None,
        assets: Assets | None = None,
    ) -> None:
        self.manifest, self.task, self.assets = manifest, task, assets
        self._sessions, self._active = sessions, active

    def run(self, x: Inputs, graph: str | None = None) -> Outputs:
        """A graph on x, as the first run of its states if it has any.

        Args:
            x: the input, or inputs by name; types and shapes as the manifest has them.
            graph: which one, where the bundle has several.

        Returns:
            The output, or a tuple of several.

        Raises:
            ValueError: inputs of another name, type or shape, or too short for the network, or a graph that is not
                there.
        """
        return self.step(x, None, graph)[0]

    def step(self, x: Inputs, states: States | None = None, graph: str | None = None) -> tuple[Outputs, States]:
        """As `run`, and the states that follow, to be given to the next step.

        Args:
            x: as in `run`.
            states: what the step before returned; None begins anew.
            graph: as in `run`.

        Raises:
            ValueError: as `run`; also states of another name, type or shape.
        """
        name, spec = self.graph(graph)
        given = x if isinstance(x, Mapping) else {spec.inputs[0].name: x}
        sizes: dict[str, int] = {}
        feeds = checked(spec.inputs, given, "inputs", sizes)
        if spec.states:
            taken = tuple(TensorSpec(state.input, state.shape, state.dtype) for state in spec.states)
            feeds |= checked(taken, initial(spec.states, sizes) if states is None else states, "states", sizes)
        active = self._active.get(name)
        names = [output.name for output in spec.outputs] + [state.output for state in spec.states]
        try:
            found = self._sessions[name].run(names, feeds, None if active is None else active.options)
        except Exception as error:
            sizes_told = ", ".join(f"{each} {value.shape}" for each, value in feeds.items())
            why = " ".join(str(error).split())
            raise ValueError(
                f"{name}: the runtime cannot run it on {sizes_told}: {why}; are the inputs long enough?"
            ) from error
        outputs, after = found[: len(spec.outputs)], found[len(spec.outputs) :]
        kept = dict(zip([state.input for state in spec.states], after, strict=True))
        return outputs[0] if len(outputs) == 1 else tuple(outputs), kept

    def graph(self, name: str | None = None) -> tuple[str, GraphSpec]:
        """A graph's name and what it takes; None where there is one.

        Raises:
            ValueError: no such graph, or several and none was named.
        """
        graphs = self.manifest.graphs
        if name is None and len(graphs) == 1:
            name = next(iter(graphs))
        if name is None or name not in graphs:
            asked = "none was named" if name is None else f"{name!r} is none of them"
            raise ValueError(f"the bundle has the graphs {', '.join(graphs)}, and {asked}; name one (graph=…)")
        return name, graphs[name]

    def streamed(self) -> tuple[str, GraphSpec]:
        """The name and the spec of the graph that streams go through.

        Raises:
            ValueError: the bundle is not for streams.
        """
        if len(self.manifest.graphs) != 1 or not self.graph()[1].states:
            raise ValueError("this bundle is not for streams; export a causal network with streaming=True")
        return self.graph()

    def forecast(
        self,
        history: History,
        *,
        device: str | None = None,
        ends: datetime | str | None = None,
        time_zone: str | None = None,
    ) -> np.ndarray:
        """As `Session.forecast`."""
        if not isinstance(self.task, ForecastSettings):
            raise ValueError("this bundle is not a forecaster's, so it does not say how to scale; use run")
        settings, streaming = self.task, bool(self.graph()[1].states)
        run = (lambda z: last_step(settings, np.asarray(self.run(z)))) if streaming else self.run
        return forecast_from(settings, history, device, run, ends=ends, time_zone=time_zone)

    def stream(self) -> Stream:
        """Streams through the graph, chunk by chunk; for a causal network that was exported for them.

        Raises:
            ValueError: the bundle's graph keeps no left context, or the adapter is not in the weights.
        """
        from audiolora.edge.streaming import Stream

        name, spec = self.streamed()
        if self._active:
            raise ValueError("the adapter of this network is given at each run; take session.stream(adapter)")
        return Stream(self._sessions[name], spec, {}, self.task)

    def transcribe(
        self,
        audio: Audio,
        sample_rate_hz: int,
        *,
        language: str | None = None,
        batch_size: int = 8,
        beam_width: int = 1,
    ) -> str | list[str]:
        """As `Session.transcribe`."""
        if isinstance(self.task, WhisperSettings) and self.assets is not None:
            if beam_width != 1:
                raise ValueError(f"beam_width must be 1, for a Whisper decodes greedily here, got {beam_width}")
            settings = self.task if language is None else replace(self.task, language=language)
            return transcribe_whisper(self, settings, self.assets, audio, sample_rate_hz, batch_size=batch_size)
        if language is not None:
            raise ValueError(f"language must be None, for this is no Whisper's bundle, got {language!r}")
        how = {"batch_size": batch_size, "beam_width": beam_width}
        return transcribe_ctc(self._logits, self._ctc(), audio, sample_rate_hz, **how)

    def words(
        self, audio: Audio, sample_rate_hz: int, *, batch_size: int = 8, beam_width: int = 1
    ) -> list[Word] | list[list[Word]]:
        """As `Session.words`."""
        how = {"batch_size": batch_size, "beam_width": beam_width}
        return words_ctc(self._logits, self._ctc(), audio, sample_rate_hz, **how)

    def _ctc(self) -> CtcSettings:
        if isinstance(self.task, WhisperSettings):
            raise ValueError("a Whisper's bundle does not say where words are; use transcribe")
        if not isinstance(self.task, CtcSettings):
            raise ValueError("this bundle is of no speech model, so it does not say how audio becomes a text; use run")
        return self.task

    def _logits(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        logits = self.run(inputs)
        assert isinstance(logits, np.ndarray)  # one output
        return logits


def initial(states: tuple[StateSpec, ...], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The states before the first run: zeros.

    Args:
        states: a graph's.
        sizes: those of its inputs that are free, by name; any other is 0.
    """
    shapes = {state.input: [d if isinstance(d, int) else sizes.get(d, 0) for d in state.shape] for state in states}
    return {state.input: np.zeros(shapes[state.input], state.dtype) for state in states}


def difference(y: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of two outputs, as a share of the larger of 1 and the largest of ``wanted``.

    Infinite where shapes differ or something is not finite.
    """
    if y.shape != wanted.shape or not np.isfinite(y).all():
        return float("inf")
    if not y.size:
        return 0.0
    off = np.abs(y.astype(np.float64) - wanted.astype(np.float64)).max()
    return float(off / max(1.0, np.abs(wanted).max()))


def check_graph(session: Any, spec: GraphSpec, file: str) -> None:
    """The graph takes and gives what the manifest says; a slot that it has as a constant would run the base.

    Raises:
        BundleError: it does not.
    """
    taken = [*(value.name for value in spec.inputs), *(state.input for state in spec.states)]
    given = [*(value.name for value in spec.outputs), *(state.output for state in spec.states)]
    slots = [slot.name for slot in spec.slots]
    pairs = (
        ("inputs", session.get_inputs(), taken),
        ("outputs", session.get_outputs(), given),
        ("slots", session.get_overridable_initializers(), slots),
    )
    for kind, values, wanted in pairs:
        if odd := sorted({value.name for value in values} ^ set(wanted)):
            raise BundleError(
                f"{file}: its {kind} are not those of the manifest: {', '.join(odd[:8])}; export it again"
            )
    if [value.name for value in session.get_outputs()] != given:
        raise BundleError(f"{file}: its outputs are in another order than the manifest's; export it again")


def checked(
    specs: tuple[TensorSpec, ...], given: Mapping[str, Any], kind: str, sizes: dict[str, int]
) -> dict[str, np.ndarray]:
    """The arrays, if they are what these specs say; ``sizes`` collects the free sizes.

    Raises:
        ValueError: other names, types or shapes.
    """
    names = {spec.name for spec in specs}
    if given.keys() != names:
        raise ValueError(f"the {kind} are {', '.join(sorted(names))}, got {', '.join(sorted(given)) or 'none'}")
    for spec in specs:
        _check_value(spec, given[spec.name], sizes)
    return dict(given)


def _check_value(spec: TensorSpec, value: Any, sizes: dict[str, int]) -> None:
    fits = isinstance(value, np.ndarray) and value.dtype == np.dtype(spec.dtype) and value.ndim == len(spec.shape)
    if fits:
        for size, rule in zip(value.shape, spec.shape, strict=True):
            if size != (sizes.setdefault(rule, size) if isinstance(rule, str) else rule):
                raise ValueError(f"{_told(spec)}, got {value.shape}; sizes of one name must be equal")
        return
    got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    raise ValueError(f"{_told(spec)}, got {got}")


def _told(spec: TensorSpec) -> str:
    return f"{spec.name} must be {spec.dtype} ({', '.join(map(str, spec.shape))})"
