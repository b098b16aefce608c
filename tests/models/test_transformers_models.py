"""Every convolution of every model of the table, adapted at once: the same function as a dense model with W' in it.

The reference is the plain model, run by ``torch.func.functional_call`` with W' = f(W; θ) in each convolution's place.
The formulas are written here once more, and weight norm is taken off first: nothing of our layers takes part.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

import audiolora
from audiolora.layers.base import WeightSpaceLayer
from audiolora.presets import target_modules
from tests.models.transformers_models import TABLE, RealModel, convolutions, weight_norm

R, ALPHA = 2, 3
METHODS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}}
FACTORS = ("lora_A", "lora_B", "lora_magnitude_vector")
PREFIX = "base_model.model."

rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
methods = pytest.mark.parametrize("method", METHODS)


def adapted(row: RealModel, method: str) -> PeftModel:
    """Every convolution adapted, the factors as they start."""
    base = row.build()
    config = LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules=target_modules(base, convolutions(base)), **METHODS[method]
    )
    with audiolora.enabled():
        model = get_peft_model(base, config).eval()
    return model


def randomise(model: PeftModel) -> PeftModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in factors(model).values():
            drawn = torch.randn(factor.shape, generator=generator, dtype=torch.float64)
            factor.add_((0.2 * drawn).to(factor))
    return model


def layers(model: nn.Module) -> dict[str, WeightSpaceLayer]:
    return {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, WeightSpaceLayer)
    }


def factors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name.removeprefix(PREFIX): p for name, p in model.named_parameters() if p.requires_grad}


class Ran(nn.Module):
    """A row's run as a module, for ``functional_call``."""

    def __init__(self, row: RealModel, model: nn.Module) -> None:
        super().__init__()
        self.row, self.model = row, model

    def forward(self) -> torch.Tensor:
        return self.row.output(self.model)


def without_weight_norm(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    return model


def dense_weight(conv: nn.Module, A: torch.Tensor, B: torch.Tensor, m: torch.Tensor | None) -> torch.Tensor:
    """W' as the convolution holds its weight, from A (r, C_in/g, k) and B (C_out, r, 1); m (1, C_out, 1) with DoRA."""
    transposed, g = isinstance(conv, nn.ConvTranspose1d), conv.groups
    W = conv.weight.detach()
    if transposed:  # (C_in, C_out/g, k) → (C_out, C_in/g, k), group by group
        W = torch.cat([part.transpose(0, 1) for part in W.chunk(g)])
    W = W + ALPHA / R * torch.einsum("or,rik->oik", B.squeeze(-1), A)
    if m is not None:
        W = W * (m.flatten() / W.detach().square().sum((1, 2)).sqrt())[:, None, None]
    return torch.cat([part.transpose(0, 1) for part in W.chunk(g)]) if transposed else W


def reference(row: RealModel, model: PeftModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The dense model's output, and the factors as leaves of its graph."""
    plain = Ran(row, without_weight_norm(row.build()).requires_grad_(False))
    leaves = {name: factor.detach().clone().requires_grad_() for name, factor in factors(model).items()}
    weights = {}
    for name in convolutions(plain.model):
        A, B, m = (leaves.get(f"{name}.{kind}.default.weight") for kind in FACTORS)
        assert A is not None and B is not None, name
        weights[f"model.{name}.weight"] = dense_weight(plain.model.get_submodule(name), A, B, m)
    return torch.func.functional_call(plain, weights, ()), leaves


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    """Against the largest number in it: a model's outputs near zero are sums that cancel."""
    bound = tolerance * expected.abs().max().clamp_min(1e-3)
    worst = (actual - expected).abs().max()
    assert actual.shape == expected.shape and worst <= bound, f"{what}: off by {worst:.2e}, may be {bound:.2e}"


@cache
def plain_output(row: RealModel) -> torch.Tensor:
    with torch.no_grad():
        return row.output(row.build())


@rows
@methods
def test_starts_as_the_base_and_computes_the_dense_formula_and_its_gradients(row: RealModel, method: str) -> None:
    model = adapted(row, method)
    assert set(layers(model)) == set(convolutions(row.build()))
    with torch.no_grad():
        assert_close(row.output(model), plain_output(row), row.tolerance, "output at the start")
    randomise(model)
    expected, leaves = reference(row, model)
    actual = row.output(model)
    assert_close(actual, expected, row.tolerance, "output")
    plain = plain_output(row)
    moved = expected.shape != plain.shape or (expected - plain).abs().max() > 1e-3 * plain.abs().max()
    assert moved, "the adapters do nothing"  # another shape: a predicted duration

    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * direction.to(expected)).sum(), list(leaves.values()), allow_unused=True)
    (actual * direction.to(actual)).sum().backward()
    for (name, factor), gradient in zip(factors(model).items(), wanted, strict=True):
        if name.split(".lora_")[0] in row.unused:
            assert gradient is None and factor.grad is None
            continue
        assert gradient is not None and factor.grad is not None, f"{name} takes no part"
        assert gradient.abs().max() > 0, f"{name} takes no part"
        assert_close(factor.grad, gradient, 100 * row.tolerance, name)


@rows
def test_each_convolution_takes_part(row: RealModel) -> None:
    modules = list(row.build().modules())
    counts = tuple(sum(isinstance(m, kind) for m in modules) for kind in (nn.Conv1d, nn.ConvTranspose1d))
    assert counts == row.n_convs
    model = adapted(row, "lora")
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        row.output(model)
    bypassed = [each.message for each in caught if isinstance(each.message, audiolora.BypassedModuleWarning)]
    assert [message.modules for message in bypassed] == ([row.unused] if row.unused else [])
    with torch.no_grad():
        for name, layer in layers(model).items():
            B = layer.lora_B["default"].weight
            B.normal_(generator=torch.Generator().manual_seed(3))
            changed = not torch.equal(row.output(model), plain_output(row))
            assert changed != (name in row.unused), name
            B.zero_()


@rows
@methods
def test_a_merged_model_is_the_model(row: RealModel, method: str, tmp_path: Path) -> None:
    plain, model = row.build(), randomise(adapted(row, method))
    with torch.no_grad():
        expected = row.output(model)
        model.merge_adapter()
        assert_close(row.output(model), expected, row.tolerance, "merged output")
        model.unmerge_adapter()
        assert torch.equal(row.output(model), expected)
        merged = model.merge_and_unload()
        assert_close(row.output(merged), expected, row.tolerance, "output after merge_and_unload")
    assert [(n, kind(m)) for n, m in merged.named_modules()] == [(n, kind(m)) for n, m in plain.named_modules()]
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert_loads_as_itself(row, merged, expected, tmp_path)


def kind(module: nn.Module) -> type[nn.Module]:
    return parametrize.type_before_parametrizations(module)


def assert_loads_as_itself(row: RealModel, merged: Any, expected: torch.Tensor, folder: Path) -> None:
    merged.save_pretrained(folder / "merged")
    if row.prepare is weight_norm:
        # from_pretrained makes these without their weight norm, adapted or not.
        loaded = row.build()
        loaded.load_state_dict(load_file(folder / "merged" / "model.safetensors"))
        with torch.no_grad():
            assert_close(row.output(loaded), expected, row.tolerance, "output after load_state_dict")
        without_weight_norm(merged).save_pretrained(folder / "merged")
    loaded = type(merged).from_pretrained(folder / "merged", dtype=row.dtype).eval()
    with torch.no_grad():
        assert_close(row.output(loaded), expected, row.tolerance, "output after from_pretrained")


@rows
def test_an_adapter_s_file_loads_through_peft(row: RealModel, tmp_path: Path) -> None:
    model = randomise(adapted(row, "dora"))
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(row.build(), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(row.output(loaded), row.output(model))
        with loaded.disable_adapter():
            assert_close(row.output(loaded), plain_output(row), row.tolerance, "output without the adapter")
