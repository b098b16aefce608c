"""Files between plain PEFT and audiolora: the same outputs where PEFT is right, a refusal where it is not.

The judge is PEFT itself: it is given our tensors without the key that refuses it, and its outputs are compared.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft.tuners.lora.layer as peft_layers
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from torch import nn
from transformers import HubertConfig, HubertModel

import audiolora
from audiolora.layers.interchange import PEFT_TYPE, WeightSpaceLoraConfig, mark
from audiolora.layers.lora import LoraConv1d
from audiolora.report.adapter_table import read_adapter
from tests.layers.convolutions import CELLS, METHODS, Convolution
from tests.layers.test_lora import config, row_named, trained

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor"),  # PEFT takes lora_B.bias for a factor
]


def saved(model: PeftModel, folder: Path) -> dict[str, Any]:
    model.save_pretrained(str(folder))
    return json.loads((folder / "adapter_config.json").read_text())


def without_refusal(folder: Path) -> Path:
    """A copy of the adapter as a file of PEFT's own."""
    plain = folder.with_name(folder.name + "_plain")
    shutil.copytree(folder, plain)
    settings = json.loads((plain / "adapter_config.json").read_text())
    settings.pop("audiolora", None)
    (plain / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "LORA"}))
    return plain


def silently(folder: Path, row: Convolution) -> PeftModel | None:
    """The adapter in plain PEFT, or None if it refused or warned."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for known in ("Using padding='same'", "LoRA adapter added to ConvNd", "Adapter 'default'. 1 LoRA tensor"):
                warnings.filterwarnings("ignore", message=known)
            return PeftModel.from_pretrained(row.model(), str(folder)).eval()
    except Exception:  # noqa: BLE001 - whatever it is, it is not silent
        return None


def peft_is_right(folder: Path, row: Convolution, expected: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether plain PEFT, told nothing, gives our outputs, unmerged and merged."""
    try:
        model = PeftModel.from_pretrained(row.model(), str(without_refusal(folder))).eval()
        unmerged = model(x)
        merged = model.merge_and_unload()(x)
    except Exception:  # noqa: BLE001 - a failure of any kind is no output
        return False
    return all(y.shape == expected.shape and torch.allclose(y, expected, 1e-9, 1e-10) for y in (unmerged, merged))


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
@pytest.mark.parametrize("row, method", CELLS)
def test_plain_peft_gives_our_outputs_or_refuses(row: Convolution, method: str, tmp_path: Path) -> None:
    model, x = trained(row, method), row.input()
    if row.name == "unbatched":
        x = x[None]  # DoRA in PEFT takes batches alone, whatever the file
    expected, settings = model(x).detach(), saved(model, tmp_path / "ours")
    loaded = silently(tmp_path / "ours", row)
    if peft_is_right(tmp_path / "ours", row, expected, x):
        assert loaded is not None and isinstance(loaded.base_model.model.conv, peft_layers.Conv1d)
        torch.testing.assert_close(loaded(x), expected, rtol=1e-9, atol=1e-10)
        assert settings.keys() == LoraConfig().to_dict().keys() and settings["peft_type"] == "LORA"
    else:
        assert loaded is None
        assert list(settings["audiolora"]["weight_space"]) == ["conv"]
        with pytest.raises(KeyError, match=PEFT_TYPE):
            PeftModel.from_pretrained(row.model(), str(tmp_path / "ours"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["plain", "k=1", "stride 2", "even kernel, padding same", "causal subclass"])
def test_plain_peft_s_file_means_the_same_here(name: str, method: str, tmp_path: Path) -> None:
    row = row_named(name)
    model = get_peft_model(row.model(), config(row, method)).eval()
    assert isinstance(model.base_model.model.conv, peft_layers.Conv1d)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
    settings = saved(model, tmp_path / "theirs")
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(row.model(), str(tmp_path / "theirs")).eval()
    assert isinstance(loaded.base_model.model.conv, LoraConv1d)
    torch.testing.assert_close(loaded(row.input()), model(row.input()), rtol=1e-9, atol=1e-10)
    assert saved(loaded, tmp_path / "ours") == settings


def dilated(method: str = "lora") -> PeftModel:
    return trained(row_named("dilation 2, padding same"), method)


LOADS: dict[str, Callable[[Path], Any]] = {
    "PeftConfig": lambda folder: PeftConfig.from_pretrained(folder),
    "LoraConfig": lambda folder: LoraConfig.from_pretrained(folder),
    "PeftModel": lambda folder: PeftModel.from_pretrained(row_named("dilation 2, padding same").model(), folder),
    "load_adapter": lambda folder: get_peft_model(
        nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"])
    ).load_adapter(folder, "second"),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_without_audiolora_every_way_of_loading_refuses(load: Callable[[Path], Any], tmp_path: Path) -> None:
    saved(dilated(), tmp_path)
    with pytest.raises(KeyError, match=PEFT_TYPE):
        load(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
def test_with_audiolora_every_way_of_loading_is_silent(method: str, tmp_path: Path) -> None:
    row = row_named("dilation 2, padding same")
    model = dilated(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = saved(model, tmp_path / "first")
    with audiolora.enabled():
        loaded_config = PeftConfig.from_pretrained(tmp_path / "first")
        assert isinstance(loaded_config, LoraConfig) and loaded_config.peft_type is PeftType.LORA
        assert LoraConfig.from_pretrained(tmp_path / "first") == loaded_config
        loaded = PeftModel.from_pretrained(row.model(), tmp_path / "first").eval()
        torch.testing.assert_close(loaded(row.input()), model(row.input()), rtol=1e-9, atol=1e-10)
        loaded.load_adapter(tmp_path / "first", "again")
        assert PeftModel.from_pretrained(row.model(), tmp_path / "first", config=loaded_config).active_adapter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert saved(loaded, tmp_path / "second") == settings
    again = json.loads((tmp_path / "second" / "again" / "adapter_config.json").read_text())
    assert again["audiolora"] == settings["audiolora"] and again["peft_type"] == PEFT_TYPE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["causal subclass", "transposing subclass", "causal with a cache key"])
def test_loading_on_empty_weights_changes_no_verdict(name: str, method: str, tmp_path: Path) -> None:
    """There PEFT's factors are made on ``meta``, also those of the probe."""
    model = trained(row_named(name), method)
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(row_named(name).model(), tmp_path, low_cpu_mem_usage=True)
    assert type(loaded.peft_config["default"]) is type(model.peft_config["default"])


def hubert() -> HubertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    conv = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    return HubertModel(HubertConfig(**sizes, **positions, **conv)).eval()


def test_transformers_own_loading(tmp_path: Path) -> None:
    x = torch.randn(1, 800)
    with audiolora.enabled():
        model = get_peft_model(hubert(), LoraConfig(r=2, target_modules=["conv", "q_proj"])).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        said = saved(model, tmp_path / "one")["audiolora"]["weight_space"]
        loaded = hubert()
        loaded.load_adapter(str(tmp_path / "one"))
        torch.testing.assert_close(loaded(x).last_hidden_state, model(x).last_hidden_state)
        loaded.save_pretrained(tmp_path / "two")
    assert list(said) == ["encoder.pos_conv_embed.conv"], "the other convolutions are ordinary"
    again = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    assert again["peft_type"] == PEFT_TYPE and again["audiolora"]["weight_space"] == said
    with pytest.raises(KeyError, match=PEFT_TYPE):
        hubert().load_adapter(str(tmp_path / "one"))


def test_our_own_reader_knows_both_types(tmp_path: Path) -> None:
    saved(dilated("dora"), tmp_path)
    read = read_adapter(tmp_path)
    assert read.method == "DoRA" and [weight.module for weight in read.weights] == ["conv"]


def test_the_file_says_which_modules_and_why(tmp_path: Path) -> None:
    said = saved(dilated(), tmp_path)["audiolora"]
    assert said == {
        "version": 1,
        "weight_space": {"conv": "dilation=2, which the factor A of PEFT does not have"},
    }


def test_adapt_marks_the_modules_by_their_whole_names(tmp_path: Path) -> None:
    net = nn.ModuleDict({"encoder": nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3, groups=2))})
    said = saved(audiolora.adapt(net, targets="conv", r=2), tmp_path)["audiolora"]["weight_space"]
    assert said == {"encoder.1": "groups=2, which share the factor A here"}


def test_an_adapter_added_while_disabled_is_marked_too(tmp_path: Path) -> None:
    model = dilated()
    model.add_adapter("second", config(row_named("dilation 2, padding same"), "dora"))
    saved(model, tmp_path)
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["peft_type"] == PEFT_TYPE


def test_a_weighted_sum_of_adapters_is_marked(tmp_path: Path) -> None:
    model = dilated()
    model.add_adapter("second", config(row_named("dilation 2, padding same"), "lora"))
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "both", combination_type="cat")
    saved(model, tmp_path)
    assert json.loads((tmp_path / "both" / "adapter_config.json").read_text())["peft_type"] == PEFT_TYPE


def test_the_marked_config_is_an_ordinary_lora_config() -> None:
    marked = dilated().peft_config["default"]
    assert isinstance(marked, LoraConfig) and type(marked) is WeightSpaceLoraConfig
    assert marked.peft_type is PeftType.LORA
    for copied in (copy.copy(marked), copy.deepcopy(marked), replace(marked)):
        assert copied == marked and copied.to_dict() == marked.to_dict()
    assert replace(marked, r=9).r == 9
    assert repr(marked).startswith("WeightSpaceLoraConfig(") and "dilation=2" in repr(marked)


def test_an_ordinary_convolution_leaves_the_config_alone(tmp_path: Path) -> None:
    """Also one whose file says otherwise: the file was written over another model."""
    saved(dilated(), tmp_path / "dilated")
    row = row_named("plain")
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(row.model(), str(tmp_path / "dilated"))
        given = config(row, "lora")
        adapted = get_peft_model(row.model(), given)
    assert loaded(row.input()).shape == row.model()(row.input()).shape
    assert saved(loaded, tmp_path / "again")["peft_type"] == PEFT_TYPE, "what a file says stays"
    assert adapted.peft_config["default"] is given and type(given) is LoraConfig


def test_a_config_class_of_someone_else_is_refused_where_it_cannot_be_marked() -> None:
    class TheirConfig(LoraConfig):
        pass

    theirs = TheirConfig()
    mark(theirs, "conv", nn.Conv1d(4, 4, 3))
    with pytest.raises(TypeError, match="conv: plain PEFT would.*dilation=2.*TheirConfig.*use a peft.LoraConfig"):
        mark(theirs, "conv", nn.Conv1d(4, 4, 3, dilation=2))


def test_disable_forgets_the_type() -> None:
    assert PEFT_TYPE not in PEFT_TYPE_TO_CONFIG_MAPPING
    with audiolora.enabled():
        assert PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] is WeightSpaceLoraConfig
    assert PEFT_TYPE not in PEFT_TYPE_TO_CONFIG_MAPPING
