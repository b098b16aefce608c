"""Our reader and writer against the safetensors package, both ways, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from audiolora.export.errors import BundleError
from audiolora.export.tensors import DTYPES, read_tensors, write_tensors


def tensors() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(2, 3), (0, 4), (), (5,), (1, 2, 3)]
    pairs = zip(DTYPES, shapes, strict=True)
    return {f"{name}.ü": np.asarray(draw.normal(size=shape) * 9).astype(name) for name, shape in pairs}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)


def test_safetensors_reads_what_is_written() -> None:
    same(safetensors.numpy.load(write_tensors(tensors())), tensors())


def test_what_safetensors_wrote_is_read() -> None:
    same(read_tensors(safetensors.numpy.save(tensors(), {"format": "np"}), "file"), tensors())


def test_the_bytes_do_not_depend_on_the_order() -> None:
    assert write_tensors(tensors()) == write_tensors(dict(reversed(tensors().items())))


def test_values_are_aligned_and_read_only() -> None:
    found = read_tensors(write_tensors({"a": np.ones(3, np.float32)}), "file")["a"]
    assert found.flags.aligned and not found.flags.writeable


def test_a_type_without_a_name_is_not_written() -> None:
    with pytest.raises(ValueError, match="float64 cannot be stored"):
        write_tensors({"a": np.ones(3)})


def file(values: bytes = b"\0" * 8, **entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + values


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


BAD = {
    "empty": b"",
    "short": b"\1\0\0",
    "a header beyond the file": (9).to_bytes(8, "little") + b"{}",
    "a huge header": (2**60).to_bytes(8, "little") + b"{}",
    "no JSON": (2).to_bytes(8, "little") + b"{x",
    "no UTF-8": (2).to_bytes(8, "little") + b"\xff\xff",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "nested too deeply": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "a name twice": (len(b'{"a":1,"a":2}')).to_bytes(8, "little") + b'{"a":1,"a":2}',
    "no entry": file(a=3),
    "an unknown type": file(a=entry(dtype="F64", shape=(1,))),
    "a type that is no text": file(a=entry(dtype=["F32"])),
    "more than it may say": file(a=entry(path="x")),
    "another size than the shape's": file(a=entry(shape=(3,))),
    "a negative size": file(a=entry(shape=(-2, -1))),
    "a size that is no number": file(a=entry(shape=("2",))),
    "a size that is a fraction": file(a=entry(shape=(2.0,))),
    "a size that is true": file(b"\0" * 4, a=entry(shape=(True,), offsets=(0, 4))),
    "a gap": file(b"\0" * 12, a=entry(offsets=(4, 12))),
    "overlapping values": file(a=entry(), b=entry()),
    "values beyond the end": file(a=entry(shape=(4,), offsets=(0, 16))),
    "values of nobody": file(b"\0" * 9, a=entry()),
    "three offsets": file(a=entry(offsets=(0, 4, 8))),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_such_file_is_refused(what: str) -> None:
    with pytest.raises(BundleError, match="FILE: no safetensors file"):
        read_tensors(BAD[what], "FILE")
