"""The contract: every kind of convolution × every method, against the dense formula of the paper, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model

import audiolora
from audiolora.layers.lora import LoraConv1d
from tests.layers.convolutions import CELLS, CONVOLUTIONS, METHODS, Convolution, base_weight

ALPHA = 5

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def config(row: Convolution, method: str, **settings: Any) -> LoraConfig:
    return LoraConfig(r=row.r, lora_alpha=ALPHA, target_modules=["conv"], **METHODS[method], **settings)


def adapted(row: Convolution, method: str, **settings: Any) -> PeftModel:
    with audiolora.enabled():
        return get_peft_model(row.model(), config(row, method, **settings)).eval()


def randomise(model: PeftModel, adapter: str = "default", seed: int = 2) -> None:
    """Factors as after training: none of them at its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.3 * noise.to(parameter.dtype))


def trained(row: Convolution, method: str, **settings: Any) -> PeftModel:
    model = adapted(row, method, **settings)
    randomise(model)
    return model


def layer_of(model: PeftModel) -> LoraConv1d:
    layer = model.base_model.model.conv
    assert isinstance(layer, LoraConv1d)
    return layer


def factors_of(model: PeftModel, adapter: str = "default") -> dict[str, torch.Tensor]:
    """A, B, bias and magnitude as leaves of their own."""
    parts = {name: p for name, p in layer_of(model).named_parameters() if f".{adapter}." in name}
    keys = {"lora_A": "A", "lora_magnitude_vector": "m"}
    return {
        keys.get(name.split(".")[0], "b" if name.endswith("bias") else "B"): p.detach().clone().requires_grad_()
        for name, p in parts.items()
    }


def dense(
    row: Convolution, W: torch.Tensor, b: Any, factors: dict[str, torch.Tensor], method: str
) -> tuple[torch.Tensor, Any]:
    """W' and b' by the papers' formulas: LoRA (1), rsLoRA's scaling, DoRA (5) with its norm a constant."""
    s = ALPHA / (row.r**0.5 if method == "rslora" else row.r)
    W = W + row.stored(s * torch.einsum("or,rck->ock", factors["B"][:, :, 0], factors["A"]))
    if "m" in factors:
        squares = W.detach().square()
        if row.transposed_groups is None:
            norm = squares.sum((1, 2)).sqrt()
        else:  # over the inputs of each group, stored one after the other
            norm = torch.cat([group.sum((0, 2)) for group in squares.chunk(row.transposed_groups)]).sqrt()
        W = W * row.stored((factors["m"].flatten() / norm)[:, None, None].expand(-1, row.in_per_group, 1))
    return W, b + s * factors["b"] if "b" in factors else b


def reference(row: Convolution, x: torch.Tensor, factors: dict[str, torch.Tensor], method: str) -> torch.Tensor:
    conv = row.model().conv
    W, b = dense(row, base_weight(conv), conv.bias, factors, method)
    return F.leaky_relu(row.reference(x, W, b), 0.1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def same_tensors(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    """The same keys, and every tensor bit for bit."""
    tensors, wanted = model.state_dict(), expected.state_dict()
    assert list(tensors) == list(wanted)
    assert [name for name in wanted if not torch.equal(tensors[name], wanted[name])] == []


@pytest.mark.parametrize("row, method", CELLS)
def test_starts_as_the_base_and_unloads_to_it(row: Convolution, method: str) -> None:
    model, x, base = adapted(row, method), row.input(), row.model()
    torch.testing.assert_close(model(x), base(x), rtol=1e-12, atol=1e-12)
    randomise(model)
    model(x)
    plain = model.unload()
    assert type(plain.conv).__qualname__ == type(base.conv).__qualname__
    same_tensors(plain, base)
    assert torch.equal(plain(x), base(x))
    assert len(plain.conv._forward_pre_hooks) == len(base.conv._forward_pre_hooks)


@pytest.mark.parametrize("row, method", CELLS)
def test_forward_and_gradients_are_those_of_the_dense_formula(row: Convolution, method: str) -> None:
    model = trained(row, method).train()
    factors = factors_of(model)
    x, x_dense = row.input().requires_grad_(), row.input().requires_grad_()
    y, y_dense = model(x), reference(row, x_dense, factors, method)
    close(y, y_dense)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y.backward(dy)
    y_dense.backward(dy)
    close(x.grad, x_dense.grad)
    layer = layer_of(model)
    close(layer.lora_A["default"].weight.grad, factors["A"].grad)
    close(layer.lora_B["default"].weight.grad, factors["B"].grad)
    if method == "lora_bias":
        close(layer.lora_B["default"].bias.grad, factors["b"].grad)
    if method == "dora":
        close(layer.lora_magnitude_vector["default"].weight.grad, factors["m"].grad)
    assert [name for name, p in model.named_parameters() if "lora_" not in name and p.grad is not None] == []


@pytest.mark.parametrize("row, method", CELLS)
def test_merge_unmerge_disable_and_merge_and_unload(row: Convolution, method: str) -> None:
    model, x, base = trained(row, method), row.input(), row.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        unmerged, plain = model(x), base(x)
        close(unmerged, reference(row, x, factors_of(model), method).detach())
        with model.disable_adapter():
            assert torch.equal(model(x), plain)
        model.merge_adapter()
        assert layer_of(model).merged
        close(model(x), unmerged)
        model.unmerge_adapter()
        assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == []
        assert torch.equal(model(x), unmerged)
        model.merge_adapter()
        with model.disable_adapter():
            assert torch.equal(model(x), plain)
        merged = model.merge_and_unload()
        assert type(merged.conv).__qualname__ == type(base.conv).__qualname__
        close(merged(x), unmerged)
        base.load_state_dict(merged.state_dict())
        close(base(x), unmerged)
    assert list(merged.state_dict()) == list(base.state_dict())


@pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor")  # PEFT takes lora_B.bias for a broken factor
@pytest.mark.parametrize("row, method", CELLS)
def test_saved_and_loaded_it_is_the_same(row: Convolution, method: str, tmp_path: Path) -> None:
    model, x = trained(row, method), row.input()
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(row.model(), tmp_path).eval()
    same_tensors(loaded, model)
    close(loaded(x), model(x).detach())


@pytest.mark.parametrize("row, method", CELLS)
def test_two_adapters_one_at_a_time_and_both_at_once(row: Convolution, method: str) -> None:
    """Both: one map after the other, the second's base is what the first made."""
    model, x = trained(row, method), row.input()
    first = model(x)
    model.add_adapter("second", config(row, method))
    close(model(x), first)
    randomise(model, "second", seed=4)
    model.set_adapter("second")
    close(model(x), reference(row, x, factors_of(model, "second"), method))
    model.set_adapter("default")
    assert torch.equal(model(x), first)

    model.base_model.set_adapter(["default", "second"])
    conv = row.model().conv
    both = factors_of(model), factors_of(model, "second")
    W, b = base_weight(conv), conv.bias
    for factors in both:
        W, b = dense(row, W, b, factors, method)
    expected = F.leaky_relu(row.reference(x, W, b), 0.1)
    y = model.train()(x)
    close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    layer = layer_of(model)
    for name, factors in zip(("default", "second"), both, strict=True):
        close(layer.lora_A[name].weight.grad, factors["A"].grad)
        close(layer.lora_B[name].weight.grad, factors["B"].grad)
    model.eval().merge_adapter()
    close(model(x), expected)


@pytest.mark.parametrize("row, method", [cell for cell in CELLS if cell.values[0].batched])
def test_a_mixed_batch_is_each_sample_by_itself(row: Convolution, method: str) -> None:
    model = trained(row, method)
    model.add_adapter("second", config(row, method))
    randomise(model, "second", seed=4)
    names = ["second", "default", "__base__", "second"]
    x = torch.cat([row.input(seed)[:1] for seed in range(len(names))])
    with torch.no_grad():
        y = model(x, adapter_names=names)
    for i, name in enumerate(names):
        if name == "__base__":
            expected = row.model()(x[i : i + 1])
        else:
            expected = reference(row, x[i : i + 1], factors_of(model, name), method)
        close(y[i : i + 1], expected.detach())


@pytest.mark.parametrize("dropout", [0.3, 0.5])
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("name", ["plain", "stride 2", "groups 2, rank 3", "dilation 2, padding same", "unbatched"])
def test_dropout_acts_on_the_low_rank_path_alone(name: str, method: str, dropout: float) -> None:
    row = row_named(name)
    model, x = trained(row, method, lora_dropout=dropout), row.input()
    factors = factors_of(model)
    exact = reference(row, x, factors, method)
    close(model(x), exact)

    model.train()
    conv = row.model().conv
    W, b = base_weight(conv), conv.bias
    delta = dense(row, torch.zeros_like(W), None, {key: factors[key] for key in "AB"}, "lora")[0]
    torch.manual_seed(5)
    y = model(x)
    torch.manual_seed(5)
    dropped = F.dropout(x.reshape(-1, *x.shape[-2:]), dropout).view_as(x)
    expected = row.reference(x, W, None) + row.reference(dropped, delta, None)
    if method == "dora":
        norm = (W + delta).detach().square().sum((1, 2)).sqrt()
        expected = expected * (factors["m"].flatten() / norm)[:, None]
    expected = F.leaky_relu(expected + b[:, None], 0.1)
    close(y, expected)
    assert not torch.allclose(y, exact)
    y.square().sum().backward()
    expected.square().sum().backward()
    close(layer_of(model).lora_A["default"].weight.grad, factors["A"].grad)
    close(layer_of(model).lora_B["default"].weight.grad, factors["B"].grad)


def row_named(name: str) -> Convolution:
    return next(row for row in CONVOLUTIONS if row.name == name)


def test_dropout_on_a_derived_weight_is_refused_in_training_alone() -> None:
    row = row_named("derived weight")
    model, x = trained(row, "lora", lora_dropout=0.2), row.input()
    close(model(x), reference(row, x, factors_of(model), "lora").detach())
    with pytest.raises(ValueError, match=r"lora_dropout=0\.2.*set lora_dropout=0"):
        model.train()(x)


def test_dropout_on_two_active_adapters_is_refused_in_training() -> None:
    row = row_named("plain")
    model = trained(row, "lora", lora_dropout=0.2)
    model.add_adapter("second", config(row, "lora"))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="'default'.*only active one.*second"):
        model.train()(row.input())


def zero_channel(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        model.conv.weight[1] = 0
    return model


def test_dora_on_a_pruned_channel_keeps_it_zero() -> None:
    """‖V‖ = 0 there while B is zero, so that m / ‖V‖ is 0/0 without care."""
    row = row_named("plain")
    model = zero_channel(row.model())
    with audiolora.enabled():
        model = get_peft_model(model, config(row, "dora"))
    y = model(row.input())
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    bias = row.model().conv.bias[1]
    close(y[:, 1], F.leaky_relu(bias.detach(), 0.1).expand_as(y[:, 1]))
    model.merge_adapter(safe_merge=True)
    close(model(row.input()), y)


def test_dora_with_a_zero_magnitude_silences_the_channel() -> None:
    row = row_named("plain")
    model = trained(row, "dora")
    magnitude = layer_of(model).lora_magnitude_vector["default"].weight
    with torch.no_grad():
        magnitude[:, 2] = 0
    factors = factors_of(model)
    y, expected = model(row.input()), reference(row, row.input(), factors, "dora")
    close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    close(magnitude.grad, factors["m"].grad)
    assert magnitude.grad[0, 2].abs() > 0, "a silenced channel can still learn"


@pytest.mark.parametrize("method", METHODS)
def test_a_base_that_trains_gets_its_gradient(method: str) -> None:
    row = row_named("groups 2")
    model = trained(row, method)
    base = layer_of(model).get_base_layer()
    W = base.parametrizations.weight.original.requires_grad_()
    factors, W_dense = factors_of(model), base_weight(row.model().conv).clone().requires_grad_()
    y = model(row.input())
    W_all, b_all = dense(row, W_dense, row.model().conv.bias, factors, method)
    expected = F.leaky_relu(row.reference(row.input(), W_all, b_all), 0.1)
    close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    close(W.grad, W_dense.grad)
    close(layer_of(model).lora_A["default"].weight.grad, factors["A"].grad)


@pytest.mark.parametrize(
    "settings, names",
    [
        ({"r": 0}, "conv.*r must be.*0.*r=8"),
        ({"r": -1}, "conv.*-1.*r=8"),
        ({"r": True}, "conv.*True.*r=8"),
        ({"r": 2.5}, "conv.*2.5.*r=8"),
        ({"init_lora_weights": "mica"}, "conv.*'mica'.*gaussian"),
        ({"init_lora_weights": "corda"}, "conv.*'corda'.*gaussian"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], names: str) -> None:
    row = row_named("old weight_norm")
    model, base = row.model(), row.model()
    with audiolora.enabled(), pytest.raises(ValueError, match=names):
        get_peft_model(model, LoraConfig(**{"r": 3, "target_modules": ["conv"], **settings}))
    assert type(model.conv) is type(base.conv)
    same_tensors(model, base)
    assert torch.equal(model(row.input()), base(row.input()))


def test_lora_bias_without_a_bias_is_refused() -> None:
    row = row_named("no bias")
    model = row.model()
    with audiolora.enabled(), pytest.raises(ValueError, match="conv.*lora_bias=True needs.*lora_bias=False"):
        get_peft_model(model, config(row, "lora_bias"))
    same_tensors(model, row.model())


def test_a_second_adapter_that_is_refused_leaves_the_first_at_work() -> None:
    row = row_named("plain")
    model = trained(row, "lora")
    before = model(row.input())
    with pytest.raises(ValueError, match="'pissa'"):
        model.add_adapter("second", config(row, "lora", init_lora_weights="pissa"))
    assert torch.equal(model(row.input()), before)


def test_inits() -> None:
    row = row_named("plain")
    assert not layer_of(adapted(row, "lora", init_lora_weights=True)).lora_B["default"].weight.any()
    gaussian = layer_of(adapted(row, "lora", init_lora_weights="gaussian"))
    assert not gaussian.lora_B["default"].weight.any()
    free = layer_of(adapted(row, "lora", init_lora_weights=False))
    assert free.lora_B["default"].weight.all()


def test_factor_shapes_are_peft_s_and_with_groups_shared() -> None:
    shapes = {name: tuple(p.shape) for name, p in layer_of(adapted(row_named("plain"), "dora")).named_parameters()}
    assert shapes["lora_A.default.weight"] == (3, 4, 3)
    assert shapes["lora_B.default.weight"] == (6, 3, 1)
    assert shapes["lora_magnitude_vector.default.weight"] == (1, 6, 1)
    shapes = {name: tuple(p.shape) for name, p in layer_of(adapted(row_named("depthwise"), "lora")).named_parameters()}
    assert shapes["lora_A.default.weight"] == (2, 1, 3)
    assert shapes["lora_B.default.weight"] == (4, 2, 1)


def test_the_layer_names_itself() -> None:
    assert repr(layer_of(adapted(row_named("plain"), "lora"))).startswith("audiolora.LoraConv1d(")
