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
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from torch import nn

import audiolora
from audiolora.layers.interchange import PEFT_TYPE, WeightSpaceLoraConfig, mark
from audiolora.layers.lora import LoraConv1d
from audiolora.layers.plain_peft import why_plain_peft_differs
from tests.layers.convolutions import CELLS, METHODS, Causal, Convolution, Net, Transposing, weight_norm
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


def test_both_verdicts_occur() -> None:
    """The table above would hold if everything were refused."""
    by_method = {"dora": LoraConfig(use_dora=True), "lora": LoraConfig()}
    agree = {
        (row.name, method)
        for row, method in (cell.values for cell in CELLS)
        if method in by_method and why_plain_peft_differs(row.model().conv, by_method[method]) is None
    }
    for name in ("plain", "k=1", "stride 2", "even kernel, padding same", "causal subclass"):
        assert (name, "lora") in agree and (name, "dora") in agree
    assert ("transposing subclass", "lora") in agree and ("transposing subclass", "dora") not in agree
    for name in ("circular", "groups 2", "weight_norm dim 0", "derived weight", "dilation 2, padding same"):
        assert (name, "lora") not in agree


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


def test_the_file_says_which_modules_and_why(tmp_path: Path) -> None:
    said = saved(dilated(), tmp_path)["audiolora"]
    assert said == {
        "version": audiolora.__version__,
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


class Scaled(nn.Conv1d):
    """Not linear in what PEFT adds to."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.tanh(super().forward(input))


class PadsToFour(nn.Conv1d):
    """Depends on the length alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(input, (0, -input.shape[-1] % 4)))


class Renamed(nn.Conv1d):
    """Adds nothing."""


def hooked(conv: nn.Conv1d) -> nn.Conv1d:
    conv.register_forward_pre_hook(lambda module, args: (F.pad(args[0], (1, 1)),))
    return conv


def replaced(conv: nn.Conv1d) -> nn.Conv1d:
    conv.forward = lambda x: nn.Conv1d.forward(conv, F.pad(x, (1, 1)))  # type: ignore[method-assign]
    return conv


def on_a_device(conv: nn.Conv1d) -> nn.Conv1d:
    """As accelerate leaves a module that it dispatched."""
    return add_hook_to_module(conv, AlignDevicesHook(io_same_device=True))


VERDICTS: list[tuple[str, Callable[[], nn.Module], str | None]] = [
    ("k=1 with dilation", lambda: nn.Conv1d(4, 6, 1, dilation=3), None),
    ("k=1, same, reflect", lambda: nn.Conv1d(4, 6, 1, padding="same", padding_mode="reflect"), None),
    ("reflect without padding", lambda: nn.Conv1d(4, 6, 3, padding_mode="reflect"), None),
    ("reflect, same", lambda: nn.Conv1d(4, 6, 3, padding="same", padding_mode="reflect"), "padding_mode='reflect'"),
    ("one channel", lambda: nn.Conv1d(1, 1, 3, groups=1), None),
    ("transposed", lambda: nn.ConvTranspose1d(4, 6, 3), "PEFT adapts no ConvTranspose1d"),
    ("weight norm", lambda: weight_norm(nn.Conv1d(4, 6, 3)), r"computed \(WeightNorm\), and a merge"),
    ("hooked", lambda: hooked(nn.Conv1d(4, 6, 3)), "forward hooks are not run"),
    ("replaced forward", lambda: replaced(nn.Conv1d(4, 6, 3)), "forward was replaced"),
    ("accelerate's forward", lambda: on_a_device(nn.Conv1d(4, 6, 3)), None),
    ("subclass that adds nothing", lambda: Renamed(4, 6, 3, padding=1), None),
    ("subclass, tanh", lambda: Scaled(4, 6, 3), "on Scaled is another function"),
    ("subclass, pads by length", lambda: PadsToFour(4, 6, 3), "fails on PadsToFour|on PadsToFour is another"),
    ("causal, on meta", lambda: Causal(4, 6, 3, device="meta"), None),
    ("causal, float16", lambda: Causal(4, 6, 3, dtype=torch.float16), None),
    ("transposing, as many channels as samples", lambda: Transposing(14, 14, 4), "another function|fails"),
]


@pytest.mark.parametrize("build, reason", [v[1:] for v in VERDICTS], ids=[v[0] for v in VERDICTS])
def test_the_verdict_on_a_module(build: Callable[[], nn.Module], reason: str | None) -> None:
    module = build()
    state = torch.get_rng_state()
    tensors = {key: (id(value), value._version) for key, value in module.named_parameters()}
    why = why_plain_peft_differs(module, LoraConfig(use_dora=True))
    if reason is None:
        assert why is None
    else:
        assert why is not None
        with pytest.raises(ValueError, match=reason):
            raise ValueError(why)
    assert torch.equal(torch.get_rng_state(), state), "a probe draws from nobody's random state"
    assert {key: (id(value), value._version) for key, value in module.named_parameters()} == tensors


def test_the_verdict_is_the_same_once_our_map_is_on() -> None:
    for row, method in (cell.values for cell in CELLS):
        settings = config(row, method)
        before = why_plain_peft_differs(row.model().conv, settings)
        layer = trained(row, method).base_model.model.conv
        assert (why_plain_peft_differs(layer.get_base_layer(), settings) is None) is (before is None), row.name


def test_a_streaming_convolution_keeps_its_memory() -> None:
    class Streaming(nn.Conv1d):
        seen: torch.Tensor | None = None

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            past = input.new_zeros(*input.shape[:2], 2) if self.seen is None else self.seen
            self.seen = input[..., -2:]
            return super().forward(torch.cat([past, input], -1))

    conv = Streaming(4, 6, 3).double()
    conv.seen = torch.ones(1, 4, 2, dtype=torch.float64)
    memory = conv.seen.clone()
    model = Net(conv, {}).eval()
    with audiolora.enabled():
        get_peft_model(model, LoraConfig(r=2, target_modules=["conv"]))
    assert torch.equal(conv.seen, memory)
