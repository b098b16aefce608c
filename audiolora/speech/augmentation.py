"""What training clips are put through at random: `--augment "speed0.1,noise5-20dB@0.5,gsm|opus|mp3@0.3"`.

Effects are applied left to right. A range in a name is drawn from uniformly, each time a clip is heard; the probability
after an `@` says how often the effect is there at all; of several names joined by `|`, one is drawn. Every draw depends
on a key alone (the seed, the epoch and the clip's id), so what is heard depends neither on the order of the clips, nor
on the processes that read them, nor on an interruption.

Reading a spec needs the standard library alone, for a wrong one must be told before anything is loaded; what each
effect does to samples stands in `effects`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from audiolora.speech.effects import Recordings


@dataclass(frozen=True)
class Kind:
    """One kind of effect.

    Args:
        help: one line, a format of `low` and `high` where the effect has numbers.
        unit: of its numbers, as written after them.
        default: the range where none is written; None for an effect without numbers.
        limits: what the numbers must lie in.
        fixed: it takes a single number, not a range.
        probability: that a clip gets it, where no `@` says otherwise.
    """

    help: str
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
        "in a room: an impulse response from --rir-folder, or a simulated room that dies away by 60 dB in "
        "{low:g} to {high:g} s",
        unit="s",
        default=(0.15, 0.5),
        limits=(0.1, 0.8),
    ),
    "noise": Kind(
        "noise at {low:g} to {high:g} dB SNR: recordings from --noise-folder, or white",
        unit="dB",
        default=(5.0, 20.0),
        limits=(-30.0, 60.0),
    ),
    "gain": Kind(
        "{low:+g} to {high:+g} dB louder", unit="dB", default=(-6.0, 6.0), limits=(-60.0, 30.0), probability=1.0
    ),
    "bandpass": Kind(
        "nothing below {low:g} and above {high:g} Hz",
        unit="Hz",
        default=(300.0, 3400.0),
        limits=(20.0, 7900.0),
    ),
    "lowpass": Kind(
        "nothing above a limit from {low:g} to {high:g} Hz",
        unit="Hz",
        default=(2000.0, 7000.0),
        limits=(200.0, 7900.0),
    ),
    "gsm": Kind("GSM 06.10 full-rate codec at 8 kHz"),
    "mulaw": Kind("G.711 mu-law codec at 8 kHz"),
    "alaw": Kind("G.711 A-law codec at 8 kHz"),
    "opus": Kind("Opus at {low:g} to {high:g} kbit/s", unit="kbps", default=(8.0, 32.0), limits=(6.0, 128.0)),
    "mp3": Kind("MP3 at {low:g} to {high:g} kbit/s", unit="kbps", default=(16.0, 64.0), limits=(16.0, 128.0)),
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


@dataclass(frozen=True)
class Step:
    """One of the effects, drawn with equal chances, in a share `probability` of the clips."""

    effects: tuple[Effect, ...]
    probability: float

    def __str__(self) -> str:
        return "|".join(map(str, self.effects)) + f"@{self.probability:g}"


@dataclass(frozen=True)
class Augmentation:
    """Random effects on training clips; make one with `parse_augmentation`.

    Args:
        steps: in order.
        noise_folder, rir_folder: own recordings of noise and of impulse responses.
    """

    steps: tuple[Step, ...]
    noise_folder: Path | None = field(default=None)
    rir_folder: Path | None = field(default=None)

    def __str__(self) -> str:
        """The spec in full: every range and probability, as runs write it down."""
        return ",".join(map(str, self.steps))

    def apply(self, audio: np.ndarray, key: str) -> np.ndarray:
        """Draw the effects and put a clip through them.

        Args:
            audio: samples (n,), float32, 16 kHz, n >= 1.
            key: what every draw depends on, beside the augmentation: seed, epoch and clip.

        Returns: samples, float32, 16 kHz; (n,) unless its speed changes.

        Raises:
            AudioError: a recording of the folders that is no audio, or digital silence.

        >>> import numpy as np
        >>> parse_augmentation("gain-20--20dB").apply(np.ones(3, dtype=np.float32), key="0/0/a")
        array([0.1, 0.1, 0.1], dtype=float32)
        """
        import numpy as np

        from audiolora.speech.effects import SAMPLES

        for place, step in enumerate(self.steps):
            draw = keyed_generator(f"{key}\0{place}")
            if draw.random() < step.probability:
                effect = step.effects[int(draw.integers(len(step.effects)))]
                audio = SAMPLES[effect.name](audio, effect.low, effect.high, draw, self.recordings).astype(np.float32)
        return audio

    def prepare(self) -> None:
        """Do now what is done once: list the folders, and simulate the rooms, in seconds, with a progress bar.

        Worker processes that are forked later share the rooms.

        Raises:
            ValueError: a folder without audio.
        """
        from audiolora.speech.rooms import simulate_rooms

        for effect in (effect for step in self.steps for effect in step.effects):
            if effect.name == "noise" and self.noise_folder is not None:
                _ = self.recordings.noises
            if effect.name == "rir" and self.rir_folder is not None:
                _ = self.recordings.responses
            elif effect.name == "rir":
                simulate_rooms(effect.low, effect.high)

    @property
    def fastest(self) -> float:
        """The largest factor by which a clip may become shorter; 1 where its length never changes.

        >>> parse_augmentation("speed0.1,gsm").fastest
        1.1
        """
        fastest = 1.0
        for step in self.steps:
            fastest *= max([1.0, *(1 + effect.low for effect in step.effects if effect.name == "speed")])
        return fastest

    def describe(self) -> list[str]:
        """A line for people on each step."""
        return [f"{_phrase(step)}: in {step.probability:.0%} of the clips" for step in self.steps] + [
            f"recordings of {what}: {folder}"
            for what, folder in (("noise", self.noise_folder), ("impulse responses", self.rir_folder))
            if folder is not None
        ]

    @cached_property
    def recordings(self) -> Recordings:
        from audiolora.speech.effects import Recordings

        return Recordings(self.noise_folder, self.rir_folder)


def parse_augmentation(
    spec: str, *, noise_folder: Path | str | None = None, rir_folder: Path | str | None = None
) -> Augmentation:
    """The augmentation that a spec names.

    Args:
        spec: names from `EFFECTS`, joined by commas and applied left to right; each with a range (`noise5-20dB`) or
            without, and with a probability (`@0.3`) or without; `gsm|opus` is one of them. Empty: no augmentation.
        noise_folder: recordings for `noise`, searched with all folders below it; None takes white noise.
        rir_folder: measured impulse responses for `rir`; None simulates rooms.

    Raises:
        ValueError: an unknown name; a number or probability outside its limits; a folder that is not there, or that
            nothing in the spec uses; `rir` without a folder where pyroomacoustics is not installed.

    >>> str(parse_augmentation("speed0.1, noise@0.3, gsm|opus12kbps"))
    'speed0.1@1,noise5-20dB@0.3,gsm|opus12kbps@0.5'
    """
    steps = tuple(_step(part.strip()) for part in spec.split(",")) if spec.strip() else ()
    used = {effect.name for step in steps for effect in step.effects}
    folders = [_folder(name, folder, used) for name, folder in (("noise", noise_folder), ("rir", rir_folder))]
    if "rir" in used and rir_folder is None and importlib.util.find_spec("pyroomacoustics") is None:
        raise ValueError(
            'augment: rir without --rir-folder simulates rooms with pyroomacoustics; pip install "audiolora[augment]", '
            "or name a folder of measured impulse responses"
        )
    return Augmentation(steps, *folders)


def keyed_generator(key: str) -> np.random.Generator:
    """NumPy's generator, seeded by a text: the same for the same text, on every machine and in every process.

    >>> keyed_generator("a").integers(100) == keyed_generator("a").integers(100)
    np.True_
    """
    import numpy as np

    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))


def torch_generator(key: str) -> torch.Generator:
    """torch's generator, seeded by a text in the same way."""
    import torch

    return torch.Generator().manual_seed(int(keyed_generator(key).integers(2**63)))


def _step(part: str) -> Step:
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


def _folder(name: str, folder: Path | str | None, used: set[str]) -> Path | None:
    if folder is None:
        return None
    if name not in used:
        raise ValueError(f"--{name}-folder {folder}: nothing would use it; add {name} to --augment")
    if not Path(folder).is_dir():
        raise ValueError(f"--{name}-folder {folder}: no such folder")
    return Path(folder)


def _phrase(step: Step) -> str:
    return " or ".join(EFFECTS[e.name].help.format(low=e.low, high=e.high) for e in step.effects)
