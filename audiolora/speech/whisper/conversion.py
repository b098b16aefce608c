"""A Whisper for other programs: OpenAI's ``.pt`` for openai-whisper, CTranslate2's folder for faster-whisper.

What was written is read again and compared with the model, and only then put in its place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audiolora.files import replace_folder
from audiolora.speech.merged import same_logits
from audiolora.speech.whisper.merging import merge_adapter

if TYPE_CHECKING:
    import torch

    from audiolora.speech.whisper.weights import LoadedWhisper

Format = Literal["openai", "ctranslate2"]
_STEPS = 8  # tokens that are decoded for the comparison
_MODEL_FILE = "model.bin"


@dataclass(frozen=True)
class Converted:
    """Where a converted model is, its largest difference of logits, its size in bytes."""

    out: Path
    difference: float
    size_bytes: int


def convert_whisper(
    source: str | Path,
    out: Path,
    to: Format,
    *,
    base: str | None = None,
    overwrite: bool = False,
    log: Callable[[str], object] = print,
) -> Converted:
    """Write a Whisper in another program's format, float32.

    Args:
        source: a run or an adapter, which is merged first; or what `load_whisper` takes: a merged model's folder.
        out: for ``"openai"`` a file that ends in .pt, for ``"ctranslate2"`` a folder.
        to: ``"openai"`` (openai-whisper's ``load_model``) or ``"ctranslate2"`` (faster-whisper; needs the extra
            audiolora[ctranslate2]).
        base: for a run, another place for the same base weights.
        overwrite: replace what is in ``out``.
        log: called with a sentence for each thing worth knowing.

    Raises:
        ValueError: an ``out`` that is no place for it or is not to be replaced, or a source that is no Whisper.
        MergeError: what was written is not the same function.
        ImportError: ctranslate2 is not installed.

    Example:
        >>> convert_whisper("runs/demo", Path("demo.pt"), "openai").difference < 1e-4  # doctest: +SKIP
        True
    """
    from audiolora.speech.whisper.weights import load_whisper

    _check_out(out, to, overwrite)
    if to == "ctranslate2":
        _ctranslate2()
    path = Path(source).expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        if _holds_an_adapter(path):
            merge_adapter(path, scratch / "merged", base=base, log=log)
            path = scratch / "merged"
        elif base is not None:
            raise ValueError(f"{source} is no run and no adapter; base names the base model of one")
        whisper = load_whisper(path if path.exists() else str(source), log=log)
        write = _write_openai if to == "openai" else _write_ctranslate2
        difference = write(whisper, scratch / "new")
        size = _size(scratch / "new")
        if out.is_dir() or (scratch / "new").is_dir():
            replace_folder(scratch / "new", out)
        else:
            os.replace(scratch / "new", out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Converted(out, difference, size)


def _check_out(out: Path, to: Format, overwrite: bool) -> None:
    if to == "openai":
        if out.suffix != ".pt" or out.is_dir():
            raise ValueError(f"{out}: openai-whisper knows a file by its ending; name one that ends in .pt")
        if out.exists() and not overwrite:
            raise ValueError(f"{out} exists; name another file, or replace it with --overwrite")
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder, which is what CTranslate2 reads")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} is not empty; name another folder, or replace the model in it with --overwrite")
        if not (out / _MODEL_FILE).is_file():
            raise ValueError(
                f"{out} holds something else than a CTranslate2 model (no {_MODEL_FILE}), which --overwrite does not "
                "delete"
            )


def _holds_an_adapter(path: Path) -> bool:
    return any((folder / "adapter_config.json").is_file() for folder in (path, path / "adapter"))


def _write_openai(whisper: LoadedWhisper, path: Path) -> float:
    import torch

    from audiolora.speech.whisper.openai_format import build_whisper, openai_checkpoint, read_openai_checkpoint

    torch.save(openai_checkpoint(whisper.model), path)
    dims, tensors = read_openai_checkpoint(path.read_bytes(), str(path))
    features, tokens = _example(whisper)
    with torch.no_grad():
        found, expected = (
            model(input_features=features, decoder_input_ids=tokens).logits
            for model in (build_whisper(dims, tensors), whisper.model)
        )
    return same_logits(found, expected, "the model for openai-whisper")


def _write_ctranslate2(whisper: LoadedWhisper, folder: Path) -> float:
    """By CTranslate2's own converter; then some tokens are decoded there, and each step's logits are compared."""
    import numpy as np
    import torch

    ctranslate2 = _ctranslate2()
    with tempfile.TemporaryDirectory(dir=folder.parent) as plain:
        whisper.model.save_pretrained(plain)
        whisper.processor.save_pretrained(plain)
        # What faster-whisper looks for; transformers 5 writes it as a part of processor_config.json.
        whisper.processor.feature_extractor.to_json_file(Path(plain) / "preprocessor_config.json")
        converter = ctranslate2.converters.TransformersConverter(
            plain, copy_files=["tokenizer.json", "preprocessor_config.json"]
        )
        converter.convert(str(folder))
    features, tokens = _example(whisper)
    runtime = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32")
    audio = ctranslate2.StorageView.from_array(np.ascontiguousarray(features.numpy()))
    answer = runtime.generate(
        audio, [tokens[0].tolist()], beam_size=1, max_length=tokens.shape[1] + _STEPS, suppress_blank=False,
        suppress_tokens=[], return_logits_vocab=True,
    )[0]  # fmt: skip
    said = answer.sequences_ids[0]
    read = torch.cat([tokens, torch.tensor([said], dtype=torch.long)], dim=1)
    with torch.no_grad():
        expected = whisper.model(input_features=features, decoder_input_ids=read).logits[0]
    found = torch.stack([torch.from_numpy(np.array(step)) for step in answer.logits[0]])
    return same_logits(found, expected[tokens.shape[1] - 1 :][: len(found)], "the model for CTranslate2")


def _example(whisper: LoadedWhisper) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeded noise (1, n_mels, frames) at full context, and the prompt (1, n) that begins a text."""
    import torch

    config = whisper.model.config
    generator = torch.Generator().manual_seed(0)
    frames = 2 * config.max_source_positions
    features = torch.randn(1, config.num_mel_bins, frames, generator=generator) * 0.5  # log-mel lies in about [-1, 1.5]
    prompt = [config.decoder_start_token_id, whisper.model.generation_config.no_timestamps_token_id]
    return features, torch.tensor([prompt])


def _ctranslate2() -> Any:
    try:
        import ctranslate2
    except ImportError as error:
        raise ImportError(
            'a model for CTranslate2 is written by ctranslate2, which is missing: pip install "audiolora[ctranslate2]"'
        ) from error
    return ctranslate2


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
