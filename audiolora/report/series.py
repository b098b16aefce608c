"""The report of a base adapted to a fleet: errors of every method, device by device, and forecasts to see."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiolora.files import write_text
from audiolora.report.page import Snippet, render_page

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ModelRow:
    """One model over all devices.

    Attributes:
        model: its name; the first row of a report is the base as it is.
        trained: parameters that are trained a device; None where nothing of the base is.
        mase, low, high: mean over devices and its interval.
        change, change_low, change_high: mean difference to the base, likewise; None for the base.
        wins: devices with a smaller error than the base's; None for the base.
        worst: the largest relative growth of a device's error, as a share of the base's; None for the base.
        fallback: the mean MASE when each device goes on with what was best on its own validation days: its own adapter,
            the one that all new devices share, or the base; None where nothing is trained.
        fallback_low, fallback_high: its interval.
        uses_own, uses_shared, uses_base: how many devices go on with which.
    """

    model: str
    trained: int | None
    mase: float
    low: float
    high: float
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    wins: int | None = None
    worst: float | None = None
    fallback: float | None = None
    fallback_low: float | None = None
    fallback_high: float | None = None
    uses_own: int | None = None
    uses_shared: int | None = None
    uses_base: int | None = None


@dataclass(frozen=True, eq=False)
class DeviceForecast:
    """A stretch of one device to draw: measured values and two forecasts from one cutoff.

    Attributes:
        unique_id: the device.
        past_h, past: (L,) hours before the cutoff (negative) and what was measured.
        ahead_h, y, before, after: (horizon,) hours behind it, what was measured, the base's and the device's forecast.
        caption: what is special about the device.
    """

    unique_id: str
    past_h: np.ndarray
    past: np.ndarray
    ahead_h: np.ndarray
    y: np.ndarray
    before: np.ndarray
    after: np.ndarray
    caption: str


@dataclass(frozen=True, eq=False)
class SeriesReport:
    """Everything that `write_series_report` shows. Text is plain: it is escaped, never read as HTML.

    Attributes:
        title, subtitle: the head of the page.
        rows: models, the base as it is first.
        chosen: the method that devices go on with, with fallback; one of the rows.
        devices: of each unseen device (id, MASE of the base, MASE of the chosen method with fallback, own | shared |
            base).
        forecasts: devices to draw.
        loss, eval_loss: of the base: (epoch, loss).
        facts, notes, usage, attribution: as in a `SpeechReport`.
        confidence: level of the intervals.
    """

    title: str
    subtitle: str
    rows: Sequence[ModelRow]
    chosen: str
    devices: Sequence[tuple[str, float, float, str]]
    forecasts: Sequence[DeviceForecast]
    loss: Sequence[tuple[int, float]] = ()
    eval_loss: Sequence[tuple[int, float]] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    usage: Sequence[Snippet] = ()
    attribution: Sequence[str] = ()
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not self.devices:
            raise ValueError("a series report needs at least one device, got none")
        if self.chosen not in [row.model for row in self.rows[1:] if row.fallback is not None]:
            raise ValueError(f"chosen must be a method among the rows, got {self.chosen!r}")

    @property
    def after(self) -> ModelRow:
        """The chosen method's row."""
        return next(row for row in self.rows if row.model == self.chosen)


def series_usage(run: str | os.PathLike[str], data: str) -> tuple[Snippet, ...]:
    """How to use a run: on the command line, and in Python.

    Example:
        >>> [snippet.title for snippet in series_usage("runs/pumps", "pumps.csv")]
        ['Forecast', 'From Python']
    """
    folder = os.fspath(run)
    python = f"""\
from audiolora.series.applying import forecast_with_run
from audiolora.series.frames import read

forecast = forecast_with_run({folder!r}, read({data!r}))"""
    return (
        Snippet("Forecast", f"audiolora forecast {shlex.quote(folder)} {shlex.quote(data)}"),
        Snippet("From Python", python),
    )


def write_series_report(path: str | os.PathLike[str], report: SeriesReport) -> None:
    """Write a self-contained HTML page, atomically: no scripts, nothing loaded from anywhere.

    Args:
        path: where to write, such as `runs/demo-series/report.html`.
        report: what to show.

    Raises:
        OSError: the file could not be written; what stood there before is whole.
    """
    from audiolora.report.plots import loss_chart
    from audiolora.report.series_plots import device_chart, forecast_chart, model_chart

    base, after = report.rows[0], report.after
    assert after.fallback is not None
    page = render_page(
        "series.html.j2",
        report=report,
        base=base,
        after=after,
        reduction=100 * (base.mase - after.fallback) / base.mase,
        models_svg=model_chart(report.rows, report.chosen),
        devices_svg=device_chart(report.devices),
        forecasts_svg=forecast_chart(report.forecasts, report.chosen) if report.forecasts else None,
        loss_svg=loss_chart(report.loss, report.eval_loss, step="epoch", loss="mean absolute error, scaled")
        if report.loss or report.eval_loss
        else None,
    )
    write_text(path, page)
