"""A base in 8 or 4 bits: trained over, saved, loaded, merged and decoded as the same function."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import audiolora
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.whisper.adapter import AdapterInfo, fingerprint, load_adapted, read_info, save_adapter
from audiolora.speech.whisper.base_bits import quantize_base
from audiolora.speech.whisper.merging import merge_adapter
from audiolora.speech.whisper.weights import load_whisper
from tests.speech.tiny_training import Job, final, train, write_clips
from tests.speech.tiny_whisper import tiny_whisper
from tests.speech.together import run_together, train_as
from tests.speech.training.test_global_batch import assert_same_training

SETTINGS = TrainingSettings(epochs=2, batch_size=4, learning_rate=3e-3)


@pytest.fixture(scope="module", params=[8, pytest.param(4, marks=pytest.mark.slow)])
def job(request, tmp_path_factory) -> Job:
    root = tmp_path_factory.mktemp("bits")
    tiny_whisper(root / "whisper")
    return Job(root / "whisper", write_clips(root / "clips", 10), root / "run", SETTINGS, base_bits=request.param)


def inputs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {"input_features": torch.randn(2, 80, 3000), "decoder_input_ids": torch.randint(0, 300, (2, 5))}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs(model)).logits


def test_saved_loaded_and_merged(job, tmp_path):
    whisper = load_whisper(job.whisper)
    plain = logits(whisper.model)
    float_fingerprint = fingerprint(whisper.model)
    quantize_base(whisper.model, job.base_bits)
    rounded = logits(whisper.model)
    # The rounded base, by hand: what dequantise makes of it is the same function, and another than the float one.
    assert not torch.equal(rounded, plain)
    info = AdapterInfo(str(job.whisper), fingerprint(whisper.model), "auto", None, job.base_bits)
    assert info.base_fingerprint != float_fingerprint
    model = audiolora.adapt(whisper.model, r=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    expected = logits(model)
    save_adapter(model, tmp_path / "adapter", info, "# tiny\n")
    assert read_info(tmp_path / "adapter") == info
    loaded, _, _ = load_adapted(tmp_path)
    torch.testing.assert_close(logits(loaded), expected, atol=0, rtol=0)
    merge_adapter(tmp_path, tmp_path / "merged")
    merged = load_whisper(tmp_path / "merged").model
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    assert all(parameter.dtype == torch.float32 for parameter in merged.parameters())


def test_another_base_is_told(job, tmp_path):
    """The float base is not the one it was trained over."""
    whisper = load_whisper(job.whisper)
    quantize_base(whisper.model, job.base_bits)
    info = AdapterInfo(str(job.whisper), fingerprint(whisper.model), "auto", None, job.base_bits)
    save_adapter(audiolora.adapt(whisper.model, r=2), tmp_path / "adapter", info, "# tiny\n")
    path = tmp_path / "adapter" / "audiolora.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_bits": 32}))
    with pytest.raises(ValueError, match="is another model"):
        load_adapted(tmp_path)


def test_an_adapter_of_before_there_was_a_choice(tmp_path):
    """Its audiolora.json says nothing about bits: the base is a float one."""
    told = {"base_model": "x", "base_fingerprint": "y", "context": "auto", "language": None, "format": 1}
    (tmp_path / "audiolora.json").write_text(json.dumps(told))
    assert read_info(tmp_path).base_bits == 32


def test_other_bits_are_refused(job):
    with pytest.raises(ValueError, match="base_bits must be 32, 8 or 4, got 16"):
        quantize_base(load_whisper(job.whisper).model, 16)
    with pytest.raises(ValueError, match="base_bits must be 32, 8 or 4, got 2"):
        AdapterInfo("x", "y", "auto", None, 2)


def test_it_trains_with_all_else(job, tmp_path):
    """Gradient checkpointing changes nothing over a quantised base either."""
    train(job)
    checkpointed = replace(job, folder=tmp_path / "run", settings=replace(SETTINGS, gradient_checkpointing=True))
    train(checkpointed)
    ours, theirs = final(checkpointed.folder), final(job.folder)
    assert len(theirs) > 0 and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_two_processes_over_a_quantised_base(job, tmp_path):
    reference = replace(job, folder=tmp_path / "reference")
    train(reference)
    both = replace(job, folder=tmp_path / "run", settings=replace(SETTINGS, batch_size=2))
    assert run_together(2, both, train_as) == [0, 0]
    assert_same_training(both, reference)
