"""Adapt a Whisper to the sound it has to understand: a channel, an accent, a language.

    python recipes/asr_whisper.py --data calls.csv --model openai/whisper-small --language en --name calls
    python recipes/asr_whisper.py --data prompts-en --channel gsm,noise10dB     # rehearse on real prompts
    accelerate launch recipes/asr_whisper.py --data calls.csv                   # several devices

It measures the word error rate on sentences held out, trains adapters in convolutions and attention, measures again,
and leaves adapter, figures and report in runs/NAME. The same command continues a run that was interrupted.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from audiolora.cli import run_app
from audiolora.speech.sound.torchaudio_extra import require_working_torchaudio_or_none
from audiolora.speech.texts.normalizing import Rules
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.whisper.decoding import WhisperDecoding, WhisperTexts

app = App(help=__doc__, help_format="plaintext")


@app.default
def main(
    *,
    model: str = "openai/whisper-tiny.en",
    data: str = "prompts-en",
    channel: str = "clean",
    name: str = "whisper",
    texts: Annotated[WhisperTexts, Parameter(name="*")] = WhisperTexts(),  # noqa: B008
    normalize: Rules = "auto",
    method: Literal["lora", "dora"] = "lora",
    r_conv: int = 32,
    r_attention: int = 4,
    r_ffn: int = 0,
    base_bits: Literal[32, 8, 4] = 32,
    training: Annotated[TrainingSettings, Parameter(name="*")] = TrainingSettings(),  # noqa: B008
    decoding: WhisperDecoding = WhisperDecoding(),  # noqa: B008
    test: int | float | None = None,
    dev: int | float | None = None,
    audio_column: str = "audio",
    text_column: str = "text",
    skip_bad: bool = False,
    out: Path = Path("runs"),
    fresh: bool = False,
) -> None:
    """Adapt a Whisper.

    Args:
        model: a hub name (openai/whisper-small), a local directory, or an OpenAI .pt file.
        data: a manifest, a folder, a corpus as it unpacks, tar shards, Parquet, hf:NAME (docs/speech/data.md), or a
            built-in set: prompts-en, prompts-es, prompts-fr, prompts-it, prompts-ru (real telephone prompts).
        channel: simulated acoustic channels to put the data through, left to right: invert, ssb+500Hz, rate1.8, gsm,
            mulaw, lowpass1000, noise10dB, babble5dB; joined by commas.
        name: of the run; everything goes to OUT/NAME.
        normalize: rules for texts to compare: auto (whisper for English, else basic), whisper, basic, language or none.
        method: lora, or dora.
        r_conv: rank in the encoder's convolutions; 0 leaves them alone.
        r_attention: rank in the query and value projections; 0 leaves them alone.
        r_ffn: rank in the feed-forward layers; 0 leaves them alone.
        base_bits: of the base's frozen weights: 8 or 4 take less memory, and more time.
        test: held out to measure on: a number of clips, or a share below 1; the data's own test part, else 100.
        dev: held out to choose the best epoch by, likewise; the data's own dev part, else 0.12.
        audio_column: column of the manifest that names the audio file.
        text_column: column of the manifest with the transcript.
        skip_bad: leave bad rows out, each named with its reason, instead of stopping.
        out: folder of runs.
        fresh: delete the run of this name and begin anew.
    """
    require_working_torchaudio_or_none()  # a broken one would break transformers, far from the cause
    import torch
    from rich.console import Console

    import audiolora
    from audiolora.report import speech_run
    from audiolora.speech.checks.checking import check_for_whisper, read_all
    from audiolora.speech.data.prompts import BUILTIN
    from audiolora.speech.data.split import keep_split, split_utterances
    from audiolora.speech.sound.channels import parse_channel
    from audiolora.speech.together import open_together, transcribe_together, zero_shot
    from audiolora.speech.training.clips import Clips
    from audiolora.speech.training.trainer import this_process
    from audiolora.speech.whisper.adapter import describe, save_adapter
    from audiolora.speech.whisper.base_bits import quantize_base
    from audiolora.speech.whisper.language import compared_as, set_languages, text_normalizer
    from audiolora.speech.whisper.training import train_whisper
    from audiolora.speech.whisper.weights import load_whisper

    # The run's folder: a finished one is shown again, an interrupted one continues.
    ranks = {group: r for group, r in (("conv", r_conv), ("attention", r_attention), ("ffn", r_ffn)) if r}
    asked = dict[str, object](model=model, data=data, channel=channel, method=method, r=ranks, base_bits=base_bits)
    asked |= {"audio_column": audio_column, "text_column": text_column, "test": test, "dev": dev}
    asked |= {"normalize": normalize, "decoding": asdict(decoding), **asdict(training), **asdict(texts)}
    process = this_process()
    run = open_together(out / name, asked, fresh=fresh)
    if run.finished:
        return speech_run.show(run)

    # The model and the speech; every clip is read once and every fault named before anything is trained.
    sound, whisper = parse_channel(channel), load_whisper(model, log=process.print)
    quantize_base(whisper.model, base_bits)
    audiolora.lora_config(whisper.model, method, r=ranks, targets=list(ranks))  # a wrong rank is told now
    read = read_all(data, audio_column=audio_column, text_column=text_column)
    utterances, language = set_languages(whisper.model, whisper.processor, read.utterances, texts)
    compared_by = text_normalizer(whisper.processor, compared_as(utterances), normalize)
    utterances = check_for_whisper(
        read._replace(utterances=utterances), whisper, compared_by, stretch=sound.stretch,
        bad_rows=run.folder / "bad_rows.tsv",
        skip_bad=skip_bad or data in BUILTIN,  # a few prompts are longer than the 30 s that Whisper hears at once
    )  # fmt: skip
    split = split_utterances(utterances, test=test, dev=dev, seed=0)
    learnt, chosen_by, heard = (Clips(part, sound) for part in (split.train, split.dev, split.test))
    keep_split(split, run.folder / "split.json")
    console = Console(quiet=not process.is_main_process)
    console.print(f"[bold]{whisper.name}[/] from {whisper.origin}\n{sound.description}")
    console.print(f"clips: {len(learnt)} to train on, {len(chosen_by)} to choose by, {len(heard)} to measure on")

    # Zero-shot, at the 30 s of context that Whisper was pretrained with.
    seconds, start = {}, time.monotonic()
    whisper.model.to(process.device)
    before = zero_shot(run, whisper.model, whisper.processor, heard, context="full", decoding=decoding)
    seconds["zero_shot"] = time.monotonic() - start

    # The adapters, and their training.
    torch.manual_seed(training.seed)
    info = describe(whisper, learnt, training, texts, language, base_bits)
    adapted = audiolora.adapt(whisper.model, method, r=ranks, targets=list(ranks))
    console.print(audiolora.inspect(adapted).table())
    start = time.monotonic()
    history = train_whisper(adapted, whisper.processor, learnt, chosen_by, training, run.training)
    seconds["training"] = time.monotonic() - start

    # The same held-out clips again, at the context the adapter was trained with; then what the run leaves.
    start = time.monotonic()
    after = transcribe_together(adapted, whisper.processor, heard, decoding=decoding, **info.options)
    seconds["adapted"] = time.monotonic() - start
    if not process.is_main_process:
        return None
    outcome = speech_run.Outcome(run, whisper, info, split, heard, compared_by, before, after, history, seconds)
    save_adapter(adapted, run.adapter, info, speech_run.card(outcome))
    speech_run.leave(outcome, audiolora.inspect(adapted))
    return speech_run.show(run)


if __name__ == "__main__":
    run_app(app)
