"""Where an adapter's values lie in a data file: views found from indices, files written, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolora.export.errors import BundleError
from audiolora.export.executorch_data import DataLayout, Piece, strided

PIECES = (Piece("k1", "A", 8, 0, (3, 2), (1, 3)), Piece("k2", "B", 32, 1, (2,), (0,)))
LAYOUT = DataLayout({"batch": (1, 64)}, PIECES)
TENSORS = {"A": np.arange(6, dtype=np.float32).reshape(2, 3), "B": np.array([5, 7], np.float32)}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms(use_true_random=False), st.integers(1, 3))
def test_a_view_is_found_from_its_indices(shape: list[int], random: object, repeats: int) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    order = list(range(len(shape)))
    random.shuffle(order)  # type: ignore[attr-defined]
    indices = np.tile(values.transpose(order)[None], (repeats, *[1] * len(shape))).reshape(-1) + 11
    view = strided(indices)
    assert view is not None
    np.testing.assert_array_equal(Piece("key", "slot", 0, *view).indices(), indices)


@pytest.mark.parametrize("indices", [[0, 1, 3, 2], [3, 2, 1], [0, 1, 2, 5, 6]])
def test_what_is_no_view_is_not_taken_for_one(indices: list[int]) -> None:
    assert strided(indices) is None


def test_a_data_file_is_the_template_with_the_values_in_their_places() -> None:
    template = bytes(range(40))
    data = LAYOUT.written(template, TENSORS)
    assert data[:8] == template[:8] and len(data) == 40
    np.testing.assert_array_equal(np.frombuffer(data[8:], np.float32), [0, 3, 1, 4, 2, 5, 7, 7])


def test_the_layout_is_what_was_written() -> None:
    assert DataLayout.from_json(LAYOUT.to_json(), "base.slots.json") == LAYOUT


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"offset": 20}, "outside the file"),
        ({"sizes": [3, 2**40]}, "outside the file"),
        ({"strides": [1, 4]}, "outside the file or the slot"),
        ({"start": 1}, "outside the file or the slot"),
        ({"slot": "C"}, "not the same: A, C"),
    ],
)
def test_a_piece_that_does_not_fit_is_refused(change: dict[str, object], says: str) -> None:
    layout = DataLayout({}, (Piece(**{**vars(PIECES[0]), **change}), PIECES[1]))
    with pytest.raises(BundleError, match=says):
        layout.written(bytes(40), TENSORS)


@pytest.mark.parametrize(
    "says",
    [
        b"[]",
        b"{}",
        b'{"sizes": {}, "sizes": {}, "pieces": []}',
        b'{"sizes": {"batch": [2, 1]}, "pieces": []}',
        b'{"sizes": {"batch": 4}, "pieces": []}',
        b'{"sizes": {}, "pieces": [{"key": "k"}]}',
        json.dumps({"sizes": {}, "pieces": [{**vars(PIECES[0]), "offset": -4}]}).encode(),
        json.dumps({"sizes": {}, "pieces": [{**vars(PIECES[0]), "strides": [1]}]}).encode(),
        json.dumps({"sizes": {}, "pieces": [{**vars(PIECES[0]), "sizes": [0, 2]}]}).encode(),
        json.dumps({"sizes": {}, "pieces": [{**vars(PIECES[0]), "key": ""}]}).encode(),
        json.dumps({"sizes": {}, "pieces": [{**vars(PIECES[0]), "start": True}]}).encode(),
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_layout_that_is_none_is_refused(says: bytes) -> None:
    with pytest.raises(BundleError, match=r"base\.slots\.json"):
        DataLayout.from_json(says, "base.slots.json")


def test_a_program_that_does_not_ask_for_its_slots_is_refused() -> None:
    LAYOUT.check_program(b"..k1..k2..", "base.pte")
    with pytest.raises(BundleError, match=r"base\.pte: it takes no B from a data file"):
        LAYOUT.check_program(b"..k1....", "base.pte")
