"""A session: one base, any number of adapters, each run through the one that it names."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.edge.ctc import Audio, Word
from audiolora.edge.forecasting import History
from audiolora.edge.network import Inputs, Network, Outputs, check_graph
from audiolora.edge.opening import no_adapter, of_graph, read_assets, runtime_sessions
from audiolora.edge.runtime import activated
from audiolora.edge.selftest import tested
from audiolora.edge.streaming import Stream
from audiolora.export.bundle import Adapter, adapter_folder, adapter_folders, read_adapter, read_base
from audiolora.export.errors import BundleError
from audiolora.export.manifests import SELFTEST, AdapterManifest, BaseManifest
from audiolora.export.signing import Key
from audiolora.export.tensors import read_tensors


class Session:
    """The base of a bundle in its runtime (ONNX Runtime or ExecuTorch), and the adapters that are loaded.

    Args:
        bundle: the folder.
        key: the public key of who signed it: its file, its PEM text or its 32 bytes. Without one only an unsigned
            bundle is taken, and hashes find accidents, not attacks.
        check_signature: False takes a signed bundle without looking at the signature.
        threads: of ONNX Runtime, for one operator; 0 leaves it to the runtime, and ExecuTorch takes nothing else.
        providers: ONNX Runtime's execution providers.
        unpack: of a bundle in int8, make float weights of it once, when it is opened: as fast as a float bundle, and as
            large in memory. False makes them in each run. None: what speech needs, whose decoders run a token at a
            time, is unpacked, and nothing else.

    Raises:
        BundleError: a base that is not as it was exported, or that this runtime cannot run.
        ValueError: no public key, or a provider that is not there.

    Example:
        >>> session = Session("pumps", key="pumps.pub.pem")  # doctest: +SKIP
        >>> session.load("pump7")  # doctest: +SKIP
        >>> session.run(x, adapter="pump7").shape  # doctest: +SKIP
        (1, 24)
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        key: Key | None = None,
        check_signature: bool = True,
        threads: int = 0,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
        unpack: bool | None = None,
    ) -> None:
        self.bundle = Path(bundle)
        self._trust: dict[str, Any] = {"key": key, "check_signature": check_signature}
        base = read_base(self.bundle, **self._trust)
        self._how: dict[str, Any] = {"threads": threads, "providers": providers, "unpack": unpack}
        sessions = runtime_sessions(base, {}, **self._how)
        if base.manifest.target == "onnx":
            for name, graph in base.manifest.graphs.items():
                check_graph(sessions[name], graph, base.manifest.graph_file(name))
            # The graphs themselves are in the runtime now, and are let go here.
            graphs = set(map(base.manifest.graph_file, base.manifest.graphs))
            base = replace(base, files={name: data for name, data in base.files.items() if name not in graphs})
        self._base, self._assets = base, read_assets(base)
        self._plain = Network(base.manifest, sessions, {}, base.manifest.task, self._assets)
        self._sessions = sessions
        self._adapters: dict[str, Loaded] = {}

    @property
    def manifest(self) -> BaseManifest:
        """The base's."""
        return self._base.manifest

    @property
    def loaded(self) -> tuple[str, ...]:
        """The adapters that `run` takes."""
        return tuple(self._adapters)

    def available(self) -> tuple[str, ...]:
        """The adapters in the bundle's folder, verified or not."""
        return tuple(folder.name for folder in adapter_folders(self.bundle))

    def load(self, adapter: str, folder: str | os.PathLike[str] | None = None) -> None:
        """Verify an adapter and keep it for runs, in place of one of the same id that is loaded.

        Args:
            adapter: its id.
            folder: where it lies; None for ``BUNDLE/adapters/ID``.

        Raises:
            BundleError: it is refused, and says why; what was loaded before goes on as it was.
        """
        path = adapter_folder(self.bundle, adapter) if folder is None else Path(folder)
        read = read_adapter(path, self._base, **self._trust)
        if read.manifest.id != adapter:
            raise BundleError(f"{path}: this is adapter {read.manifest.id!r}, and {adapter!r} was asked for")
        sessions, active = self._sessions, {}
        if self.manifest.target == "executorch":  # a program and its data are loaded together
            sessions = runtime_sessions(self._base, read.tensors, **self._how)
        else:
            graphs = {name: graph for name, graph in self.manifest.graphs.items() if graph.slots}
            active = {name: activated(of_graph(read.tensors, graph)) for name, graph in graphs.items()}
        task = read.manifest.task or self.manifest.task
        network = Network(self.manifest, sessions, active, task, self._assets)
        self._adapters[adapter] = Loaded(path, read.manifest, read.sha256, read.selftest, network)

    def unload(self, adapter: str) -> None:
        """Let an adapter go.

        Raises:
            ValueError: it is not loaded.
        """
        self._entry(adapter)
        del self._adapters[adapter]

    def run(self, x: Inputs, adapter: str | None = None, *, graph: str | None = None) -> Outputs:
        """The network on x, with an adapter that is loaded or with none.

        Args:
            x: the input, or inputs by name; types and shapes as the manifest has them.
            adapter: its id; None runs the base.
            graph: which one, where the bundle has several.

        Returns:
            The output, or a tuple of several.

        Raises:
            ValueError: an adapter that is not loaded, or inputs of another name, type or shape.
        """
        return self.network(adapter).run(x, graph)

    def network(self, adapter: str | None = None) -> Network:
        """What runs with an adapter that is loaded, or with none: the session's own graphs, nothing is copied.

        Raises:
            ValueError: it is not loaded.
        """
        return self._plain if adapter is None else self._entry(adapter).network

    def bind(self, adapter: str | None = None) -> Network:
        """A session of its own with this adapter (None: the base) fixed in the weights: the fastest way to run one.

        It costs a session's time and memory. What is loaded later does not change it. The files are verified once more.

        Raises:
            ValueError: the adapter is not loaded.
            BundleError: base or adapter are not on disk any more as they were loaded.
        """
        base = read_base(self.bundle, **self._trust)
        _check_unchanged(str(self.bundle / "base"), base.sha256, self._base.sha256)
        tensors = no_adapter(self.manifest) if adapter is None else self._read_again(adapter).tensors
        sessions = runtime_sessions(base, tensors, **self._how)
        return Network(self.manifest, sessions, {}, self.network(adapter).task, self._assets)

    def stream(self, adapter: str | None = None) -> Stream:
        """Streams through a causal network that was exported for them, chunk by chunk.

        A stream keeps the adapter that is loaded now, whatever is loaded later; its files are read and verified once
        more. ``session.bind(adapter).stream()`` is faster, for the time and the memory of a session.

        Args:
            adapter: its id; None runs the base.

        Raises:
            ValueError: the adapter is not loaded, or the bundle is not for streams.
            BundleError: the adapter is not on disk any more as it was loaded.
        """
        name, graph = self._plain.streamed()
        slots = {} if adapter is None else of_graph(self._read_again(adapter).tensors, graph)
        return Stream(self._sessions[name], graph, slots, self.network(adapter).task)

    def forecast(
        self,
        history: History,
        adapter: str | None = None,
        *,
        device: str | None = None,
        ends: datetime | str | None = None,
        time_zone: str | None = None,
    ) -> np.ndarray:
        """History in, forecast out, in the unit of y.

        Args:
            history: y (T,), the last value measured last, T at least the lookback; with covariates a mapping from
                column to values: ``"y"`` and the past ones (T,), the known ones (T + horizon,). With an axis (N, …)
                in front for N series at once.
            adapter: as in `run`; its scaler instead of the base's, if it has one.
            device: whose scaling a scaler by device is to use; None where it knows one device alone.
            ends: when the last value was measured (UTC, if it has no zone): the columns of the calendar that the
                network reads are then filled in.
            time_zone: instead of the bundle's.

        Returns:
            (horizon,), or (horizon, Q) with quantiles, ascending; float64; (N, …) for N series.

        Raises:
            ValueError: no forecaster's bundle, or a history that is too short, not finite or of other columns.
        """
        return self.network(adapter).forecast(history, device=device, ends=ends, time_zone=time_zone)

    def transcribe(
        self,
        audio: Audio,
        sample_rate_hz: int,
        adapter: str | None = None,
        *,
        language: str | None = None,
        batch_size: int = 8,
        beam_width: int = 1,
    ) -> str | list[str]:
        """Audio in, text out.

        Args:
            audio: a mono clip (samples,), float, full scale at 1; or several clips. A Whisper hears at most 30 s.
            sample_rate_hz: of the audio; it must be the model's.
            adapter: as in `run`; its alphabet, or a Whisper's context and language, instead of the base's.
            language: of a Whisper: a code, instead of the adapter's; None for its own, or to detect each clip's where
                it has none.
            batch_size: clips that run together, for a model that takes their lengths.
            beam_width: 1 takes each frame's most probable output; more of them search for the most probable text. A
                Whisper takes 1 alone: the most probable token at each step.

        Returns:
            The text, or the text of each clip.

        Raises:
            ValueError: no speech model's bundle, another sample rate, a clip that is none, too short or too long, or a
                language that the model does not know.

        Example:
            >>> session.transcribe(audio, 16_000, "anna")  # doctest: +SKIP
            'seven'
        """
        how: dict[str, Any] = {"language": language, "batch_size": batch_size, "beam_width": beam_width}
        return self.network(adapter).transcribe(audio, sample_rate_hz, **how)

    def words(
        self,
        audio: Audio,
        sample_rate_hz: int,
        adapter: str | None = None,
        *,
        batch_size: int = 8,
        beam_width: int = 1,
    ) -> list[Word] | list[list[Word]]:
        """As `transcribe`, and where each word is.

        Returns:
            `ctc.Word`: text, start_s, end_s; for each clip, if there are several.
        """
        how = {"batch_size": batch_size, "beam_width": beam_width}
        return self.network(adapter).words(audio, sample_rate_hz, **how)

    def selftest(self, adapter: str | None = None) -> float:
        """Run the input that was stored at export, and compare with what torch gave for it.

        Args:
            adapter: one that is loaded; None for the base.

        Returns:
            The largest difference, as a share of the largest output (of 1, if that is smaller).

        Raises:
            BundleError: it is above the manifest's tolerance.
        """
        stored = read_tensors(self._base.files[SELFTEST], "base/selftest.safetensors")
        wanted = stored if adapter is None else read_tensors(self._entry(adapter).selftest, f"{adapter}/selftest")
        network = self.network(adapter)
        worst = max(tested(network, name, stored, wanted) for name in self.manifest.graphs)
        if not worst <= self.manifest.tolerance:
            raise BundleError(
                f"{adapter or 'base'}: this runtime's output is off torch's by {worst:.1e}, and "
                f"{self.manifest.tolerance:.0e} is allowed; another version of the runtime may do better"
            )
        return worst

    def _read_again(self, adapter: str) -> Adapter:
        loaded = self._entry(adapter)
        read = read_adapter(loaded.folder, self._base, **self._trust)
        _check_unchanged(str(loaded.folder), read.sha256, loaded.sha256)
        return read

    def _entry(self, adapter: str) -> Loaded:
        if adapter not in self._adapters:
            raise ValueError(
                f"adapter {adapter!r} is not loaded (loaded: {', '.join(self._adapters) or 'none'}); call "
                f"session.load({adapter!r}) first"
            )
        return self._adapters[adapter]


@dataclass(frozen=True)
class Loaded:
    """What a session keeps of an adapter: its tensors are in the runtime's, once."""

    folder: Path
    manifest: AdapterManifest
    sha256: str
    selftest: bytes
    network: Network


def _check_unchanged(where: str, found: str, loaded: str) -> None:
    if found != loaded:
        raise BundleError(
            f"{where}: not what was loaded (manifest {loaded[:12]}, now {found[:12]}); load it again first"
        )
