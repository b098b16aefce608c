"""``audiolora transcribe | merge``: speech models with and without adapters, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from audiolora.speech.ctc.decoding import CtcDecoding
from audiolora.speech.whisper.decoding import WhisperDecoding
from audiolora.terminal import EXIT_LEFT_OUT, prepare_transformers, say, write_result

if TYPE_CHECKING:
    from audiolora.speech.texts.transcripts import Format
    from audiolora.speech.transcribers import Transcriber, Wanted

Flag = Annotated[bool, Parameter(negative="")]


def transcribe(
    *audio: Path,
    adapter: Path | None = None,
    model: str | None = None,
    base: str | None = None,
    language: str | None = None,
    context: Literal["auto", "full"] | None = None,
    piece: float | None = None,
    decoding: Annotated[WhisperDecoding, Parameter(name="*")] = WhisperDecoding(),  # noqa: B008
    ctc: Annotated[CtcDecoding, Parameter(name="*")] = CtcDecoding(),  # noqa: B008
    timestamps: Flag = False,
    words: Flag = False,
    batch_size: int = 8,
    format: Literal["text", "json", "tsv", "srt", "vtt"] = "text",
    json: Flag = False,
    skip_bad: Flag = False,
    out: Path | None = None,
) -> int:
    """Write down what is said in audio files of any length, with an adapter, a plain Whisper or a CTC model.

    Texts go to stdout, progress and warnings to stderr. What is longer than a piece is cut where it is quiet. Exit
    status: 0, every file is transcribed; 2, an error, and no text is written; 3, --skip-bad left files out.

    Args:
        audio: audio files (WAV, FLAC, OGG, Opus, MP3, AIFF, AU), and folders, which are searched for them.
        adapter: a run's folder such as runs/demo, its adapter's, or a name on the hub such as user/calls@v1.
        model: instead of an adapter: a hub name, the folder of a merged or other Whisper or CTC model, an OpenAI .pt
            file, or scratch:spoken-digits, a small wav2vec2 trained here.
        base: another place for the weights that the adapter was trained over, such as a local folder.
        language: Whisper's code of the language spoken; by default the adapter's, else it is detected for each piece.
            Not for CTC.
        context: what the encoder sees: each piece's own length (auto) or 30 s (full); by default what the adapter or
            merged model was trained with, and full for a plain Whisper. Not for CTC.
        piece: the longest piece that is decoded at once, s, at most 30; by default the longest clip that an adapter at
            short context was trained on, else 30.
        timestamps: tell segments and their times, by Whisper's timestamp tokens (json, tsv, srt, vtt).
        words: tell each word's times, by the decoder's attention (json); segments then begin and end with their words.
        batch_size: pieces decoded at once.
        format: text (path and text with a tab between; for a single file its text alone), json (a list of objects),
            tsv (with a header), or captions as srt or vtt: of several files into the folder OUT.
        json: short for --format json.
        skip_bad: leave files out that cannot be transcribed, each named with its reason, instead of stopping.
        out: write the texts into this file instead of to stdout.
    """
    from audiolora.speech.texts import transcripts as texts
    from audiolora.speech.transcribers import Wanted

    layout = _layout(format, json, timestamps, words)
    captions = layout in ("srt", "vtt")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if piece is not None and not 1 <= piece <= 30:
        raise ValueError(f"--piece must be between 1 and 30 s, got {piece:g}")
    _check_choice(adapter, model, base)
    files = texts.find_audio(audio)
    _check_out(out, folder=captions and len(files) > 1, layout=layout)
    if captions and len(files) > 1 and out is not None:
        texts.caption_paths(files, layout, out)  # told before the work
    good, bad = texts.check_audio_files(files)
    for problem in bad:
        say(f"left out: {problem}" if skip_bad else problem)
    if bad and not (skip_bad and good):
        remedy = "nothing is left to transcribe" if skip_bad else "mend them, or leave them out with --skip-bad"
        raise ValueError(f"{len(bad)} of {len(files)} files cannot be transcribed; {remedy}")
    wanted = Wanted(language, context, piece, decoding, timestamps, words, captions, batch_size, ctc)
    said = _transcriber(adapter, model, base, wanted)([recording for _, recording in good])
    transcripts = [texts.Transcript(path, one) for (path, _), one in zip(good, said, strict=True)]
    if captions and len(files) > 1 and out is not None:
        texts.write_captions(transcripts, layout, out)
    else:
        write_result(texts.render(transcripts, layout, alone=len(files) == 1, timed=timestamps or words), out)
    return EXIT_LEFT_OUT if bad else 0


def merge(run: Path, /, *, out: Path, base: str | None = None, overwrite: Flag = False) -> None:
    """Merge an adapter into its base: a plain Whisper or CTC model that transformers alone loads.

    The merged model is loaded again and compared with the adapted one; where they differ, nothing is left.

    Args:
        run: a run's folder such as runs/demo, its adapter's, or a name on the hub such as user/calls@v1.
        out: the folder to write.
        base: another place for the weights that the adapter was trained over, such as a local folder.
        overwrite: replace the model that is in the folder.
    """
    prepare_transformers()
    from audiolora.speech.ctc.adapter import is_ctc_adapter
    from audiolora.speech.hub import local_adapter
    from audiolora.speech.whisper.merging import merge_adapter

    run = local_adapter(run)
    if is_ctc_adapter(run):
        return _merge_ctc(run, out, base, overwrite)
    merged = merge_adapter(run, out, base=base, overwrite=overwrite, log=say)
    print(
        f"{merged.info.base_model} with {merged.info.adapter} merged, in {out} ({merged.size_bytes / 1e6:,.0f} MB)\n"
        f"checked: loaded again, its logits differ from the adapter's by at most {merged.difference:.1e}\n"
        f"load it: WhisperForConditionalGeneration.from_pretrained({str(out)!r})\n"
        f"try it:  audiolora transcribe AUDIO --model {out}"
    )
    if merged.info.context == "auto":
        print(
            "It was trained at short audio context: programs that pad to 30 s make more errors than that command does."
        )


def _merge_ctc(run: Path, out: Path, base: str | None, overwrite: bool) -> None:
    from audiolora.speech.ctc.merging import merge_ctc_adapter

    merged = merge_ctc_adapter(run, out, base=base, overwrite=overwrite, log=say)
    print(
        f"{merged.info.base_model} with {merged.info.adapter} merged, in {out} ({merged.size_bytes / 1e6:,.1f} MB)\n"
        f"checked: loaded again, its logits differ from the adapter's by at most {merged.difference:.1e}\n"
        f"load it: {merged.kind}.from_pretrained({str(out)!r})\n"
        f"try it:  audiolora transcribe AUDIO --model {out}"
    )


def _check_choice(adapter: Path | None, model: str | None, base: str | None) -> None:
    if (adapter is None) == (model is None):
        raise ValueError("name what to transcribe with: either --adapter RUN or --model NAME")
    if adapter is None and base is not None:
        raise ValueError("--base goes with --adapter: it is another place for the adapter's base model")


def _layout(format: Format, json: bool, timestamps: bool, words: bool) -> Format:
    if json and format not in ("text", "json"):
        raise ValueError(f"--json and --format {format} contradict each other; give one")
    layout: Format = "json" if json else format
    if layout == "text" and (timestamps or words):
        raise ValueError("--format text tells no times; with --timestamps or --words give json, tsv, srt or vtt")
    return layout


def _check_out(out: Path | None, *, folder: bool, layout: str) -> None:
    if folder and (out is None or out.is_file()):
        raise ValueError(f"--format {layout} is a file for each audio file; name a folder for them with --out")
    if not folder and out is not None and out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file")


def _transcriber(adapter: Path | None, name: str | None, base: str | None, wanted: Wanted) -> Transcriber:
    """What turns recordings into transcriptions, by what the adapter or model is."""
    prepare_transformers()
    from audiolora.speech.ctc.applying import is_ctc
    from audiolora.speech.hub import local_adapter
    from audiolora.speech.transcribers import ctc_transcriber, whisper_transcriber

    adapter = None if adapter is None else local_adapter(adapter)
    if is_ctc(adapter, name):
        return ctc_transcriber(adapter, name, base, wanted, say)
    return whisper_transcriber(adapter, name, base, wanted, say)
