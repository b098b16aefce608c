"""What the order of the rows tells, before they are sorted: rows that go back in time, and two devices under one id."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from audiolora.series.problems import finding

# A shuffled history rises for two rows on average before it falls; blocks written one after the other, for many.
_ROWS_A_BLOCK = 4
_COMMON_ROWS = 2


def order_findings(unique_id: pd.Series, ds: pd.Series, place: str) -> list[dict[str, Any]]:
    """Devices whose stamps go back in time from one of their rows to the next.

    Rows of other devices between them do not matter: a file sorted by time alone is in order.

    Args:
        unique_id: the device of each row, in the order of the source.
        ds: its stamp; rows without one are passed over.
        place: what a row is called by its index in the report: a line of a file, or a row of a frame.

    Returns: rows of a findings' table: `duplicate_id` where a device's rows are a few ascending blocks that cover the
    same time, `unsorted` for any other order.
    """
    found = []
    for name, stamps in ds.dropna().groupby(unique_id, sort=False, observed=True):
        moments = stamps.to_numpy("datetime64[ns]")
        back = np.flatnonzero(np.diff(moments) < np.timedelta64(0, "ns")) + 1
        if not len(back):
            continue
        first = f"{place} {stamps.index[back[0]]}"
        overlap = _overlapping_blocks(np.split(moments, back))
        if overlap is not None:
            detail = f"{len(back) + 1} blocks of rows of this id cover the same time, from {overlap} on; two devices?"
            found.append(finding(str(name), "unique_id", "duplicate_id", len(back) + 1, first, detail))
        else:
            detail = f"{len(back)} rows lie behind a later one, the first at {first}"
            found.append(finding(str(name), "ds", "unsorted", len(back), first, detail))
    return found


def _overlapping_blocks(blocks: list[np.ndarray]) -> str | None:
    """The stamp at which two ascending blocks begin to overlap, None if none do, or if these are no blocks at all."""
    if sum(map(len, blocks)) < _ROWS_A_BLOCK * len(blocks):
        return None
    blocks = sorted(blocks, key=lambda block: block[0])
    longest = blocks[0]
    for block in blocks[1:]:
        begin, end = block[0], min(longest[-1], block[-1])
        if all(((b >= begin) & (b <= end)).sum() >= _COMMON_ROWS for b in (longest, block)):
            return str(pd.Timestamp(begin))
        longest = max(longest, block, key=lambda b: b[-1])
    return None
