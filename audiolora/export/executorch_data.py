"""An adapter as ExecuTorch's data file: NAME.ptd, written with NumPy from the tensors that were verified.

A program refers to its external constants by keys, and finds in a data file what they stand for. The keys, their order
and their sizes are the program's, so that all data files of one program are the same bytes but for the values, and
``NAME.slots.json`` says where these lie: each piece of the file is a strided view of one slot's tensor, because XNNPACK
keeps a kernel (C_out, C_in, k) as (C_out, k, C_in), and groups that share a factor each have a copy of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from audiolora.export.errors import BundleError
from audiolora.export.fields import as_list, check, is_count
from audiolora.export.tensors import without_repeats

_VALUE_BYTES = 4


def layout_file(graph: str) -> str:
    """The base's file that says where a graph's slots lie in its data files."""
    return f"{graph}.slots.json"


def data_file(graph: str) -> str:
    """The data file of a graph: the base's, with zeros, and an adapter's."""
    return f"{graph}.ptd"


@dataclass(frozen=True)
class Piece:
    """One external constant: where its values lie in the data file, and which of a slot's values they are.

    Args:
        key: the program's name for it: a hash of what it held at export, or a name; two programs may share neither.
        slot: whose tensor, flattened, the values are taken from.
        offset: of the first byte in the data file.
        start: index of the first value in the slot's tensor.
        sizes, strides: of the view, in values; a stride of 0 repeats.
    """

    key: str
    slot: str
    offset: int
    start: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        check(isinstance(self.key, str) and self.key and isinstance(self.slot, str), "key", self.key, "a name")
        counts = (self.offset, self.start, *self.sizes, *self.strides)
        fine = all(map(is_count, counts)) and len(self.sizes) == len(self.strides) and all(self.sizes)
        check(fine, f"{self.slot}: offset, start, sizes, strides", counts, "whole numbers, a stride for each size")

    @property
    def last(self) -> int:
        """The largest of `indices`."""
        return self.start + sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))

    def indices(self) -> np.ndarray:
        """Which values of the slot, in the order of the file."""
        found = np.array([self.start])
        for size, stride in zip(self.sizes, self.strides, strict=True):
            found = np.add.outer(found, np.arange(size) * stride)
        return found.reshape(-1)


@dataclass(frozen=True)
class DataLayout:
    """What ``NAME.slots.json`` says.

    Args:
        sizes: the smallest and the largest value of each free size; memory is planned for the largest.
        pieces: of the data file; () where the graph has no slots.
    """

    sizes: Mapping[str, tuple[int, int]]
    pieces: tuple[Piece, ...]

    def to_json(self) -> bytes:
        """The file's bytes."""
        return (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> DataLayout:
        """The layout in a file.

        Raises:
            BundleError: it is none.
        """
        try:
            says = json.loads(data.decode("utf-8"), object_pairs_hook=without_repeats)
            if not isinstance(says, dict) or set(says) != {"sizes", "pieces"}:
                raise ValueError("it must have sizes and pieces, and nothing else")
            sizes = {name: tuple(as_list(ends)) for name, ends in says["sizes"].items()}
            for name, ends in sizes.items():
                fine = len(ends) == 2 and all(map(is_count, ends)) and 1 <= ends[0] <= ends[1]
                check(fine, f"sizes: {name}", ends, "the smallest and the largest")
            return cls(sizes, tuple(_piece(**each) for each in as_list(says["pieces"])))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BundleError(f"{where}: {error}") from None

    def written(self, template: bytes, tensors: Mapping[str, np.ndarray], where: str = "base.ptd") -> bytes:
        """The data file of an adapter.

        Args:
            template: the base's, in which all values are zero.
            tensors: by slot, float32, in the slots' own shapes.
            where: the template's name, for messages.

        Raises:
            BundleError: a piece outside the file or outside its slot, a slot without a piece, or a piece without slot.

        Example:
            >>> layout = DataLayout({}, (Piece("k", "w", 4, 0, (2, 2), (1, 2)),))
            >>> np.frombuffer(layout.written(bytes(20), {"w": np.arange(4, dtype=np.float32)})[4:], np.float32).tolist()
            [0.0, 2.0, 1.0, 3.0]
        """
        slots = {piece.slot for piece in self.pieces}
        if slots != tensors.keys():
            raise BundleError(
                f"{where}: pieces and slots are not the same: {', '.join(sorted(slots ^ tensors.keys()))}"
            )
        data = bytearray(template)
        for piece in self.pieces:
            values = np.ascontiguousarray(tensors[piece.slot], "<f4").reshape(-1)
            end = piece.offset + math.prod(piece.sizes) * _VALUE_BYTES
            if end > len(data) or not piece.last < values.size:
                raise BundleError(f"{where}: {piece.slot} has a piece outside the file or the slot; export it again")
            data[piece.offset : end] = values[piece.indices()].tobytes()
        return bytes(data)

    def check_program(self, program: bytes, where: str) -> None:
        """Nothing if the program asks for every piece: one that holds a constant of its own would run the base.

        Raises:
            BundleError: it does not.
        """
        if missing := sorted({piece.slot for piece in self.pieces if piece.key.encode() not in program}):
            raise BundleError(f"{where}: it takes no {', '.join(missing[:8])} from a data file; export it again")


def strided(indices: Sequence[int] | np.ndarray) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    """Start, sizes and strides of the view that these indices are; None if they are none.

    Example:
        >>> strided([5, 7, 9, 15, 17, 19])
        (5, (2, 3), (10, 2))
    """
    rest = np.asarray(indices, np.int64)
    start = int(rest[0])
    sizes: list[int] = []
    strides: list[int] = []
    while len(rest) > 1:
        steps = np.diff(rest)
        breaks = np.flatnonzero(steps != steps[0])
        run = int(breaks[0]) + 1 if len(breaks) else len(rest)
        if len(rest) % run:
            return None
        rows = rest.reshape(-1, run)
        if steps[0] < 0 or (rows != rows[:, :1] + np.arange(run) * steps[0]).any():
            return None
        sizes.insert(0, run)
        strides.insert(0, int(steps[0]))
        rest = rows[:, 0]
    return start, tuple(sizes), tuple(strides)


def _piece(key: Any, slot: Any, offset: Any, start: Any, sizes: Any, strides: Any) -> Piece:
    return Piece(key, slot, offset, start, tuple(as_list(sizes)), tuple(as_list(strides)))
