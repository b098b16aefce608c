"""The report of a speech adaptation: error rates before and after, what the channel does, utterances to hear."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from audiolora.files import write_text
from audiolora.report.audio import Codec, audio_data_uri, check_audio, choose_codec
from audiolora.report.page import Snippet, render_page
from audiolora.speech.texts.metrics import (
    Edit,
    ErrorRates,
    UtteranceErrors,
    relative_reduction,
    utterance_errors,
    word_differences,
)

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup

SAMPLE_RATE_HZ = 16_000
SHOWN_UTTERANCES = 10  # at each end of the ranking
_SPARE_WORDS = 24  # shown past the reference's length; a model that loops writes hundreds, which are folded away
_RESCUED_WORDS = 12  # past a dozen rescued words an utterance shows nothing new, it only takes longer to hear
_PICTURE_DURATION_S = 4.0  # long enough to see words, short enough to see formants


@dataclass(frozen=True, eq=False)
class ClipResult:
    """One held-out utterance: its sound, and what was said and written.

    Attributes:
        id: names the utterance; unique in a report.
        audio: (L,) float32, 16 kHz, full scale ±1: what the model hears.
        clean: (L',) the same utterance before the channel, or None where there is no such recording.
        reference: what was said.
        before_text, after_text: what the model wrote before and after adaptation.
    """

    id: str
    audio: np.ndarray
    clean: np.ndarray | None
    reference: str
    before_text: str
    after_text: str

    def __post_init__(self) -> None:
        check_audio(f"clip {self.id!r}", self.audio)
        if self.clean is not None:
            check_audio(f"clip {self.id!r}, clean", self.clean)

    @property
    def duration_s(self) -> float:
        """Length of what the model hears."""
        return len(self.audio) / SAMPLE_RATE_HZ


@dataclass(frozen=True, eq=False)
class SpeechReport:
    """Everything that `write_report` shows. Text is plain: it is escaped, never read as HTML.

    Attributes:
        title, subtitle: the head of the page.
        before, after: error rates on the held-out set.
        clips: held-out utterances, at least one; the page picks which to show.
        normalize: what the rates were computed with; the word differences use it too.
        facts: (name, value) rows of the settings table.
        loss: (optimiser step, training loss).
        eval_loss: (optimiser step, development loss).
        usage: how to use the adapter; see `speech_usage`.
        notes: paragraphs that a reader must know, such as "The channel is simulated on real speech."
        attribution: licences and sources, one line each.
        before_label, after_label: what the two models are called.
        channel: name of the acoustic channel, "" for recordings as they are.
        language: BCP 47 tag of the transcripts, for screen readers and hyphenation.
    """

    title: str
    subtitle: str
    before: ErrorRates
    after: ErrorRates
    clips: Sequence[ClipResult]
    normalize: Callable[[str], str]
    facts: Sequence[tuple[str, str]] = ()
    loss: Sequence[tuple[int, float]] = ()
    eval_loss: Sequence[tuple[int, float]] = ()
    usage: Sequence[Snippet] = ()
    notes: Sequence[str] = ()
    attribution: Sequence[str] = ()
    before_label: str = "zero-shot"
    after_label: str = "adapted"
    channel: str = ""
    language: str = "en"

    def __post_init__(self) -> None:
        if not self.clips:
            raise ValueError("a speech report needs at least one clip, got none")
        name, times = Counter(clip.id for clip in self.clips).most_common(1)[0]
        if times > 1:
            raise ValueError(f"clip ids must be unique, got {name!r} {times} times")


@dataclass(frozen=True)
class _Hypothesis:
    """One model's text of a card: its errors, and the differences split where the page folds them."""

    label: str
    css_class: str
    errors: UtteranceErrors
    edits: list[Edit]
    folded: list[Edit]
    folded_words: int


@dataclass(frozen=True)
class _Card:
    """One utterance as the page shows it."""

    id: str
    duration_s: float
    reference: str
    hypotheses: tuple[_Hypothesis, _Hypothesis]
    heard: str
    clean: str | None


def speech_usage(run: str | os.PathLike[str], base_model: str) -> tuple[Snippet, ...]:
    """How to use the adapter of a run: transcribe, merge, Python.

    Args:
        run: the run's directory, as the user would type it.
        base_model: what `from_pretrained` takes for the base.

    Example:
        >>> [snippet.title for snippet in speech_usage("runs/demo", "openai/whisper-tiny.en")]
        ['Transcribe', 'Merge into a plain Whisper', 'From Python']
    """
    folder = os.fspath(run)
    typed = shlex.quote(folder)
    python = f"""\
import audiolora
from peft import PeftModel
from transformers import WhisperForConditionalGeneration

audiolora.enable()
whisper = WhisperForConditionalGeneration.from_pretrained({json.dumps(base_model)})
model = PeftModel.from_pretrained(whisper, {json.dumps(folder + "/adapter")})"""
    return (
        Snippet("Transcribe", f"audiolora transcribe recording.wav --adapter {typed}"),
        Snippet("Merge into a plain Whisper", f"audiolora merge {typed} --out whisper-merged"),
        Snippet("From Python", python),
    )


def ctc_usage(run: str | os.PathLike[str]) -> tuple[Snippet, ...]:
    """How to use the CTC adapter of a run: transcribe, merge, Python.

    Args:
        run: the run's directory, as the user would type it.

    Example:
        >>> [snippet.title for snippet in ctc_usage("runs/demo-ctc")]
        ['Transcribe', 'Merge into a plain model', 'From Python']
    """
    folder = os.fspath(run)
    typed = shlex.quote(folder)
    python = f"""\
from pathlib import Path

from audiolora.speech.data.audio import read_audio
from audiolora.speech.ctc.adapter import load_adapted_ctc
from audiolora.speech.ctc.decode import transcribe_ctc

model, ctc, info = load_adapted_ctc(Path({json.dumps(folder)}))
print(transcribe_ctc(model, ctc.processor, [read_audio("recording.wav")]))"""
    return (
        Snippet("Transcribe", f"audiolora transcribe recording.wav --adapter {typed}"),
        Snippet("Merge into a plain model", f"audiolora merge {typed} --out ctc-merged"),
        Snippet("From Python", python),
    )


def write_report(path: str | os.PathLike[str], report: SpeechReport) -> None:
    """Write a self-contained HTML page, atomically: no scripts, nothing loaded from anywhere.

    Args:
        path: where to write, such as `runs/demo/report.html`.
        report: what to show.

    Raises:
        ValueError: a reference has no word left after normalisation.
        OSError: the file could not be written; what stood there before is whole.

    Example:
        >>> write_report("runs/demo/report.html", report)  # doctest: +SKIP
    """
    write_text(path, _render(report))


def _render(report: SpeechReport) -> str:
    from audiolora.report.plots import edit_chart, error_rate_chart, loss_chart

    rows = ((report.before_label, report.before), (report.after_label, report.after))
    best, worst = _rank(report)
    pictured = _pictured(report.clips)
    shown = [clip for clip, _, _ in (*best, *worst)]
    codec = choose_codec(sum(_players_s(clip) for clip in (*shown, pictured)))
    return render_page(
        "speech.html.j2",
        report=report,
        rows=rows,
        reduction=relative_reduction(report.before.wer.value, report.after.wer.value),
        rates_svg=error_rate_chart(rows),
        edits_svg=edit_chart(rows),
        loss_svg=loss_chart(report.loss, report.eval_loss) if report.loss or report.eval_loss else None,
        mel_svg=_log_mel(report, pictured),
        pictured=_card(report, pictured, *_scores(report, [pictured])[0], codec),
        best=[_card(report, *entry, codec) for entry in best],
        worst=[_card(report, *entry, codec) for entry in worst],
        codec=codec,
    )


_Entry = tuple[ClipResult, UtteranceErrors, UtteranceErrors]


def _scores(report: SpeechReport, clips: Sequence[ClipResult]) -> list[tuple[UtteranceErrors, UtteranceErrors]]:
    references = [clip.reference for clip in clips]
    before = utterance_errors(references, [clip.before_text for clip in clips], normalize=report.normalize)
    after = utterance_errors(references, [clip.after_text for clip in clips], normalize=report.normalize)
    return list(zip(before, after, strict=True))


def _rank(report: SpeechReport) -> tuple[list[_Entry], list[_Entry]]:
    """The utterances to show: (best, worst), no clip in both.

    Worst: the adapted model errs; highest WER first, then the most errors. Best: lowest WER after adaptation, then the
    most words rescued (what was right all along comes last), then the shortest. An utterance counts at most its own
    length as rescued, and at most a dozen words: else the list would hold only endless loops and endless sentences.
    """

    def rescued(entry: _Entry) -> int:
        _, before, after = entry
        return min(before.errors, before.words, _RESCUED_WORDS) - after.errors

    entries = [(clip, *score) for clip, score in zip(report.clips, _scores(report, report.clips), strict=True)]
    worst = sorted((e for e in entries if e[2].errors), key=lambda e: (-e[2].wer, -e[2].errors, e[0].id))
    best = sorted(entries, key=lambda e: (e[2].wer, -rescued(e), e[0].duration_s, e[0].id))
    # With few clips the two ends would meet: leave the better half to the best.
    worst = worst[: min(SHOWN_UTTERANCES, max(1, len(entries) // 2))]
    taken = {clip.id for clip, _, _ in worst}
    return [e for e in best if e[0].id not in taken][:SHOWN_UTTERANCES], worst


def _pictured(clips: Sequence[ClipResult]) -> ClipResult:
    """The clip for the spectrograms: one with a clean recording if there is any, close to four seconds long."""
    return min(clips, key=lambda clip: (clip.clean is None, abs(clip.duration_s - _PICTURE_DURATION_S), clip.id))


def _log_mel(report: SpeechReport, clip: ClipResult) -> Markup:
    from audiolora.report.plots import log_mel_chart

    if clip.clean is None:
        return log_mel_chart([("What the model hears", clip.audio)], SAMPLE_RATE_HZ)
    through = f"Through the channel ({report.channel})" if report.channel else "Through the channel"
    return log_mel_chart([("Clean", clip.clean), (through, clip.audio)], SAMPLE_RATE_HZ)


def _players_s(clip: ClipResult) -> float:
    """Seconds of sound in a clip's players."""
    return clip.duration_s + (0 if clip.clean is None else len(clip.clean) / SAMPLE_RATE_HZ)


def _card(
    report: SpeechReport, clip: ClipResult, before: UtteranceErrors, after: UtteranceErrors, codec: Codec
) -> _Card:
    def hypothesis(label: str, css_class: str, errors: UtteranceErrors, text: str) -> _Hypothesis:
        edits = word_differences(report.normalize(clip.reference), report.normalize(text))
        limit = errors.words + _SPARE_WORDS
        shown, folded = edits[:limit], edits[limit:]
        return _Hypothesis(label, css_class, errors, joined_edits(shown), joined_edits(folded), len(folded))

    def player(audio: np.ndarray) -> str:
        return audio_data_uri(audio, SAMPLE_RATE_HZ, codec=codec)

    return _Card(
        id=clip.id,
        duration_s=clip.duration_s,
        reference=clip.reference,
        hypotheses=(
            hypothesis(report.before_label, "before", before, clip.before_text),
            hypothesis(report.after_label, "after", after, clip.after_text),
        ),
        heard=player(clip.audio),
        clean=None if clip.clean is None else player(clip.clean),
    )


def joined_edits(edits: Sequence[Edit]) -> list[Edit]:
    """Neighbouring edits of one kind joined: a wrong phrase reads better whole than word by word."""
    return [
        Edit(kind, " ".join(e.reference for e in run), " ".join(e.hypothesis for e in run))
        for kind, group in groupby(edits, key=lambda edit: edit.kind)
        for run in [list(group)]
    ]
