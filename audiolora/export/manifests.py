"""The two manifests of a bundle: what a base is and what an adapter is, validated when made and when read.

They are JSON, strict: a key that is missing, unknown or there twice, a number that is not finite and a value of another
type are refused, each by name. docs/edge.md writes the format down for other implementations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from audiolora.export.errors import BundleError
from audiolora.export.executorch_data import data_file, layout_file
from audiolora.export.fields import as_list, check, check_id, is_count, is_name, is_number
from audiolora.export.tasks import Task, task_from_json, task_to_json
from audiolora.export.tensors import DTYPES, without_repeats

FORMAT = 1
FORMS = ("wsum", "fact", "merged")
QUANTIZED = ("int8", "qdq")
TARGETS: Mapping[str, tuple[str, str]] = {"onnx": (".onnx", ".onnx_adapter"), "executorch": (".pte", ".ptd")}
"""Target → the endings of a graph's file and of an adapter's file for that graph."""

SELFTEST, ADAPTER = "selftest.safetensors", "adapter.safetensors"
TOLERANCE = 1e-5
"""How far an output may be from torch's: times the largest output, or 1."""

_GRAPH_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_RANK = 4096

_T = TypeVar("_T")


@dataclass(frozen=True)
class FileEntry:
    """A file's hash and size."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        check(isinstance(self.sha256, str) and _SHA256.fullmatch(self.sha256), "sha256", self.sha256, "64 hex digits")
        check(is_count(self.bytes), "bytes", self.bytes, "a whole number")


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output: a string in the shape is a size that is free; in one run it is the same everywhere."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __post_init__(self) -> None:
        check(isinstance(self.name, str) and self.name, "name", self.name, "a name")
        _check_tensor(self.name, self.shape, self.dtype)


@dataclass(frozen=True)
class StateSpec:
    """What a graph remembers from one run to the next: a key-value cache, the left context of a stream.

    Before the first run it is zeros. A free size that an input of the graph has too is that one's; any other is 0.

    Args:
        input: the graph's input of that name takes it.
        output: the graph's output of that name is the next one.
        shape, dtype: of the input; a free size may be another in the output.
    """

    input: str
    output: str
    shape: tuple[int | str, ...]
    dtype: str

    def __post_init__(self) -> None:
        names = (self.input, self.output)
        check(all(isinstance(name, str) and name for name in names), "input, output", names, "names")
        _check_tensor(self.input, self.shape, self.dtype)


@dataclass(frozen=True)
class GraphSpec:
    """What one graph takes and gives.

    Args:
        inputs, outputs: the data's.
        slots: the adapter's tensors, exactly; a name in a shape is a rank, all sizes of that name are equal.
        states: what it remembers.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    slots: tuple[TensorSpec, ...] = ()
    states: tuple[StateSpec, ...] = ()

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in (*self.inputs, *self.outputs, *self.slots)]
        names += [name for state in self.states for name in (state.input, state.output)]
        check(len(set(names)) == len(names) and self.inputs, "inputs, outputs, slots, states", names, "different names")
        floats = [slot.dtype for slot in self.slots if slot.dtype != "float32"]
        check(not floats, "slots", floats, "float32")


@dataclass(frozen=True)
class BaseManifest:
    """What ``base/manifest.json`` says.

    Args:
        id: the base's name.
        files: by name; each graph's, ``selftest.safetensors``, and others such as ``base.web.onnx``.
        target: what runs it, one of `TARGETS`.
        form: what a graph does with an adapter: ``wsum``, ``fact``, or ``merged`` (nothing: it has no slots).
        opset: ONNX's operator set; None for another target.
        runtime: the smallest version of ONNX Runtime; the version itself of another target's runtime.
        graphs: by name; a graph called ``base`` is the file ``base.onnx``.
        max_rank: no rank above it is loaded.
        quantized: None, ``int8`` (weights) or ``qdq`` (activations, too).
        tolerance: how far the self-test's outputs may be off, as a share of the largest (of 1, if that is smaller).
        task: what it is for, and its settings.
    """

    id: str
    files: Mapping[str, FileEntry]
    target: str
    form: str
    opset: int | None
    runtime: str
    graphs: Mapping[str, GraphSpec]
    max_rank: int
    quantized: str | None = None
    tolerance: float = TOLERANCE
    task: Task | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        check(isinstance(self.target, str) and self.target in TARGETS, "target", self.target, _one_of(TARGETS))
        check(self.form in FORMS, "form", self.form, _one_of(FORMS))
        check(is_count(self.opset) or self.target != "onnx", "opset", self.opset, "a whole number")
        check(_version(self.runtime) is not None, "runtime", self.runtime, "a version such as 1.20.0")
        ranked = is_count(self.max_rank) and 1 <= self.max_rank <= _MOST_RANK
        check(ranked, "max_rank", self.max_rank, f"1 to {_MOST_RANK}")
        check(self.quantized in (None, *QUANTIZED), "quantized", self.quantized, f"null or {_one_of(QUANTIZED)}")
        allowed = is_number(self.tolerance) and 0 < self.tolerance < 1
        check(allowed, "tolerance", self.tolerance, "a number within (0, 1)")
        check(self.graphs, "graphs", self.graphs, "at least one")
        for name in self.graphs:
            check(_GRAPH_NAME.fullmatch(name), "graphs", name, "small letters, digits and _")
        check(self.form != "merged" or not self.slots, "slots", len(self.slots), "none in form merged")
        _check_files(self.files, (*map(self.graph_file, self.graphs), SELFTEST, *self._data_files()))

    @property
    def slots(self) -> tuple[TensorSpec, ...]:
        """Those of all graphs: what an adapter brings.

        Raises:
            ValueError: two graphs have the same slot in two shapes.
        """
        found: dict[str, TensorSpec] = {}
        for graph in self.graphs.values():
            for slot in graph.slots:
                same = found.setdefault(slot.name, slot) == slot
                check(same, "slots", slot.name, "of one shape in every graph")
        return tuple(found.values())

    def _data_files(self) -> list[str]:
        if self.target != "executorch":
            return []
        with_slots = [name for name, graph in self.graphs.items() if graph.slots]
        return [*map(layout_file, self.graphs), *map(data_file, with_slots)]

    def graph_file(self, graph: str) -> str:
        """The file of a graph."""
        return graph + TARGETS[self.target][0]

    def adapter_file(self, graph: str) -> str:
        """The file of an adapter for a graph, in the runtime's own format."""
        return graph + TARGETS[self.target][1]

    def adapter_files(self) -> tuple[str, ...]:
        """What an adapter's folder holds besides its manifest."""
        return (ADAPTER, SELFTEST, *map(self.adapter_file, self.graphs))


@dataclass(frozen=True)
class AdapterManifest:
    """What ``adapters/ID/manifest.json`` says.

    Args:
        id: the folder's name.
        base: sha256 of the manifest.json of the base that it was made for.
        rank: the largest of its ranks; 0 if it has none.
        files: `BaseManifest.adapter_files`.
        task: instead of the base's, of the same kind: a scaler that has seen this device, another language.
    """

    id: str
    base: str
    rank: int
    files: Mapping[str, FileEntry]
    task: Task | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        check(isinstance(self.base, str) and _SHA256.fullmatch(self.base), "base", self.base, "a sha256")
        check(is_count(self.rank) and self.rank <= _MOST_RANK, "rank", self.rank, f"at most {_MOST_RANK}")
        _check_files(self.files, (ADAPTER, SELFTEST))


Manifest = BaseManifest | AdapterManifest


def to_json(manifest: Manifest) -> bytes:
    """The file's bytes."""
    kind = "base" if isinstance(manifest, BaseManifest) else "adapter"
    says = {"format": FORMAT, "kind": kind, **asdict(manifest), "task": task_to_json(manifest.task)}
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
        rest |= {"files": _files(rest), "task": task_from_json(rest["task"])}
        if kind == "adapter":
            return _made(AdapterManifest, rest)
        return _made(BaseManifest, rest | {"graphs": {name: _graph(one) for name, one in rest["graphs"].items()}})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}") from None


def smaller_version(found: str, wanted: str) -> bool:
    """Whether version ``found`` of the runtime is older than ``wanted``.

    Example:
        >>> smaller_version("1.9.0", "1.20.0")
        True
    """
    return (_version(found) or (0,)) < (_version(wanted) or (0,))


def _graph(says: Mapping[str, Any]) -> GraphSpec:
    kinds: dict[str, type[TensorSpec | StateSpec]] = dict.fromkeys(("inputs", "outputs", "slots"), TensorSpec)
    lists = {
        name: tuple(_made(cls, each | {"shape": tuple(as_list(each["shape"]))}) for each in as_list(says[name]))
        for name, cls in {**kinds, "states": StateSpec}.items()
    }
    return _made(GraphSpec, {**says, **lists})


def _files(says: Mapping[str, Any]) -> dict[str, FileEntry]:
    return {name: _made(FileEntry, entry) for name, entry in says["files"].items()}


def _made(make: Callable[..., _T], says: Mapping[str, Any]) -> _T:
    return make(**says)


def _check_files(files: Mapping[str, FileEntry], needed: tuple[str, ...]) -> None:
    for name in files:
        check(is_name(name) and not name.startswith("manifest."), "files", name, "a plain name, no path")
    missing = [name for name in needed if name not in files]
    check(not missing, "files", sorted(files), f"{', '.join(missing)} among them")


def _check_tensor(name: str, shape: Any, dtype: Any) -> None:
    sizes = isinstance(shape, tuple) and all(isinstance(d, str) or is_count(d) for d in shape)
    check(sizes, f"{name}: shape", shape, "sizes and names of sizes")
    check(isinstance(dtype, str) and dtype in DTYPES, f"{name}: dtype", dtype, _one_of(DTYPES))


def _one_of(names: Any) -> str:
    return f"one of {', '.join(names)}"


def _version(text: Any) -> tuple[int, ...] | None:
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", text) if isinstance(text, str) else None
    return tuple(int(part or 0) for part in numbers.groups()) if numbers else None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number that JSON has")
