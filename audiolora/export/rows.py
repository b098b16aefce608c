"""Files of sensor histories for ``audiolora export --calibrate FILE --evaluate FILE``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rows:
    """What the command line names.

    Args:
        calibrate, evaluate: CSV or Parquet, as `series.frames.read` takes it; None for none.
        time_zone: the devices', for stamps without an offset and the calendar; None: UTC.
    """

    calibrate: Path | None
    evaluate: Path | None
    time_zone: str | None

    def read(self, forecaster: Any) -> dict[str, Any]:
        """`export`'s arguments: long-form rows, with the calendar where the forecaster reads it.

        Raises:
            SeriesError: a file that cannot be read, or whose rows have problems.
        """
        named = {"calibration": self.calibrate, "evaluate": self.evaluate}
        return {name: self._frame(path, forecaster) for name, path in named.items() if path is not None}

    def _frame(self, path: Path, forecaster: Any) -> Any:
        from audiolora.series.calendar import CALENDAR, with_calendar
        from audiolora.series.frames import read

        frame = read(path, time_zone=self.time_zone)
        missing = set(forecaster.channels) - set(frame.columns)
        if missing and missing <= set(CALENDAR):
            frame = with_calendar(frame, time_zone=self.time_zone or "UTC")
        return frame
