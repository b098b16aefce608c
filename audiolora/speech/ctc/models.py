"""CTC models with their processors: from the Hugging Face hub, a local directory, or trained here from scratch.

A model of the wav2vec2 family comes with an alphabet (``facebook/wav2vec2-base-960h``) or without one, where it was
only pretrained (``facebook/wav2vec2-base``): then it gets a head for an alphabet of the user's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiolora.packages import Log
from audiolora.speech.ctc.heads import head_of, put_new_head
from audiolora.speech.ctc.scratch import NAME as SCRATCH
from audiolora.speech.ctc.scratch import load_scratch
from audiolora.speech.ctc.vocabulary import Vocabulary, make_tokenizer
from audiolora.speech.whisper.openai_format import WeightsError
from audiolora.speech.whisper.weights import hub_obstacle

FAMILIES = {
    "wav2vec2": "Wav2Vec2ForCTC",
    "hubert": "HubertForCTC",
    "wavlm": "WavLMForCTC",
    "data2vec-audio": "Data2VecAudioForCTC",
    "sew": "SEWForCTC",
    "sew-d": "SEWDForCTC",
    "unispeech": "UniSpeechForCTC",
    "unispeech-sat": "UniSpeechSatForCTC",
    "wav2vec2-conformer": "Wav2Vec2ConformerForCTC",
    "wav2vec2-bert": "Wav2Vec2BertForCTC",
    "parakeet_ctc": "ParakeetForCTC",
}
"""transformers' ``config.model_type`` → the class with a CTC head."""

# Random in many published models, since only SpecAugment reads it: facebook/wav2vec2-base-960h has none.
_MAY_BE_MISSING = re.compile(r"(^|\.)masked_spec_embed$")


@dataclass(frozen=True)
class LoadedCtc:
    """A CTC model ready for use.

    Attributes:
        model: one of `FAMILIES`, float32 weights, in eval mode, on the CPU.
        processor: its feature extractor and tokenizer.
        origin: one sentence that says where the weights came from.
        name: the name or path that was asked for.
        new_head: its head is new, for a new alphabet, and has to be trained.
    """

    model: Any
    processor: Any
    origin: str
    name: str
    new_head: bool = False


def load_ctc(
    name_or_path: str | Path,
    *,
    vocabulary: Vocabulary | None = None,
    replace: bool = False,
    keep_shared: bool = True,
    log: Log = print,
) -> LoadedCtc:
    """Load a CTC model with its processor.

    Args:
        name_or_path: a hub name (``facebook/wav2vec2-base-960h``), a local directory in the transformers format, or
            ``scratch:spoken-digits``, a small one that is trained here. Offline, a hub name is read from the local hub
            cache.
        vocabulary: the alphabet for a model that has none: it gets a new head, seeded by torch's generator.
        replace: put a new head for ``vocabulary`` on a model that has an alphabet, too.
        keep_shared: the new head's rows of letters that both alphabets have, and of blank and delimiter, are the old
            head's, upper and lower case alike; else all rows are new.
        log: called with a sentence for each thing worth knowing.

    Returns:
        Model (float32, eval mode), processor, and where they came from.

    Raises:
        WeightsError: there is no such model, it is damaged or of another kind, has no alphabet and none is given, or
            cannot be had offline.
        ValueError: ``replace`` without a vocabulary.

    Example:
        >>> loaded = load_ctc("facebook/wav2vec2-base-960h")  # doctest: +SKIP
        >>> loaded.processor.tokenizer("HELLO").input_ids  # doctest: +SKIP
        [11, 5, 15, 15, 8]
    """
    if replace and vocabulary is None:
        raise ValueError("replace=True puts a new head on the model; give the vocabulary that it is for")
    name = str(name_or_path)
    path = Path(name).expanduser()
    if name == SCRATCH:
        loaded = load_scratch(log=log)
    elif path.is_dir():
        loaded = _load(path, name, f"the local directory {path}", vocabulary)
    elif path.exists() or isinstance(name_or_path, Path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise WeightsError(
            f"{name}: no directory, and no hub name either; give a directory in the transformers format, a name such "
            f"as facebook/wav2vec2-base-960h, or {SCRATCH}"
        )
    else:
        loaded = _load_hub(name, vocabulary)
    if vocabulary is None or not (replace or loaded.new_head):
        return loaded
    try:
        kept = put_new_head(loaded.model, loaded.processor, vocabulary, keep_shared=keep_shared and not loaded.new_head)
    except ValueError as error:
        raise WeightsError(f"{name}: {error}") from error
    log(f"{name}: a new head for {len(vocabulary.letters)} letters; {len(kept)} of its rows are the old head's")
    return LoadedCtc(loaded.model, loaded.processor, loaded.origin, name, new_head=True)


def _load_hub(name: str, vocabulary: Vocabulary | None) -> LoadedCtc:
    obstacle = hub_obstacle()
    if obstacle is None:
        return _load(name, name, "the Hugging Face hub", vocabulary)
    try:
        # Without local_files_only each missing file is asked for with five retries: minutes, where there is no network.
        return _load(name, name, f"the local Hugging Face cache ({obstacle})", vocabulary, local_files_only=True)
    except WeightsError as error:
        if not isinstance(error.__cause__, OSError):  # it is there, but not what it should be
            raise
    raise WeightsError(
        f"{name}: {obstacle}, and the model is not in the local Hugging Face cache. Connect to the hub (and unset "
        f"HF_HUB_OFFLINE), or give a local directory; {SCRATCH}, a small model trained here, needs no hub"
    )


def _load(
    source: str | Path, name: str, origin: str, vocabulary: Vocabulary | None, *, local_files_only: bool | None = None
) -> LoadedCtc:
    """`from_pretrained` on a directory or hub name; what it raises becomes a WeightsError with its cause."""
    from safetensors import SafetensorError

    if isinstance(source, Path):
        local_files_only = True
        _check_directory(source)
    try:
        return _from_pretrained(source, name, origin, vocabulary, {"local_files_only": bool(local_files_only)})
    except WeightsError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(
            f"{name} could not be loaded from {origin}: {type(error).__name__}: {str(error).strip()[:500]}"
        ) from error


def _check_directory(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    adapter = any((place / "adapter_config.json").is_file() for place in (folder, folder / "adapter"))
    raise WeightsError(
        f"{folder}: this is an adapter, not a model; give the model it was trained on"
        if adapter
        else f"{folder}: no config.json in this directory; give one that save_pretrained wrote"
    )


def _from_pretrained(
    source: str | Path, name: str, origin: str, vocabulary: Vocabulary | None, options: dict[str, Any]
) -> LoadedCtc:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, **options)
    kind = FAMILIES.get(config.model_type)
    if kind is None:
        raise WeightsError(_another_kind(name, config.model_type))
    extractor = transformers.AutoFeatureExtractor.from_pretrained(source, **options)
    tokenizer = _tokenizer(source, options)
    if getattr(config, "vocab_size", 1) is None:  # Wav2Vec2-BERT as pretrained
        config.vocab_size = len(vocabulary.tokens) if vocabulary else 1
    with _quiet():
        model, report = getattr(transformers, kind).from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, **options
        )
    headless = _check_weights(name, model, report)
    if headless or tokenizer is None:
        if vocabulary is None:
            raise WeightsError(_no_alphabet(name, headless, tokenizer))
        tokenizer, headless = make_tokenizer(vocabulary), True
    else:
        _check_tokenizer(name, model, tokenizer)
    return LoadedCtc(model.eval(), _processor(kind, extractor, tokenizer), origin, name, new_head=headless)


def _another_kind(name: str, model_type: str) -> str:
    instead = "; recipes/asr_whisper.py adapts it" if model_type == "whisper" else ""
    return f"{name}: a model of type {model_type!r}, which has no CTC head{instead}; give one of {', '.join(FAMILIES)}"


def _no_alphabet(name: str, headless: bool, tokenizer: Any) -> str:
    lacks = " and ".join(
        [*(["no CTC head (it is only pretrained)"] * headless), *(["no tokenizer"] * (tokenizer is None))]
    )
    return f"{name}: {lacks}, so it writes no letters yet; give it an alphabet, built from your transcripts"


def _tokenizer(source: str | Path, options: dict[str, Any]) -> Any:
    """The model's tokenizer, or None where there is none."""
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    files = ("vocab.json", "tokenizer.json", "tokenizer_config.json")
    how = {**options, "_raise_exceptions_for_missing_entries": False}
    if all(cached_file(str(source), file, **how) is None for file in files[:2]):
        return None
    return AutoTokenizer.from_pretrained(source, **options)


def _check_weights(name: str, model: Any, report: dict[str, Any]) -> bool:
    """Whether the weights have no CTC head.

    Raises:
        WeightsError: they lack something else, or are of other sizes.
    """
    missing = {key for key in report["missing_keys"] if not _MAY_BE_MISSING.search(key)}
    head = {key for key in missing if key.startswith(head_of(model)[0] + ".")}
    if other := sorted(missing - head):
        raise WeightsError(f"{name}: the weights lack {len(other)} tensors, such as {other[0]}; fetch them again")
    if mismatched := report["mismatched_keys"]:
        raise WeightsError(f"{name}: weights of other sizes than its config says: {sorted(mismatched)[0]}")
    return bool(head)


def _check_tokenizer(name: str, model: Any, tokenizer: Any) -> None:
    """Nothing if the tokenizer writes this model's outputs: no token beyond them, and the same blank."""
    encoder = getattr(tokenizer, "encoder", None) or tokenizer.get_vocab()
    size, blank = model.config.vocab_size, model.config.pad_token_id
    if above := [token for token, i in encoder.items() if i >= size]:
        raise WeightsError(
            f"{name}: the tokenizer is another model's: {', '.join(map(repr, above[:5]))} would be output {size} or "
            f"above, and the model has {size} outputs; put the model's own tokenizer beside it"
        )
    if tokenizer.pad_token_id != blank:
        raise WeightsError(
            f"{name}: the model's blank is output {blank} (config.pad_token_id), and the tokenizer's pad token "
            f"{tokenizer.pad_token!r} is {tokenizer.pad_token_id}; set one to the other, as the model was trained"
        )


def _processor(kind: str, extractor: Any, tokenizer: Any) -> Any:
    """The two halves as one; AutoProcessor would want pyctcdecode where a language model lies beside the model."""
    import transformers

    named = {"Wav2Vec2BertForCTC": "Wav2Vec2BertProcessor", "ParakeetForCTC": "ParakeetProcessor"}
    processor_kind = getattr(transformers, named.get(kind, "Wav2Vec2Processor"))
    return processor_kind(feature_extractor=extractor, tokenizer=tokenizer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of missing weights, which `_check_weights` judges."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
