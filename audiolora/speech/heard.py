"""What a recipe makes of its test clips with a Whisper: texts zero-shot and adapted, each clip in its own language."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from audiolora.run import Run
    from audiolora.speech.adapter import AdapterInfo
    from audiolora.speech.clips import Clips
    from audiolora.speech.decoding import WhisperDecoding, WhisperTexts
    from audiolora.speech.settings import TrainingSettings
    from audiolora.speech.weights import LoadedWhisper


def adapter_info(
    whisper: LoadedWhisper, learnt: Clips, training: TrainingSettings, texts: WhisperTexts, language: str | None
) -> AdapterInfo:
    """What the adapter needs besides its weights, by what it is to be trained on."""
    from audiolora.speech.adapter import AdapterInfo, fingerprint

    return AdapterInfo(
        whisper.name,
        fingerprint(whisper.model),
        "full" if training.context == "full" else "auto",
        language,
        longest_s=round(max(learnt.durations_s) * learnt.channel.stretch, 3),
        timestamps=texts.timestamps == "keep",
    )


def heard_by(
    model: torch.nn.Module,
    whisper: LoadedWhisper,
    heard: Clips,
    decoding: WhisperDecoding,
    info: AdapterInfo | None = None,
) -> list[str]:
    """What a model writes down of the test clips, each in its own language, as it was trained to hear and write."""
    from audiolora.speech.decode import transcribe_recordings
    from audiolora.speech.recordings import recording_of

    clips = [recording_of(heard[index]["audio"], heard[index]["id"]) for index in range(len(heard))]
    found = transcribe_recordings(
        model,
        whisper.processor,
        clips,
        context=info.context if info else "full",
        language=heard.languages(),
        decoding=decoding,
        timestamps=info is not None and info.timestamps,
    )
    return [one.text for one in found]


def zero_shot(run: Run, whisper: LoadedWhisper, heard: Clips, decoding: WhisperDecoding) -> list[str]:
    """What the base writes down at the 30 s of context it was pretrained with; kept for a run that continues."""
    texts = run.read("before.json")
    if texts is None:
        texts = heard_by(whisper.model, whisper, heard, decoding)
        run.write("before.json", texts)
    return texts
