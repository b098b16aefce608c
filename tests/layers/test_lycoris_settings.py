"""LoHa and LoKr: their settings, each taken or refused by name, and who else runs such a layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftMixedModel, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.export import export
from audiolora.export.slots import copied, filled, fold, plain_network, slots_of, targets
from audiolora.layers.loha import LoHaConv1d
from audiolora.layers.lokr import LoKrConv1d
from tests.layers.convolutions import base_weight
from tests.layers.test_lora import close, row_named, same_tensors
from tests.layers.test_lycoris import METHODS, adapted, config, delta, factors_of, layer_of, randomise, trained

TWO = pytest.mark.parametrize("method", ["loha", "lokr"])


class Net(nn.Module):
    """(N, 8, L) → (N, 6, L'): a long dilated kernel, a depthwise, a transposed one, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.long = nn.Conv1d(8, 24, 9, padding=8, dilation=2, padding_mode="circular")
        self.depthwise = nn.Conv1d(24, 24, 3, padding=1, groups=24)
        self.up = nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(24, 12, 4, stride=2))
        self.head = nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(torch.tanh(self.depthwise(F.gelu(self.long(x))))).mT).mT


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


X = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(1))


def in_net(method: str, dtype: torch.dtype = torch.float32, r: int = 2, **settings: Any) -> PeftModel:
    kind, options = METHODS[method]
    targets = ["long", "depthwise", "up", "head"]
    with audiolora.enabled():
        model = get_peft_model(
            net(dtype), kind(**{**options, "r": r, "alpha": 3, "target_modules": targets, **settings})
        )
    randomise(model)
    return model


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"r": 0}, "conv: r must be a positive integer, got 0; try r=4"),
        ({"r": 1.5}, "conv: r must be a positive integer, got 1.5"),
        ({"alpha": 0}, "conv: alpha must be a positive number, got 0; try alpha=3"),
        ({"rank_dropout": 1.0}, r"conv: rank_dropout must lie in \[0, 1\), got 1.0; try rank_dropout=0.1"),
        ({"module_dropout": -0.5}, r"conv: module_dropout must lie in \[0, 1\), got -0.5"),
        ({"init_weights": "pissa"}, r"conv: init_weights='pissa' is not defined; use one of \(True, False"),
    ],
)
@TWO
def test_settings_that_mean_nothing_are_refused(method: str, settings: dict[str, Any], message: str) -> None:
    row = row_named("old weight_norm")
    model = row.model()
    with audiolora.enabled(), pytest.raises(ValueError, match=message):
        get_peft_model(model, config(row, method, **settings))
    same_tensors(model, row.model())
    assert torch.equal(model(row.input()), row.model()(row.input()))


@pytest.mark.parametrize("factor", [0, -2, 1.5, True])
def test_a_decompose_factor_that_means_nothing_is_refused(factor: Any) -> None:
    row = row_named("plain")
    with audiolora.enabled(), pytest.raises(ValueError, match="conv: decompose_factor must be -1"):
        get_peft_model(row.model(), LoKrConfig(r=1, target_modules=["conv"], decompose_factor=factor))


def test_lycoris_start_is_lokr_s_alone() -> None:
    row = row_named("plain")
    with audiolora.enabled(), pytest.raises(ValueError, match="init_weights='lycoris' is not defined"):
        get_peft_model(row.model(), config(row, "loha", init_weights="lycoris"))


def shapes(**settings: Any) -> dict[str, tuple[int, ...]]:
    with audiolora.enabled():
        model = get_peft_model(net(), LoKrConfig(target_modules=["long"], **settings))
    return {name.split(".")[-2]: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}


def test_lokr_s_options_by_hand() -> None:
    """24 = 4·6 outputs, 8 = 2·4 inputs, k = 9."""
    assert shapes(r=2) == {"lokr_w1": (4, 2), "lokr_w2_a": (6, 2), "lokr_w2_b": (2, 36)}
    assert shapes(r=3) == {"lokr_w1": (4, 2), "lokr_w2": (6, 4, 9)}, "no smaller than w2 itself"
    assert shapes(r=1, decompose_both=True) == {
        "lokr_w1_a": (4, 1),
        "lokr_w1_b": (1, 2),
        "lokr_w2_a": (6, 1),
        "lokr_w2_b": (1, 36),
    }
    assert shapes(r=2, use_effective_conv2d=True) == {
        "lokr_w1": (4, 2),
        "lokr_t2": (2, 2, 9, 1),
        "lokr_w2_a": (2, 6),
        "lokr_w2_b": (2, 4),
    }
    assert shapes(r=1, decompose_factor=8) == {"lokr_w1": (8, 8), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 9)}


@pytest.mark.parametrize("name", ["plain", "groups 2", "transposed, groups 2, dilation 2"])
@pytest.mark.parametrize("method, scales", [("loha", True), ("lokr", False), ("lokr", True)])
def test_rank_dropout_zeroes_output_channels_of_the_update(name: str, method: str, scales: bool) -> None:
    row = row_named(name)
    options = {"rank_dropout_scale": scales} if method == "lokr" else {}
    model, x = trained(row, method, rank_dropout=0.4, **options), row.input()
    exact = model(x)
    model.train()
    torch.manual_seed(6)
    y = model(x)
    torch.manual_seed(6)
    kept = (torch.rand(6) > 0.4).double()
    assert 0 < kept.sum() < 6
    kept = kept / kept.mean() if scales else kept
    conv = row.model().conv
    W = base_weight(conv) + delta(row, method, factors_of(model)) * row.stored(
        kept[:, None, None].expand(6, row.in_per_group, base_weight(conv).shape[2])
    )
    close(y, F.leaky_relu(row.reference(x, W, conv.bias), 0.1))
    with torch.no_grad():
        assert len({float(model(x).sum()) for _ in range(8)}) > 1, "a drawn weight is not kept"
    model.merge_adapter()
    close(model.eval()(x), exact)


@TWO
def test_rank_dropout_that_drops_everything_is_the_base(method: str) -> None:
    row = row_named("plain")
    model = trained(row, method, rank_dropout=0.999999).train()
    assert torch.equal(model(row.input()), row.model()(row.input()))


@TWO
def test_module_dropout_drops_the_update_as_a_whole(method: str) -> None:
    row = row_named("reflect")
    model, x = trained(row, method, module_dropout=0.5), row.input()
    both = [row.model()(x), model(x).detach()]
    model.train()
    drawn = [model(x) for _ in range(20)]
    assert [sum(torch.allclose(y, wanted) for wanted in both) for y in drawn] == [1] * 20
    assert {torch.allclose(y, both[0]) for y in drawn} == {True, False}


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
@pytest.mark.parametrize("method", ["loha, Tucker", "lokr"])
def test_low_precision(method: str, dtype: torch.dtype, tolerance: float) -> None:
    exact = in_net(method, torch.float64)(X.double())
    scale = exact.abs().max()
    model = in_net(method)
    with torch.autocast("cpu", dtype=dtype):
        y = model(X)
    y.float().square().mean().backward()
    assert y.dtype == dtype and ((y.double() - exact).abs().max() / scale) < tolerance
    model = in_net(method).to(dtype)
    y = model(X.to(dtype))
    y.float().square().mean().backward()
    assert y.dtype == dtype and ((y.double() - exact).abs().max() / scale) < 2 * tolerance
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dropout", [{}, {"rank_dropout": 0.3, "module_dropout": 0.3}], ids=["", "dropout"])
@pytest.mark.parametrize(
    "method", ["loha", *(pytest.param(method, marks=pytest.mark.slow) for method in METHODS if method != "loha")]
)
def test_compiled_training_is_one_graph(method: str, dropout: dict[str, float]) -> None:
    torch._dynamo.reset()
    model = in_net(method, torch.float64, **dropout).train()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    results = []
    for each in (model, compiled):
        torch.manual_seed(4)
        y = each(X.double())
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in each.parameters() if p.requires_grad)])
    for eager, traced in zip(*results, strict=True):
        if not dropout:  # the compiled graph draws its own numbers
            torch.testing.assert_close(traced, eager, rtol=1e-9, atol=1e-9)
        assert traced.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_loaded_on_empty_weights(method: str, tmp_path: Path) -> None:
    model = in_net(method).eval()
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(net(), tmp_path, low_cpu_mem_usage=True).eval()
    torch.testing.assert_close(loaded(X), model(X))


def test_a_file_that_does_not_fit_is_refused_with_every_tensor(tmp_path: Path) -> None:
    in_net("loha").save_pretrained(tmp_path)
    other = net()
    other.long, other.depthwise = nn.Conv1d(8, 20, 9, padding=8, dilation=2), nn.Conv1d(20, 24, 1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with audiolora.enabled(), pytest.raises(ValueError, match=r"long.hada_w1_a: the adapter has \(24, 2\).*\(20, 2\)"):
        PeftModel.from_pretrained(other, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_in_a_mixed_model_each_convolution_has_one_method() -> None:
    x = X.double()
    with audiolora.enabled():
        model = get_peft_model(net(torch.float64), LoraConfig(r=2, target_modules=["long"]), "a", mixed=True)
        assert isinstance(model, PeftMixedModel)
        model.add_adapter("b", LoHaConfig(r=2, target_modules=["depthwise"]))
        model.add_adapter("c", LoKrConfig(r=2, target_modules=["up", "head"], init_weights=False))
        with pytest.raises(ValueError, match="long: it has an adapter of another method already"):
            model.add_adapter("d", LoHaConfig(r=2, target_modules=["long"]))
    model.set_adapter(["a", "b", "c"])
    model.eval()
    assert isinstance(model.base_model.model.depthwise, LoHaConv1d)
    assert isinstance(model.base_model.model.up, LoKrConv1d)
    y = model(x)
    assert not torch.allclose(y, net(torch.float64)(x))
    merged = model.merge_and_unload()
    close(merged(x), y)
    fresh = net(torch.float64)
    fresh.load_state_dict(merged.state_dict())
    close(fresh(x), y)


def test_adapt_and_inspect_by_hand() -> None:
    model = audiolora.adapt(net(), "loha", r={"conv": 2, "head": 3}, targets=["conv", "head"])
    rows = {row.name: row for row in audiolora.inspect(model).rows}
    assert {name: (row.method, row.r) for name, row in rows.items()} == {
        "long": ("LoHa", 2),
        "depthwise": ("LoHa", 2),
        "up": ("LoHa", 2),
        "head": ("LoHa (PEFT)", 3),
    }
    assert rows["long"].parameters == 2 * (24 * 2 + 2 * 8 * 9)
    assert (rows["long"].gradients, rows["long"].overhead) == ("dense", 0.5)
    assert model.base_model.model.long.scaling == {"default": 2.0}
    found = audiolora.inspect(audiolora.adapt(net(), "lokr", r=2, targets="conv"))
    assert found.rows[0].method == "LoKr" and found.rows[0].parameters == 4 * 2 + 6 * 2 + 2 * 4 * 9


@pytest.mark.parametrize(
    "method, forms",
    [
        # r² = 4: 4·(24 + 72) < 24·72 numbers, and 4·(24 + 3) > 24·3
        ("loha", {"long": "lora_A", "depthwise": "delta", "up": "lora_A", "head": "delta"}),
        # c·r = 4, 2, 8: 2·(24 + 3) < 24·3, and where w2 is whole there is no product
        ("lokr", {"long": "lora_A", "depthwise": "lora_A", "up": "lora_A", "head": "delta"}),
    ],
)
def test_exported_as_a_product_or_as_the_update(method: str, forms: dict[str, str]) -> None:
    model = in_net(method).eval()
    twin = copied(model)
    folds = fold(twin, "default")
    plain = plain_network(twin)
    made = targets(plain, [folds])
    slots = {name: torch.from_numpy(value.copy()) for name, value in filled(slots_of(made), folds).items()}
    wanted = {f"{name}.weight.{part}" for name, part in forms.items()}
    assert {name for name in slots if not name.endswith("lora_B")} == wanted
    for target in made:
        module = plain.get_submodule(target.name.rpartition(".")[0])
        module.weight = nn.Parameter(target.applied(module.weight, slots))
    torch.testing.assert_close(plain(X), model(X), rtol=1e-4, atol=1e-5)


@TWO
def test_a_copy_and_another_adapter_of_it_leave_the_original_alone(method: str) -> None:
    model = adapted(row_named("dilation 2"), method)
    x = row_named("dilation 2").input()
    y = model(x)
    other = copy.deepcopy(model)
    randomise(other)
    assert torch.equal(model(x), y) and not torch.allclose(other(x), y)
    assert layer_of(other).get_base_layer() is not layer_of(model).get_base_layer()


@pytest.mark.slow
@TWO
def test_a_bundle_gives_the_model_s_outputs(method: str, tmp_path: Path) -> None:
    made = export(in_net(method).eval(), tmp_path / "b", {"x": X}, dynamic={"x": {0: "batch"}})
    assert max(made.differences.values()) <= 1e-5
