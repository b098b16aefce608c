"""What a Whisper adaptation run leaves: model card, summary.json, report.html, and the table in the terminal."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from audiolora.files import write_text
from audiolora.report.speech import ClipResult, SpeechReport, speech_usage, write_report
from audiolora.report.table import print_summary
from audiolora.speech.card import model_card
from audiolora.speech.metrics import ErrorRates, Interval, error_rates, relative_reduction
from audiolora.speech.prompts import BUILTIN
from audiolora.speech.results import keep_texts

if TYPE_CHECKING:
    from audiolora.inspection import Inspection
    from audiolora.run import Run
    from audiolora.speech.adapter import AdapterInfo
    from audiolora.speech.clips import Clips
    from audiolora.speech.normalizing import Normalizer
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
    normalize: Normalizer
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
    keep_texts(run.folder, outcome.heard.utterances, outcome.before, outcome.after, outcome.normalize)
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
            "parameters": {"trained": inspection.trainable_parameters, "total": inspection.total_parameters},
            "adapter_bytes": adapter_bytes,
            "seconds": dict(outcome.seconds),
            "base": {"name": outcome.whisper.name, "origin": outcome.whisper.origin},
            "adapter": asdict(outcome.info),
            "settings": dict(run.settings),
            "normalize": outcome.normalize.record(),
            "versions": {
                name: importlib.metadata.version(name) for name in ("audiolora", "torch", "peft", "transformers")
            },
        },
    )


def show(run: Run) -> None:
    """Print a finished run's table, and where to look next."""
    summary = run.read("summary.json")
    rows = [("zero-shot", _rates(summary["before"])), ("adapted", _rates(summary["after"]))]
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
