"""The search and the paths against all paths there are, and against torch's CTC loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.edge.ctc_search import beam_search, best_path, log_softmax

Labelling = tuple[int, ...]


def grid(n_frames: int, n_tokens: int, seed: int) -> np.ndarray:
    return log_softmax(2 * np.random.default_rng(seed).normal(size=(n_frames, n_tokens)))


def labelling_of(path: Labelling, blank: int) -> Labelling:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def all_paths(log_probs: np.ndarray, blank: int) -> Iterator[tuple[Labelling, Labelling, float]]:
    """(path, labelling, log-probability) of every path."""
    n_frames, n_tokens = log_probs.shape
    for path in itertools.product(range(n_tokens), repeat=n_frames):
        yield path, labelling_of(path, blank), float(log_probs[np.arange(n_frames), path].sum())


def by_labelling(log_probs: np.ndarray, blank: int) -> dict[Labelling, float]:
    summed: dict[Labelling, float] = {}
    for _, labelling, score in all_paths(log_probs, blank):
        summed[labelling] = float(np.logaddexp(summed.get(labelling, -np.inf), score))
    return summed


grids = st.builds(grid, st.integers(1, 5), st.integers(2, 4), st.integers(0, 10_000))


@settings(max_examples=60)
@given(grids, st.integers(0, 1))
def test_a_beam_of_every_prefix_finds_the_most_probable_labelling(log_probs: np.ndarray, blank: int) -> None:
    summed = by_labelling(log_probs, blank)
    found, score = beam_search(log_probs, width=len(summed), blank=blank)
    assert found == max(summed, key=lambda labelling: summed[labelling])
    assert score == pytest.approx(summed[found], abs=1e-9)


@settings(max_examples=60)
@given(grids, st.integers(0, 1))
def test_a_labellings_best_path_is_the_best_of_all_its_paths(log_probs: np.ndarray, blank: int) -> None:
    best: dict[Labelling, tuple[float, Labelling]] = {}
    for path, labelling, score in all_paths(log_probs, blank):
        best[labelling] = max(best.get(labelling, (-np.inf, ())), (score, path))
    for labelling, (_, path) in best.items():
        assert tuple(best_path(log_probs, labelling, blank)) == path


def test_the_score_is_torchs_loss_for_the_labelling() -> None:
    for n_frames, width in ((7, 2000), (40, 100)):
        log_probs = grid(n_frames, 4, seed=3)
        found, score = beam_search(log_probs, width=width, blank=0)
        loss = torch.nn.functional.ctc_loss(
            torch.from_numpy(log_probs)[:, None],
            torch.tensor([found]),
            [n_frames],
            [len(found)],
            blank=0,
            reduction="sum",
        )
        assert score <= -float(loss) + 1e-9  # a narrow beam lets some of its paths go
        assert score == pytest.approx(-float(loss), abs=1e-9 if n_frames == 7 else 0.7)


def test_a_wider_beam_finds_what_the_most_probable_path_is_not() -> None:
    """0.36 for nothing on one path, 0.64 for one token on three."""
    log_probs = np.log([[0.6, 0.4], [0.6, 0.4]])
    assert labelling_of(tuple(log_probs.argmax(axis=1)), blank=0) == ()
    assert beam_search(log_probs, width=4, blank=0)[0] == (1,)


def test_a_token_twice_has_a_blank_between() -> None:
    clear = np.log(np.array([[0.01, 0.98, 0.01], [0.98, 0.01, 0.01], [0.01, 0.98, 0.01]]))
    assert beam_search(clear, width=3, blank=0)[0] == (1, 1)
    np.testing.assert_array_equal(best_path(clear, (1, 1), blank=0), [1, 0, 1])
    with pytest.raises(ValueError, match="2 frames have no path of 2 tokens"):
        best_path(clear[:2], (1, 1), blank=0)


def test_no_frames_are_an_empty_labelling() -> None:
    nothing = np.zeros((0, 3))
    assert beam_search(nothing, width=2, blank=0) == ((), 0.0)
    assert best_path(nothing, (), blank=0).shape == (0,)
