"""A CTC adapter on disk: PEFT's format, and beside it what training and decoding need to know.

``audiolora.json`` in the adapter's folder says over which base it was trained (by name and by fingerprint), in which
language, and what each of the model's outputs writes; ``processor/`` holds the feature extractor and the tokenizer. A
head for a new alphabet lies in the adapter's own file, as PEFT's ``modules_to_save``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audiolora.files import replace_folder, write_json, write_text
from audiolora.speech.ctc.heads import head_of
from audiolora.speech.whisper.adapter import FORMAT, INFO_FILE, adapter_folder, read_description

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

    from audiolora.speech.ctc.models import LoadedCtc

PROCESSOR = "processor"
"""The folder beside an adapter's weights."""


@dataclass(frozen=True)
class CtcInfo:
    """What a CTC adapter needs besides its weights.

    Args:
        base_model: what `load_ctc` takes: a hub name or a local directory.
        base_fingerprint: of the base without its head, see `ctc_fingerprint`.
        language: code of the language spoken, or None where it was not said.
        vocabulary: the text of each output.
        new_head: the adapter has a head of its own, for another alphabet than the base's.
        task: what kind of model it adapts; a Whisper adapter's file has no such word.
        format: of this file.

    Raises:
        ValueError: another task.
    """

    base_model: str
    base_fingerprint: str
    language: str | None
    vocabulary: tuple[str, ...]
    new_head: bool
    task: Literal["ctc"] = "ctc"
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.task != "ctc":
            raise ValueError(f"task must be 'ctc', got {self.task!r}")
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))


def ctc_fingerprint(model: nn.Module) -> str:
    """sha256 of every bias and norm in float32 but the head's: tells any two trained models apart, in no time.

    A fine-tuned model often has its base's convolutions, but hardly the biases of every layer. SpecAugment's vector is
    left out: many published models have none, and then it is drawn anew at each load.

    Args:
        model: a CTC model without adapters.
    """
    import torch

    head, digest = head_of(model)[0], hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and not name.startswith(f"{head}.") and not name.endswith("masked_spec_embed"):
            digest.update(name.encode())
            digest.update(parameter.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe_ctc(loaded: LoadedCtc, base_model: str, language: str | None) -> CtcInfo:
    """`CtcInfo` of an adapter that is about to be trained.

    Args:
        loaded: the base, without adapters.
        base_model: what `load_ctc` takes for it, from anywhere.
        language: code of the language spoken.
    """
    tokenizer = loaded.processor.tokenizer
    texts = tokenizer.convert_ids_to_tokens(list(range(loaded.model.config.vocab_size)))
    return CtcInfo(base_model, ctc_fingerprint(loaded.model), language, tuple(map(str, texts)), loaded.new_head)


def ctc_targets(model: nn.Module, ranks: Mapping[str, int], freeze: str = "none") -> dict[str, int]:
    """Where adapters go, with their ranks: groups of the family's preset, or module names.

    Args:
        model: a CTC model without adapters.
        ranks: group → rank, for ``conv``, ``attention``, ``ffn``.
        freeze: "features" leaves the feature encoder (the convolutions over the waveform) out of ``conv``; or "none".

    Raises:
        ValueError: nothing to freeze, nothing left to adapt, or a wrong rank.

    Example:
        >>> ctc_targets(model, {"conv": 4}, "features")  # doctest: +SKIP
        {'wav2vec2.encoder.pos_conv_embed.conv': 4}
    """
    import audiolora
    from audiolora.presets import preset_for, resolve_targets

    if not ranks:
        raise ValueError("every rank is 0, so that nothing would be adapted; give one of conv, attention and ffn")
    audiolora.lora_config(model, r=ranks, targets=list(ranks))  # it knows ranks and groups
    if freeze == "none":
        return dict(ranks)
    name = type(model).__name__
    if "conv" not in ranks:
        raise ValueError(f"freeze={freeze!r} does nothing where no convolution is adapted; leave it out, or set r_conv")
    found = resolve_targets(model, ["conv"], preset_for(model))["conv"]
    kept = [module for module in found if "feature_extractor" not in module.split(".")]
    if len(kept) == len(found):
        raise ValueError(f"{name} hears log-mel features and has no feature encoder to freeze; leave freeze out")
    if not kept:
        raise ValueError(f"{name} has no convolutions but the feature encoder's; set r_conv=0 and leave freeze out")
    others = {group: r for group, r in ranks.items() if group != "conv"}
    return dict.fromkeys(kept, ranks["conv"]) | others


def adapt_ctc(
    loaded: LoadedCtc, method: str = "lora", *, r: int | Mapping[str, int] = 8, targets: str | Sequence[str] = "both"
) -> PeftModel:
    """`audiolora.adapt` for a CTC model: where its head is new, the head is trained with the adapter and saved in it.

    Args:
        loaded: from `load_ctc`; its model is changed in place.
        method, r, targets: as of `audiolora.adapt`.

    Raises:
        ValueError: as of `audiolora.adapt`.
    """
    from peft import get_peft_model

    import audiolora
    from audiolora.all_or_nothing import undone_on_error
    from audiolora.running_statistics import hold_statistics

    if not loaded.new_head:
        return audiolora.adapt(loaded.model, method, r=r, targets=targets)
    config: Any = audiolora.adapter_config(loaded.model, method, r=r, targets=targets)
    config.modules_to_save = [head_of(loaded.model)[0]]
    audiolora.enable()
    with undone_on_error(loaded.model, "default"):
        adapted = get_peft_model(loaded.model, config)
    hold_statistics(adapted)
    return adapted


def save_ctc_adapter(model: PeftModel, processor: Any, folder: Path, info: CtcInfo, card: str) -> None:
    """Write the adapter, its ``audiolora.json``, its processor and its model card; the folder is replaced as a whole.

    Args:
        model: from `adapt_ctc`.
        processor: the base's, with the tokenizer that was trained with.
        folder: where to.
        info: from `describe_ctc`.
        card: Markdown.
    """
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for config in model.peft_config.values():
        config.base_model_name_or_path = info.base_model
    model.save_pretrained(str(new), save_embedding_layers=False)  # no embedding is adapted; "auto" asks the hub
    shutil.copymode(new / "adapter_config.json", new / "adapter_model.safetensors")  # safetensors makes it private
    processor.save_pretrained(new / PROCESSOR)
    write_json(new / INFO_FILE, asdict(info))
    write_text(new / "README.md", card)
    replace_folder(new, folder)


def is_ctc_adapter(path: Path) -> bool:
    """Whether a run's folder or an adapter's holds a CTC adapter (and not a Whisper's).

    Raises:
        ValueError: there is no audiolora adapter there, or its description is no JSON.
    """
    file = adapter_folder(path) / INFO_FILE
    try:
        says = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not an adapter description: {error}") from None
    return isinstance(says, dict) and says.get("task") == "ctc"


def read_ctc_info(folder: Path) -> CtcInfo:
    """A CTC adapter's ``audiolora.json``.

    Raises:
        ValueError: it is not what this version writes.
    """
    return read_description(folder / INFO_FILE, CtcInfo, "a CTC adapter's description")


def load_adapted_ctc(
    path: Path, *, base: str | None = None, trainable: bool = False, adapter_name: str = "default", **log: Any
) -> tuple[PeftModel, LoadedCtc, CtcInfo]:
    """The base with the CTC adapter of a run on it.

    Args:
        path: a run's folder or an adapter's.
        base: another place for the same base weights, such as a local directory.
        trainable: whether the adapter's parameters require gradients.
        adapter_name: what PEFT is to call it.

    Returns:
        The adapted model, the loaded base (with the adapter's own processor), and what the adapter says of itself.

    Raises:
        ValueError: no adapter there, or one that was trained over another model.
    """
    from peft import PeftModel

    from audiolora.integration import enable
    from audiolora.speech.ctc.models import LoadedCtc, load_ctc
    from audiolora.speech.whisper.openai_format import WeightsError

    folder = adapter_folder(path)
    info = read_ctc_info(folder)
    try:
        loaded = load_ctc(base or info.base_model, vocabulary=_any_vocabulary(info), **log)
    except WeightsError as error:
        raise ValueError(
            f"{folder}: its base model cannot be loaded: {error}; name another place for the same weights with --base"
        ) from error
    found = ctc_fingerprint(loaded.model)
    if found != info.base_fingerprint:
        raise ValueError(
            f"{folder}: trained over {info.base_model} (fingerprint {info.base_fingerprint[:12]}), "
            f"but {loaded.name} is another model (fingerprint {found[:12]}); give the right one with --base"
        )
    processor = type(loaded.processor).from_pretrained(folder / PROCESSOR, local_files_only=True)
    if info.new_head:
        _make_room(loaded.model, processor, len(info.vocabulary))
    enable()
    model = PeftModel.from_pretrained(loaded.model, str(folder), adapter_name, is_trainable=trainable)
    return model, LoadedCtc(loaded.model, processor, loaded.origin, loaded.name, info.new_head), info


def _any_vocabulary(info: CtcInfo) -> Any:
    """For a base that was only pretrained and has no alphabet: any, as the adapter's own takes its place."""
    from audiolora.speech.ctc.vocabulary import Vocabulary

    return Vocabulary(("a",)) if info.new_head else None


def _make_room(model: Any, processor: Any, size: int) -> None:
    """A head of the size that the adapter's own has; its weights come from the adapter's file."""
    from torch import nn

    name, old = head_of(model)
    if not isinstance(old, nn.Linear):
        raise ValueError(f"{type(model).__name__}: its {name} is no Linear, so that no new alphabet can be on it")
    setattr(model, name, nn.Linear(old.in_features, size, bias=old.bias is not None).to(old.weight))
    model.config.update({"vocab_size": size, "pad_token_id": processor.tokenizer.pad_token_id})
