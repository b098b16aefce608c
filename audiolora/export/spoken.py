"""Utterances that a speech bundle is measured on: what a network writes for them against what was said."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.edge.network import Network
from audiolora.export.ctc_settings import CtcSettings
from audiolora.export.whisper_settings import WhisperSettings
from audiolora.speech.checks.checking import check_utterances
from audiolora.speech.data.audio import MAX_DURATION_S, SAMPLE_RATE_HZ
from audiolora.speech.data.manifests import read_utterances
from audiolora.speech.data.prompts import BUILTIN
from audiolora.speech.data.split import load_split
from audiolora.speech.data.utterance import Utterance
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.texts.metrics import ErrorRates, error_rates
from audiolora.speech.training.clips import Clips
from audiolora.speech.whisper.language import text_normalizer

_SETTINGS, _SPLIT = "settings.json", "split.json"


@dataclass(frozen=True)
class Spoken:
    """Clips and what is said in them.

    Args:
        audios: (L,) each, 16 kHz.
        texts: a transcript each.
        speakers: who speaks, where it is known.
        normalize: text → what error rates compare.
    """

    audios: Sequence[np.ndarray]
    texts: Sequence[str]
    speakers: Sequence[str | None]
    normalize: Callable[[str], str]

    @classmethod
    def of(
        cls, utterances: Sequence[Utterance] | Clips, normalize: Callable[[str], str], *, longest_s: float = math.inf
    ) -> Spoken:
        """Every clip read, through its channel if it has one.

        Args:
            utterances: to hear.
            normalize: as above.
            longest_s: the longest clip that the model hears.

        Raises:
            ValueError: no utterances, or a clip or a text that cannot be used; all of them are told.
        """
        several = list(utterances.utterances if isinstance(utterances, Clips) else utterances)
        if odd := [type(one).__name__ for one in several if not isinstance(one, Utterance)]:
            raise ValueError(
                "evaluate must be utterances, as audiolora.speech.data.manifests.read_utterances gives them, got "
                f"{odd[0]}"
            )
        clips = utterances if isinstance(utterances, Clips) else Clips(several, parse_channel("clean"))
        how: dict[str, Any] = {"max_duration_s": longest_s, "stretch": clips.channel.stretch, "progress": False}
        check_utterances(several, normalize=normalize, **how)
        return cls(clips.audios(), [one.text for one in several], [one.speaker for one in several], normalize)

    @classmethod
    def for_whisper(
        cls, utterances: Sequence[Utterance] | Clips, processor: Any, tasks: Sequence[WhisperSettings]
    ) -> Spoken:
        """For a bundle with these settings; a text is compared by Whisper's rules for the one language that they name.

        Where they name several, or none and it is detected, by its rules for any language.
        """
        named = {task.language for task in tasks if task.language is not None}
        language = named.pop() if len(named) == 1 else None
        english = language == "en" or not tasks[0].languages
        normalize = text_normalizer(processor, "en" if english else language or "any")
        return cls.of(utterances, normalize, longest_s=MAX_DURATION_S)

    @classmethod
    def for_ctc(cls, utterances: Sequence[Utterance] | Clips, settings: CtcSettings) -> Spoken:
        """For a CTC model; texts are compared without case and punctuation, by Whisper's rules for any language.

        Raises:
            ValueError: as `of`; also a model that hears another rate than utterances are read at.
        """
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer

        if settings.sample_rate_hz != SAMPLE_RATE_HZ:
            raise ValueError(
                f"evaluate is read at {SAMPLE_RATE_HZ} Hz, and this model hears {settings.sample_rate_hz} Hz; measure "
                "the bundle with audiolora.edge and audiolora.speech.texts.metrics.error_rates"
            )
        return cls.of(utterances, BasicTextNormalizer())

    def rates(self, network: Network, name: str) -> ErrorRates:
        """A network's error rates by its own `transcribe`.

        Args:
            network: with an adapter or none.
            name: the adapter's id; of one that is named after a speaker, that speaker's clips alone are heard.
        """
        heard = [i for i, speaker in enumerate(self.speakers) if speaker == name] or list(range(len(self.texts)))
        written = network.transcribe([self.audios[i] for i in heard], SAMPLE_RATE_HZ)
        return error_rates([self.texts[i] for i in heard], written, normalize=self.normalize)


def evaluation_clips(data: Path, runs: Sequence[Path]) -> Clips:
    """What ``audiolora export --evaluate DATA`` hears.

    Of the data that a run was trained on: what it held out, through its channel. Other data: all of it, as it is.

    Args:
        data: as `read_utterances` takes it.
        runs: folders of runs.

    Raises:
        ValueError: runs over this data that have different channels, or held nothing out in common.
    """
    from audiolora.run import read_run

    name = str(data)
    over = [run for run in map(read_run, filter(_is_run, runs)) if _same(name, str(run.settings.get("data")))]
    utterances = read_utterances(name)
    if not over:
        good = check_utterances(utterances, skip_bad=name in BUILTIN, progress=False)
        return Clips(good, parse_channel("clean"))
    channels = sorted({str(run.settings.get("channel", "clean")) for run in over})
    if len(channels) > 1:
        raise ValueError(
            f"--evaluate {name}: the runs over it have the channels {' and '.join(channels)}; export them apart"
        )
    held = [{one.id for one in load_split(run.folder / _SPLIT, utterances).test} for run in over]
    chosen = set.intersection(*held)
    if not chosen:
        raise ValueError(f"--evaluate {name}: the runs over it held nothing out in common; name other utterances")
    return Clips([one for one in utterances if one.id in chosen], parse_channel(channels[0]))


def _is_run(folder: Path) -> bool:
    return (folder / _SETTINGS).is_file() and (folder / _SPLIT).is_file()


def _same(data: str, other: str) -> bool:
    return data == other or (
        data not in BUILTIN and other not in BUILTIN and Path(data).resolve() == Path(other).resolve()
    )
