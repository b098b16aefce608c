"""Linear layers with a computed weight: PEFT's function on the plain one, and merges that are kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import EvaConfig, LoHaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch import nn
from torch.nn.utils import parametrizations

import audiolora
from audiolora.layers.lora_linear import LoraLinear

Make = Callable[[], nn.Module]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.head(x))


def plain() -> Net:
    torch.manual_seed(0)
    return Net().double()


def weight_normed() -> Net:
    net = plain()
    parametrizations.weight_norm(net.head)
    return net


def old_weight_normed() -> Net:
    net = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(net.head)
    return net


def geometric() -> Net:
    net = plain()
    audiolora.geometric.convert(net)
    return net


MAKES = [weight_normed, old_weight_normed, geometric]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
}
X = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def config(method: str = "lora", **settings: Any) -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=3, target_modules=["head"], **METHODS[method], **settings)


def adapted(net: nn.Module, method: str = "lora", **settings: Any) -> PeftModel:
    torch.manual_seed(2)
    with audiolora.enabled():
        model = get_peft_model(net, config(method, **settings)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.4 * torch.randn_like(parameter))
    return model.eval()


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", MAKES)
def test_it_is_peft_s_layer_on_the_plain_weight_with_its_gradients(make: Make, method: str) -> None:
    model, theirs = adapted(make(), method), adapted(plain(), method)
    assert isinstance(model.base_model.model.head, LoraLinear)
    assert isinstance(theirs.base_model.model.head, PeftLinear)
    ours = {name: p for name, p in model.named_parameters() if "lora_" in name}
    wanted = {name: p for name, p in theirs.named_parameters() if "lora_" in name}
    assert {name: p.shape for name, p in ours.items()} == {name: p.shape for name, p in wanted.items()}
    for m in (model, theirs):
        m.train()(X).square().sum().backward()
    close(model(X), theirs(X))
    for name, p in wanted.items():
        close(ours[name].grad, p.grad)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", MAKES)
def test_merges_are_kept_and_undone(make: Make, method: str, tmp_path: Path) -> None:
    model, base = adapted(make(), method), make()
    expected = model(X).detach()
    assert not torch.allclose(expected, base(X))
    with model.disable_adapter():
        close(model(X), base(X))
    model.merge_adapter()
    close(model(X), expected)
    model.unmerge_adapter()
    assert torch.equal(model(X), expected)
    model.save_pretrained(tmp_path)
    with audiolora.enabled(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT takes lora_B.bias for a broken factor
        loaded = PeftModel.from_pretrained(make(), tmp_path).eval()
    close(loaded(X), expected)
    merged = model.merge_and_unload()
    close(merged(X), expected)
    assert list(merged.state_dict()) == list(base.state_dict())
    base.load_state_dict(merged.state_dict())
    close(base(X), expected)


def test_a_plain_linear_layer_stays_peft_s() -> None:
    assert type(adapted(plain()).base_model.model.head) is PeftLinear


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_acts_on_the_low_rank_path_alone(method: str) -> None:
    model = adapted(geometric(), method, lora_dropout=0.4)
    layer = model.base_model.model.head
    A, B = (holder["default"].weight.detach() for holder in (layer.lora_A, layer.lora_B))
    W, b = plain().head.weight.detach(), plain().head.bias.detach()
    torch.manual_seed(5)
    y = model.train()(X)
    torch.manual_seed(5)
    inner = X @ W.T + 1.5 * F.dropout(X, 0.4) @ A.T @ B.T
    if method == "dora":
        inner = inner * layer.lora_magnitude_vector["default"].weight.detach() / (W + 1.5 * B @ A).norm(dim=1)
    close(y, torch.tanh(inner + b))


def test_the_base_s_own_parts_train_with_it() -> None:
    model = adapted(geometric())
    chain = model.base_model.model.head.base_layer.parametrizations.weight
    r = chain.original0.requires_grad_()
    model(X).square().sum().backward()
    layer = model.base_model.model.head
    leaf = r.detach().clone().requires_grad_()
    theta = chain.original1.detach()
    W = leaf[:, None] * theta / theta.norm(dim=1, keepdim=True) + layer.get_delta_weight("default").detach()
    torch.tanh(X @ W.T + layer.base_layer.bias.detach()).square().sum().backward()
    close(r.grad, leaf.grad)


@pytest.mark.slow
def test_it_compiles_as_one_graph() -> None:
    model = adapted(geometric(), "dora").train()
    torch._dynamo.reset()
    close(torch.compile(model, fullgraph=True, backend="aot_eager")(X), model(X))


def test_it_runs_under_autocast() -> None:
    eager, low = adapted(geometric(), "dora").train()(X), adapted(geometric().float(), "dora").float().train()
    with torch.autocast("cpu", torch.bfloat16):
        y = low(X.float())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), eager, rtol=0.05, atol=0.05)


def test_a_mixed_batch_and_a_weighted_adapter() -> None:
    model = adapted(geometric())
    first = model(X)
    with torch.no_grad():
        mixed = model(X, adapter_names=["default", "__base__", "default"])
    close(mixed[[0, 2]], first[[0, 2]].detach())
    close(mixed[1], plain()(X[1]).detach())
    with audiolora.enabled():
        model.add_weighted_adapter(["default"], [1.0], "copy", "linear")
    model.set_adapter("copy")
    torch.testing.assert_close(model(X), first, rtol=1e-5, atol=1e-6)  # PEFT's roots of the weights are float32


def test_plain_peft_refuses_its_file(tmp_path: Path) -> None:
    adapted(geometric()).save_pretrained(tmp_path)
    with pytest.raises(KeyError, match="AUDIOLORA_LORA"):
        PeftModel.from_pretrained(geometric(), tmp_path)


def test_a_merge_that_peft_would_lose_is_refused() -> None:
    with audiolora.enabled():
        model = get_peft_model(weight_normed(), LoHaConfig(r=2, target_modules=["head"], init_weights=False)).eval()
        before = model(X)
        for merge in (model.merge_adapter, model.merge_and_unload):
            with pytest.raises(
                ValueError, match="head: PEFT's LoHaLinear cannot merge into a weight .*WeightNorm.* lost"
            ):
                merge()
        assert torch.equal(model(X), before)
        assert torch.equal(model.unload()(X), weight_normed()(X))


def test_a_mixed_batch_without_a_length() -> None:
    model, x = adapted(geometric()), X[:, 0]
    with torch.no_grad():
        mixed = model(x, adapter_names=["default", "__base__", "default"])
        close(mixed, torch.stack([model(x)[0], plain()(x)[1], model(x)[2]]))
    with pytest.raises(ValueError, match=r"this input of shape \(5,\) has none"):
        model(x[0], adapter_names=["default"])


@pytest.mark.parametrize("shape", [(40, 5), (4, 10, 5)])
def test_eva_s_start_is_that_of_the_plain_weight(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = x * torch.logspace(0, 2, 5, 2, dtype=torch.float64)
    starts = []
    for make in (plain, geometric):
        with audiolora.enabled():
            settings: dict[str, Any] = {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0)}
            model = get_peft_model(make(), config(**settings))
            initialize_lora_eva_weights(
                model,
                [x],
                forward_fn=lambda model, batch: model(batch),
                prepare_model_inputs_fn=None,
                prepare_layer_inputs_fn=None,
                show_progress_bar=False,
            )
        close(model(x), plain()(x))
        starts.append(model.base_model.model.head.lora_A["default"].weight.abs())
    assert type(model.base_model.model.head) is LoraLinear
    torch.testing.assert_close(*starts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 4), (4, 2)])
def test_it_is_hot_swapped(first: int, second: int, tmp_path: Path) -> None:
    for name, r in (("first", first), ("second", second)):
        with audiolora.enabled():
            model = get_peft_model(geometric(), LoraConfig(r=r, target_modules=["head"], init_lora_weights=False))
        model.save_pretrained(tmp_path / name)
    with audiolora.enabled():
        model, other = (PeftModel.from_pretrained(geometric(), tmp_path / name) for name in ("first", "second"))
        prepare_model_for_compiled_hotswap(model, target_rank=4)
        hotswap_adapter(model, str(tmp_path / "second"), "default")
    torch.testing.assert_close(model(X), other(X), rtol=1e-6, atol=1e-7)


def test_each_device_of_a_fleet_computes_what_its_file_does(tmp_path: Path) -> None:
    net = geometric().float()
    fleet = audiolora.Fleet(net, LoraConfig(r=2, target_modules=["head"]), ["north", "south"])
    fleet.values += 0.3 * torch.randn(fleet.values.shape, generator=torch.Generator().manual_seed(1))
    y = fleet(X.float()[:2], ["south", "north"])
    for i, name in enumerate(("south", "north")):
        fleet.save_adapter(name, tmp_path / name)
        with audiolora.enabled():
            alone = PeftModel.from_pretrained(geometric().float(), tmp_path / name).eval()
        torch.testing.assert_close(y[i], alone(X.float()[i]))
