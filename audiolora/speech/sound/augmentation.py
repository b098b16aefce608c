"""What training clips are put through at random: `--augment "speed0.1,noise5-20dB@0.5,gsm|opus|mp3@0.3"`.

Effects are applied left to right. A range in a name is drawn from uniformly, each time a clip is heard; the probability
after an `@` says how often the effect is there at all; of several names joined by `|`, one is drawn. Every draw depends
on a key alone (the seed, the epoch and the clip's id), so what is heard depends neither on the order of the clips, nor
on the processes that read them, nor on an interruption.

How a spec is written stands in `augment_spec`, what each effect does to samples in `effects`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolora.speech.sound.augment_spec import Step, parse_step

if TYPE_CHECKING:
    import numpy as np
    import torch

    from audiolora.speech.sound.effects import Recordings


@dataclass(frozen=True)
class Augmentation:
    """Random effects on training clips; make one with `parse_augmentation`.

    Args:
        steps: in order.
        noise_folder, rir_folder: own recordings of noise and of impulse responses.
    """

    steps: tuple[Step, ...]
    noise_folder: Path | None = None
    rir_folder: Path | None = None

    def __str__(self) -> str:
        """The spec in full: every range and probability, as runs write it down."""
        return ",".join(map(str, self.steps))

    def apply(self, audio: np.ndarray, key: str, *, fits: Callable[[int], bool] | None = None) -> np.ndarray:
        """Draw the effects and put a clip through them.

        Args:
            audio: samples (n,), float32, 16 kHz, n >= 1.
            key: what every draw depends on, beside the augmentation: seed, epoch and clip.
            fits: whether the clip may have so many samples; an effect that would give it others is left out.

        Returns: samples, float32, 16 kHz; (n,) unless its speed changes.

        Raises:
            AudioError: a recording of the folders that is no audio, or digital silence.

        >>> import numpy as np
        >>> parse_augmentation("gain-20--20dB").apply(np.ones(3, dtype=np.float32), key="0/0/a")
        array([0.1, 0.1, 0.1], dtype=float32)
        """
        import numpy as np

        from audiolora.speech.sound.effects import SAMPLES

        for place, step in enumerate(self.steps):
            draw = keyed_generator(f"{key}\0{place}")
            if draw.random() < step.probability:
                effect = step.effects[int(draw.integers(len(step.effects)))]
                heard = SAMPLES[effect.name](audio, effect.low, effect.high, draw, self.recordings).astype(np.float32)
                if fits is None or len(heard) == len(audio) or fits(len(heard)):
                    audio = heard
        return audio

    def check(self) -> None:
        """Find out whether it can run here, before anything is loaded.

        Raises:
            ValueError: a folder that is not there or that nothing uses; `rir` without a folder where pyroomacoustics
                is not installed, or with one and a reverberation time.
        """
        effects = [effect for step in self.steps for effect in step.effects]
        used = {effect.name for effect in effects}
        for name, folder in (("noise", self.noise_folder), ("rir", self.rir_folder)):
            if folder is not None and name not in used:
                raise ValueError(f"--{name}-folder {folder}: nothing would use it; add {name} to --augment")
            if folder is not None and not folder.is_dir():
                raise ValueError(f"--{name}-folder {folder}: no such folder")
        for effect in effects:
            if effect.name == "rir" and self.rir_folder is not None and effect != parse_step("rir").effects[0]:
                raise ValueError(f"augment {effect}: measured rooms have their own reverberation; write rir alone")
        if "rir" in used and self.rir_folder is None and importlib.util.find_spec("pyroomacoustics") is None:
            raise ValueError(
                "augment: rir simulates rooms with pyroomacoustics, which is not installed; pip install "
                '"audiolora[augment]", or name a folder of measured impulse responses with --rir-folder'
            )

    def prepare(self) -> None:
        """Do now what is done once: list the folders, and simulate the rooms, in seconds, with a progress bar. Worker
        processes that are started later have both.

        Raises:
            ValueError: see `check`; a folder without audio.
        """
        self.check()
        for effect in (effect for step in self.steps for effect in step.effects):
            if effect.name == "noise" and self.noise_folder is not None:
                _ = self.recordings.noises
            if effect.name == "rir" and self.rir_folder is not None:
                _ = self.recordings.responses
            elif effect.name == "rir":
                self.recordings.rooms(effect.low, effect.high)

    def describe(self) -> list[str]:
        """A line for people on each step, and on each folder.

        >>> parse_augmentation("noise10dB@0.25,gsm|opus12kbps").describe()[0]
        'white noise at 10 dB SNR: 25 % of the clips'
        """
        folders = {"noise": self.noise_folder, "rir": self.rir_folder}
        own = {name: folder for name, folder in folders.items() if folder is not None}
        return [step.describe(own) for step in self.steps] + [f"{name} from {folder}" for name, folder in own.items()]

    @cached_property
    def recordings(self) -> Recordings:
        from audiolora.speech.sound.effects import Recordings

        return Recordings(self.noise_folder, self.rir_folder)


def parse_augmentation(
    spec: str, *, noise_folder: Path | str | None = None, rir_folder: Path | str | None = None
) -> Augmentation:
    """The augmentation that a spec names.

    Args:
        spec: names from `augment_spec.EFFECTS`, joined by commas and applied left to right; each with a range
            (`noise5-20dB`) or without, and with a probability (`@0.3`) or without; `gsm|opus` is one of them. Empty: no
            augmentation.
        noise_folder: recordings for `noise`, searched with all folders below it; None takes white noise.
        rir_folder: measured impulse responses for `rir`; None simulates rooms.

    Raises:
        ValueError: an unknown name, or a number or probability outside its limits. What is missing on this machine
            `Augmentation.check` tells.

    >>> str(parse_augmentation("speed0.1, noise@0.3, gsm|opus12kbps"))
    'speed0.1@1,noise5-20dB@0.3,gsm|opus12kbps@0.5'
    """
    steps = tuple(parse_step(part.strip()) for part in spec.split(",")) if spec.strip() else ()
    return Augmentation(steps, *(None if folder is None else Path(folder) for folder in (noise_folder, rir_folder)))


def augmentation_facts(settings: Mapping[str, Any]) -> list[str]:
    """A line for people on everything random that training clips were put through, as reports and cards list it.

    Args:
        settings: of a run: the fields of `TrainingSettings`; an older run's may lack some.

    >>> augmentation_facts({"augment": "gain3dB", "spec_augment": True})[0]
    'louder by 3 dB: 100 % of the clips'
    """
    folders = {name: settings.get(name) for name in ("noise_folder", "rir_folder")}
    facts = parse_augmentation(settings.get("augment") or "", **folders).describe()
    if settings.get("spec_augment"):
        facts.append("SpecAugment: stretches of time and of features masked")
    return facts


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
