"""What a bundle is for, and what that takes on the device: settings by kind, in JSON with their ``"kind"``.

A new kind is a file with a frozen dataclass, its ``KIND`` and its way from JSON, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from audiolora.export.ctc_settings import CtcSettings, check_same_hearing, ctc_settings
from audiolora.export.fields import check
from audiolora.export.forecast_settings import ForecastSettings, forecast_settings
from audiolora.export.whisper_settings import WhisperSettings, check_same_model, whisper_settings

Task = ForecastSettings | CtcSettings | WhisperSettings

_FROM_JSON: Mapping[str, Callable[[Mapping[str, Any]], Task]] = {
    ForecastSettings.KIND: forecast_settings,
    CtcSettings.KIND: ctc_settings,
    WhisperSettings.KIND: whisper_settings,
}


def task_to_json(task: Task | None) -> dict[str, Any] | None:
    """As a manifest has it."""
    return None if task is None else {"kind": task.KIND, **asdict(task)}


def task_from_json(says: Mapping[str, Any] | None) -> Task | None:
    """From a manifest.

    Raises:
        ValueError: another kind, or a setting out of its range.
        TypeError: a setting that is missing or unknown.
    """
    if says is None:
        return None
    kind = says["kind"]
    check(isinstance(kind, str) and kind in _FROM_JSON, "task: kind", kind, f"one of {', '.join(_FROM_JSON)}")
    return _FROM_JSON[kind]({name: value for name, value in says.items() if name != "kind"})


def check_adapter_task(base: Task | None, own: Task) -> None:
    """Nothing if an adapter over a base with this task may have this one instead.

    Raises:
        ValueError: it is of another kind, or differs in what the graph has fixed.
    """
    if type(own) is not type(base):
        there = "none" if base is None else repr(base.KIND)
        raise ValueError(f"an adapter's task must be of its base's kind, {there}, got {own.KIND!r}")
    if isinstance(base, CtcSettings) and isinstance(own, CtcSettings):
        check_same_hearing(base, own)
    if isinstance(base, WhisperSettings) and isinstance(own, WhisperSettings):
        check_same_model(base, own)
