"""ExecuTorch behind a session: a program for each adapter, with the adapter's data file under the program's keys.

On a device ExecuTorch is a library for C++, Java and Swift, and `docs/edge.md` says how an app loads a bundle's files.
This is its Python, which needs torch: for the parity check at export, ``audiolora verify --self-test``, and tests.
XNNPACK packs weights when a method is loaded, so that an adapter costs the memory of a whole network here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.edge.runtime import private_file
from audiolora.export.bundle import Base
from audiolora.export.errors import BundleError
from audiolora.export.executorch_data import DataLayout, data_file, layout_file
from audiolora.export.manifests import GraphSpec

_METHOD = "forward"


def programs(base: Base, tensors: Mapping[str, np.ndarray], threads: int) -> dict[str, Method]:
    """The graphs of a base with an adapter's tensors.

    Args:
        base: with its files.
        tensors: by slot, verified; zeros for no adapter.
        threads: of the process; 0 leaves it to ExecuTorch.

    Raises:
        ImportError: ExecuTorch is not installed.
        BundleError: another version of it, or files that it does not take or that are not the manifest's.
        ValueError: another number of threads than the process has.
    """
    runtime = _runtime(base.manifest.runtime, threads)
    made = {}
    for name, graph in base.manifest.graphs.items():
        file = base.manifest.graph_file(name)
        layout = DataLayout.from_json(base.files[layout_file(name)], layout_file(name))
        layout.check_program(base.files[file], file)
        own = {slot.name: tensors[slot.name] for slot in graph.slots}
        data = layout.written(base.files[data_file(name)], own, data_file(name)) if own else b""
        made[name] = Method(graph, layout, _loaded(runtime, base.files[file], data, file), file)
    return made


class Method:
    """A graph that is loaded, with the face of an ``onnxruntime.InferenceSession``.

    Args:
        graph: what it takes and gives.
        layout: its free sizes.
        loaded: ExecuTorch's program and method.
        file: its name, for messages.

    Raises:
        BundleError: its inputs or outputs are not the manifest's.
    """

    def __init__(self, graph: GraphSpec, layout: DataLayout, loaded: tuple[Any, Any], file: str) -> None:
        self._graph, self._sizes, self._file = graph, layout.sizes, file
        self._program, self._method = loaded  # the program's memory is the method's
        self._lock = threading.Lock()  # a method has one set of buffers
        self._inputs = [
            *((spec.name, spec.shape) for spec in graph.inputs),
            *((s.input, s.shape) for s in graph.states),
        ]
        self._outputs = [*(spec.name for spec in graph.outputs), *(state.output for state in graph.states)]
        self._check()

    def run(self, names: Sequence[str], feeds: Mapping[str, np.ndarray], options: None = None) -> list[np.ndarray]:
        """The outputs of these names.

        Raises:
            ValueError: a size that the program was not planned for.
        """
        # ExecuTorch compares the number of values alone: a batch of 1 would run in a program for 2, and be wrong.
        for name, shape in self._inputs:
            for size, rule in zip(feeds[name].shape, shape, strict=True):
                low, high = self._sizes[rule] if isinstance(rule, str) else (rule, rule)
                if not low <= size <= high:
                    raise ValueError(f"{name}: {feeds[name].shape}, and {rule} may be {low} to {high} in this program")
        found = dict(zip(self._outputs, self._executed([feeds[name] for name, _ in self._inputs]), strict=True))
        return [found[name] for name in names]

    def _executed(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch

        # torch wants memory that may be written to, though nothing is.
        tensors = [torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in arrays]
        try:
            with self._lock:
                return [tensor.numpy() for tensor in self._method.execute(tensors)]
        except RuntimeError as error:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise ValueError(f"{self._file}: ExecuTorch does not take inputs of {shapes}: {error}") from error

    def _check(self) -> None:
        meta = self._method.metadata
        if (meta.num_inputs(), meta.num_outputs()) != (len(self._inputs), len(self._outputs)):
            raise BundleError(
                f"{self._file}: {meta.num_inputs()} inputs and {meta.num_outputs()} outputs, and the manifest has "
                f"{len(self._inputs)} and {len(self._outputs)}; export it again"
            )
        names = {rule for _, shape in self._inputs for rule in shape if isinstance(rule, str)}
        if names != self._sizes.keys():
            odd = ", ".join(sorted(names ^ self._sizes.keys()))
            raise BundleError(f"{self._file}: the sizes of its layout are not the free ones: {odd}; export it again")
        for i, (name, shape) in enumerate(self._inputs):
            wanted = tuple(self._sizes[rule][1] if isinstance(rule, str) else rule for rule in shape)
            found = tuple(meta.input_tensor_meta(i).sizes())
            if found != wanted:
                raise BundleError(f"{self._file}: {name} is planned for {found}, and the manifest says {wanted}")


def _runtime(version: str, threads: int) -> Any:
    try:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    except ImportError as error:
        raise ImportError(
            'a bundle for ExecuTorch needs executorch in Python; pip install "audiolora[executorch]"'
        ) from error
    found = metadata.version("executorch")
    if found != version:
        raise BundleError(
            f"exported for ExecuTorch {version}, and this is {found}, which may look data up under other keys; "
            f"pip install executorch=={version}, or export it again"
        )
    if threads not in (0, pool := portable_lib._threadpool_get_thread_count()):
        raise ValueError(f"ExecuTorch's threads are the process's, {pool} here, got threads={threads}; leave it at 0")
    return Runtime.get()


def _loaded(runtime: Any, program: bytes, data: bytes, file: str) -> tuple[Any, Any]:
    try:
        with _data_path(data) as path:
            loaded = runtime.load_program(program, data_path=path)
            return loaded, loaded.load_method(_METHOD)
    except (RuntimeError, KeyError) as error:
        raise BundleError(f"{file}: ExecuTorch refuses it: {error}") from error


@contextmanager
def _data_path(data: bytes) -> Iterator[str | None]:
    """Of the bytes that were verified: what lies in the bundle is not read again."""
    if not data:
        yield None
        return
    with private_file() as path:
        Path(path).write_bytes(data)
        yield path
