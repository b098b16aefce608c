"""Adapt a CTC model of the wav2vec2 family to the sound it has to understand: a channel, an accent, a language.

    python recipes/asr_ctc.py --data calls.csv --model facebook/wav2vec2-base-960h --name calls
    python recipes/asr_ctc.py --data calls-es.csv --model facebook/wav2vec2-xls-r-300m --vocabulary new --language es
    python recipes/asr_ctc.py --data spoken-digits --model scratch:spoken-digits --channel ssb+500Hz    # needs no hub
    accelerate launch recipes/asr_ctc.py --data calls.csv                   # several devices

It measures the word error rate on clips held out, trains adapters in convolutions and attention, measures again, and
leaves adapter, figures and report in runs/NAME. The same command continues a run that was interrupted.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from audiolora.cli import run_app
from audiolora.speech.ctc.decoding import CtcDecoding
from audiolora.speech.ctc.settings import CtcTrainingSettings
from audiolora.speech.sound.torchaudio_extra import require_working_torchaudio_or_none

app = App(help=__doc__, help_format="plaintext")


@app.default
def main(
    *,
    model: str = "facebook/wav2vec2-base-960h",
    data: str = "prompts-en",
    channel: str = "clean",
    name: str = "ctc",
    language: str | None = None,
    vocabulary: Literal["keep", "new"] = "keep",
    method: Literal["lora", "dora"] = "lora",
    r_conv: int = 16,
    r_attention: int = 8,
    r_ffn: int = 0,
    freeze: Literal["none", "features"] = "none",
    training: Annotated[CtcTrainingSettings, Parameter(name="*")] = CtcTrainingSettings(),  # noqa: B008
    decoding: Annotated[CtcDecoding, Parameter(name="*")] = CtcDecoding(),  # noqa: B008
    test: int | float | None = None,
    dev: int | float | None = None,
    audio_column: str = "audio",
    text_column: str = "text",
    skip_bad: bool = False,
    out: Path = Path("runs"),
    fresh: bool = False,
) -> None:
    """Adapt a CTC model.

    Args:
        model: a hub name, a local directory, or scratch:spoken-digits: a small one, trained here from scratch and kept.
        data: a manifest, a folder, a corpus as it unpacks, tar shards, Parquet, hf:NAME (docs/speech/data.md), or a
            built-in set: prompts-en, -es, -fr, -it, -ru, spoken-digits.
        channel: simulated: invert, ssb+500Hz, rate1.8, gsm, mulaw, lowpass1000, noise10dB, babble5dB; joined by commas.
        name: of the run; everything goes to OUT/NAME.
        language: code of the language spoken (en, es, tr): how its letters fold; taken from a built-in set's name.
        vocabulary: keep the model's alphabet; or new, a head for that of your texts, trained and saved with adapters.
        method: lora, or dora.
        r_conv: rank in the convolutions, the feature encoder's and the positional one; 0 leaves them alone.
        r_attention: rank in the query and value projections; 0 leaves them alone.
        r_ffn: rank in the feed-forward layers; 0 leaves them alone.
        freeze: features leaves the feature encoder (the convolutions over the waveform) without adapters.
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
    from audiolora.speech.ctc.adapter import adapt_ctc, ctc_targets, describe_ctc, save_ctc_adapter
    from audiolora.speech.ctc.checking import check_for_ctc
    from audiolora.speech.ctc.decode import transcribe_ctc
    from audiolora.speech.ctc.models import load_ctc
    from audiolora.speech.ctc.training import long_enough_for_masks, train_ctc
    from audiolora.speech.ctc.vocabulary import build_vocabulary, spelling
    from audiolora.speech.data.manifests import read_all
    from audiolora.speech.data.prompts import BUILTIN
    from audiolora.speech.data.split import keep_split, split_utterances
    from audiolora.speech.sound.channels import parse_channel
    from audiolora.speech.together import open_together, transcribe_together, zero_shot
    from audiolora.speech.training.clips import Clips
    from audiolora.speech.training.trainer import this_process
    from audiolora.speech.whisper.language import spoken_language

    # The run's folder: a finished one is shown again, an interrupted one continues.
    ranks = {group: r for group, r in (("conv", r_conv), ("attention", r_attention), ("ffn", r_ffn)) if r}
    asked = dict[str, object](model=model, data=data, channel=channel, language=language, vocabulary=vocabulary)
    asked |= {"audio_column": audio_column, "text_column": text_column, "test": test, "dev": dev, **asdict(training)}
    asked |= {"method": method, "r": ranks, "freeze": freeze}
    process, run = this_process(), open_together(out / name, asked | asdict(decoding), fresh=fresh)
    if run.finished:
        return speech_run.show(run)

    # The model and the speech; every fault is named before training. Of built-in prompts, bad ones are left out.
    torch.manual_seed(training.seed)  # a new head is drawn
    sound, language = parse_channel(channel), spoken_language(data, language)
    read = read_all(data, audio_column=audio_column, text_column=text_column)
    letters = build_vocabulary((u.text for u in read.utterances), language=language) if vocabulary == "new" else None
    with process.main_process_first():  # one that is trained here is trained once
        ctc = load_ctc(model, vocabulary=letters, replace=vocabulary == "new", log=process.print)
    targets = ctc_targets(ctc.model, ranks, freeze)
    how: dict[str, Any] = {"bad_rows": run.folder / "bad_rows.tsv", "skip_bad": skip_bad or data in BUILTIN}
    utterances = check_for_ctc(read, ctc, language=language, stretch=sound.stretch, **how)
    split = split_utterances(utterances, test=test, dev=dev, seed=0)
    learnt, chosen_by, heard = (Clips(part, sound) for part in (split.train, split.dev, split.test))
    learnt = long_enough_for_masks(learnt, ctc, training, language=language, skip_bad=how["skip_bad"])
    keep_split(split, run.folder / "split.json")
    console = Console(quiet=not process.is_main_process)
    console.print(f"[bold]{ctc.name}[/] from {ctc.origin}\n{sound.description}")
    console.print(f"clips: {len(learnt)} to train on, {len(chosen_by)} to choose by, {len(heard)} to measure on")

    # Zero-shot.
    seconds, start = {}, time.monotonic()
    ctc.model.to(process.device)
    before = zero_shot(run, ctc.model, ctc.processor, heard, by=transcribe_ctc, decoder=decoding)
    seconds["zero_shot"] = time.monotonic() - start

    # The adapters, and their training.
    torch.manual_seed(training.seed)
    info = describe_ctc(ctc, model, language)
    adapted = adapt_ctc(ctc, method, r=targets, targets=list(targets))
    console.print(audiolora.inspect(adapted).table())
    start = time.monotonic()
    history = train_ctc(adapted, ctc.processor, learnt, chosen_by, training, run.training, language=language)
    seconds["training"] = time.monotonic() - start

    # The same held-out clips again; then what the run leaves.
    start = time.monotonic()
    after = transcribe_together(adapted, ctc.processor, heard, by=transcribe_ctc, decoder=decoding)
    seconds["adapted"], spell = time.monotonic() - start, spelling(ctc.processor, language=language)
    if not process.is_main_process:
        return None
    outcome = speech_run.Outcome(run, ctc, info, split, heard, spell, before, after, history, seconds)
    save_ctc_adapter(adapted, ctc.processor, run.adapter, info, speech_run.card(outcome))
    speech_run.leave(outcome, audiolora.inspect(adapted))
    return speech_run.show(run)


if __name__ == "__main__":
    run_app(app)
