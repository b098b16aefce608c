"""How an augmentation is written: `speed0.1,noise5-20dB@0.5,gsm|opus|mp3@0.3`.

The standard library alone, for a wrong spec must be told before anything is loaded; what each effect does to samples
stands in `effects`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of effect.

    Args:
        help: one line, a format of `range`, or of `low` and `high`, where the effect has numbers.
        recorded: the same where it takes its sound from a folder of own recordings.
        unit: of its numbers, as written after them.
        default: the range where none is written; None for an effect without numbers.
        limits: what the numbers must lie in.
        fixed: it takes a single number, not a range.
        probability: that a clip gets it, where no `@` says otherwise.
    """

    help: str
    recorded: str = ""
    unit: str = ""
    default: tuple[float, float] | None = None
    limits: tuple[float, float] = (0.0, 0.0)
    fixed: bool = False
    probability: float = 0.5

    def written(self, name: str, low: float, high: float) -> str:
        """The effect as a spec has it."""
        if self.default is None:
            return name
        name = f"{name}:" if name[-1].isdigit() else name
        return f"{name}{low:g}{self.unit}" if self.fixed or low == high else f"{name}{low:g}-{high:g}{self.unit}"


EFFECTS: dict[str, Kind] = {
    "speed": Kind(
        "played at one of three speeds, pitch included: {low:g} slower, as it is, {low:g} faster",
        default=(0.1, 0.1),
        limits=(0.01, 0.5),
        fixed=True,
        probability=1.0,
    ),
    "rir": Kind(
        "a simulated room whose sound dies away by 60 dB in {range} s",
        recorded="a room, by a measured impulse response",
        unit="s",
        default=(0.15, 0.5),
        limits=(0.1, 0.8),
    ),
    "noise": Kind(
        "white noise at {range} dB SNR",
        recorded="recorded noise at {range} dB SNR",
        unit="dB",
        default=(5.0, 20.0),
        limits=(-30.0, 60.0),
    ),
    "gain": Kind("louder by {range} dB", unit="dB", default=(-6.0, 6.0), limits=(-60.0, 30.0), probability=1.0),
    "bandpass": Kind(
        "nothing below {low:g} and above {high:g} Hz",
        unit="Hz",
        default=(300.0, 3400.0),
        limits=(20.0, 7900.0),
    ),
    "lowpass": Kind(
        "nothing above {range} Hz",
        unit="Hz",
        default=(2000.0, 7000.0),
        limits=(200.0, 7900.0),
    ),
    "gsm": Kind("GSM 06.10 full-rate codec at 8 kHz"),
    "mulaw": Kind("G.711 mu-law codec at 8 kHz"),
    "alaw": Kind("G.711 A-law codec at 8 kHz"),
    "opus": Kind("Opus at {range} kbit/s", unit="kbps", default=(8.0, 32.0), limits=(6.0, 128.0)),
    "mp3": Kind("MP3 at {range} kbit/s", unit="kbps", default=(16.0, 64.0), limits=(16.0, 128.0)),
}
"""Name -> what it does."""


@dataclass(frozen=True)
class Effect:
    """An effect with its range.

    Example:
        >>> str(Effect("noise", 5, 20))
        'noise5-20dB'
    """

    name: str
    low: float = 0.0
    high: float = 0.0

    def __str__(self) -> str:
        return EFFECTS[self.name].written(self.name, self.low, self.high)

    def describe(self, recorded: Collection[str] = ()) -> str:
        """What it does, for people; `recorded` names the effects that have own recordings."""
        numbers = f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
        kind = EFFECTS[self.name]
        return (kind.recorded if self.name in recorded else kind.help).format(
            low=self.low, high=self.high, range=numbers
        )


@dataclass(frozen=True)
class Step:
    """One of the effects, drawn with equal chances, in a share `probability` of the clips."""

    effects: tuple[Effect, ...]
    probability: float

    def __str__(self) -> str:
        return "|".join(map(str, self.effects)) + f"@{self.probability:g}"

    def describe(self, recorded: Collection[str] = ()) -> str:
        """A line for people; `recorded` as of `Effect.describe`."""
        effects = ", or ".join(effect.describe(recorded) for effect in self.effects)
        return f"{effects}: {100 * self.probability:g} % of the clips"


def parse_step(part: str) -> Step:
    """One step of a spec.

    Raises:
        ValueError: an unknown name, or a number or probability outside its limits.

    >>> str(parse_step("noise@0.3"))
    'noise5-20dB@0.3'
    """
    names, at, written = part.partition("@")
    effects = tuple(_effect(name.strip(), part) for name in names.split("|"))
    if not at:
        return Step(effects, EFFECTS[effects[0].name].probability if len(effects) == 1 else 0.5)
    try:
        probability = float(written)
    except ValueError:
        probability = -1.0
    if not 0 < probability <= 1:
        raise ValueError(
            f"augment {part!r}: after the @ stands a probability above 0 and at most 1, got {written!r}; e.g. "
            f"{names}@0.5"
        )
    return Step(effects, probability)


def _effect(text: str, part: str) -> Effect:
    for name, kind in EFFECTS.items():
        match = re.fullmatch(_pattern(name, kind), text, flags=re.IGNORECASE)
        if match is None:
            continue
        if kind.default is None:
            return Effect(name)
        low, high = (None if number is None else float(number) for number in match.groups())
        return _within(name, kind, low, high, part)
    raise ValueError(f"augment: {_unknown(text)}")


def _pattern(name: str, kind: Kind) -> str:
    if kind.default is None:
        return name
    number = r"(-?\d+(?:\.\d+)?)"
    return rf"{name}(?::?{number}(?:-{number})?(?:{kind.unit})?)?"


def _within(name: str, kind: Kind, low: float | None, high: float | None, part: str) -> Effect:
    assert kind.default is not None
    if low is None:
        low, high = kind.default
    elif high is None:
        high = low
    elif kind.fixed:
        raise ValueError(f"augment {part!r}: {name} takes one number, e.g. {kind.written(name, *kind.default)}")
    smallest, largest = kind.limits
    if not smallest <= low <= high <= largest:
        raise ValueError(
            f"augment {part!r}: numbers of {name} go from {smallest:g} to {largest:g}{kind.unit}, the lower one first, "
            f"e.g. {kind.written(name, *kind.default)}"
        )
    if name == "bandpass" and high < 1.5 * low:
        raise ValueError(f"augment {part!r}: the band's upper limit must be at least 1.5 times the lower one")
    return Effect(name, low, high)


def _unknown(text: str) -> str:
    name = next((name for name in EFFECTS if text.lower().startswith(name)), text.lower())
    example = ", ".join(kind.written(name, *(kind.default or (0, 0))) for name, kind in EFFECTS.items())
    if name in EFFECTS:
        kind = EFFECTS[name]
        return f"{text!r} is not how {name} is written: {kind.written(name, *(kind.default or (0, 0)))}"
    close = difflib.get_close_matches(name, EFFECTS, n=1, cutoff=0.5)
    return (
        f"unknown effect {text!r}{f'; did you mean {close[0]!r}?' if close else '.'} There are {example}; join them "
        "with commas, add a probability as in noise5-20dB@0.5, and draw one of several with gsm|opus"
    )
