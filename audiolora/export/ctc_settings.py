"""How audio becomes what a CTC model hears, and its frames a text: a bundle's task ``"ctc"``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from audiolora.export.fields import as_list, check, is_count

LENGTHS = "lengths"
"""The graph's input of a batch's lengths, int64 (batch,), in samples: where the settings are `masked`."""

_OF_ADAPTER = ("vocabulary", "blank", "delimiter", "space", "dropped", "lower", "tidied")


@dataclass(frozen=True)
class CtcSettings:
    """What a device has to know of a CTC model besides its graph.

    Args:
        sample_rate_hz: of the audio.
        normalized: each clip to zero mean and unit variance, (x - mean) / √(variance + 1e-7).
        masked: the graph takes the lengths of a batch that is padded with zeros; otherwise a clip runs alone, for the
            model would hear the padding.
        convolutions: (kernel, stride) of each, from samples to frames.
        fewest_frames: that the model runs on.
        vocabulary: the text of each output.
        blank: the text among them that is CTC's blank.
        delimiter: the one that stands between words; None for none.
        space: what is written for it.
        dropped: those that are left out of a text, after repetitions are one.
        lower: the text is lower-cased.
        tidied: spaces before punctuation are taken out.

    Raises:
        ValueError: a value out of its range; its name and the rule are told.

    Example:
        >>> letters = ("<pad>", "|", "a", "b")
        >>> CtcSettings(16000, True, False, ((10, 5), (3, 2)), 1, letters, "<pad>", "|").frames(16000)
        1599
    """

    KIND: ClassVar[str] = "ctc"

    sample_rate_hz: int
    normalized: bool
    masked: bool
    convolutions: tuple[tuple[int, int], ...]
    fewest_frames: int
    vocabulary: tuple[str, ...]
    blank: str
    delimiter: str | None
    space: str = " "
    dropped: tuple[str, ...] = ()
    lower: bool = False
    tidied: bool = False

    def __post_init__(self) -> None:
        for name in ("sample_rate_hz", "fewest_frames"):
            value = getattr(self, name)
            check(is_count(value) and value > 0, name, value, "a positive whole number")
        for name in ("normalized", "masked", "lower", "tidied"):
            check(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        pairs = all(len(pair) == 2 and all(is_count(n) and n > 0 for n in pair) for pair in self.convolutions)
        check(self.convolutions and pairs, "convolutions", self.convolutions, "pairs of a kernel and a stride")
        for name in ("vocabulary", "dropped"):
            check(all(isinstance(text, str) for text in getattr(self, name)), name, getattr(self, name), "texts")
        check(self.vocabulary.count(self.blank) == 1, "blank", self.blank, "one of the vocabulary, there once")
        check(self.delimiter != self.blank, "delimiter", self.delimiter, "another than the blank")
        check(self.delimiter is None or isinstance(self.delimiter, str), "delimiter", self.delimiter, "a text or null")
        check(isinstance(self.space, str), "space", self.space, "a text")

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(stride for _, stride in self.convolutions)

    @property
    def fewest_samples(self) -> int:
        """The shortest clip."""
        return self.samples(self.fewest_frames)

    def frames(self, n_samples: int) -> int:
        """How many frames a clip has."""
        for kernel, stride in self.convolutions:
            n_samples = (n_samples - kernel) // stride + 1
        return n_samples

    def samples(self, n_frames: int) -> int:
        """The shortest clip of this many frames."""
        for kernel, stride in reversed(self.convolutions):
            n_frames = (n_frames - 1) * stride + kernel
        return n_frames


def ctc_settings(says: Mapping[str, Any]) -> CtcSettings:
    """From a manifest's JSON.

    Raises:
        ValueError: a setting out of its range.
        TypeError: one is missing or unknown.
    """
    lists = {name: tuple(as_list(says[name])) for name in ("vocabulary", "dropped") if name in says}
    lists["convolutions"] = tuple(tuple(as_list(pair)) for pair in as_list(says["convolutions"]))
    return CtcSettings(**{**says, **lists})


def check_same_hearing(base: CtcSettings, own: CtcSettings) -> None:
    """Nothing if an adapter may have settings of its own like these: another alphabet of the same size, that is all.

    Raises:
        ValueError: it may not, and says which.
    """
    names = [field.name for field in fields(base) if field.name not in _OF_ADAPTER]
    other = [name for name in names if getattr(base, name) != getattr(own, name)]
    check(not other, "an adapter's settings", ", ".join(other), "the base's, but for vocabulary and text")
    check(
        len(own.vocabulary) == len(base.vocabulary),
        "an adapter's vocabulary",
        len(own.vocabulary),
        f"of the base's size, {len(base.vocabulary)}, since the graph has that many outputs; for another alphabet "
        "export a base of its own",
    )
