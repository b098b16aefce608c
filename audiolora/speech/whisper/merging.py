"""A plain Whisper out of an adapted one: the adapter's map is applied to the weights once and for all.

The folder is what ``save_pretrained`` writes, so transformers alone loads it. Beside it stand a model card and an
``audiolora.json`` with the audio context to decode at: what was trained at a short context is worse at 30 s, and no
plain Whisper file says so.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audiolora.files import replace_folder, write_json, write_text
from audiolora.speech.card import SOURCES, header_language
from audiolora.speech.merged import adapter_name, check_out, same_logits, save_plain
from audiolora.speech.whisper.adapter import (
    FORMAT,
    INFO_FILE,
    adapter_folder,
    load_adapted,
    read_description,
    read_info,
)

if TYPE_CHECKING:
    import torch

_CARD = """---
base_model: {info.base_model}
base_model_relation: finetune
library_name: transformers
pipeline_tag: automatic-speech-recognition
tags: [audiolora, whisper]
{language}---

# {title}

{info.base_model} with the low-rank adapter `{info.adapter}` merged into its weights by audiolora: a plain Whisper.
Its logits differ from the adapter's by at most {difference:.1e} on a test input.

{figures}

## Use

    audiolora transcribe recording.wav --model PATH

or `WhisperForConditionalGeneration.from_pretrained(PATH)`. {context}

{sources}
"""
_CONTEXTS = {
    "auto": "It was trained at short audio context (`auto`): decode it at each clip's own length, as `audiolora "
    "transcribe` does. Padded to 30 s, as other programs do, it makes more errors.",
    "full": "It was trained at 30 s of audio context (`full`), Whisper's own.",
}


@dataclass(frozen=True)
class MergedInfo:
    """What a merged model's ``audiolora.json`` says.

    Args:
        base_model: what the adapter was trained over.
        adapter: the name of the run it comes from.
        context: ``"auto"`` or ``"full"``: how much audio the encoder sees in decoding.
        language: a Whisper language code, or None for an English-only model and for several languages.
        format: of this file.
        longest_s, timestamps: see `AdapterInfo`.

    Raises:
        ValueError: another context.
    """

    base_model: str
    adapter: str
    context: Literal["auto", "full"]
    language: str | None
    format: int = FORMAT
    longest_s: float | None = None
    timestamps: bool = False

    def __post_init__(self) -> None:
        if self.context not in _CONTEXTS:
            raise ValueError(f"context must be {' or '.join(map(repr, _CONTEXTS))}, got {self.context!r}")


@dataclass(frozen=True)
class Merged:
    """A merged model: where it is, what it says of itself, its largest difference of logits, its size in bytes."""

    folder: Path
    info: MergedInfo
    difference: float
    size_bytes: int


def read_merged(folder: Path) -> MergedInfo | None:
    """What a merged model says of itself, or None for a folder (or name) that is no merged model.

    Raises:
        ValueError: its ``audiolora.json`` is not what this version writes.
    """
    path = folder / INFO_FILE
    if not path.is_file():
        return None
    return read_description(path, MergedInfo, "a merged model's description")


def merge_adapter(
    path: Path, out: Path, *, base: str | None = None, overwrite: bool = False, log: Callable[[str], object] = print
) -> Merged:
    """Write the base with a run's adapter merged into it as a plain Whisper.

    It is written beside ``out``, loaded again, compared with the adapted model, and only then put in place: ``out`` is
    whole or not there.

    Args:
        path: a run's folder or an adapter's.
        out: the folder to write.
        base: another place for the same base weights.
        overwrite: replace a model that is in ``out``.
        log: called with a sentence for each thing worth knowing.

    Raises:
        ValueError: no adapter in ``path``, another base than it was trained over, or an ``out`` not to be replaced.
        MergeError: the merged model is not the same function, or cannot be written.

    Example:
        >>> merge_adapter(Path("runs/demo"), Path("whisper-demo")).difference < 1e-4  # doctest: +SKIP
        True
    """
    from audiolora.quantizing import dequantize
    from audiolora.speech.whisper.language_tokens import is_multilingual

    folder = adapter_folder(path)
    check_out(out, (folder, Path(base or read_info(folder).base_model).expanduser()), overwrite)
    adapted, whisper, info = load_adapted(path, base=base, log=log)
    expected = _test_logits(adapted)
    if info.base_bits != 32:  # the rounded weights, in float: outputs are the same, and a merge is exact
        dequantize(adapted)
    merged = adapted.merge_and_unload(safe_merge=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        save_plain(merged, whisper.processor, scratch)
        spelling = getattr(whisper.processor.tokenizer, "english_spelling_normalizer", None)
        if spelling is not None:  # transformers reads this file, but its fast tokenizer does not write it
            write_text(scratch / "normalizer.json", json.dumps(spelling, ensure_ascii=False))
        difference = _difference(expected, scratch)
        described = MergedInfo(
            info.base_model,
            adapter_name(folder),
            info.context,
            info.language,
            longest_s=info.longest_s,
            timestamps=info.timestamps,
        )
        write_json(scratch / INFO_FILE, asdict(described))
        language = info.language or ("mul" if is_multilingual(merged) else "en")  # of several, an adapter names none
        write_text(scratch / "README.md", _card(out.name, described, language, difference, folder))
        size_bytes = sum(file.stat().st_size for file in scratch.iterdir())
        replace_folder(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Merged(out, described, difference, size_bytes)


def _test_logits(model: Any) -> torch.Tensor:
    """Logits (1, 8, vocabulary) of seeded noise on seeded tokens, at the model's full context."""
    import torch

    config, generator = model.config, torch.Generator().manual_seed(0)
    frames = 2 * config.max_source_positions
    features = torch.randn(1, config.num_mel_bins, frames, generator=generator) * 0.5  # log-mel lies in about [-1, 1.5]
    tokens = torch.randint(config.vocab_size, (1, 8), generator=generator)
    with torch.no_grad():
        return model.eval()(input_features=features, decoder_input_ids=tokens).logits


def _difference(expected: torch.Tensor, folder: Path) -> float:
    """The largest difference of logits of the model in `folder`, loaded by transformers alone.

    Raises:
        MergeError: it is over the tolerance.
    """
    import torch
    from transformers import WhisperForConditionalGeneration

    merged = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return same_logits(_test_logits(merged), expected)


def _card(title: str, described: MergedInfo, language: str, difference: float, adapter: Path) -> str:
    """The model card; figures and sources are the adapter card's."""
    card = adapter / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    _, heading, sources = text.partition(SOURCES)
    return _CARD.format(
        info=described,
        title=title,
        difference=difference,
        language=header_language(language),
        figures="\n".join(line for line in text.splitlines() if line.startswith("|")),
        context=_CONTEXTS[described.context],
        sources=(heading + sources).strip(),
    )
