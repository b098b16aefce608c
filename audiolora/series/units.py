"""A history that changes its unit on the way: watts become kilowatts, and all that follows is 1000 times smaller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_RATIO = 1000.0
# A change of unit is 1000 × on top of what the device does by itself, day and night or summer and winter, which may
# well be a factor of three.
_TOLERANCE = 3.0
_BLOCKS = 32
_ROWS_A_BLOCK = 8
# Two parts in different units hardly share a value; a device that is sometimes idle and sometimes runs does.
_APART = 0.95


@dataclass(frozen=True)
class UnitJump:
    """From row `row` on, values are `ratio` times what they were: about `before` until then, about `after` since."""

    row: int
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """A power of 1000."""
        return float(_RATIO ** np.round(np.log(self.after / self.before) / np.log(_RATIO)))


def unit_jumps(values: np.ndarray) -> list[UnitJump]:
    """Where the level of a series changes by 1000 × (or 1000² ×, either way) and stays.

    The size of the values is compared, sign, zeros and what is not finite left out: medians over blocks find where, the
    two-level fit with the least squared error on the logarithm finds the row.

    Args:
        values: (L,) in the order of time.

    Returns: the jumps in the order of time; a device that switches between idle and running is none.
    """
    rows = np.flatnonzero(np.isfinite(values) & (values != 0))
    if len(rows) < 2 * _ROWS_A_BLOCK:
        return []
    sizes = np.log10(np.abs(values[rows].astype(np.float64)))
    blocks = min(_BLOCKS, len(rows) // _ROWS_A_BLOCK)
    length = len(rows) // blocks
    levels = np.median(sizes[: blocks * length].reshape(blocks, length), axis=1)
    bounds = np.append(np.arange(blocks) * length, len(rows))
    jumps, begin, changes = [], 0, _changes(levels)
    for block in changes:
        # The change lies somewhere in the blocks beside the border.
        low, high = max(begin, bounds[max(block - 1, 0)]), bounds[min(block + 2, len(bounds) - 1)]
        cut = low + _two_levels(sizes[low:high])
        end = next((bounds[later] for later in changes if later > block + 1), len(rows))
        if _apart(sizes[begin:cut], sizes[cut:end]):
            before, after = (float(10 ** np.median(part)) for part in (sizes[begin:cut], sizes[cut:end]))
            jumps.append(UnitJump(int(rows[cut]), before, after))
            begin = cut
    return jumps


def _changes(levels: np.ndarray) -> list[int]:
    """Blocks from which on the level is another by about a power of 1000; a block across the change is passed over."""
    found: list[int] = []
    if np.ptp(levels) < np.log10(_RATIO / _TOLERANCE):
        return found
    reference = 0
    for block in range(1, len(levels)):
        if _power(levels[block] - np.median(levels[reference:block])) != 0:
            found.append(block)
            reference = block
    return found


def _power(decades: float) -> int:
    """Which power of 1000 a change by so many decades is; 0 where it is none."""
    power = round(decades / np.log10(_RATIO))
    return power if abs(decades - power * np.log10(_RATIO)) <= np.log10(_TOLERANCE) else 0


def _two_levels(sizes: np.ndarray) -> int:
    """Where to cut so that two constants fit best."""
    total, count = np.cumsum(sizes), np.arange(1, len(sizes) + 1)
    left, right = total[:-1] ** 2 / count[:-1], (total[-1] - total[:-1]) ** 2 / (len(sizes) - count[:-1])
    return int(np.argmax(left + right)) + 1


def _apart(before: np.ndarray, after: np.ndarray) -> bool:
    if min(len(before), len(after)) < _ROWS_A_BLOCK or _power(np.median(after) - np.median(before)) == 0:
        return False
    lower, upper = (before, after) if np.median(before) < np.median(after) else (after, before)
    return bool(np.quantile(lower, _APART) < np.quantile(upper, 1 - _APART))
