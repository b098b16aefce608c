"""``add_weighted_adapter`` on our layers, against the weighted sum of the updates and against PEFT's own functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import merge_utils
from torch import nn

import audiolora
from audiolora.layers.lora import LoraConv1d
from tests.peft_features.networks import METHODS, adapted, base, close, config, layers, randomise, sample

WEIGHTS = [0.7, -1.3]
EXACT = ("lora", "rslora", "lora_bias")

pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor")  # lora_B.bias, to PEFT a factor


def with_two(
    method: str, r: int = 2, second_r: int = 3, second: dict[str, Any] | None = None, **more: Any
) -> PeftModel:
    model = adapted(r=r, **METHODS[method], **more).eval()
    with audiolora.enabled():
        model.add_adapter("second", config(r=second_r, lora_alpha=7, **(METHODS[method] if second is None else second)))
    randomise(model, "second", seed=5)
    return model


def combine(model: PeftModel, kind: str, weights: list[float] = WEIGHTS, **options: Any) -> None:
    with audiolora.enabled():
        model.add_weighted_adapter(["default", "second"], weights, "both", combination_type=kind, **options)


def updates(layer: LoraConv1d) -> list[torch.Tensor]:
    """s·B·A of both adapters, written out."""
    return [
        layer.scaling[name]
        * torch.einsum("or,rck->ock", layer.lora_B[name].weight[:, :, 0], layer.lora_A[name].weight).detach()
        for name in ("default", "second")
    ]


def weighted_sum(layer: LoraConv1d) -> torch.Tensor:
    return sum(w * update for w, update in zip(WEIGHTS, updates(layer), strict=True))


@pytest.mark.parametrize("kind, options", [("cat", {}), ("svd", {"svd_rank": 5})], ids=["cat", "svd"])
@pytest.mark.parametrize("method", EXACT)
def test_cat_and_svd_are_the_weighted_sum(method: str, kind: str, options: dict[str, int], tmp_path: Path) -> None:
    model, x = with_two(method), sample()
    combine(model, kind, **options)
    for _, layer in layers(model):
        close(layer.get_delta_weight("both"), weighted_sum(layer))
        if method == "lora_bias":
            biases = [layer.scaling[name] * layer.lora_B[name].bias for name in ("default", "second")]
            close(
                layer.scaling["both"] * layer.lora_B["both"].bias,
                sum(w * b for w, b in zip(WEIGHTS, biases, strict=True)),
            )
    model.set_adapter("both")
    y = model(x).detach()
    model.save_pretrained(tmp_path, selected_adapters=["both"])
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(base(), tmp_path / "both").eval()
    close(loaded(x), y)


def test_svd_takes_a_rank_beyond_the_kernel_s() -> None:
    model = with_two("lora")
    combine(model, "svd", svd_rank=12)
    for _, layer in layers(model):
        close(layer.get_delta_weight("both"), weighted_sum(layer))


def residual(update: torch.Tensor, r: int) -> torch.Tensor:
    """What no factors of rank r can hold of it: the singular values from r on."""
    return torch.linalg.svdvals(update.flatten(1))[r:].norm()


@pytest.mark.filterwarnings("ignore:.*leaves out")
@pytest.mark.parametrize(
    "kind, formula",
    [
        ("svd", lambda deltas, w: merge_utils.task_arithmetic(deltas, w)),
        ("linear", lambda deltas, w: merge_utils.task_arithmetic(deltas, w)),
        ("ties", lambda deltas, w: merge_utils.ties(deltas, w, 0.6)),
        ("ties_svd", lambda deltas, w: merge_utils.ties(deltas, w, 0.6)),
        ("dare_linear", lambda deltas, w: merge_utils.dare_linear(deltas, w, 0.6)),
        ("dare_linear_svd", lambda deltas, w: merge_utils.dare_linear(deltas, w, 0.6)),
        ("dare_ties", lambda deltas, w: merge_utils.dare_ties(deltas, w, 0.6)),
        ("dare_ties_svd", lambda deltas, w: merge_utils.dare_ties(deltas, w, 0.6)),
        ("magnitude_prune", lambda deltas, w: merge_utils.magnitude_prune(deltas, w, 0.6)),
        ("magnitude_prune_svd", lambda deltas, w: merge_utils.magnitude_prune(deltas, w, 0.6)),
    ],
)
def test_any_other_kind_is_the_best_of_its_rank(kind: str, formula: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No factors of that rank are nearer to the combination of the updates."""
    r = 3
    model = with_two("lora", r=r, second_r=r)
    # What DARE drops at random is every third value here.
    kept = lambda p: (torch.arange(p.numel()) % 3 > 0).view_as(p).to(p)  # noqa: E731
    monkeypatch.setattr(torch, "bernoulli", kept)
    combine(model, kind, **({} if kind in ("svd", "linear") else {"density": 0.6}))
    for _, layer in layers(model):
        expected = formula([delta.flatten(1) for delta in updates(layer)], torch.tensor(WEIGHTS, dtype=torch.float64))
        found = layer.get_delta_weight("both").flatten(1)
        assert layer.lora_A["both"].weight.shape[0] == r
        close((found - expected).norm(), residual(expected, r))


def test_linear_is_nearer_than_peft_s_sum_of_factors() -> None:
    """On a plain convolution, where PEFT's own layer is right, from the same factors."""
    model = with_two("lora", second_r=2)
    with pytest.warns(UserWarning, match=r"combination_type='linear' at r=2 leaves out \d+% .*'cat' is exact"):
        combine(model, "linear")
    ours = dict(layers(model))["plain"]
    stock = nn.ModuleDict({"plain": nn.Conv1d(4, 6, 3, padding=1)}).double()
    stock = get_peft_model(stock, config(target_modules=["plain"]), autocast_adapter_dtype=False)
    stock.add_adapter("second", config(target_modules=["plain"], lora_alpha=7))
    theirs = stock.base_model.model["plain"]
    for name in ("default", "second"):
        theirs.lora_A[name].load_state_dict(ours.lora_A[name].state_dict())
        theirs.lora_B[name].load_state_dict(ours.lora_B[name].state_dict())
    stock.add_weighted_adapter(["default", "second"], WEIGHTS, "both", combination_type="linear")
    exact = weighted_sum(ours)
    error = (ours.get_delta_weight("both") - exact).norm() / exact.norm()
    peft_error = (theirs.get_delta_weight("both") - exact).norm() / exact.norm()
    assert error < peft_error and peft_error > 0.3


@pytest.mark.parametrize("kind", ["svd", "linear", "cat", "ties"])
@pytest.mark.parametrize("method", EXACT)
def test_one_adapter_is_scaled_exactly(method: str, kind: str) -> None:
    model = adapted(r=3, **METHODS[method])
    with audiolora.enabled():
        model.add_weighted_adapter(["default"], [-0.4], "less", combination_type=kind)
    for _, layer in layers(model):
        close(layer.get_delta_weight("less"), -0.4 * layer.get_delta_weight("default"))


def test_ranks_that_differ_by_module_and_adapters_that_are_on_some() -> None:
    model = adapted(r=2, rank_pattern={"grouped": 4}, target_modules=["plain", "grouped"])
    with audiolora.enabled():
        model.add_adapter("second", config(r=3, target_modules=["grouped", "depthwise"]))
    randomise(model, "second", seed=5)
    combine(model, "cat")
    found = dict(layers(model))
    close(found["plain"].get_delta_weight("both"), WEIGHTS[0] * found["plain"].get_delta_weight("default"))
    close(found["grouped"].get_delta_weight("both"), weighted_sum(found["grouped"]))
    close(found["depthwise"].get_delta_weight("both"), WEIGHTS[1] * found["depthwise"].get_delta_weight("second"))


def test_layers_of_peft_beside_ours_are_peft_s() -> None:
    model = with_two("lora", second={"target_modules": ["plain", "head"]}, target_modules=["plain", "head"])
    combine(model, "cat")
    head = model.base_model.model.head
    expected = sum(w * head.get_delta_weight(name) for w, name in zip(WEIGHTS, ("default", "second"), strict=True))
    close(head.get_delta_weight("both"), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "method, second, kind, options, names",
    [
        ("dora", None, "cat", {}, r"plain: DoRA adapters \['default', 'second'\].*set_adapter"),
        ("lora", {"use_dora": True}, "svd", {}, r"plain: DoRA adapters \['second'\]"),
        ("lora", {"lora_bias": True}, "cat", {}, r"plain: lora_bias of \['second'\] would be lost.*first"),
        ("lora", {}, "ties_svd", {}, "'ties_svd' needs density.*None.*density=0.5"),
        ("lora", {}, "dare_linear_svd", {"density": 1.5}, r"density.*\[0, 1\], got 1.5"),
        ("lora", {}, "cat", {"weights": [1.0]}, r"a weight an adapter: 2 adapters, weights=\[1.0\]"),
        ("lora", {}, "no such", {}, "Invalid combination_type: no such"),
        ("lora", {}, "linear", {}, "must have the same r"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    method: str, second: dict[str, Any] | None, kind: str, options: dict[str, Any], names: str
) -> None:
    model, x = with_two(method, second=second), sample()
    before, keys = model(x), list(model.state_dict())
    with pytest.raises(ValueError, match=names):
        combine(model, kind, **options)
    assert list(model.state_dict()) == keys and "both" not in model.peft_config
    assert torch.equal(model(x), before)
