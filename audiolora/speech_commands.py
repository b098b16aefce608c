"""``audiolora transcribe | merge``: speech models with and without adapters, from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from audiolora.terminal import EXIT_LEFT_OUT, prepare_transformers, say, write_result

if TYPE_CHECKING:
    import numpy as np

    from audiolora.speech.adapter import AdapterInfo
    from audiolora.speech.merging import MergedInfo

Flag = Annotated[bool, Parameter(negative="")]


def transcribe(
    *audio: Path,
    adapter: Path | None = None,
    model: str | None = None,
    base: str | None = None,
    language: str | None = None,
    context: Literal["auto", "full"] | None = None,
    batch_size: int = 8,
    format: Literal["text", "json", "tsv"] = "text",
    json: Flag = False,
    skip_bad: Flag = False,
    out: Path | None = None,
) -> int:
    """Write down what is said in audio files, with an adapter, a plain Whisper or a CTC model.

    Texts go to stdout, progress and warnings to stderr. A file may last 30 s. Exit status: 0, every file is
    transcribed; 2, an error, and no text is written; 3, --skip-bad left files out.

    Args:
        audio: audio files (WAV, FLAC, OGG, Opus, MP3, AIFF, AU), and folders, which are searched for them.
        adapter: a run's folder such as runs/demo, or its adapter's.
        model: instead of an adapter: a hub name, the folder of a merged or other Whisper or CTC model, an OpenAI .pt
            file, or scratch:spoken-digits, a small wav2vec2 trained here.
        base: another place for the weights that the adapter was trained over, such as a local folder.
        language: Whisper's code of the language spoken; by default the adapter's, else it is detected. Not for CTC.
        context: what the encoder sees: each clip's own length (auto) or 30 s (full); by default what the adapter or
            merged model was trained with, and full for a plain Whisper. Not for CTC.
        batch_size: clips decoded at once.
        format: text (path and text with a tab between; for a single file its text alone), json (a list of objects) or
            tsv (with a header).
        json: short for --format json.
        skip_bad: leave files out that cannot be transcribed, each named with its reason, instead of stopping.
        out: write the texts into this file instead of to stdout.
    """
    from audiolora.speech.transcripts import Transcript, check_audio_files, find_audio, read_by_the_hour, render

    if json and format == "tsv":
        raise ValueError("--json and --format tsv contradict each other; give one")
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    _check_choice(adapter, model, base)
    files = find_audio(audio)
    good, bad = check_audio_files(files)
    for problem in bad:
        say(f"left out: {problem}" if skip_bad else problem)
    if bad and not (skip_bad and good):
        remedy = "nothing is left to transcribe" if skip_bad else "mend them, or leave them out with --skip-bad"
        raise ValueError(f"{len(bad)} of {len(files)} files cannot be transcribed; {remedy}")
    decode = _decoder(adapter, model, base, language, context, batch_size)
    transcripts = [
        Transcript(path, duration_s, text)
        for portion, audios in read_by_the_hour(good)
        for (path, duration_s), text in zip(portion, decode(audios), strict=True)
    ]
    write_result(render(transcripts, "json" if json else format, alone=len(files) == 1), out)
    return EXIT_LEFT_OUT if bad else 0


def merge(run: Path, /, *, out: Path, base: str | None = None, overwrite: Flag = False) -> None:
    """Merge an adapter into its base: a plain Whisper or CTC model that transformers alone loads.

    The merged model is loaded again and compared with the adapted one; where they differ, nothing is left.

    Args:
        run: a run's folder such as runs/demo, or its adapter's.
        out: the folder to write.
        base: another place for the weights that the adapter was trained over, such as a local folder.
        overwrite: replace the model that is in the folder.
    """
    prepare_transformers()
    from audiolora.speech.ctc.adapter import is_ctc_adapter
    from audiolora.speech.merging import merge_adapter

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


def _decoder(
    adapter: Path | None,
    name: str | None,
    base: str | None,
    language: str | None,
    context: Literal["auto", "full"] | None,
    batch_size: int,
) -> Callable[[Sequence[np.ndarray]], list[str]]:
    """What turns clips into texts, set up as the adapter or merged model says, unless the user says otherwise."""
    prepare_transformers()
    import torch

    from audiolora.speech import decode
    from audiolora.speech.adapter import load_adapted
    from audiolora.speech.ctc.applying import ctc_decoder, is_ctc
    from audiolora.speech.merging import read_merged
    from audiolora.speech.weights import load_whisper

    if is_ctc(adapter, name):
        how = {"language": language, "context": context, "batch_size": batch_size}
        return ctc_decoder(adapter, name, base, **how, log=say)  # type: ignore[arg-type]
    info: AdapterInfo | MergedInfo | None
    if adapter is not None:
        model, whisper, info = load_adapted(adapter, base=base, log=say)
    else:
        whisper = load_whisper(str(name), log=say)
        model, info = whisper.model, read_merged(Path(str(name)).expanduser())
    trained_at = info.context if info else "full"
    if context not in (None, trained_at):
        say(f"warning: trained at context {trained_at}, decoded at {context} as asked; expect more errors")
    if info and info.language and language not in (None, info.language):
        say(f"warning: trained on language {info.language}, decoded as {language} as asked; expect more errors")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda audios: decode.transcribe(
        model,
        whisper.processor,
        audios,
        context=context or trained_at,
        language=language or (info.language if info else None),
        batch_size=batch_size,
    )
