"""The tasks by name, as the recipe compare_methods makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiolora.comparison.ctc import CtcTask
    from audiolora.comparison.sensor import SensorTask
    from audiolora.comparison.speech import SpeechTask

PARAMETERS: Mapping[str, int] = {"sensor": 4_000, "speech": 150_000, "ctc": 30_000}
"""How large adapters are, where nobody says."""


def make_task(
    name: str,
    *,
    data: str | None = None,
    epochs: int | None = None,
    speech: Mapping[str, Any],
    sensor: Mapping[str, Any],
) -> SensorTask | SpeechTask | CtcTask:
    """A task from what the command line gives; what is None is the task's own default.

    Args:
        name: ``"sensor"``, ``"speech"`` or ``"ctc"``.
        data, epochs: of every task.
        speech: what only speech and ctc take.
        sensor: what only sensor takes.

    Raises:
        ValueError: another name, or something of speech for sensor.

    Example:
        >>> make_task("ctc", speech={"channel": "gsm"}, sensor={}).channel
        'gsm'
    """
    given = {key: value for key, value in (("data", data), ("epochs", epochs)) if value is not None}
    asked = {key: value for key, value in speech.items() if value is not None}
    if name == "sensor":
        from audiolora.comparison.sensor import SensorTask

        if asked:
            raise ValueError(f"{', '.join(asked)} does nothing for the task sensor; leave it out")
        return SensorTask(**given, **sensor)
    if name == "speech":
        from audiolora.comparison.speech import SpeechTask

        return SpeechTask(**given, **asked)
    if name == "ctc":
        from audiolora.comparison.ctc import CtcTask

        return CtcTask(**given, **asked)
    raise ValueError(f"task must be one of {', '.join(PARAMETERS)}, got {name!r}")
