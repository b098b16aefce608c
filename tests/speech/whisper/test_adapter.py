"""An adapter on disk: what is saved comes back, over the right base only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import audiolora
from audiolora.speech.whisper.adapter import (
    AdapterInfo,
    adapter_folder,
    fingerprint,
    load_adapted,
    read_info,
    save_adapter,
)
from audiolora.speech.whisper.context import audio_context
from audiolora.speech.whisper.weights import load_whisper
from tests.speech.tiny_whisper import tiny_whisper


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """Two Whispers of one shape, `a` and `b`."""
    folder = tmp_path_factory.mktemp("bases")
    tiny_whisper(folder / "a")
    tiny_whisper(folder / "b", seed=1)
    return folder


def trained(bases: Path, method: str = "lora") -> PeftModel:
    """An adapter with factors of a trained one's kind: none is zero."""
    torch.manual_seed(0)
    model = audiolora.adapt(load_whisper(bases / "a").model, method, r=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def info_of(bases: Path, **changes: Any) -> AdapterInfo:
    given = {"base_model": str(bases / "a"), "base_fingerprint": fingerprint(load_whisper(bases / "a").model)}
    return AdapterInfo(**{**given, "context": "auto", "language": None, **changes})


@pytest.fixture
def run(bases, tmp_path) -> Path:
    save_adapter(trained(bases), tmp_path / "run" / "adapter", info_of(bases), "# card")
    return tmp_path / "run"


def logits(model: torch.nn.Module) -> torch.Tensor:
    features = torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), audio_context(model, 100):
        return model.eval()(input_features=features, decoder_input_ids=torch.tensor([[5, 6, 7]] * 2)).logits


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_is_saved_comes_back_bit_for_bit(bases, tmp_path, method):
    model = trained(bases, method)
    expected = logits(model)
    save_adapter(model, tmp_path / "run" / "adapter", info_of(bases), "# card")
    loaded, _, info = load_adapted(tmp_path / "run")
    assert torch.equal(logits(loaded), expected) and info == info_of(bases)
    assert not torch.allclose(expected, logits(load_whisper(bases / "a").model), atol=1e-3)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert (tmp_path / "run" / "adapter" / "README.md").read_text() == "# card"
    trainable, _, _ = load_adapted(tmp_path / "run" / "adapter", trainable=True)
    assert {name.split(".")[-3] for name, p in trainable.named_parameters() if p.requires_grad} >= {"lora_A", "lora_B"}
    with audiolora.enabled():  # PEFT alone
        plain = PeftModel.from_pretrained(load_whisper(bases / "a").model, tmp_path / "run" / "adapter")
    assert torch.equal(logits(plain), expected)


def test_an_adapter_of_another_model_is_refused(run, bases):
    theirs = fingerprint(load_whisper(bases / "b").model)
    with pytest.raises(ValueError, match=rf"trained over .*/a \(fingerprint .*\(fingerprint {theirs[:12]}\).*--base"):
        load_adapted(run, base=str(bases / "b"))


def test_the_base_may_lie_elsewhere(run, bases, tmp_path):
    moved = shutil.copytree(bases / "a", tmp_path / "moved")
    model, whisper, _ = load_adapted(run, base=str(moved))
    assert whisper.name == str(moved)
    assert torch.equal(logits(model), logits(trained(bases)))


def test_the_fingerprint_tells_models_apart_and_survives_merging(bases):
    a, b = (fingerprint(load_whisper(bases / name).model) for name in "ab")
    assert a != b and len(a) == 64 and int(a, 16) >= 0
    model = trained(bases)
    model.merge_adapter()
    assert fingerprint(model.get_base_model()) != a
    model.unmerge_adapter()
    assert fingerprint(model.unload()) == a


def test_saving_replaces_the_folder_whole(run, bases, monkeypatch):
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    (run / "adapter" / "stale").touch()
    (run / ".adapter.new").mkdir()  # of an interrupted save
    (run / ".adapter.new" / "junk").touch()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("audiolora.speech.whisper.adapter.write_json", full)
        with pytest.raises(OSError, match="No space left"):
            save_adapter(trained(bases, "dora"), run / "adapter", info_of(bases), "# other")
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert (run / "adapter" / "README.md").read_text() == "# card"
    save_adapter(trained(bases, "dora"), run / "adapter", info_of(bases), "# other")
    assert [path.name for path in run.iterdir()] == ["adapter"]
    assert not {"stale", "junk"} & {path.name for path in (run / "adapter").iterdir()}


def test_peft_is_told_the_base(run, bases):
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bases / "a") and config["peft_type"] == "LORA"


def test_the_adapters_folder_is_found(run, tmp_path, bases):
    assert adapter_folder(run) == run / "adapter" == adapter_folder(run / "adapter")
    with pytest.raises(ValueError, match="holds no adapter of audiolora"):
        adapter_folder(tmp_path)
    with pytest.raises(ValueError, match="whole model and no adapter"):
        adapter_folder(bases / "a")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="a run that is not finished"):
        adapter_folder(tmp_path / "begun")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"base_model": "half', "not an adapter description"),
        ("[]", "not an adapter description"),
        ('{"base_model": "a"}', "not an adapter description.*missing"),
        ("FULL:format:2", "format 2, and this audiolora reads 1; upgrade"),
        ("FULL:surplus:1", "not an adapter description.*surplus"),
        ("FULL:context:short", "context must be 'auto' or 'full', got 'short'"),
    ],
)
def test_a_damaged_description(run, content, message):
    path = run / "adapter" / "audiolora.json"
    if content.startswith("FULL"):
        _, key, value = content.split(":")
        content = json.dumps({**json.loads(path.read_text()), key: int(value) if value.isdigit() else value})
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"audiolora.json: .*{message}"):
        read_info(run / "adapter")
