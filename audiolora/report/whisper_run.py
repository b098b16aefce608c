"""What a Whisper adaptation run leaves: model card, summary.json, report.html, and the table in the terminal."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from audiolora.files import write_text
from audiolora.report.speech import ClipResult, SpeechReport, speech_usage, write_report
from audiolora.report.table import print_summary
from audiolora.speech.card import model_card
from audiolora.speech.metrics import ErrorRates, Interval, error_rates, relative_reduction
from audiolora.speech.prompts import BUILTIN

if TYPE_CHECKING:
    import torch

    from audiolora.inspection import Inspection
    from audiolora.run import Run
    from audiolora.speech.adapter import AdapterInfo
    from audiolora.speech.clips import Clips
    from audiolora.speech.decoding import WhisperDecoding, WhisperTexts
    from audiolora.speech.settings import TrainingSettings
    from audiolora.speech.weights import LoadedWhisper


@dataclass(frozen=True)
class Outcome:
    """A finished adaptation, before it is written down.

    Args:
        run: its folder and settings.
        whisper: the base.
        info: of the adapter.
        heard: the test clips through the channel.
        normalize: what texts are compared by.
        before, after: the texts of the test clips, zero-shot and adapted.
        history: the trainer's.
        seconds: wall time of each part.
    """

    run: Run
    whisper: LoadedWhisper
    info: AdapterInfo
    heard: Clips
    normalize: Callable[[str], str]
    before: Sequence[str]
    after: Sequence[str]
    history: Sequence[Mapping[str, float]]
    seconds: Mapping[str, float]

    @cached_property
    def rates(self) -> tuple[ErrorRates, ErrorRates]:
        """Error rates before and after, on the same clips."""
        references = [utterance.text for utterance in self.heard.utterances]
        before, after = (
            error_rates(references, texts, normalize=self.normalize) for texts in (self.before, self.after)
        )
        return before, after


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


def by_language(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Word error rates of each language, in percent, where the test clips have several."""
    languages = outcome.heard.languages()
    rates = {}
    for code in sorted({one for one in languages if one}):
        rows = [row for row, one in enumerate(languages) if one == code]
        references = [outcome.heard.utterances[row].text for row in rows]
        before, after = (
            error_rates(references, [texts[row] for row in rows], normalize=outcome.normalize).wer.value
            for texts in (outcome.before, outcome.after)
        )
        rates[code] = {"clips": len(rows), "wer_before": before, "wer_after": after}
    return rates if len(rates) > 1 else {}


def card(outcome: Outcome) -> str:
    """The adapter's model card."""
    settings = outcome.run.settings
    summary = f"Trained on {settings['data']}, channel {outcome.heard.channel.spec}, ranks {settings['r']}."
    return model_card(
        outcome.run.folder.name,
        summary,
        outcome.info,
        *outcome.rates,
        notes=_notes(outcome),
        attribution=_attribution(outcome),
    )


def leave(outcome: Outcome, inspection: Inspection) -> None:
    """Write report.html, metrics.jsonl and, last of all, summary.json."""
    run, (before, after) = outcome.run, outcome.rates
    languages = by_language(outcome)
    adapter_bytes = (run.adapter / "adapter_model.safetensors").stat().st_size
    write_text(run.folder / "metrics.jsonl", (run.training / "metrics.jsonl").read_text(encoding="utf-8"))
    facts = [
        ("base model", f"{outcome.whisper.name}: {outcome.whisper.origin}"),
        ("data", f"{run.settings['data']}: {len(outcome.heard)} clips measured on"),
        ("channel", outcome.heard.channel.description),
        ("trained parameters", f"{inspection.trainable_parameters:,} of {inspection.total_parameters:,}"),
        ("adapter file", f"{adapter_bytes / 1000:,.0f} KB"),
        *(
            (name.replace("_", " "), str(value))
            for name, value in run.settings.items()
            if name not in ("model", "data", "channel")
        ),
        *(
            (
                f"word error rate, {code}",
                f"{one['wer_before']:.1f} % → {one['wer_after']:.1f} % on {one['clips']} clips",
            )
            for code, one in languages.items()
        ),
        *((f"seconds, {name.replace('_', ' ')}", f"{value:.0f}") for name, value in outcome.seconds.items()),
    ]
    write_report(
        run.folder / "report.html",
        SpeechReport(
            title=f"{outcome.whisper.name}, {run.folder.name}",
            subtitle=outcome.heard.channel.description,
            before=before,
            after=after,
            clips=_clips(outcome),
            normalize=outcome.normalize,
            facts=facts,
            loss=_curve(outcome.history, "loss"),
            eval_loss=_curve(outcome.history, "eval_loss"),
            usage=speech_usage(run.folder, outcome.info.base_model),
            notes=_notes(outcome),
            attribution=_attribution(outcome),
            channel=outcome.heard.channel.spec,
            language=outcome.info.language or "en",
        ),
    )
    run.write(
        "summary.json",
        {
            **{
                f"{rate}_{when}": getattr(r, rate)
                for when, r in (("before", before), ("after", after))
                for rate in ("wer", "cer")
            },
            "wer_relative_reduction": relative_reduction(before.wer.value, after.wer.value),
            "before": before,
            "after": after,
            "languages": languages,
            "parameters": {"trained": inspection.trainable_parameters, "total": inspection.total_parameters},
            "adapter_bytes": adapter_bytes,
            "seconds": dict(outcome.seconds),
            "base": {"name": outcome.whisper.name, "origin": outcome.whisper.origin},
            "adapter": asdict(outcome.info),
            "settings": dict(run.settings),
            "versions": {
                name: importlib.metadata.version(name) for name in ("audiolora", "torch", "peft", "transformers")
            },
        },
    )


def show(run: Run) -> None:
    """Print a finished run's table, and where to look next."""
    summary = run.read("summary.json")
    rows = [("zero-shot", _rates(summary["before"])), ("adapted", _rates(summary["after"]))]
    for code, one in summary.get("languages", {}).items():
        print(f"{code}: word error rate {one['wer_before']:.1f} % before, {one['wer_after']:.1f} % after")
    print_summary(
        rows,
        title=f"{summary['base']['name']}, {summary['settings']['data']}, channel {summary['settings']['channel']}",
        next_steps=[
            ("report", str(run.folder / "report.html")),
            ("adapter", f"{run.adapter} ({summary['adapter_bytes'] / 1000:,.0f} KB)"),
            ("try it", f"audiolora transcribe AUDIO --adapter {run.folder}"),
            ("merge it", f"audiolora merge {run.folder} --out DIRECTORY"),
        ],
    )


def _rates(raw: dict[str, Any]) -> ErrorRates:
    return ErrorRates(**{**raw, "wer": Interval(**raw["wer"]), "cer": Interval(**raw["cer"])})


def _clips(outcome: Outcome) -> list[ClipResult]:
    from audiolora.speech.channels import parse_channel
    from audiolora.speech.clips import Clips

    clean = None if outcome.heard.channel.spec == "clean" else Clips(outcome.heard.utterances, parse_channel("clean"))
    return [
        ClipResult(
            id=item["id"],
            audio=item["audio"],
            clean=None if clean is None else clean[index]["audio"],
            reference=item["text"],
            before_text=outcome.before[index],
            after_text=outcome.after[index],
        )
        for index, item in enumerate(outcome.heard[i] for i in range(len(outcome.heard)))
    ]


def _curve(history: Sequence[Mapping[str, float]], name: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), entry[name]) for entry in history if name in entry]


def _notes(outcome: Outcome) -> list[str]:
    notes = ["No test sentence occurs in the training part; the speakers may be the same."]
    if outcome.heard.channel.spec != "clean":
        notes.append("The channel is simulated; the recordings are real.")
    notes.append(
        "Zero-shot is decoded at 30 s of audio context, as the base was pretrained; the adapter at the context it was "
        f"trained with ({outcome.info.context})."
    )
    return notes


def _attribution(outcome: Outcome) -> list[str]:
    lines = [f"Base model: {outcome.whisper.name}; {outcome.whisper.origin}"]
    if outcome.run.settings["data"] in BUILTIN:
        builtin = BUILTIN[outcome.run.settings["data"]]
        lines.append(f"Speech: {builtin.description}; {builtin.licence}; {builtin.attribution}")
    return lines
