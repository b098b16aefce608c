"""The contract for AdaLoRA: every kind of convolution against the dense formula of the paper, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import AdaLoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.layers.adalora import AdaLoraConv1d
from tests.layers.convolutions import CONVOLUTIONS, OF_THEIR_OWN, Convolution, base_weight

ALPHA = 5
ROWS = [pytest.param(row, id=row.name) for row in (*CONVOLUTIONS, *OF_THEIR_OWN)]
BATCHED = [pytest.param(row, id=row.name) for row in (*CONVOLUTIONS, *OF_THEIR_OWN) if row.batched]

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def config(row: Convolution, **settings: Any) -> AdaLoraConfig:
    schedule = {"init_r": row.r, "target_r": 1, "total_step": 10, **settings}
    return AdaLoraConfig(lora_alpha=ALPHA, target_modules=["conv"], **schedule)


def adapted(row: Convolution, **settings: Any) -> PeftModel:
    with audiolora.enabled():
        return get_peft_model(row.model(), config(row, **settings)).double().eval()


def randomise(model: nn.Module, adapter: str = "default", seed: int = 2) -> None:
    """Factors as after training, with one singular value masked."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and name.endswith(f".{adapter}"):
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
                if ".lora_E." in name:
                    parameter[1] = 0


def trained(row: Convolution, **settings: Any) -> PeftModel:
    model = adapted(row, **settings)
    randomise(model)
    return model


def layer_of(model: PeftModel) -> AdaLoraConv1d:
    layer = model.base_model.model.conv
    assert isinstance(layer, AdaLoraConv1d)
    return layer


def factors_of(model: PeftModel, adapter: str = "default") -> tuple[torch.Tensor, ...]:
    """P, λ and Q as leaves of their own."""
    layer = layer_of(model)
    holders = (layer.lora_B, layer.lora_E, layer.lora_A)
    return tuple(holder[adapter].detach().clone().requires_grad_() for holder in holders)


def dense(row: Convolution, W: torch.Tensor, factors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """W + s·PΛQ, with PEFT's s = alpha / (init_r + 1e-5)."""
    P, values, Q = factors
    delta = ALPHA / (row.r + 1e-5) * P @ torch.diag(values.flatten()) @ Q
    return W + row.stored(delta.view(P.shape[0], row.in_per_group, -1))


def reference(row: Convolution, x: torch.Tensor, factors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    conv = row.model().conv
    return F.leaky_relu(row.reference(x, dense(row, base_weight(conv), factors), conv.bias), 0.1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def same_tensors(model: nn.Module, expected: nn.Module) -> None:
    tensors, wanted = model.state_dict(), expected.state_dict()
    assert list(tensors) == list(wanted)
    assert [name for name in wanted if not torch.equal(tensors[name], wanted[name])] == []


@pytest.mark.parametrize("row", ROWS)
def test_starts_as_the_base_and_unloads_to_it(row: Convolution) -> None:
    model, x, base = adapted(row), row.input(), row.model()
    torch.testing.assert_close(model(x), base(x), rtol=1e-12, atol=1e-12)
    randomise(model)
    plain = model.unload()
    same_tensors(plain, base)
    assert torch.equal(plain(x), base(x))
    assert not plain._forward_hooks and type(plain.conv).__qualname__ == type(base.conv).__qualname__


@pytest.mark.parametrize("row", ROWS)
def test_forward_and_gradients_are_those_of_the_dense_formula(row: Convolution) -> None:
    model = trained(row).train()
    factors = factors_of(model)
    x, x_dense = row.input().requires_grad_(), row.input().requires_grad_()
    y, y_dense = model(x), reference(row, x_dense, factors)
    close(y, y_dense)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y.backward(dy)
    y_dense.backward(dy)
    close(x.grad, x_dense.grad)
    layer = layer_of(model)
    for holder, expected in zip((layer.lora_B, layer.lora_E, layer.lora_A), factors, strict=True):
        close(holder["default"].grad, expected.grad)
    assert layer.lora_E["default"].grad[1].abs() > 0, "a masked singular value can come back"
    assert [name for name, p in model.named_parameters() if "lora_" not in name and p.grad is not None] == []


@pytest.mark.parametrize("row", ROWS)
def test_merge_unmerge_disable_and_merge_and_unload(row: Convolution) -> None:
    model, x, base = trained(row), row.input(), row.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        unmerged, plain = model(x), base(x)
        close(unmerged, reference(row, x, factors_of(model)).detach())
        with model.disable_adapter():
            assert torch.equal(model(x), plain)
        model.merge_adapter()
        close(model(x), unmerged)
        model.unmerge_adapter()
        assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == []
        assert torch.equal(model(x), unmerged)
        merged = model.merge_and_unload()
        close(merged(x), unmerged)
        base.load_state_dict(merged.state_dict())
        close(base(x), unmerged)


@pytest.mark.parametrize("row", ROWS)
def test_saved_and_loaded_whole_and_with_its_ranks(row: Convolution, tmp_path: Path) -> None:
    model, x = trained(row), row.input()
    expected = model(x).detach()
    for pattern in (None, {"conv.lora_E.default": (layer_of(model).lora_E["default"] != 0).flatten().tolist()}):
        model.peft_config["default"].rank_pattern = pattern
        model.save_pretrained(tmp_path)
        with audiolora.enabled():
            loaded = PeftModel.from_pretrained(row.model(), tmp_path).double().eval()
        close(loaded(x), expected)
        started_with = layer_of(model).lora_A["default"].shape[0]
        assert layer_of(loaded).lora_A["default"].shape[0] == started_with - (pattern is not None)


@pytest.mark.parametrize("row", ROWS)
def test_one_that_has_no_rank_left_is_the_base(row: Convolution, tmp_path: Path, recwarn: Any) -> None:
    model, x = adapted(row), row.input()
    model.peft_config["default"].rank_pattern = {"conv.lora_E": [False] * layer_of(model).r["default"]}
    with audiolora.enabled():
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(row.model(), tmp_path).eval()
    assert layer_of(loaded).r["default"] == 0
    assert torch.equal(loaded(x), row.model()(x))
    assert not layer_of(loaded).get_delta_weight("default").any()
    loaded.merge_adapter()
    close(loaded(x), row.model()(x))
    assert not [w for w in recwarn if "rank_pattern" in str(w.message) or "invalid shape" in str(w.message)]


@pytest.mark.parametrize("row", BATCHED)
def test_two_adapters_both_at_once_and_in_one_batch(row: Convolution) -> None:
    model = trained(row)
    model.add_adapter("second", config(row, inference_mode=True))
    model.double().eval()
    randomise(model, "second", seed=4)
    conv, x = row.model().conv, row.input()
    W = dense(row, dense(row, base_weight(conv), factors_of(model)), factors_of(model, "second"))
    model.base_model.set_adapter(["default", "second"], inference_mode=True)
    close(model(x), F.leaky_relu(row.reference(x, W, conv.bias), 0.1).detach())

    model.base_model.set_adapter("default", inference_mode=True)
    names = ["second", "default", "__base__"]
    x = torch.cat([row.input(seed)[:1] for seed in range(len(names))])
    with torch.no_grad():
        y = model(x, adapter_names=names)
    for i, name in enumerate(names):
        alone = x[i : i + 1]
        expected = row.model()(alone) if name == "__base__" else reference(row, alone, factors_of(model, name))
        close(y[i : i + 1], expected.detach())


def row_named(name: str) -> Convolution:
    return next(row for row in CONVOLUTIONS if row.name == name)


@pytest.mark.parametrize("name", ["plain", "groups 2, rank 3", "transposed"])
def test_dropout_acts_on_the_low_rank_path_alone(name: str) -> None:
    row = row_named(name)
    model, x = trained(row, lora_dropout=0.4), row.input()
    factors = factors_of(model)
    conv = row.model().conv
    delta = dense(row, torch.zeros_like(conv.weight), factors)
    torch.manual_seed(5)
    y = model.train()(x)
    torch.manual_seed(5)
    expected = row.reference(x, conv.weight, conv.bias) + row.reference(F.dropout(x, 0.4), delta, None)
    close(y, F.leaky_relu(expected, 0.1))


def test_a_rank_stops_at_the_matrix_s_own_and_the_scaling_stays() -> None:
    """A depthwise kernel of three numbers: (4, 3)."""
    model = adapted(row_named("depthwise"), init_r=8)
    layer = layer_of(model)
    assert layer.lora_A["default"].shape == (3, 3) and layer.lora_B["default"].shape == (4, 3)
    assert layer.ranknum["default"].item() == 8
    randomise(model)
    P, values, Q = factors_of(model)
    close(layer.get_delta_weight("default").flatten(1), ALPHA / (8 + 1e-5) * P @ (values * Q))


def test_a_linear_layer_with_a_computed_weight_is_ours_and_merges() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x)

    settings = AdaLoraConfig(total_step=4, init_r=3, target_r=2, target_modules="head")
    with audiolora.enabled():
        model = get_peft_model(Normed().double(), settings)
    assert isinstance(model.base_model.model.head, AdaLoraConv1d)
    randomise(model.double())
    x = torch.randn(7, 5, dtype=torch.float64)
    expected = model.eval()(x)
    with model.disable_adapter():
        assert not torch.allclose(model(x), expected)
    close(model.merge_and_unload()(x), expected)


def test_it_compiles_as_one_graph() -> None:
    row = row_named("plain")
    model = trained(row).train()
    eager = model(row.input())
    torch._dynamo.reset()
    y = torch.compile(model, fullgraph=True, backend="aot_eager")(row.input())
    close(y, eager)
    y.square().sum().backward()
    compiled = layer_of(model).lora_E["default"].grad.clone()
    model.zero_grad()
    eager.square().sum().backward()
    close(compiled, layer_of(model).lora_E["default"].grad)


def test_plain_peft_refuses_its_file(tmp_path: Path) -> None:
    trained(row_named("plain")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Target module .* is not supported"):
        PeftModel.from_pretrained(row_named("plain").model(), tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"init_r": 2, "target_r": 3}, "target_r=3 is more than init_r=2.*set init_r=5"),
        ({"init_r": 0}, "init_r must be a positive integer, got 0"),
        ({"deltaT": 0}, "deltaT must be a positive integer, got 0"),
        ({"beta1": 1.0}, "beta1 must lie between 0 and 1, got 1.0"),
        ({"use_rslora": True}, "use_rslora has no meaning for AdaLoRA"),
        ({"init_lora_weights": "gaussian"}, "init_lora_weights='gaussian' is not defined for AdaLoRA"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    row = row_named("old weight_norm")
    model, base = row.model(), row.model()
    with audiolora.enabled(), pytest.raises(ValueError, match=message):
        get_peft_model(model, config(row, **settings))
    same_tensors(model, base)


def test_a_module_that_it_does_not_fit_is_named_and_the_model_is_as_it_was() -> None:
    model = nn.ModuleDict({"conv": nn.Conv1d(4, 4, 3), "norm": nn.LayerNorm(4)})
    settings = AdaLoraConfig(total_step=4, target_modules=["conv", "norm"])
    with audiolora.enabled(), pytest.raises(ValueError, match="norm: AdaLoRA fits .* not a LayerNorm"):
        get_peft_model(model, settings)
    assert type(model["conv"]) is nn.Conv1d and model["conv"].weight.requires_grad
