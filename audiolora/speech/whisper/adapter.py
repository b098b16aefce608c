"""A Whisper adapter on disk: PEFT's format, and beside it what decoding needs to know.

``audiolora.json`` in the adapter's folder says over which base it was trained (by name and by fingerprint), in which
language, and how much audio the encoder saw: an adapter trained at short context is worse at 30 s, and the reverse.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from audiolora.files import replace_folder, write_json, write_text
from audiolora.speech.whisper.base_bits import check_base_bits, quantize_base

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

    from audiolora.speech.training.clips import Clips
    from audiolora.speech.training.settings import TrainingSettings
    from audiolora.speech.whisper.decoding import WhisperTexts
    from audiolora.speech.whisper.weights import LoadedWhisper

FORMAT = 1
INFO_FILE = "audiolora.json"


class _Versioned(Protocol):
    @property
    def format(self) -> int: ...


Description = TypeVar("Description", bound=_Versioned)


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter needs besides its weights.

    Args:
        base_model: what `load_whisper` takes: a hub name, a local directory or an OpenAI ``.pt``.
        base_fingerprint: of the base's convolutions, see `fingerprint`.
        context: ``"auto"`` or ``"full"``: how much audio the encoder sees in decoding.
        language: a Whisper language code, or None for an English-only model and for several languages.
        base_bits: 8 or 4 where it was trained over a base that `quantize_base` had rounded; otherwise 32. Its
            fingerprint is of the rounded weights.
        format: of this file.
        longest_s: the longest clip it was trained on, s: at short context, longer audio is decoded in such pieces.
        timestamps: whether it was trained to write timestamps.

    Raises:
        ValueError: another context, or other bits.
    """

    base_model: str
    base_fingerprint: str
    context: Literal["auto", "full"]
    language: str | None
    base_bits: int = 32
    format: int = FORMAT
    longest_s: float | None = None
    timestamps: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What `transcribe` is to be told, so that it hears and writes as the adapter was trained to."""
        return {"context": self.context, "timestamps": self.timestamps}

    def __post_init__(self) -> None:
        if self.context not in ("auto", "full"):
            raise ValueError(f"context must be 'auto' or 'full', got {self.context!r}")
        check_base_bits(self.base_bits)


def fingerprint(model: nn.Module) -> str:
    """sha256 of the encoder's two convolution kernels in float32: tells any two trained Whispers apart, in no time."""
    import torch

    encoder = model.get_encoder()  # type: ignore[operator]
    digest = hashlib.sha256()
    for convolution in (encoder.conv1, encoder.conv2):
        digest.update(convolution.weight.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe(
    whisper: LoadedWhisper,
    learnt: Clips,
    training: TrainingSettings,
    texts: WhisperTexts,
    language: str | None,
    base_bits: int = 32,
) -> AdapterInfo:
    """What an adapter needs besides its weights, by what it is to be trained on."""
    return AdapterInfo(
        whisper.name,
        fingerprint(whisper.model),
        training.decoding_context,
        language,
        base_bits,
        longest_s=round(max(learnt.durations_s) * learnt.channel.stretch, 3),
        timestamps=texts.timestamps == "keep",
    )


def save_adapter(model: PeftModel, folder: Path, info: AdapterInfo, card: str) -> None:
    """Write the adapter, its ``audiolora.json`` and its model card; the folder is replaced as a whole."""
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for config in model.peft_config.values():
        config.base_model_name_or_path = info.base_model
    model.save_pretrained(str(new), save_embedding_layers=False)  # no embedding is adapted; "auto" asks the hub
    shutil.copymode(new / "adapter_config.json", new / "adapter_model.safetensors")  # safetensors makes it private
    write_json(new / INFO_FILE, asdict(info))
    write_text(new / "README.md", card)
    replace_folder(new, folder)


def adapter_folder(path: Path) -> Path:
    """The adapter's folder, given itself or its run's.

    Raises:
        ValueError: there is no audiolora adapter in either.
    """
    for folder in (path / "adapter", path):
        if (folder / INFO_FILE).exists() and (folder / "adapter_config.json").exists():
            return folder
    if (path / "config.json").exists():
        raise ValueError(f"{path} holds a whole model and no adapter; name it with --model")
    if (path / "settings.json").exists():
        raise ValueError(f"{path} holds a run that is not finished, so there is no adapter yet; let it come to its end")
    raise ValueError(
        f"{path} holds no adapter of audiolora ({INFO_FILE} is in neither it nor its adapter/ folder); "
        "name a finished run such as runs/demo"
    )


def read_description(path: Path, kind: type[Description], called: str) -> Description:
    """An ``audiolora.json`` as the dataclass it was written from.

    Raises:
        ValueError: it is not what this version writes.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(said, dict) and said.get("format", FORMAT) == FORMAT:  # another may have other fields
            return kind(**said)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not {called}: {error}") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path}: not {called}: no JSON object")
    raise ValueError(f"{path}: format {said['format']}, and this audiolora reads {FORMAT}; upgrade it")


def read_info(folder: Path) -> AdapterInfo:
    """An adapter's ``audiolora.json``.

    Raises:
        ValueError: it is not what this version writes.
    """
    return read_description(folder / INFO_FILE, AdapterInfo, "an adapter description")


def load_adapted(
    path: Path, *, base: str | None = None, trainable: bool = False, adapter_name: str = "default", **log: Any
) -> tuple[PeftModel, LoadedWhisper, AdapterInfo]:
    """The base with the adapter of a run on it.

    Args:
        path: a run's folder or an adapter's.
        base: another place for the same base weights, such as a local directory.
        trainable: whether the adapter's parameters require gradients.
        adapter_name: what PEFT is to call it.

    Returns:
        The adapted model, the loaded base (its ``processor``, its ``origin``) and what the adapter says of itself.

    Raises:
        ValueError: no adapter there, or one that was trained over another model.
    """
    from peft import PeftModel

    from audiolora.integration import enable
    from audiolora.speech.whisper.openai_format import WeightsError
    from audiolora.speech.whisper.weights import load_whisper

    folder = adapter_folder(path)
    info = read_info(folder)
    try:
        whisper = load_whisper(base or info.base_model, **log)
    except WeightsError as error:
        raise ValueError(
            f"{folder}: its base model cannot be loaded: {error}; name another place for the same weights with --base"
        ) from error
    quantize_base(whisper.model, info.base_bits)
    found = fingerprint(whisper.model)
    if found != info.base_fingerprint:
        raise ValueError(
            f"{folder}: trained over {info.base_model} (fingerprint {info.base_fingerprint[:12]}), "
            f"but {whisper.name} is another model (fingerprint {found[:12]}); give the right one with --base"
        )
    enable()
    model = PeftModel.from_pretrained(whisper.model, str(folder), adapter_name, is_trainable=trainable)
    return model, whisper, info
