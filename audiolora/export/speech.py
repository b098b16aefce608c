"""A Whisper and its adapters as a bundle: audio in, text out on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from audiolora.export.exporting import Exported, export
from audiolora.export.slots import adapter_names, inner_network
from audiolora.export.spoken import Spoken
from audiolora.export.whisper import whisper_parts
from audiolora.export.whisper_assets import files_of, settings_of, task_name
from audiolora.export.whisper_settings import WhisperSettings
from audiolora.speech.data.utterance import Utterance
from audiolora.speech.training.clips import Clips
from audiolora.speech.whisper.adapter import adapter_folder, load_adapted, read_info
from audiolora.speech.whisper.decode import SAMPLE_RATE_HZ, log_mel, transcribe

_SELFTEST_FRAMES = 16
_NO_QDQ = (
    "quantize='qdq' is not for a Whisper: with activations in int8, calibrated with the adapter on, whisper-tiny.en "
    "wrote nothing of use (a word error rate of 300 % instead of 10 %); take quantize='int8'"
)
_BASE = "the base"


def export_whisper(
    model: nn.Module,
    processor: Any,
    folder: str | os.PathLike[str],
    *,
    context: str = "full",
    language: str | None = None,
    adapters: Sequence[str] | Mapping[str, str] | None = None,
    tasks: Mapping[str, WhisperSettings] | None = None,
    clips: Sequence[np.ndarray] | None = None,
    form: str = "fact",
    evaluate: Sequence[Utterance] | Clips | None = None,
    **settings: Any,
) -> Exported:
    """Write a Whisper and its adapters as a bundle whose sessions have `transcribe`.

    Besides the graphs' outputs, the texts of some clips are compared with those of `speech.decode.transcribe`.

    Args:
        model: a ``WhisperForConditionalGeneration``, adapted by `audiolora.adapt` or PEFT, or without adapters.
        processor: its feature extractor and tokenizer.
        folder: the bundle's.
        context: what the encoder sees where an adapter says nothing else: 30 s (``"full"``, as a plain Whisper needs
            it) or a clip's own length (``"auto"``).
        language: spoken, a code, where an adapter says nothing else; None detects each clip's.
        adapters: as in `export`.
        tasks: by PEFT's name, of adapters with a context or a language of their own: `settings_of`.
        clips: audio (L,), 16 kHz, to compare texts on; by default one that is drawn. They are not stored.
        form: as in `export`; ``"fact"`` is the default, for the decoder runs a token at a time.
        evaluate: with ``quantize``, utterances to measure the word error rate on, of the float network and of the
            bundle, without an adapter and with each; of an adapter that is named after a speaker, on that speaker's.
            `audiolora.speech.training.clips.Clips` are heard through their channel.
        settings: the others of `export`.

    Returns:
        As `export`.

    Raises:
        ValueError: as `export`; also ``quantize="qdq"``, or a text that is not torch's. Nothing is left then.

    Example:
        >>> export_whisper(model, whisper.processor, "door", context="auto")  # doctest: +SKIP
    """
    if settings.get("quantize") == "qdq":
        raise ValueError(_NO_QDQ)
    whisper: Any = inner_network(model)
    task = settings_of(whisper, processor, context=context, language=language)
    own = dict(tasks or {})
    there = adapter_names(model) if adapters is None else list(adapters)
    if form == "merged" and len(there) == 1:
        task = own.pop(there[0], task)
    heard = [drawn_clip()] if clips is None else list(clips)
    features = log_mel(processor, drawn_clip()[: _SELFTEST_FRAMES * task.hop], _SELFTEST_FRAMES)[None]

    def check(written: Path, network: Callable[[str | None], nn.Module]) -> None:
        _check_texts(written, network, processor, heard, _ids(adapters, there, form))

    words = None if evaluate is None else Spoken.for_whisper(evaluate, processor, [task, *own.values()])
    return export(
        model, folder, parts=whisper_parts(whisper, features), adapters=adapters, form=form, task=task, tasks=own,
        files=files_of(processor, whisper.config.vocab_size), check=check,
        evaluate=words, **settings,
    )  # fmt: skip


def export_speech_runs(
    runs: Mapping[str, Path], out: Path, *, base: Path | str | None = None, **settings: Any
) -> Exported:
    """The adapters of speech runs over one base, each with its own context and language.

    Args:
        runs: by id, a run's folder or an adapter's.
        out: the bundle's folder.
        base: another place for the base's weights than the one that the runs name.
        settings: of `export_whisper`.

    Raises:
        ValueError: a run without an adapter, runs over different bases, or what `export_whisper` refuses.
    """
    (first, *others) = runs
    model, whisper, info = load_adapted(runs[first], base=None if base is None else str(base), adapter_name="run0")
    infos = {"run0": info}
    for i, name in enumerate(others, start=1):
        folder = adapter_folder(runs[name])
        infos[f"run{i}"] = found = read_info(folder)
        if found.base_fingerprint != info.base_fingerprint:
            raise ValueError(
                f"{folder}: trained over {found.base_model} (fingerprint {found.base_fingerprint[:12]}), and {first} "
                f"over {info.base_model} ({info.base_fingerprint[:12]}); a bundle has one base: export them apart"
            )
        model.load_adapter(str(folder), adapter_name=f"run{i}")
    tasks = {
        peft: settings_of(whisper.model, whisper.processor, context=one.context, language=one.language)
        for peft, one in infos.items()
    }
    ids = {f"run{i}": name for i, name in enumerate(runs)}
    return export_whisper(model, whisper.processor, out, adapters=ids, tasks=tasks, **settings)


def drawn_clip(duration_s: float = 2.0) -> np.ndarray:
    """A clip (L,) at 16 kHz that sounds a little like a voice: harmonics of a gliding pitch, in syllables, noise."""
    t = np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * (140 * t + 4 * np.sin(2 * np.pi * 0.7 * t))
    voice = sum(np.sin(k * phase) / k for k in range(1, 25)) * np.sin(np.pi * 3 * t) ** 2
    noise = np.random.default_rng(0).normal(size=len(t))
    return (0.2 * voice + 0.003 * noise).astype(np.float32)


def _ids(
    adapters: Sequence[str] | Mapping[str, str] | None, there: Sequence[str], form: str
) -> dict[str | None, str | None]:
    """id in the bundle → PEFT's name, the base among them."""
    if form == "merged":
        return {None: there[0]}
    by_name = adapters if isinstance(adapters, Mapping) else {name: name for name in there}
    return {None: None} | {bundle_id: name for name, bundle_id in by_name.items()}


def _check_texts(
    written: Path,
    network: Callable[[str | None], nn.Module],
    processor: Any,
    clips: Sequence[np.ndarray],
    ids: Mapping[str | None, str | None],
) -> None:
    from audiolora.edge import Session

    session = Session(written, check_signature=False, threads=1)
    for bundle_id, name in ids.items():
        if bundle_id is not None:
            session.load(bundle_id)
        task = session.network(bundle_id).task
        assert isinstance(task, WhisperSettings)
        how: dict[str, Any] = {"context": task.context, "language": task.language, "progress": False}
        wanted = transcribe(network(name), processor, clips, task=task_name(network(name), task), **how)
        found = session.transcribe(clips, SAMPLE_RATE_HZ, bundle_id)
        for i, (device, torchs) in enumerate(zip(found, wanted, strict=True)):
            if device != torchs:
                raise ValueError(
                    f"{bundle_id or _BASE}: the bundle writes {device!r} for clip {i}, and torch {torchs!r}; nothing "
                    "is written. Two tokens may be equally likely there: try other clips (clips=…)"
                )
