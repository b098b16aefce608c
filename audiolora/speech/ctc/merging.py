"""A plain CTC model out of an adapted one, for `audiolora merge`: what transformers alone loads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audiolora.files import replace_folder, write_json, write_text
from audiolora.speech.card import SOURCES, header_language
from audiolora.speech.ctc.adapter import CtcInfo, load_adapted_ctc, read_ctc_info
from audiolora.speech.ctc.collate import ctc_features
from audiolora.speech.merged import adapter_name, check_out, same_logits, save_plain
from audiolora.speech.whisper.adapter import FORMAT, INFO_FILE, adapter_folder

if TYPE_CHECKING:
    import torch

_CARD = """---
base_model: {info.base_model}
base_model_relation: finetune
library_name: transformers
pipeline_tag: automatic-speech-recognition
tags: [audiolora, ctc]
{language}---

# {title}

{info.base_model} with the low-rank adapter `{adapter}` merged into its weights by audiolora: a plain {kind}.
Its logits differ from the adapter's by at most {difference:.1e} on a test input.

{figures}

## Use

    audiolora transcribe recording.wav --model PATH

or `{kind}.from_pretrained(PATH)` and `{processor}.from_pretrained(PATH)`.

{sources}
"""


@dataclass(frozen=True)
class MergedCtcInfo:
    """What a merged CTC model's ``audiolora.json`` says.

    Args:
        base_model: what the adapter was trained over.
        adapter: the name of the run it comes from.
        language: code of the language spoken, or None where it was not said.
        task: what kind of model it is.
        format: of this file.
    """

    base_model: str
    adapter: str
    language: str | None
    task: Literal["ctc"] = "ctc"
    format: int = FORMAT


@dataclass(frozen=True)
class MergedCtc:
    """A merged model: where it is, its class, what it says of itself, its largest difference of logits, its bytes."""

    folder: Path
    kind: str
    info: MergedCtcInfo
    difference: float
    size_bytes: int


def merge_ctc_adapter(
    path: Path, out: Path, *, base: str | None = None, overwrite: bool = False, log: Callable[[str], object] = print
) -> MergedCtc:
    """Write the base with a CTC run's adapter merged into it as a plain model, with its processor.

    It is written beside ``out``, loaded again, compared with the adapted model, and only then put in place: ``out`` is
    whole or not there. A head of the adapter's own becomes the model's.

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
        >>> merge_ctc_adapter(Path("runs/demo"), Path("digits-ssb")).kind  # doctest: +SKIP
        'Wav2Vec2ForCTC'
    """
    folder = adapter_folder(path)
    check_out(out, (folder, Path(base or read_ctc_info(folder).base_model).expanduser()), overwrite)
    adapted, loaded, info = load_adapted_ctc(path, base=base, log=log)
    given = _test_input(loaded.processor)
    expected = _logits(adapted, given)
    merged: Any = adapted.merge_and_unload(safe_merge=True)
    kind = type(merged)
    described = MergedCtcInfo(info.base_model, adapter_name(folder), info.language)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        save_plain(merged, loaded.processor, scratch)
        difference = _difference(kind, scratch, given, expected)
        write_json(scratch / INFO_FILE, asdict(described))
        names = {"kind": kind.__name__, "processor": type(loaded.processor).__name__}
        write_text(scratch / "README.md", _card(out.name, info, described, difference, folder, names))
        size_bytes = sum(file.stat().st_size for file in scratch.iterdir())
        replace_folder(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return MergedCtc(out, kind.__name__, described, difference, size_bytes)


def _test_input(processor: Any) -> dict[str, torch.Tensor]:
    """1.5 s of seeded noise, as the model takes it."""
    import numpy as np

    noise = 0.1 * np.random.default_rng(0).standard_normal(24_000)
    return ctc_features(processor, [noise.astype(np.float32)])


def _logits(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return model.eval()(**given).logits


def _difference(kind: Any, folder: Path, given: dict[str, torch.Tensor], expected: torch.Tensor) -> float:
    """The largest difference of logits of the model in `folder`, loaded by transformers alone.

    Raises:
        MergeError: it is over the tolerance.
    """
    import torch

    merged = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return same_logits(_logits(merged, given), expected)


def _card(
    title: str, info: CtcInfo, described: MergedCtcInfo, difference: float, adapter: Path, names: dict[str, str]
) -> str:
    """The model card; figures and sources are the adapter card's."""
    card = adapter / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    _, heading, sources = text.partition(SOURCES)
    return _CARD.format(
        info=info,
        adapter=described.adapter,
        title=title,
        difference=difference,
        language=header_language(info.language),
        figures="\n".join(line for line in text.splitlines() if line.startswith("|")),
        sources=(heading + sources).strip(),
        **names,
    )
