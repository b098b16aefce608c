"""Safetensors for NumPy, read as strictly as the format is written: what a device parses of a file that it was sent.

An 8-byte little-endian length n, n bytes of JSON ``{name: {"dtype", "shape", "data_offsets"}}``, then the values. The
safetensors package does the same; this one is for devices that shall carry nothing more than NumPy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from audiolora.export.errors import BundleError

DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "bool": "BOOL"}
"""NumPy's names of the types that a bundle may hold, and safetensors'."""

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 16 * 2**20


def write_tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The file's bytes; the same for the same tensors, whatever their order.

    Raises:
        ValueError: a dtype that a bundle has no name for.

    Example:
        >>> read_tensors(write_tensors({"x": np.ones(2, np.float32)}), "example")["x"]
        array([1., 1.], dtype=float32)
    """
    header: dict[str, Any] = {}
    end = 0
    parts = []
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name])
        if values.dtype.name not in DTYPES:
            raise ValueError(f"{name}: {values.dtype} cannot be stored; use one of {', '.join(DTYPES)}")
        raw = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        begin, end = end, end + len(raw)
        # np.shape of the original: ascontiguousarray makes a scalar a vector
        shape = list(np.shape(tensors[name]))
        header[name] = {"dtype": DTYPES[values.dtype.name], "shape": shape, "data_offsets": [begin, end]}
        parts.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + b"".join(parts)


def read_tensors(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, as read-only views of ``data``.

    Args:
        data: the whole file.
        where: its name, for messages.

    Raises:
        BundleError: a header that is no such header, a dtype that a bundle does not hold, or offsets that are not the
            values one after the other and nothing else.
    """
    try:
        return _read(data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{where}: no safetensors file that a bundle may hold: {error}") from None


def _read(data: bytes) -> dict[str, np.ndarray]:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    begin = _LENGTH_BYTES + length
    if len(data) < _LENGTH_BYTES or length > _MOST_HEADER_BYTES or begin > len(data):
        raise ValueError(f"its header would be {length} bytes, in a file of {len(data)}")
    header = json.loads(data[_LENGTH_BYTES:begin].decode("utf-8"), object_pairs_hook=without_repeats)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        tensors[name], end = _tensor(name, entry, memoryview(data)[begin:], end)
    if end != len(data) - begin:
        raise ValueError(f"{len(data) - begin - end} bytes belong to no tensor")
    return tensors


def _tensor(name: str, entry: Mapping[str, Any], values: memoryview, after: int) -> tuple[np.ndarray, int]:
    dtypes = {theirs: np.dtype(ours).newbyteorder("<") for ours, theirs in DTYPES.items()}
    if set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] not in dtypes:
        raise ValueError(f"{name}: {entry.get('dtype')} is not one of {', '.join(dtypes)}, or it says more than that")
    (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], dtypes[entry["dtype"]]
    if not all(type(size) is int and size >= 0 for size in (*shape, begin, end)):
        raise ValueError(f"{name}: sizes and offsets must be whole numbers")
    if begin != after or end > len(values) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name}: values from {begin} to {end} are not shape {shape} of {dtype.name} after {after}")
    return np.frombuffer(values[begin:end], dtype).reshape(shape), end


def without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``: an object that has a key twice says two things.

    Raises:
        ValueError: a key that is there twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found
