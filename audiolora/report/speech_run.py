"""What a speech adaptation leaves: model card, summary.json, report.html, and the table in the terminal."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from audiolora.files import write_text
from audiolora.report.page import Snippet
from audiolora.report.speech import ClipResult, SpeechReport, ctc_usage, speech_usage, write_report
from audiolora.report.table import print_summary
from audiolora.speech.card import model_card
from audiolora.speech.data.prompts import BUILTIN
from audiolora.speech.data.split import shared
from audiolora.speech.sound.augmentation import augmentation_facts
from audiolora.speech.texts.metrics import ErrorRates, Interval, error_rates, relative_reduction
from audiolora.speech.texts.normalizing import Normalizer
from audiolora.speech.texts.results import keep_texts

if TYPE_CHECKING:
    from audiolora.inspection import Inspection
    from audiolora.run import Run
    from audiolora.speech.ctc.adapter import CtcInfo
    from audiolora.speech.ctc.models import LoadedCtc
    from audiolora.speech.data.split import Split
    from audiolora.speech.training.clips import Clips
    from audiolora.speech.whisper.adapter import AdapterInfo
    from audiolora.speech.whisper.weights import LoadedWhisper


@dataclass(frozen=True)
class About:
    """What is said of one kind of model alone.

    Args:
        tag: the hub's name of the kind.
        language: BCP 47 tag of the transcripts.
        notes: paragraphs that a reader of the figures must know.
        decoding: a sentence for the card on how to decode; "" for none.
        usage: how to use the adapter, for the report.
    """

    tag: str
    language: str
    notes: Sequence[str]
    decoding: str
    usage: Sequence[Snippet]


@dataclass(frozen=True)
class Outcome:
    """A finished adaptation, before it is written down.

    Args:
        run: its folder and settings.
        base: the model before.
        info: of the adapter.
        split: what was trained on, chosen by and measured on.
        heard: the test clips through the channel.
        normalize: what texts are compared by.
        before, after: the texts of the test clips, zero-shot and adapted.
        history: the trainer's.
        seconds: wall time of each part.
    """

    run: Run
    base: LoadedWhisper | LoadedCtc
    info: AdapterInfo | CtcInfo
    split: Split
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

    @cached_property
    def about(self) -> About:
        """By the kind of the adapter."""
        from audiolora.speech.ctc.adapter import CtcInfo

        return about_ctc(self) if isinstance(self.info, CtcInfo) else about_whisper(self)


def about_whisper(outcome: Outcome) -> About:
    """Of a Whisper: its audio context."""
    info: Any = outcome.info
    notes = [
        "Zero-shot is decoded at 30 s of audio context, as the base was pretrained; the adapter at the context it "
        f"was trained with ({info.context})."
    ]
    if info.base_bits != 32:
        notes.append(
            f"The base's frozen weights are kept in {info.base_bits} bits; zero-shot is of the rounded base too."
        )
    several = any(utterance.language for utterance in outcome.heard.utterances)
    return About(
        tag="whisper",
        language=info.language or ("mul" if several else "en"),
        notes=notes,
        decoding=f"Decode with the context it was trained at (`{info.context}`); `audiolora transcribe` does.",
        usage=speech_usage(outcome.run.folder, info.base_model),
    )


def about_ctc(outcome: Outcome) -> About:
    """Of a CTC model: its alphabet, and that it was decoded greedily."""
    info: Any = outcome.info
    settings = outcome.run.settings
    searched = {name: settings[name] for name in ("beam_width", "lm", "hotwords") if settings.get(name)}
    notes = ["Texts are the best token of each frame, without a language model."]
    if searched.get("beam_width", 0) != 1 and searched:
        how = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in searched.items())
        notes = [f"Texts are those of a beam search ({how}), zero-shot and adapted alike."]
    if info.new_head:
        notes.append(
            "The output layer was new, for another alphabet than the base's, and was trained with the adapter: before "
            "the training it wrote what its start drew, not what the base heard."
        )
    return About(
        tag="ctc",
        language=info.language or "und",
        notes=notes,
        decoding="",
        usage=ctc_usage(outcome.run.folder),
    )


def by_language(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Word error rates of each language, in percent, where the test clips have several."""
    languages = [utterance.language for utterance in outcome.heard.utterances]
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
    if augmented := augmentation_facts(settings):
        summary += f" Training clips were augmented at random ({'; '.join(augmented)})."
    return model_card(
        outcome.run.folder.name,
        summary,
        outcome.info,
        *outcome.rates,
        tag=outcome.about.tag,
        decoding=outcome.about.decoding,
        language=outcome.about.language,
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
        ("base model", f"{outcome.base.name}: {outcome.base.origin}"),
        ("data", f"{run.settings['data']}: {len(outcome.heard)} clips measured on"),
        ("channel", outcome.heard.channel.description),
        ("trained parameters", f"{inspection.trainable_parameters:,} of {inspection.total_parameters:,}"),
        ("adapter file", f"{adapter_bytes / 1000:,.0f} KB"),
        *(
            (name.replace("_", " "), str(value))
            for name, value in run.settings.items()
            if name not in ("model", "data", "channel", "augment", "noise_folder", "rir_folder", "spec_augment")
        ),
        *(
            (f"WER, {code}", f"{one['wer_before']:.1f} % → {one['wer_after']:.1f} % on {one['clips']} clips")
            for code, one in languages.items()
        ),
        ("augmentation of training clips", "; ".join(augmentation_facts(run.settings)) or "none"),
        *((f"seconds, {name.replace('_', ' ')}", f"{value:.0f}") for name, value in outcome.seconds.items()),
    ]
    write_report(
        run.folder / "report.html",
        SpeechReport(
            title=f"{outcome.base.name}, {run.folder.name}",
            subtitle=outcome.heard.channel.description,
            before=before,
            after=after,
            clips=_clips(outcome),
            normalize=outcome.normalize,
            facts=facts,
            loss=_curve(outcome.history, "loss"),
            eval_loss=_curve(outcome.history, "eval_loss"),
            usage=outcome.about.usage,
            notes=_notes(outcome),
            attribution=_attribution(outcome),
            channel=outcome.heard.channel.spec,
            language=outcome.about.language,
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
            "languages": languages,
            "parameters": {"trained": inspection.trainable_parameters, "total": inspection.total_parameters},
            "adapter_bytes": adapter_bytes,
            "seconds": dict(outcome.seconds),
            "base": {"name": outcome.base.name, "origin": outcome.base.origin},
            "adapter": asdict(outcome.info),
            "settings": dict(run.settings),
            "normalize": _rules(outcome),
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


def _rules(outcome: Outcome) -> dict[str, Any]:
    """Of what texts are compared by: a CTC model's are spelled in its alphabet."""
    if isinstance(outcome.normalize, Normalizer):
        return outcome.normalize.record()
    return {"rules": "alphabet", "language": outcome.info.language, "spellings": 0}


def _rates(raw: dict[str, Any]) -> ErrorRates:
    return ErrorRates(**{**raw, "wer": Interval(**raw["wer"]), "cer": Interval(**raw["cer"])})


def _clips(outcome: Outcome) -> list[ClipResult]:
    from audiolora.speech.sound.channels import parse_channel
    from audiolora.speech.training.clips import Clips

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
    notes = _notes_on_split(outcome.split)
    if outcome.heard.channel.spec != "clean":
        notes.append("The channel is simulated; the recordings are real.")
    return [*notes, *outcome.about.notes]


def _notes_on_split(split: Split) -> list[str]:
    """What training and test have in common; drawn parts share no sentence, those that the data bring may."""
    common = [line for line in shared(split) if line.startswith("train and test")]
    notes = [f"{line[0].upper()}{line[1:]}." for line in common]
    if not any("sentences" in line for line in common):
        notes.append("No test sentence occurs in the training part.")
    if any(utterance.speaker is None for utterance in (*split.train, *split.test)):
        notes.append("The speakers of both may be the same.")
    return notes


def _attribution(outcome: Outcome) -> list[str]:
    lines = [f"Base model: {outcome.base.name}; {outcome.base.origin}"]
    if outcome.run.settings["data"] in BUILTIN:
        builtin = BUILTIN[outcome.run.settings["data"]]
        lines.append(f"Speech: {builtin.description}; {builtin.licence}; {builtin.attribution}")
    return lines
