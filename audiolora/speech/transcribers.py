"""What turns recordings into transcriptions: a Whisper or a CTC model, plain, merged or with an adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from audiolora.speech.ctc.decoding import CtcDecoding
from audiolora.speech.whisper.decoding import WhisperDecoding

if TYPE_CHECKING:
    from audiolora.speech.ctc.applying import PiecesDecoder
    from audiolora.speech.texts.recordings import Recording
    from audiolora.speech.texts.transcription import Transcription
    from audiolora.speech.whisper.adapter import AdapterInfo
    from audiolora.speech.whisper.merging import MergedInfo

Transcriber = Callable[["Sequence[Recording]"], "list[Transcription]"]


@dataclass(frozen=True)
class Wanted:
    """How to transcribe, as far as the user says.

    Args:
        language: Whisper's code or an English name; None takes the adapter's, else detects it.
        context: what the encoder sees; None takes what the adapter or merged model was trained with.
        piece_s: the longest piece, s; None takes the longest clip that an adapter at short context was trained on.
        decoding: see `WhisperDecoding`.
        timestamps: segments by Whisper's timestamp tokens.
        words: times of words.
        times: some times at least: timestamps where they can be had, else words.
        batch_size: pieces decoded at once.
        ctc: how a CTC model's frames become text.
    """

    language: str | None = None
    context: Literal["auto", "full"] | None = None
    piece_s: float | None = None
    decoding: WhisperDecoding = WhisperDecoding()  # noqa: RUF009
    timestamps: bool = False
    words: bool = False
    times: bool = False
    batch_size: int = 8
    ctc: CtcDecoding = CtcDecoding()  # noqa: RUF009


def whisper_transcriber(
    adapter: Path | None, name: str | None, base: str | None, wanted: Wanted, log: Callable[[str], object]
) -> Transcriber:
    """Load a Whisper and say what does not go with how it was trained.

    Args:
        adapter: a run's folder or its adapter's; None takes the model `name`.
        name: what `load_whisper` takes.
        base: another place for the adapter's base weights.
        wanted: how to transcribe.
        log: called with each warning.

    Raises:
        ValueError: no such adapter or model, or what it cannot do.
    """
    import torch

    from audiolora.speech.whisper import decode
    from audiolora.speech.whisper.adapter import load_adapted
    from audiolora.speech.whisper.language_tokens import language_code
    from audiolora.speech.whisper.merging import read_merged
    from audiolora.speech.whisper.weights import load_whisper

    if wanted.ctc != CtcDecoding():
        asked = "--beam-width, --lm, --hotwords and the like"
        raise ValueError(f"{asked}: a CTC model's, and {adapter or name} is a Whisper; leave it out")
    info: AdapterInfo | MergedInfo | None
    if adapter is not None:
        model, whisper, info = load_adapted(adapter, base=base, log=log)
    else:
        whisper = load_whisper(str(name), log=log)
        model, info = whisper.model, read_merged(Path(str(name)).expanduser())
    wanted = replace(wanted, language=language_code(whisper.model, wanted.language))
    trained_at = info.context if info else "full"
    for warning in _warnings(info, trained_at, wanted):
        log(f"warning: {warning}")
    knows_timestamps = info is None or info.timestamps
    learnt_timestamps = info is not None and info.timestamps  # then it writes worse without them
    timestamps = wanted.timestamps or learnt_timestamps or (wanted.times and not wanted.words and knows_timestamps)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda recordings: decode.transcribe_recordings(
        model,
        whisper.processor,
        recordings,
        context=wanted.context or trained_at,
        language=wanted.language or (info.language if info else None),
        decoding=wanted.decoding,
        timestamps=timestamps,
        words=wanted.words or (wanted.times and not timestamps),
        batch_size=wanted.batch_size,
        piece_s=wanted.piece_s or _piece_s(info),
    )


def ctc_transcriber(
    adapter: Path | None, name: str | None, base: str | None, wanted: Wanted, log: Callable[[str], object]
) -> Transcriber:
    """Load a CTC model; what is longer than a piece is cut where it is quiet, as a Whisper's is.

    Raises:
        ValueError: what is Whisper's alone is asked for; or no such adapter or model.
    """
    from audiolora.speech.ctc.applying import ctc_decoder

    asked = {"timestamps": wanted.timestamps, "words": wanted.words, "format srt or vtt": wanted.times}
    asked["beams, --fallback, --prompt and the like"] = wanted.decoding != WhisperDecoding()
    for option in [option for option, given in asked.items() if given]:
        raise ValueError(f"--{option}: Whisper's, and {adapter or name} is a CTC model; leave it out")
    decode = ctc_decoder(
        adapter, name, base, language=wanted.language, context=wanted.context, batch_size=wanted.batch_size,
        decoding=wanted.ctc, log=log,
    )  # fmt: skip
    return lambda recordings: _by_pieces(recordings, decode, wanted.piece_s or 30.0, log)


def _by_pieces(
    recordings: Sequence[Recording], decode: PiecesDecoder, piece_s: float, log: Callable[[str], object]
) -> list[Transcription]:
    """Pieces of all recordings in batches together, however short each recording is."""
    from audiolora.speech.texts.recordings import pieces_of, portions
    from audiolora.speech.texts.transcribing import progress_bar
    from audiolora.speech.texts.transcription import Segment, Transcription, joined

    plans = [pieces_of(recording, piece_s) for recording in recordings]
    said: list[list[list[Segment]]] = [[[] for _ in plan] for plan in plans]
    heard = set()
    with progress_bar(sum(map(len, plans)), True) as advance:
        for portion in portions(recordings, plans):
            names = [recordings[each.recording].name for each in portion]
            for each, text in zip(portion, decode([each.samples for each in portion], names, advance), strict=True):
                if text is not None:
                    heard.add(each.recording)
                if text:
                    said[each.recording][each.index] = [Segment(each.piece.start_s, each.piece.end_s, text)]
    for number in sorted(set(range(len(recordings))) - heard):
        name = recordings[number].name
        log(f"warning: {name}: shorter than what the model makes one frame of, so its text is empty")
    return [
        Transcription(recording.duration_s, tuple(joined(plan, segments)))
        for recording, plan, segments in zip(recordings, plans, said, strict=True)
    ]


def _piece_s(info: AdapterInfo | MergedInfo | None) -> float:
    """30 s, as a Whisper is pretrained; at short context, as long as the longest clip it was adapted to."""
    if info is None or info.context == "full" or info.longest_s is None:
        return 30.0
    return min(30.0, max(2.0, info.longest_s))


def _warnings(info: AdapterInfo | MergedInfo | None, trained_at: str, wanted: Wanted) -> list[str]:
    found = []
    if wanted.context not in (None, trained_at):
        found.append(f"trained at context {trained_at}, decoded at {wanted.context} as asked; expect more errors")
    if info and info.language and wanted.language not in (None, info.language):
        found.append(f"trained on language {info.language}, decoded as {wanted.language} as asked; expect more errors")
    if info and wanted.timestamps and not info.timestamps:
        found.append("trained without timestamps, decoded with them as asked; --words may tell better times")
    return found
