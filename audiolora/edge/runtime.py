"""ONNX Runtime as the device uses it: sessions from bytes that were verified, adapters that are held in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.export.errors import BundleError
from audiolora.export.manifests import smaller_version

# Where a model's external data would be looked for: nowhere, since whoever writes a model could name any file.
_NOWHERE = os.path.join(os.devnull, "no-external-data")
_ERRORS_ALONE = 3


def onnxruntime() -> Any:
    """The module.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import onnxruntime as module
    except ImportError as error:
        raise ImportError('audiolora.edge needs onnxruntime; pip install "audiolora[edge]"') from error
    return module


def inference_session(
    model: bytes, runtime: str, *, file: str, threads: int, providers: tuple[str, ...], unpack: bool = False
) -> Any:
    """An ``onnxruntime.InferenceSession``.

    Args:
        model: a whole ``.onnx`` file.
        runtime: the smallest version that will do.
        file: the model's name, for messages.
        threads: for one operator; 0 leaves it to ONNX Runtime.
        providers: ONNX Runtime's execution providers.
        unpack: dequantise weights once, now; not for graphs whose activations are quantised too.

    Raises:
        BundleError: an older runtime, or a model that it does not take.
        ValueError: a provider that this onnxruntime does not have: it would take the CPU instead.
    """
    ort = onnxruntime()
    if lacking := [name for name in providers if name not in ort.get_available_providers()]:
        raise ValueError(
            f"providers must be among {', '.join(ort.get_available_providers())}, which this onnxruntime has, got "
            f"{', '.join(map(str, lacking))}; install a package of onnxruntime that has it"
        )
    if smaller_version(ort.__version__, runtime):
        raise BundleError(f"{file} wants ONNX Runtime {runtime}, and this is {ort.__version__}; upgrade onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # it keeps a plan for each length, batch and rank that it meets
    options.log_severity_level = _ERRORS_ALONE  # it would warn of each slot that it can be overridden: on purpose
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    if unpack:  # its constant folding leaves a DequantizeLinear alone otherwise
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:
        raise BundleError(f"{file}: ONNX Runtime refuses it: {error}") from error


@dataclass(frozen=True)
class Active:
    """What a run takes to run with an adapter.

    Args:
        options: ONNX Runtime's ``RunOptions`` with the adapter in it.
        adapter: its ``LoraAdapter``; the options point to it, and do not keep it alive.
    """

    options: Any
    adapter: Any


def activated(tensors: Mapping[str, np.ndarray]) -> Active:
    """An adapter, ready for runs.

    It is written into memory and mapped from there: of its file in the bundle nothing is read again.
    """
    ort = onnxruntime()
    adapter = ort.LoraAdapter()
    with private_file() as path:
        _write_adapter(tensors, path)
        adapter.Load(path)
    options = ort.RunOptions()
    options.add_active_adapter(adapter)
    return Active(options, adapter)


def adapter_file(tensors: Mapping[str, np.ndarray]) -> bytes:
    """An adapter in ONNX Runtime's own format, ``.onnx_adapter``."""
    with private_file() as path:
        _write_adapter(tensors, path)
        return Path(path).read_bytes()


def _write_adapter(tensors: Mapping[str, np.ndarray], path: str) -> None:
    ort = onnxruntime()
    arrays = {name: np.array(tensor) for name, tensor in tensors.items()}  # they must outlive the values over them
    written = ort.AdapterFormat()
    written.set_adapter_version(1)
    written.set_model_version(1)
    written.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()})
    written.export_adapter(path)


@contextmanager
def private_file() -> Iterator[str]:
    """A path that nobody else can write to, gone afterwards; what was mapped from it stays."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("adapter", os.MFD_CLOEXEC)
        try:
            yield f"/proc/self/fd/{number}"
        finally:
            os.close(number)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield os.path.join(folder, "adapter.onnx_adapter")
