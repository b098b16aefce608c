"""What a device changes in an ONNX file, without the onnx package: inputs become constants.

A file is protocol buffers: fields, each a number, a kind and a value. Of a ModelProto we read the graph (field 7), of
the graph its inputs (11) and its initialisers (5), of these the name; everything else is copied as it stands. ONNX
Runtime then folds W + B·A when the session is made, so that a fixed adapter costs a run nothing. (Its own way to set
an initialiser, `SessionOptions.add_initializer`, comes after that folding: it may run the base without a word.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from audiolora.export.errors import BundleError

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT = 5, 11
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_INPUT_NAME = 1
_FLOAT = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def with_constants(model: bytes, tensors: Mapping[str, np.ndarray], file: str = "base.onnx") -> bytes:
    """The model with these inputs, and their defaults, replaced by constants.

    Args:
        model: an ``.onnx`` file.
        tensors: float32, by the names of inputs.
        file: its name, for messages.

    Raises:
        BundleError: no model, or one without an input of such a name.

    Example:
        >>> fixed = with_constants(Path("base.onnx").read_bytes(), {"conv.weight.lora_A": A})  # doctest: +SKIP
    """
    try:
        data = memoryview(model)
        parts: list[bytes | memoryview] = []
        found: set[str] = set()
        for number, field, value in _fields(data):
            parts.append(_delimited(number, _graph(value, tensors, found)) if number == _MODEL_GRAPH else field)
        missing = sorted(tensors.keys() - found)
        if missing:
            raise ValueError(f"it has no input {', '.join(missing)}")
        return b"".join(parts)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise BundleError(f"{file}: an adapter cannot be fixed in it: {error}") from None


def _graph(graph: memoryview, tensors: Mapping[str, np.ndarray], found: set[str]) -> bytes:
    parts: list[bytes | memoryview] = []
    for number, field, value in _fields(graph):
        if number == _GRAPH_INPUT and (name := _name(value, _INPUT_NAME)) in tensors:
            found.add(name)
        elif number != _GRAPH_INITIALIZER or _name(value, _TENSOR_NAME) not in tensors:
            parts.append(field)
    parts += [_delimited(_GRAPH_INITIALIZER, _tensor(name, value)) for name, value in tensors.items()]
    return b"".join(parts)


def _tensor(name: str, value: np.ndarray) -> bytes:
    if value.dtype != np.float32:
        raise ValueError(f"{name} is {value.dtype}, and float32 is needed")
    sizes = b"".join(_varint(_TENSOR_DIMS << 3 | _VARINT) + _varint(size) for size in value.shape)
    kind = _varint(_TENSOR_TYPE << 3 | _VARINT) + _varint(_FLOAT)
    raw = np.ascontiguousarray(value).astype("<f4", copy=False).tobytes()
    return sizes + kind + _delimited(_TENSOR_NAME, name.encode()) + _delimited(_TENSOR_RAW, raw)


def _name(message: memoryview, field: int) -> str:
    return next((bytes(value).decode() for number, _, value in _fields(message) if number == field), "")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Each field's number, itself as it stands, and its value."""
    at = 0
    while at < len(data):
        begin = at
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            start = at
            _, at = _read_varint(data, at)
        elif kind == _BYTES:
            size, start = _read_varint(data, at)
            at = start + size
        elif kind in (_FIXED64, _FIXED32):
            start, at = at, at + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"a field of kind {kind}")
        if at > len(data):
            raise ValueError("it ends within a field")
        yield key >> 3, data[begin:at], data[start:at]


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _delimited(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value
