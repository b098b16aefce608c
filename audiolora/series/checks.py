"""What is wrong with a fleet's histories, by device and column, before anything is trained on them.

A bad device never stops the fleet: `check` finds, `keep_good` leaves the bad ones out by name, `raise_if_bad` is for
those who would rather stop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from audiolora.series.filling import fill, filled
from audiolora.series.order import order_findings
from audiolora.series.problems import PROBLEMS, SeriesError, finding, keep_notes, listing, notes, require_long
from audiolora.series.rows import KEYS, History, histories_of
from audiolora.series.steps import Grid, freq_name, infer_freq
from audiolora.series.units import unit_jumps

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Findings", "check", "fill", "filled", "keep_good"]

_COLUMNS = ("unique_id", "column", "problem", "bad", "count", "first", "detail", "remedy")
_EVERYONE = "(all devices)"


@dataclass(frozen=True)
class Findings:
    """What `check` found.

    Attributes:
        table: a row a device, column and kind of problem: unique_id, column, problem, bad (the device cannot be used),
            count, first (the first stamp or place), detail, remedy.
        freq: the step the stamps were checked against, as given or inferred; None if there are too few to infer one.
        inferred: whether it was inferred.
        devices: all devices of the frame, in its order.

    Example:
        >>> frame = pd.DataFrame({"unique_id": "pump", "ds": pd.to_datetime(["2024-01-01 00:00"] * 2), "y": [1.0, 2.0]})
        >>> check(frame, freq="h").bad_ids
        ('pump',)
    """

    table: pd.DataFrame
    freq: str | None
    inferred: bool
    devices: tuple[str, ...]

    @property
    def bad_ids(self) -> tuple[str, ...]:
        """Devices that cannot be used, in the order of the frame."""
        named = set(self.table.loc[self.table["bad"], "unique_id"])
        return self.devices if _EVERYONE in named else tuple(name for name in self.devices if name in named)

    @property
    def ok(self) -> bool:
        """No device is bad; gaps and the like may still have been found."""
        return not self.table["bad"].any()

    def raise_if_bad(self) -> None:
        """Raise one error that lists all bad devices.

        Raises:
            SeriesError: a device is bad; the message names each with column, problem and remedy.
        """
        if self.ok:
            return
        bad = self.table[self.table["bad"]]
        lines = [
            f"{one.unique_id}, {one.column}: {one.problem}: {one.detail}; {one.remedy}" for one in bad.itertuples()
        ]
        headline = f"{len(self.bad_ids)} of {len(self.devices)} devices cannot be used (keep_good leaves them out)"
        raise SeriesError(listing(headline, lines))

    def rich_table(self) -> Table:
        """The findings as a table to print with rich, bad devices first."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        shown = Table(
            box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, title=self._headline(), title_style="bold"
        )
        for heading in ("device", "column", "problem", "first", "what", "remedy"):
            shown.add_column(heading, overflow="fold")
        bad, order = set(self.bad_ids), {name: place for place, name in enumerate(self.devices)}
        place = self.table["unique_id"].map(lambda name: (name in order and name not in bad, order.get(name, -1)))
        ordered = self.table.loc[place.sort_values(kind="stable").index]
        # What is wrong with several columns alike (a sensor that was off) takes one line.
        alike = ["unique_id", "problem", "bad", "first", "detail", "remedy"]
        for one in ordered.groupby(alike, sort=False)["column"].agg(", ".join).reset_index().itertuples():
            # Text, not str: a device called "[red]" must be shown, not obeyed.
            cells = (one.unique_id, one.column, one.problem, one.first, one.detail, one.remedy)
            shown.add_row(*(Text(str(cell)) for cell in cells), style="bold" if one.bad else None)
        return shown

    def __str__(self) -> str:
        if self.table.empty:
            return self._headline()
        from rich.console import Console

        console = Console(width=160, color_system=None)
        with console.capture() as printed:
            console.print(self.rich_table())
        return printed.get()

    def _headline(self) -> str:
        origin = "inferred: the most frequent difference between stamps" if self.inferred else "as given"
        step = f"every {self.freq} ({origin})" if self.freq else "too few stamps to infer a step"
        return f"{len(self.devices)} devices, {step}: {len(self.bad_ids)} bad, {len(self.table)} findings"


def check(
    frame: pd.DataFrame,
    *,
    freq: Any = None,
    lookback: int = 0,
    horizon: int = 0,
    known: Sequence[str] = (),
    accept: Sequence[str] = (),
) -> Findings:
    """Look for what would spoil training or forecasts, in every device and column.

    Args:
        frame: long form; what `frames.read` found in the source itself (order, zones, non-numbers) is reported too,
            until `frame.attrs.clear()` says that it is mended.
        freq: the step; None infers it for the fleet.
        lookback: steps the net will see.
        horizon: steps it will forecast; a device without `lookback + horizon` whole consecutive steps is too short.
        known: covariates whose future is known; they may go on behind the last y.
        accept: problems that make no device bad here, e.g. `["unit_jump"]` for heat pumps that idle all summer.

    Returns: the findings; nothing is changed.

    Raises:
        SeriesError: not a long frame.
        ValueError: an unknown freq, a number below zero, a known covariate or an accepted problem that there is not.

    Example:
        >>> hours = pd.to_datetime(["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 04:00"])
        >>> found = check(pd.DataFrame({"unique_id": "pump", "ds": hours, "y": [1.0, 2.0, 4.0]}), freq="h")
        >>> found.table["detail"].tolist(), found.ok
        (['2 stamps missing in 1 gap, the longest of 2 steps'], True)
    """
    require_long(frame)
    _check_arguments(frame, lookback, horizon, known, accept)
    frame = frame.reset_index(drop=True)
    histories = histories_of(frame)
    step = infer_freq([history.ds for history in histories]) if freq is None else freq_name(freq)
    found = notes(frame)
    told = {one["unique_id"] for one in found if one["problem"] in ("no_stamp", "mixed_zones")}
    found += order_findings(frame["unique_id"], frame["ds"], "row")
    for history in histories:
        if history.stampless and history.name not in told and _EVERYONE not in told:
            found.append(finding(history.name, "ds", "no_stamp", history.stampless, "", "rows without a stamp"))
        found += _stamp_findings(history, step)
        found += _value_findings(history, known)
        found += _length_findings(history, lookback + horizon, step, known)
    found += _same_series(histories)
    table = pd.DataFrame(found, columns=[name for name in _COLUMNS if name != "bad"])
    table.insert(3, "bad", [PROBLEMS[problem].bad and problem not in accept for problem in table["problem"]])
    return Findings(
        table.astype({"bad": bool, "count": "int64"}), step, freq is None, tuple(history.name for history in histories)
    )


def keep_good(frame: pd.DataFrame, findings: Findings) -> pd.DataFrame:
    """The frame without the devices that `findings` calls bad, by name (`findings.bad_ids`).

    Raises:
        SeriesError: no device is left.
    """
    good = frame[~frame["unique_id"].isin(findings.bad_ids)].reset_index(drop=True)
    if good.empty:
        findings.raise_if_bad()
    # What was noted about the devices left out is told; it must not be told again of those that stay.
    keep_notes(frame, good)
    return good


def _check_arguments(
    frame: pd.DataFrame, lookback: int, horizon: int, known: Sequence[str], accept: Sequence[str]
) -> None:
    if strange := [problem for problem in accept if problem not in PROBLEMS]:
        raise ValueError(f"accept names no problem: {strange}; there are {', '.join(PROBLEMS)}")
    for name, value in (("lookback", lookback), ("horizon", horizon)):
        if value < 0:
            raise ValueError(f"{name} must be a number of steps, at least 0, got {value}")
    if lacking := [name for name in known if name not in frame.columns or name in KEYS]:
        raise ValueError(f"known covariates {lacking} are no covariates of the frame")


def _stamp_findings(history: History, freq: str | None) -> Iterator[dict[str, Any]]:
    name = history.name
    unique, counts = np.unique(history.ds, return_counts=True)
    if (counts > 1).any():
        first, extra = unique[counts > 1][0], int((counts - 1).sum())
        yield finding(
            name, "ds", "duplicate", extra, pd.Timestamp(first), f"rows that share a stamp with another: {extra}"
        )
    if freq is None or len(unique) < 2:
        return
    grid = Grid.of(unique, freq)
    steps, on_grid = grid.steps(unique)
    if not on_grid.all():
        off, own = unique[~on_grid], infer_freq([unique])
        beside = f"; most of its own differences are {own}" if own != freq else ""
        detail = f"{len(off)} of {len(unique)} stamps lie off the grid of {freq}{beside}"
        yield finding(name, "ds", "irregular", len(off), pd.Timestamp(off[0]), detail)
        if len(off) > len(unique) / 2:
            return  # gaps between the few that happen to lie on the grid would tell nothing
    apart = np.diff(steps[on_grid])
    if (apart > 1).any():
        missing, gaps, at = int((apart - 1).sum()), int((apart > 1).sum()), int(np.argmax(apart > 1))
        first = pd.Timestamp(grid.stamps(steps[on_grid][at : at + 1] + 1)[0])
        detail = f"{missing} stamps missing in {gaps} gap{'s' * (gaps > 1)}, the longest of {apart.max() - 1} steps"
        yield finding(name, "ds", "gap", missing, first, detail)


def _value_findings(history: History, known: Sequence[str]) -> Iterator[dict[str, Any]]:
    measured = np.flatnonzero(~np.isnan(history.values["y"]))
    last = measured[-1] + 1 if len(measured) else len(history.ds)
    for column, values in history.values.items():
        # Behind the last y a frame may hold the future of known covariates; the others end there.
        yield from _column_findings(history.name, column, values if column in known else values[:last], history.ds)


def _column_findings(name: str, column: str, values: np.ndarray, ds: np.ndarray) -> Iterator[dict[str, Any]]:
    for problem, wrong, what in (("nan", np.isnan(values), "missing"), ("inf", np.isinf(values), "infinite")):
        if wrong.any():
            detail = f"{wrong.sum()} of {len(values)} values are {what}"
            yield finding(name, column, problem, wrong.sum(), pd.Timestamp(ds[wrong.argmax()]), detail)
    sound = values[np.isfinite(values)]
    if len(sound) > 1 and sound.min() == sound.max():
        problem = "constant" if column == "y" else "constant_covariate"
        yield finding(name, column, problem, len(sound), pd.Timestamp(ds[0]), f"always {sound[0]:g}")
    for jump in unit_jumps(values):
        detail = f"about {jump.before:.3g} before and {jump.after:.3g} after: a unit × {jump.ratio:g}"
        yield finding(name, column, "unit_jump", 1, pd.Timestamp(ds[jump.row]), detail)


def _length_findings(history: History, span: int, freq: str | None, known: Sequence[str]) -> Iterator[dict[str, Any]]:
    whole = np.ones(len(history.ds), bool)
    for column, values in history.values.items():
        if column not in known:
            whole &= np.isfinite(values)
    stamps = np.unique(history.ds[whole])
    longest = min(len(stamps), 1)
    if freq is not None and len(stamps) > 1:
        steps, on_grid = Grid.of(stamps, freq).steps(stamps)
        if on_grid.mean() < 0.5:
            return  # told as irregular
        breaks = np.flatnonzero(np.diff(steps[on_grid]) != 1)
        edges = np.concatenate([[-1], breaks, [on_grid.sum() - 1]])
        longest = int(np.diff(edges).max())
    if longest < max(span, 1):
        first = pd.Timestamp(stamps[0]) if len(stamps) else "nowhere"
        detail = f"{longest} whole consecutive steps at most of {len(stamps)}, lookback + horizon need {max(span, 1)}"
        yield finding(history.name, "y", "too_short", longest, first, detail)


def _same_series(histories: list[History]) -> Iterator[dict[str, Any]]:
    """Devices with the measurements of an earlier one, stamp by stamp; constants are alike without being copies."""
    seen: dict[bytes, str] = {}
    for history in histories:
        y, name = history.values["y"], history.name
        sound = y[np.isfinite(y)]
        if not len(sound) or sound.min() == sound.max():
            continue
        digest = hashlib.sha256(history.ds.tobytes())
        digest.update(y.tobytes())
        earlier = seen.setdefault(digest.digest(), name)
        if earlier != name:
            detail = f"all {len(y)} values are those of {earlier!r}"
            yield finding(name, "y", "same_series", len(y), pd.Timestamp(history.ds[0]), detail)
