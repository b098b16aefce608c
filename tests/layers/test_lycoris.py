"""The contract of LoHa and LoKr: every kind of convolution × every form of their factors, against the papers' formulas.

The formulas are written here with einsum and by index, in float64; the files are judged by plain PEFT.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoHaConfig, LoKrConfig, PeftConfig, PeftModel, get_peft_model

import audiolora
from audiolora.layers.lycoris import LycorisConv1d
from tests.layers.convolutions import CONVOLUTIONS, OF_THEIR_OWN, Convolution, base_weight
from tests.layers.test_lora import close, row_named, same_tensors

ALPHA = 6  # alpha / r is exact in float32, as PEFT has it

METHODS: dict[str, tuple[type[PeftConfig], dict[str, Any]]] = {
    "loha": (LoHaConfig, {}),
    "loha, Tucker": (LoHaConfig, {"use_effective_conv2d": True}),
    "lokr": (LoKrConfig, {"decompose_factor": 2}),
    "lokr, r=1": (LoKrConfig, {"r": 1, "decompose_both": True, "init_weights": "lycoris"}),
    "lokr, Tucker": (LoKrConfig, {"r": 1, "use_effective_conv2d": True, "decompose_factor": 1}),
}
CELLS = [
    pytest.param(row, method, id=f"{row.name}-{method}", marks=[pytest.mark.slow] if method == "lokr, Tucker" else [])
    for row in (*CONVOLUTIONS, *OF_THEIR_OWN)
    for method in METHODS
]

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def config(row: Convolution, method: str, **settings: Any) -> PeftConfig:
    kind, options = METHODS[method]
    return kind(**{"r": row.r, "alpha": ALPHA, "target_modules": ["conv"], **options, **settings})


def adapted(row: Convolution, method: str, **settings: Any) -> PeftModel:
    with audiolora.enabled():
        return get_peft_model(row.model(), config(row, method, **settings)).eval()


def randomise(model: torch.nn.Module, adapter: str = "default", seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("." + adapter):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def trained(row: Convolution, method: str, **settings: Any) -> PeftModel:
    model = adapted(row, method, **settings)
    randomise(model)
    return model


def layer_of(model: PeftModel) -> LycorisConv1d:
    layer = model.base_model.model.conv
    assert isinstance(layer, LycorisConv1d)
    return layer


def factors_of(model: PeftModel, adapter: str = "default") -> dict[str, torch.Tensor]:
    """Leaves of their own: ``{"w1_a": …}``."""
    return {
        name.partition(".")[0].partition("_")[2]: p.detach().clone().requires_grad_()
        for name, p in layer_of(model).named_parameters()
        if name.endswith("." + adapter)
    }


def delta(row: Convolution, method: str, factors: dict[str, torch.Tensor]) -> torch.Tensor:
    """ΔW as the convolution stores it, by the formulas of the papers."""
    W = row.build().weight
    out = W.shape[0] if row.transposed_groups is None else W.shape[1] * row.transposed_groups
    shape = (out, row.in_per_group, W.shape[2])

    def low_rank(i: int, core: str) -> torch.Tensor:
        a, b = factors[f"w{i}_a"], factors[f"w{i}_b"]
        if core in factors:
            return torch.einsum("ijt,io,jc->oct", factors[core][..., 0], a, b)
        return torch.einsum("or,rc->oc", a, b)

    if method.startswith("loha"):
        kernel = low_rank(1, "t1").view(shape) * low_rank(2, "t2").view(shape)
    else:
        w1 = factors["w1"] if "w1" in factors else low_rank(1, "t1")
        if "w2" in factors:
            kernel = torch.einsum("ps,iqt->ipqst", w1, factors["w2"]).reshape(shape)
        else:
            w2 = low_rank(2, "t2")
            kernel = torch.einsum("ps,iqt->pisqt", w1, w2.view(len(w2), -1, shape[2])).reshape(shape)
    return row.stored(ALPHA / METHODS[method][1].get("r", row.r) * kernel)


def reference(row: Convolution, method: str, x: torch.Tensor, *adapters: dict[str, torch.Tensor]) -> torch.Tensor:
    conv = row.model().conv
    W = base_weight(conv)
    for factors in adapters:
        W = W + delta(row, method, factors)
    return F.leaky_relu(row.reference(x, W, conv.bias), 0.1)


@pytest.mark.parametrize("row, method", CELLS)
def test_starts_as_the_base_and_unloads_to_it(row: Convolution, method: str) -> None:
    model, x, base = adapted(row, method), row.input(), row.model()
    torch.testing.assert_close(model(x), base(x), rtol=1e-12, atol=1e-12)
    randomise(model)
    layer = layer_of(model)
    assert not torch.allclose(layer.weight, layer.base_tensor())
    model(x)
    plain = model.unload()
    assert type(plain.conv).__qualname__ == type(base.conv).__qualname__
    same_tensors(plain, base)
    assert torch.equal(plain(x), base(x))


@pytest.mark.parametrize("row, method", CELLS)
def test_forward_and_gradients_are_those_of_the_dense_formula(row: Convolution, method: str) -> None:
    model = trained(row, method).train()
    factors = factors_of(model)
    x, x_dense = row.input().requires_grad_(), row.input().requires_grad_()
    y, y_dense = model(x), reference(row, method, x_dense, factors)
    close(y, y_dense)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y.backward(dy)
    y_dense.backward(dy)
    close(x.grad, x_dense.grad)
    trained_ones = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained_ones) == len(factors)
    for name, gradient in trained_ones.items():
        close(gradient, factors[name.split(".")[-2].partition("_")[2]].grad)


@pytest.mark.parametrize("row, method", CELLS)
def test_merge_unmerge_disable_and_merge_and_unload(row: Convolution, method: str) -> None:
    model, x, base = trained(row, method), row.input(), row.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        unmerged, plain = model(x), base(x)
        with model.disable_adapter():
            assert torch.equal(model(x), plain)
        model.merge_adapter()
        close(model(x), unmerged)
        model.unmerge_adapter()
        assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == []
        assert torch.equal(model(x), unmerged)
        merged = model.merge_and_unload()
        assert type(merged.conv).__qualname__ == type(base.conv).__qualname__
        base.load_state_dict(merged.state_dict())
        close(base(x), unmerged)


def in_plain_peft(row: Convolution, folder: Path, x: torch.Tensor) -> torch.Tensor | None:
    """Its outputs, unmerged and merged, from our tensors under its own type; None where it fails or they differ."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings.pop("audiolora", None)
    plain = folder / "plain"
    plain.mkdir()
    settings["peft_type"] = settings["peft_type"].removeprefix("AUDIOLORA_")
    (plain / "adapter_config.json").write_text(json.dumps(settings))
    (plain / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    try:
        model = PeftModel.from_pretrained(row.model(), str(plain)).eval()
        unmerged = model(x).detach()
        merged = model.merge_and_unload()(x).detach()
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return None
    return unmerged if unmerged.shape == merged.shape and torch.allclose(unmerged, merged, 1e-9, 1e-10) else None


@pytest.mark.parametrize("row, method", CELLS)
def test_saved_and_loaded_it_is_the_same_and_plain_peft_agrees_or_refuses(
    row: Convolution, method: str, tmp_path: Path
) -> None:
    model, x = trained(row, method), row.input()
    y = model(x).detach()
    model.save_pretrained(str(tmp_path))
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(row.model(), str(tmp_path)).eval()
    same_tensors(loaded, model)
    assert torch.equal(loaded(x), y)
    kind = METHODS[method][0]().peft_type.value
    theirs = in_plain_peft(row, tmp_path, x)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    if theirs is not None and theirs.shape == y.shape and torch.allclose(theirs, y, 1e-9, 1e-10):
        assert said["peft_type"] == kind and "audiolora" not in said
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Unexpected keyword")
            assert type(PeftConfig.from_pretrained(tmp_path)) is METHODS[method][0]
    else:
        assert list(said["audiolora"]["weight_space"]) == ["conv"]
        with pytest.raises(KeyError, match=f"AUDIOLORA_{kind}"):
            PeftModel.from_pretrained(row.model(), str(tmp_path))


@pytest.mark.parametrize("row, method", [cell for cell in CELLS if cell.values[1] in ("loha", "lokr, r=1")])
def test_two_adapters_one_at_a_time_and_both_at_once(row: Convolution, method: str) -> None:
    model, x = trained(row, method), row.input()
    first = model(x)
    model.add_adapter("second", config(row, method, init_weights=False))
    close(model(x), first)
    randomise(model, "second", seed=4)
    model.set_adapter("second")
    close(model(x), reference(row, method, x, factors_of(model, "second")))
    model.base_model.set_adapter(["default", "second"])
    both = reference(row, method, x, factors_of(model), factors_of(model, "second"))
    close(model(x), both)
    model.merge_adapter()
    close(model(x), both)
    model.unmerge_adapter()
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(model(x), first)


@pytest.mark.parametrize("row, method", CELLS)
def test_as_a_product_it_is_the_same_update(row: Convolution, method: str) -> None:
    model = trained(row, method)
    layer = layer_of(model)
    close(layer.get_delta_weight("default"), delta(row, method, factors_of(model)))
    product = layer.as_lora("default")
    assert (product is None) == bool(len(getattr(layer, "lokr_w2", ())))
    if product is not None:
        A, B = product
        close(B @ A, layer.delta("default"))


@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_the_start_is_peft_s_for_one_seed(method: str) -> None:
    row = row_named("plain")
    torch.manual_seed(5)
    base = row.model()
    torch.manual_seed(5)
    theirs = get_peft_model(base, config(row, method))
    model = row.model()
    torch.manual_seed(5)
    with audiolora.enabled():
        ours = get_peft_model(model, config(row, method))
    wanted = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    assert {name: p.shape for name, p in ours.named_parameters() if p.requires_grad} == {
        name: p.shape for name, p in wanted.items()
    }
    assert all(torch.equal(dict(ours.named_parameters())[name], p) for name, p in wanted.items())
