"""LoRA and DoRA with Tucker factors: the contract of test_lora over every kind of convolution, and the counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.export.slots import copied, fold
from audiolora.fleet import Fleet
from audiolora.layers.interchange import WeightSpaceLoraConfig
from audiolora.layers.lora import LoraConv1d
from audiolora.report.adapter_table import read_adapter
from tests.layers.convolutions import CONVOLUTIONS, OF_THEIR_OWN, Convolution, base_weight
from tests.layers.test_lora import close, dense, randomise, row_named, same_tensors

ALPHA = 5
CELLS = [
    pytest.param(row, method, id=f"{row.name}-{method}")
    for row in (*CONVOLUTIONS, *OF_THEIR_OWN)
    for method in ("lora", "dora")
]

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def config(row: Convolution, method: str, **settings: Any) -> WeightSpaceLoraConfig:
    options = {"r": row.r, "lora_alpha": ALPHA, "target_modules": ["conv"], "use_dora": method == "dora", **settings}
    return WeightSpaceLoraConfig(**options, audiolora={"conv_factors": "tucker"})


def adapted(row: Convolution, method: str) -> PeftModel:
    with audiolora.enabled():
        return get_peft_model(row.model(), config(row, method)).eval()


def factors_of(model: PeftModel, adapter: str = "default") -> dict[str, torch.Tensor]:
    keys = {"lora_A": "U", "lora_core": "core", "lora_B": "B", "lora_magnitude_vector": "m"}
    named = model.base_model.model.conv.named_parameters()
    return {
        keys[name.split(".")[0]]: p.detach().clone().requires_grad_() for name, p in named if f".{adapter}." in name
    }


def reference(row: Convolution, x: torch.Tensor, factors: dict[str, torch.Tensor], method: str) -> torch.Tensor:
    if "core" in factors:
        A = torch.einsum("rqk,qc->rck", factors["core"], factors["U"][:, :, 0])
    else:  # k = 1
        A = factors["U"]
    conv = row.model().conv
    parts = {"A": A, "B": factors["B"]} | ({"m": factors["m"]} if "m" in factors else {})
    W, b = dense(row, base_weight(conv), conv.bias, parts, method)
    return F.leaky_relu(row.reference(x, W, b), 0.1)


@pytest.mark.parametrize("row, method", CELLS)
def test_the_contract(row: Convolution, method: str, tmp_path: Path) -> None:
    model, x, base = adapted(row, method), row.input(), row.model()
    torch.testing.assert_close(model(x), base(x), rtol=1e-12, atol=1e-12)
    randomise(model)
    factors = factors_of(model)
    assert ("core" in factors) == (base_weight(row.build()).shape[2] > 1)
    expected = reference(row, x, factors, method)
    y = model.train()(x)
    close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    layer = model.base_model.model.conv
    close(layer.lora_A["default"].weight.grad, factors["U"].grad)
    close(layer.lora_B["default"].weight.grad, factors["B"].grad)
    if "core" in factors:
        close(layer.lora_core["default"].weight.grad, factors["core"].grad)
    if method == "dora":
        close(layer.lora_magnitude_vector["default"].weight.grad, factors["m"].grad)

    y = model.eval()(x).detach()
    model.save_pretrained(str(tmp_path))
    with pytest.raises(KeyError, match="AUDIOLORA_LORA"):
        PeftModel.from_pretrained(row.model(), str(tmp_path))
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(row.model(), str(tmp_path), low_cpu_mem_usage=True).eval()
    same_tensors(loaded, model)
    close(loaded(x), y)
    with model.disable_adapter():
        assert torch.equal(model(x), base(x))
    model.merge_adapter()
    close(model(x), y)
    model.unmerge_adapter()
    assert torch.equal(model(x), y)
    base.load_state_dict(model.merge_and_unload().state_dict())
    close(base(x), y)


def test_parameters_of_large_kernels() -> None:
    """wav2vec2's positions, and ModernTCN's depthwise kernel, where there is nothing to save."""
    net = nn.ModuleDict({"positions": nn.Conv1d(768, 768, 128, groups=16), "tcn": nn.Conv1d(64, 64, 51, groups=64)})

    def counts(**settings: Any) -> dict[str, int]:
        model = audiolora.adapt(net, r=8, targets=["positions", "tcn"], **settings)
        rows = {row.name: row for row in audiolora.inspect(model).rows}
        model.unload()
        return {name: row.parameters for name, row in rows.items()}

    assert counts() == {"positions": 8 * 48 * 128 + 768 * 8, "tcn": 8 * 51 + 64 * 8}
    assert counts(conv_factors="tucker") == {
        "positions": 8 * 48 + 8 * 8 * 128 + 768 * 8,
        "tcn": 1 + 8 * 51 + 64 * 8,  # one input a group: the core alone
    }


def test_the_start_spreads_as_lora_s() -> None:
    torch.manual_seed(0)
    model = audiolora.adapt(nn.Sequential(nn.Conv1d(256, 32, 64)), r=16, targets="conv", conv_factors="tucker")
    found = model.base_model.model[0].term("default").A.std()
    start = nn.init.kaiming_uniform_(torch.empty(16, 256, 64), a=5**0.5).std()
    torch.testing.assert_close(found, start, rtol=0.05, atol=0)


def test_it_says_so_in_its_file_and_its_table(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv1d(12, 16, 9), nn.Linear(4, 4))
    model = audiolora.adapt(net, r=3, targets=["0", "1"], conv_factors="tucker")
    assert [row.method for row in audiolora.inspect(model).rows] == ["LoRA, Tucker", "LoRA (PEFT)"]
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())["audiolora"]
    assert said["conv_factors"] == "tucker" and list(said["weight_space"]) == ["0"]
    weights = read_adapter(tmp_path).weights
    assert [(weight.weight_shape, weight.r) for weight in weights] == [((16, 12, 9), 3), ((4, 4), 3)]


def test_exported_as_lora_is() -> None:
    model = adapted(row_named("groups 2"), "lora")
    randomise(model)
    found = fold(copied(model), "default")["conv.weight"]
    term = model.base_model.model.conv.term("default")
    torch.testing.assert_close(found.B @ found.A, (term.B @ term.A.flatten(1) * term.scaling).detach().float())


def test_a_mixed_batch_takes_both_forms() -> None:
    row = row_named("stride 2")
    model = adapted(row, "lora")
    randomise(model)
    model.add_adapter("plain", LoraConfig(r=2, target_modules=["conv"], init_lora_weights=False))
    x = row.input()
    y = model(x, adapter_names=["default", "plain"])
    for i, name in enumerate(["default", "plain"]):
        model.set_adapter(name)
        close(y[i], model(x)[i])


def test_what_has_no_form_for_them_says_so() -> None:
    row = row_named("plain")
    with pytest.raises(ValueError, match=r"conv_factors must be one of \('shared', 'tucker'\), got 'cp'"):
        audiolora.adapt(row.model(), conv_factors="cp")
    with pytest.raises(ValueError, match="conv_factors='tucker' is LoRA's; for loha .*use_effective_conv2d=True"):
        audiolora.adapt(row.model(), "loha", conv_factors="tucker")
    with audiolora.enabled(), pytest.raises(ValueError, match="conv: init_lora_weights='gaussian' is not defined for"):
        get_peft_model(row.model(), config(row, "lora", init_lora_weights="gaussian"))
    with pytest.raises(ValueError, match="conv: a fleet trains A and B, not Tucker factors"):
        Fleet(row.model(), config(row, "lora"), ids=["a", "b"])
    model = adapted(row, "lora")
    model.add_adapter("second", config(row, "lora"))
    assert isinstance(model.base_model.model.conv, LoraConv1d)
    with audiolora.enabled(), pytest.raises(ValueError, match="conv: adapters .* have Tucker factors"):
        model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
