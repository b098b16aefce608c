"""From frames of log-probabilities to a labelling: prefix beam search, and the path on which a labelling lies.

A path has a token or the blank for each frame; repetitions are one, blanks go, and what is left is its labelling. The
most probable path is each frame's most probable token; the most probable labelling sums over its paths (Graves et al.,
2006), and the search keeps the best prefixes frame by frame (Hannun et al., arXiv 1408.2873, without a language model).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(frames, tokens) → log-probabilities of the same shape, float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def beam_search(log_probs: np.ndarray, width: int, blank: int) -> tuple[tuple[int, ...], float]:
    """The most probable labelling among the prefixes that were kept.

    Args:
        log_probs: (frames, tokens), finite.
        width: prefixes that are kept from frame to frame; as many as there are labellings make it exact.
        blank: its index.

    Returns:
        The labelling, and its log-probability over the paths that were kept.

    Raises:
        ValueError: a width below 1.

    Example:
        >>> beam_search(np.log([[0.6, 0.4], [0.6, 0.4]]), width=4, blank=0)[0]  # 0.36 for none, 0.64 for one
        (1,)
    """
    if width < 1:
        raise ValueError(f"beam_width must be at least 1, got {width}")
    prefixes = _Prefixes()
    beam, ends_blank, ends_token = [0], np.zeros(1), np.full(1, -np.inf)
    for frame in log_probs:
        stays_blank, stays_token, longer = _step(prefixes, beam, ends_blank, ends_token, frame, blank)
        ends_blank = np.concatenate([stays_blank, np.full(longer.size, -np.inf)])
        ends_token = np.concatenate([stays_token, longer.ravel()])
        scores = np.logaddexp(ends_blank, ends_token)
        best = np.argsort(-scores, kind="stable")[:width]
        best = best[scores[best] > -np.inf]
        ends_blank, ends_token = ends_blank[best], ends_token[best]
        beam = [prefixes.candidate(int(i), beam, frame.size) for i in best]
    score = np.logaddexp(ends_blank, ends_token)
    return prefixes.labelling(beam[int(score.argmax())]), float(score.max())


class _Prefixes:
    """Prefixes by number, each the one before it and a token; 0 is the empty one."""

    def __init__(self) -> None:
        self.before, self.last = [-1], [-1]
        self._known: dict[tuple[int, int], int] = {}

    def candidate(self, i: int, beam: list[int], n_tokens: int) -> int:
        """The candidates are the beam itself, then each of it with each token."""
        if i < len(beam):
            return beam[i]
        shorter, token = divmod(i - len(beam), n_tokens)
        return self.longer(beam[shorter], token)

    def longer(self, prefix: int, token: int) -> int:
        found = self._known.setdefault((prefix, token), len(self.last))
        if found == len(self.last):
            self.before.append(prefix)
            self.last.append(token)
        return found

    def labelling(self, prefix: int) -> tuple[int, ...]:
        found = []
        while prefix > 0:
            found.append(self.last[prefix])
            prefix = self.before[prefix]
        return tuple(reversed(found))


def _step(
    prefixes: _Prefixes, beam: list[int], ends_blank: np.ndarray, ends_token: np.ndarray, frame: np.ndarray, blank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One frame on: each prefix as it is, ending in a blank or in its token, and with each token, (beam, tokens)."""
    last = np.array([prefixes.last[prefix] for prefix in beam])
    total = np.logaddexp(ends_blank, ends_token)
    stays_blank, stays_token = total + frame[blank], ends_token + frame[last]
    longer = total[:, None] + frame
    again = np.flatnonzero(last >= 0)
    longer[again, last[again]] = ends_blank[again] + frame[last[again]]  # the same token twice has a blank between
    longer[:, blank] = -np.inf
    place = {prefix: i for i, prefix in enumerate(beam)}
    for i, prefix in enumerate(beam):  # one of the beam that is another one of it and a token: they are one prefix
        shorter = place.get(prefixes.before[prefix])
        if shorter is not None:
            stays_token[i] = np.logaddexp(stays_token[i], longer[shorter, last[i]])
            longer[shorter, last[i]] = -np.inf
    return stays_blank, stays_token, longer


def best_path(log_probs: np.ndarray, labelling: Sequence[int], blank: int) -> np.ndarray:
    """The most probable path of a labelling (Viterbi).

    Args:
        log_probs: (frames, tokens).
        labelling: tokens, none of them the blank.
        blank: its index.

    Returns:
        (frames,), a token or the blank for each frame.

    Raises:
        ValueError: fewer frames than the labelling needs.

    Example:
        >>> best_path(np.log([[0.6, 0.4], [0.3, 0.7]]), [1], blank=0)
        array([0, 1])
    """
    if not len(log_probs):
        return np.zeros(0, np.int64)
    states = np.full(2 * len(labelling) + 1, blank)  # blank, token, blank, token, …, blank
    states[1::2] = labelling
    skips = np.zeros(len(states), bool)  # over the blank between two different tokens
    skips[3::2] = states[3::2] != states[1:-2:2]
    score = np.full(len(states), -np.inf)
    score[:2] = log_probs[0, states[:2]]
    came_from = np.zeros((len(log_probs), len(states)), np.int64)
    for i, frame in enumerate(log_probs[1:], start=1):
        ways = np.full((3, len(states)), -np.inf)
        ways[0], ways[1, 1:], ways[2, 2:] = score, score[:-1], score[:-2]
        ways[2, ~skips] = -np.inf
        came_from[i] = ways.argmax(axis=0)
        score = ways.max(axis=0) + frame[states]
    state = len(states) - 1 - int(len(states) > 1 and score[-2] > score[-1])
    if score[state] == -np.inf:
        raise ValueError(f"{len(log_probs)} frames have no path of {len(labelling)} tokens; it needs more of them")
    path = np.empty(len(log_probs), np.int64)
    for i in reversed(range(len(log_probs))):
        path[i] = states[state]
        state -= int(came_from[i, state])
    return path
