"""A session: one base, any number of adapters, each run through the one that it names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.edge.forecasting import History, forecast_from
from audiolora.edge.graph import with_constants
from audiolora.edge.runtime import Active, activated, inference_session
from audiolora.export.bundle import adapter_folder, adapter_folders, read_adapter, read_base
from audiolora.export.errors import BundleError
from audiolora.export.manifests import AdapterManifest, BaseManifest, ForecastSettings, TensorSpec
from audiolora.export.signing import Key
from audiolora.export.tensors import read_tensors

Inputs = np.ndarray | Mapping[str, np.ndarray]
"""The one input of a graph, or its inputs by name."""

Outputs = np.ndarray | tuple[np.ndarray, ...]
"""The one output of a graph, or its outputs in order."""

_SELFTEST = "selftest.safetensors"

TOLERANCE = 1e-5
"""How far an output may be from torch's: times the largest output, or 1."""


class Session:
    """The base of a bundle in ONNX Runtime, and the adapters that are loaded.

    Args:
        bundle: the folder.
        key: the public key of who signed it: its file, its PEM text or its 32 bytes. Without one only an unsigned
            bundle is taken, and hashes find accidents, not attacks.
        check_signature: False takes a signed bundle without looking at the signature.
        threads: of ONNX Runtime, for one operator; 0 leaves it to ONNX Runtime.
        providers: ONNX Runtime's execution providers.

    Raises:
        BundleError: a base that is not what it was when it was exported, or that this runtime cannot run.

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
    ) -> None:
        self.bundle = Path(bundle)
        self._trust: dict[str, Any] = {"key": key, "check_signature": check_signature}
        base = read_base(self.bundle, **self._trust)
        self._how: dict[str, Any] = {"threads": threads, "providers": providers}
        self._session = inference_session(base.files["base.onnx"], base.manifest.runtime, **self._how)
        _check_graph(self._session, base.manifest)
        # The graph itself is in the runtime now, and is let go here.
        self._base = replace(base, files={_SELFTEST: base.files[_SELFTEST]})
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
        active = activated(read.tensors)
        self._adapters[adapter] = Loaded(path, read.manifest, read.sha256, read.selftest, active)

    def unload(self, adapter: str) -> None:
        """Let an adapter go.

        Raises:
            ValueError: it is not loaded.
        """
        self._entry(adapter)
        del self._adapters[adapter]

    def run(self, x: Inputs, adapter: str | None = None) -> Outputs:
        """The network on x, with an adapter that is loaded or with none.

        Args:
            x: the input, or inputs by name; types and shapes as the manifest has them.
            adapter: its id; None runs the base.

        Returns:
            The output, or a tuple of several.

        Raises:
            ValueError: an adapter that is not loaded, or inputs of another name, type or shape.
        """
        active = None if adapter is None else self._entry(adapter).active
        return _run(self._session, self.manifest, x, active)

    def bind(self, adapter: str | None = None) -> Bound:
        """A session of its own with this adapter (None: the base) fixed in the weights: the fastest way to run one.

        It costs the time and the memory of a session; see docs/edge.md. What is loaded later does not change it. The
        files are read and verified once more: a session keeps no second copy of them in memory.

        Raises:
            ValueError: the adapter is not loaded.
            BundleError: base or adapter are not on disk any more as they were loaded.
        """
        base = read_base(self.bundle, **self._trust)
        _check_unchanged(str(self.bundle / "base"), base.sha256, self._base.sha256)
        settings = self.manifest.forecast
        if adapter is None:
            sizes = {slot.name: [1 if isinstance(d, str) else d for d in slot.shape] for slot in self.manifest.slots}
            tensors: Mapping[str, np.ndarray] = {name: np.zeros(shape, np.float32) for name, shape in sizes.items()}
        else:
            loaded = self._entry(adapter)
            read = read_adapter(loaded.folder, base, **self._trust)
            _check_unchanged(str(loaded.folder), read.sha256, loaded.sha256)
            tensors, settings = read.tensors, read.manifest.forecast or settings
        model = with_constants(base.files["base.onnx"], tensors)
        return Bound(inference_session(model, self.manifest.runtime, **self._how), self.manifest, settings)

    def forecast(self, history: History, adapter: str | None = None, *, device: str | None = None) -> np.ndarray:
        """History in, forecast out, in the unit of y.

        Args:
            history: y (T,), the last value measured last, T at least the lookback; with covariates a mapping from
                column to values: ``"y"`` and the past ones (T,), the known ones (T + horizon,). With an axis (N, …)
                in front for N series at once.
            adapter: as in `run`; its scaler instead of the base's, if it has one.
            device: whose scaling a scaler by device is to use; None where it knows one device alone.

        Returns:
            (horizon,), or (horizon, Q) with quantiles, ascending; float64; (N, …) for N series.

        Raises:
            ValueError: no forecaster's bundle, or a history that is too short, not finite or of other columns.
        """
        own = None if adapter is None else self._entry(adapter).manifest.forecast
        return _forecast(own or self.manifest.forecast, history, device, lambda x: self.run(x, adapter))

    def selftest(self, adapter: str | None = None) -> float:
        """Run the input that was stored at export, and compare with what torch gave for it.

        Args:
            adapter: one that is loaded; None for the base.

        Returns:
            The largest difference, as a share of the largest output (of 1, if that is smaller).

        Raises:
            BundleError: it is above `TOLERANCE`.
        """
        stored = read_tensors(self._base.files[_SELFTEST], "base/selftest.safetensors")
        inputs = {spec.name: _stored(stored, f"input.{spec.name}") for spec in self.manifest.inputs}
        if adapter is not None:
            stored = read_tensors(self._entry(adapter).selftest, f"{adapter}/selftest")
        found = self.run(inputs, adapter)
        outputs = found if isinstance(found, tuple) else (found,)
        worst = 0.0
        for spec, y in zip(self.manifest.outputs, outputs, strict=True):
            worst = max(worst, difference(y, _stored(stored, f"output.{spec.name}")))
        if not worst <= TOLERANCE:
            raise BundleError(f"{adapter or 'base'}: this runtime's output is off torch's by {worst:.1e}, and "
                              f"{TOLERANCE:.0e} is allowed; another version of onnxruntime may do better")  # fmt: skip
        return worst

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
    active: Active


class Bound:
    """One adapter, or the base, fixed in a session of its own: from `Session.bind`."""

    def __init__(self, session: Any, manifest: BaseManifest, forecast: ForecastSettings | None) -> None:
        self._session, self._manifest, self._settings = session, manifest, forecast

    def run(self, x: Inputs) -> Outputs:
        """As `Session.run`."""
        return _run(self._session, self._manifest, x, None)

    def forecast(self, history: History, *, device: str | None = None) -> np.ndarray:
        """As `Session.forecast`."""
        return _forecast(self._settings, history, device, self.run)


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


def _check_graph(session: Any, manifest: BaseManifest) -> None:
    """The graph takes and gives what the manifest says; a slot that it has as a constant would run the base."""
    pairs = (
        ("inputs", session.get_inputs(), manifest.inputs),
        ("outputs", session.get_outputs(), manifest.outputs),
        ("slots", session.get_overridable_initializers(), manifest.slots),
    )
    for kind, found, specs in pairs:
        names, wanted = sorted(value.name for value in found), sorted(spec.name for spec in specs)
        if names != wanted:
            odd = ", ".join(sorted(set(names) ^ set(wanted))[:8])
            raise BundleError(f"base.onnx: its {kind} are not those of the manifest: {odd}; export it again")
    if [value.name for value in session.get_outputs()] != [spec.name for spec in manifest.outputs]:
        raise BundleError("base.onnx: its outputs are in another order than the manifest's; export it again")


def _stored(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise BundleError(f"{_SELFTEST}: {name} is not in it; export the bundle again")
    return tensors[name]


def _check_unchanged(where: str, found: str, loaded: str) -> None:
    if found != loaded:
        raise BundleError(
            f"{where}: not what was loaded (manifest {loaded[:12]}, now {found[:12]}); load it again first"
        )


def _run(session: Any, manifest: BaseManifest, x: Inputs, active: Active | None) -> Outputs:
    given = x if isinstance(x, Mapping) else {manifest.inputs[0].name: x}
    names = {spec.name for spec in manifest.inputs}
    if given.keys() != names:
        raise ValueError(f"the inputs are {', '.join(sorted(names))}, got {', '.join(sorted(given)) or 'none'}")
    sizes: dict[str, int] = {}
    for spec in manifest.inputs:
        _check_input(spec, given[spec.name], sizes)
    outputs = session.run(None, dict(given), None if active is None else active.options)
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _check_input(spec: TensorSpec, value: Any, sizes: dict[str, int]) -> None:
    kind = f"{spec.name} must be {spec.dtype} ({', '.join(map(str, spec.shape))})"
    if not isinstance(value, np.ndarray) or value.dtype.name != spec.dtype or value.ndim != len(spec.shape):
        got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{kind}, got {got}")
    for size, rule in zip(value.shape, spec.shape, strict=True):
        if size != (sizes.setdefault(rule, size) if isinstance(rule, str) else rule):
            raise ValueError(f"{kind}, got {value.shape}; sizes of one name must be equal")


def _forecast(settings: ForecastSettings | None, history: History, device: str | None, run: Any) -> np.ndarray:
    if settings is None:
        raise ValueError("this bundle is not a forecaster's, so it does not say how to scale; use run")
    return forecast_from(settings, history, device, run)
