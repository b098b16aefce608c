"""The two manifests of a bundle: what a base is and what an adapter is, validated when made and when read.

They are JSON, strict: a key that is missing, unknown or there twice, a number that is not finite and a value of another
type are refused, each by name. docs/edge.md writes the format down for other implementations.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from audiolora.export.errors import BundleError
from audiolora.export.tensors import DTYPES, without_repeats

FORMAT = 1
FORMS = ("wsum", "fact", "merged")
ADAPTER_FILES = ("adapter.safetensors", "adapter.onnx_adapter", "selftest.safetensors")
BASE_FILES = ("base.onnx", "selftest.safetensors")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_RANK = 4096

_T = TypeVar("_T")


@dataclass(frozen=True)
class FileEntry:
    """A file's hash and size."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        _check(isinstance(self.sha256, str) and _SHA256.fullmatch(self.sha256), "sha256", self.sha256, "64 hex digits")
        _check(_is_count(self.bytes), "bytes", self.bytes, "a whole number")


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output: a string in the shape is a size that is free; in one run it is the same everywhere."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __post_init__(self) -> None:
        _check(isinstance(self.name, str) and self.name, "name", self.name, "a name")
        sizes = isinstance(self.shape, tuple) and all(isinstance(d, str) or _is_count(d) for d in self.shape)
        _check(sizes, f"{self.name}: shape", self.shape, "sizes and names of sizes")
        _check(self.dtype in DTYPES, f"{self.name}: dtype", self.dtype, f"one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class ForecastSettings:
    """How history becomes what the network sees, and its output a forecast: `Forecaster.settings`, as JSON has it.

    Args:
        lookback, horizon: steps.
        freq: the step between two stamps, as pandas writes it.
        quantiles: levels, ascending; () for a point forecast.
        past, known: covariates; the channels are y, past, known.
        name: the forecast's column.
        scaler: ``{"kind": "window" | "standard" | "robust", "floor", "unscaled", "devices"}``; devices (location and
            scale by device and column) where the kind is not window.
    """

    lookback: int
    horizon: int
    freq: str
    quantiles: tuple[float, ...]
    past: tuple[str, ...]
    known: tuple[str, ...]
    name: str
    scaler: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("lookback", "horizon"):
            _check(_is_count(getattr(self, name)) and getattr(self, name), name, getattr(self, name), "at least 1 step")
        _check(all(_is_number(q) and 0 < q < 1 for q in self.quantiles), "quantiles", self.quantiles, "within (0, 1)")
        columns = [*self.past, *self.known, self.freq, self.name]
        _check(all(isinstance(name, str) for name in columns), "columns, freq, name", columns, "strings")
        _check_scaler(self.scaler)

    @property
    def channels(self) -> tuple[str, ...]:
        """The network's input channels, in order."""
        return ("y", *self.past, *self.known)


@dataclass(frozen=True)
class BaseManifest:
    """What ``base/manifest.json`` says.

    Args:
        id: the base's name.
        files: by name; ``base.onnx`` and ``selftest.safetensors``, and others such as ``base.web.onnx``.
        form: what the graph does with an adapter: ``wsum``, ``fact``, or ``merged`` (nothing: it has no slots).
        opset: ONNX's operator set.
        runtime: the smallest version of ONNX Runtime.
        inputs, outputs: the data's.
        slots: the adapter's tensors, exactly; a name in a shape is a rank, all sizes of that name are equal.
        max_rank: no rank above it is loaded.
        forecast: how to scale, for a forecaster.
    """

    id: str
    files: Mapping[str, FileEntry]
    form: str
    opset: int
    runtime: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    slots: tuple[TensorSpec, ...]
    max_rank: int
    forecast: ForecastSettings | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        _check_files(self.files, BASE_FILES)
        _check(self.form in FORMS, "form", self.form, f"one of {', '.join(FORMS)}")
        _check(_is_count(self.opset), "opset", self.opset, "a whole number")
        _check(_version(self.runtime) is not None, "runtime", self.runtime, "a version such as 1.20.0")
        ranked = _is_count(self.max_rank) and 1 <= self.max_rank <= _MOST_RANK
        _check(ranked, "max_rank", self.max_rank, f"1 to {_MOST_RANK}")
        names = [tensor.name for tensor in (*self.inputs, *self.outputs, *self.slots)]
        _check(len(set(names)) == len(names) and self.inputs, "inputs, outputs, slots", names, "different names")
        floats = [slot.dtype for slot in self.slots if slot.dtype != "float32"]
        _check(not floats, "slots", floats, "float32")
        _check(self.form != "merged" or not self.slots, "slots", len(self.slots), "none in form merged")


@dataclass(frozen=True)
class AdapterManifest:
    """What ``adapters/ID/manifest.json`` says.

    Args:
        id: the folder's name.
        base: sha256 of the manifest.json of the base that it was made for.
        rank: the largest of its ranks; 0 if it has none.
        files: `ADAPTER_FILES`.
        forecast: instead of the base's; its scaler has seen this device.
    """

    id: str
    base: str
    rank: int
    files: Mapping[str, FileEntry]
    forecast: ForecastSettings | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        _check(isinstance(self.base, str) and _SHA256.fullmatch(self.base), "base", self.base, "a sha256")
        _check(_is_count(self.rank) and self.rank <= _MOST_RANK, "rank", self.rank, f"at most {_MOST_RANK}")
        _check_files(self.files, ADAPTER_FILES)
        _check(set(self.files) == set(ADAPTER_FILES), "files", sorted(self.files), f"just {', '.join(ADAPTER_FILES)}")


Manifest = BaseManifest | AdapterManifest


def to_json(manifest: Manifest) -> bytes:
    """The file's bytes."""
    kind = "base" if isinstance(manifest, BaseManifest) else "adapter"
    says = {"format": FORMAT, "kind": kind, **asdict(manifest)}
    return (json.dumps(says, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def from_json(data: bytes, kind: str, where: str) -> Manifest:
    """The manifest in a file.

    Args:
        data: the file.
        kind: what it must be, ``"base"`` or ``"adapter"``.
        where: its name, for messages.

    Raises:
        BundleError: it is none, or of another kind or format.
    """
    try:
        says = json.loads(data.decode("utf-8"), object_pairs_hook=without_repeats, parse_constant=_no_number)
        if not isinstance(says, dict) or says.get("kind") != kind:
            raise ValueError(f"it is no manifest of kind {kind!r}")
        if type(says.get("format")) is not int or says["format"] != FORMAT:
            raise ValueError(f"format {says.get('format')!r}, and this audiolora reads {FORMAT}; upgrade it")
        rest = {key: value for key, value in says.items() if key not in ("format", "kind")}
        return _base(rest) if kind == "base" else _adapter(rest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}") from None


def check_id(name: Any) -> None:
    """Nothing if this may be the name of a folder and of an adapter.

    Raises:
        ValueError: it may not.

    Example:
        >>> check_id("user42")
    """
    rule = "1 to 100 letters, digits, '.', '_' and '-', of which the first is a letter or digit, and no separators"
    _check(isinstance(name, str) and _NAME.fullmatch(name), "id", name, rule)


def forecast_settings(says: Mapping[str, Any]) -> ForecastSettings:
    """From `Forecaster.settings` or a manifest; what a device has no use for (the loss) is left out.

    Raises:
        ValueError: a setting out of its range.
        TypeError: one is missing or unknown.
    """
    lists = {name: tuple(_list(says[name])) for name in ("quantiles", "past", "known")}
    return ForecastSettings(**{name: value for name, value in says.items() if name != "loss"} | lists)


def smaller_version(found: str, wanted: str) -> bool:
    """Whether version ``found`` of the runtime is older than ``wanted``.

    Example:
        >>> smaller_version("1.9.0", "1.20.0")
        True
    """
    return (_version(found) or (0,)) < (_version(wanted) or (0,))


def _base(says: dict[str, Any]) -> BaseManifest:
    tensors = {name: tuple(_made(_tensor, each) for each in _list(says[name])) for name in _TENSOR_LISTS}
    return _made(BaseManifest, {**says, **tensors, "files": _files(says), "forecast": _forecast(says)})


def _adapter(says: dict[str, Any]) -> AdapterManifest:
    return _made(AdapterManifest, {**says, "files": _files(says), "forecast": _forecast(says)})


_TENSOR_LISTS = ("inputs", "outputs", "slots")


def _tensor(name: str, shape: list[int | str], dtype: str) -> TensorSpec:
    return TensorSpec(name, tuple(_list(shape)), dtype)


def _files(says: Mapping[str, Any]) -> dict[str, FileEntry]:
    return {name: _made(FileEntry, entry) for name, entry in says["files"].items()}


def _forecast(says: Mapping[str, Any]) -> ForecastSettings | None:
    return None if says["forecast"] is None else forecast_settings(says["forecast"])


def _made(make: Callable[..., _T], says: Mapping[str, Any]) -> _T:
    return make(**says)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"a list is needed, got {value!r}")
    return list(value)


def _check_files(files: Mapping[str, FileEntry], needed: tuple[str, ...]) -> None:
    for name in files:
        _check(_NAME.fullmatch(name) and not name.startswith("manifest."), "files", name, "a plain name, no path")
    missing = [name for name in needed if name not in files]
    _check(not missing, "files", sorted(files), f"{', '.join(missing)} among them")


def _check_scaler(scaler: Mapping[str, Any]) -> None:
    _check(isinstance(scaler, Mapping), "scaler", scaler, "an object")
    kinds = {"window": {"kind", "floor", "unscaled"}}
    kinds["standard"] = kinds["robust"] = kinds["window"] | {"devices"}
    kind = scaler.get("kind")
    _check(isinstance(kind, str) and kind in kinds, "scaler", kind, f"one of {', '.join(kinds)}")
    _check(set(scaler) == kinds[str(kind)], "scaler", sorted(scaler), f"just {', '.join(sorted(kinds[str(kind)]))}")
    _check(_is_number(scaler["floor"]) and scaler["floor"] > 0, "scaler: floor", scaler["floor"], "positive")
    unscaled = _list(scaler["unscaled"])
    _check(all(isinstance(name, str) for name in unscaled), "scaler: unscaled", unscaled, "names")
    for device, columns in scaler.get("devices", {}).items():
        for column, pair in columns.items():
            fine = len(_list(pair)) == 2 and all(map(_is_number, pair)) and pair[1] > 0
            _check(fine, f"scaler: {device}, {column}", pair, "a location and a positive scale")


def _check(fine: Any, name: str, value: Any, rule: str) -> None:
    if not fine:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _version(text: Any) -> tuple[int, ...] | None:
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", text) if isinstance(text, str) else None
    return tuple(int(part or 0) for part in numbers.groups()) if numbers else None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number that JSON has")
