"""Loading: every tensor that does not fit is named before any is loaded, and the model is as it was."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

import audiolora
from tests.untouched import adapted, refused, sample, tiny


def test_a_file_with_any_finite_alpha_loads(tmp_path: Path) -> None:
    """Subtracting an adapter by turning its alpha round is a function like any other, and PEFT loads it."""
    model = adapted(lora_alpha=4, target_modules=["conv1"])
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    for alpha, scaling in ((-4, -2), (0, 0)):
        path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": alpha}))
        with audiolora.enabled():
            loaded = PeftModel.from_pretrained(tiny(), tmp_path)
        assert loaded.base_model.model.encoder["conv1"].scaling["default"] == scaling
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": math.nan}))
    base = tiny()
    with audiolora.enabled():
        refused(
            base,
            lambda: PeftModel.from_pretrained(base, tmp_path),
            "encoder.conv1: alpha must be a finite number, got nan",
        )


def damaged(folder: Path) -> Path:
    """An adapter with one tensor of another shape, one cut short, one missing and one too many."""
    adapted(use_dora=True).save_pretrained(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    encoder = "base_model.model.encoder."
    tensors[f"{encoder}conv1.lora_A.weight"] = torch.zeros(2, 4, 5)
    tensors[f"{encoder}conv2.lora_B.weight"] = torch.zeros(4, 2, 1)
    del tensors[f"{encoder}conv3.lora_magnitude_vector"]
    tensors[f"{encoder}conv9.lora_A.weight"] = torch.zeros(2, 6, 3)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


MISFITS = (
    "does not fit this Tiny: 4 of its tensors differ",
    "encoder.conv1.lora_A.weight: the adapter has (2, 4, 5), the model needs (2, 4, 3)",
    "encoder.conv2.lora_B.weight: the adapter has (4, 2, 1), the model needs (6, 2, 1)",
    "encoder.conv3.lora_magnitude_vector.weight: the adapter has no such tensor, the model needs (1, 6, 1)",
    "encoder.conv9.lora_A.weight: the adapter has (2, 6, 3), the model has no such tensor",
    "load it over the base model it was trained on",
)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_from_pretrained_names_every_tensor_that_does_not_fit(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    base, folder = tiny(), damaged(tmp_path)
    with audiolora.enabled():
        said = refused(
            base, lambda: PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=low_cpu_mem_usage), *MISFITS
        )
    assert said.count("\n") == 4


def test_load_adapter_names_every_tensor_that_does_not_fit(tmp_path: Path) -> None:
    model = adapted(lora_bias=True)
    with audiolora.enabled():
        refused(model, lambda: model.load_adapter(damaged(tmp_path), "second"), *MISFITS, "'second'")
    adapted(use_dora=True).save_pretrained(tmp_path / "whole")
    with audiolora.enabled():
        model.load_adapter(tmp_path / "whole", "second")


def test_loading_over_an_adapter_that_is_there_keeps_it(tmp_path: Path) -> None:
    model = adapted(use_dora=True)
    with audiolora.enabled():
        refused(model, lambda: model.load_adapter(damaged(tmp_path), "default"), *MISFITS, "'default'")


def test_an_adapter_of_another_model_is_named(tmp_path: Path) -> None:
    adapted(target_modules=["conv1"]).save_pretrained(tmp_path)
    torch.manual_seed(0)
    base = tiny()
    base.encoder["conv1"] = nn.Conv1d(4, 6, 5, padding=2)
    with audiolora.enabled():
        said = refused(base, lambda: PeftModel.from_pretrained(base, tmp_path), "1 of its tensors")
    assert "encoder.conv1.lora_A.weight: the adapter has (2, 4, 3), the model needs (2, 4, 5)" in said


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_an_adapter_that_fits_loads_without_a_word(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = adapted(use_dora=True)
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(tiny(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(loaded(sample()), model(sample()).detach())
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
