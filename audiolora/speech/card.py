"""The model card of an adapter: what it is, what it was trained on, how well it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiolora.speech.ctc.adapter import CtcInfo
    from audiolora.speech.texts.metrics import ErrorRates
    from audiolora.speech.whisper.adapter import AdapterInfo

SOURCES = "## Sources and licences"
"""The heading that the card ends with; a merged model's card takes over what stands below it."""

_CARD = """---
base_model: {info.base_model}
library_name: peft
pipeline_tag: automatic-speech-recognition
tags: [audiolora, lora, {tag}]
metrics: [wer, cer]
{language}---

# {title}

A low-rank adapter for {info.base_model}, trained with audiolora. {summary}

| | WER % [95 % interval] | CER % |
|---|---|---|
| zero-shot | {before} |
| adapted | {after} |

{notes}

## Use

    audiolora transcribe recording.wav --adapter PATH

{decoding}{sources}

{attribution}
"""


def model_card(
    title: str,
    summary: str,
    info: AdapterInfo | CtcInfo,
    before: ErrorRates,
    after: ErrorRates,
    *,
    tag: str,
    decoding: str,
    language: str,
    notes: Sequence[str],
    attribution: Sequence[str],
) -> str:
    """The card as Markdown with the hub's header.

    Args:
        title: the run's name, for people.
        summary: one or two sentences: data, channel, parameters.
        info: of the adapter.
        before, after: held-out error rates.
        tag: the hub's name of the kind of model.
        decoding: a sentence on how to decode; "" for none.
        language: BCP 47 tag of what is spoken; "und" where nobody said.
        notes: what a reader must know, a paragraph each.
        attribution: sources and licences, a line each.
    """
    return _CARD.format(
        title=title,
        summary=summary,
        info=info,
        tag=tag,
        decoding=f"{decoding}\n\n" if decoding else "",
        language=header_language(language if language != "und" else None),
        before=_cells(before),
        after=_cells(after),
        notes="\n\n".join(notes),
        sources=SOURCES,
        attribution="\n".join(f"- {line}" for line in attribution),
    )


def header_language(language: str | None) -> str:
    """The header's line, "" for no language. Norwegian's code is quoted: bare, YAML takes ``no`` for false.

    Example:
        >>> header_language("it"), header_language("no")
        ('language: it\\n', "language: 'no'\\n")
    """
    from huggingface_hub.utils import yaml_dump

    return yaml_dump({"language": language}) if language else ""


def _cells(rates: ErrorRates) -> str:
    return f"{rates.wer.value:.1f} [{rates.wer.low:.1f}, {rates.wer.high:.1f}] | {rates.cer.value:.1f}"
