"""``init_lora_weights`` on convolutions against decompositions in float64 by NumPy, and PEFT's own on a Linear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoftQConfig, LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora import preprocess_loraga
from torch import nn

import audiolora
from audiolora.conv.starts import rounded_to
from tests.layers.convolutions import CONVOLUTIONS, OF_THEIR_OWN, Convolution, base_weight
from tests.layers.test_lora import close, randomise, same_tensors

NAMES = (
    "plain",
    "dilation 2",
    "groups 2",
    "depthwise",
    "weight_norm dim 2",
    "old weight_norm",
    "transposed, groups 2, dilation 2",
    "transposed, weight_norm",
    "a class of its own, groups 2",
)
ROWS = [row for row in (*CONVOLUTIONS, *OF_THEIR_OWN) if row.name in NAMES]
ALL = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
R, ALPHA = 2, 5


def config(init: Any, **settings: Any) -> LoraConfig:
    return LoraConfig(
        **{"r": R, "lora_alpha": ALPHA, "target_modules": ["conv"], "init_lora_weights": init, **settings}
    )


def adapted(row: Convolution, init: Any, **settings: Any) -> PeftModel:
    with audiolora.enabled():
        return get_peft_model(row.model(), config(init, **settings)).eval()


def matrices(row: Convolution, model: PeftModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W as it was, as it is, and s·B·A, each (C_out, C_in/g · k)."""
    layer = model.base_model.model.conv
    term = layer.term("default")
    before, after = (as_matrix(row, W) for W in (base_weight(row.model().conv), layer.base_tensor()))
    update = term.scaling * term.B.detach().numpy() @ term.A.detach().flatten(1).numpy()
    return before, after, update


def as_matrix(row: Convolution, W: torch.Tensor) -> np.ndarray:
    W = W.detach()
    if row.transposed_groups is not None:
        W = torch.cat([group.transpose(0, 1) for group in W.chunk(row.transposed_groups)])
    return W.flatten(1).numpy()


@ALL
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_pissa_is_the_svd_s_first_part(row: Convolution, dora: bool) -> None:
    model = adapted(row, "pissa", use_dora=dora)
    before, after, update = matrices(row, model)
    U, S, Vh = np.linalg.svd(before, full_matrices=False)
    np.testing.assert_allclose(update, U[:, :R] * S[:R] @ Vh[:R], atol=1e-12)
    np.testing.assert_allclose(after, before - update, atol=1e-12)
    close(model(row.input()), row.model()(row.input()))


@ALL
def test_pissa_niter_is_near_it_and_the_same_each_time(row: Convolution) -> None:
    model = adapted(row, "pissa_niter_16")
    before, after, update = matrices(row, model)
    torch.rand(7)  # the seed of the moment is nothing to it
    again = matrices(row, adapted(row, "pissa_niter_16"))
    assert np.array_equal(update, again[2]) and np.array_equal(after, again[1])
    least = np.linalg.norm(np.linalg.svd(before, compute_uv=False)[R:])
    assert least <= np.linalg.norm(before - update) + 1e-12 and np.linalg.norm(before - update) < 1.05 * least + 1e-12
    close(model(row.input()), row.model()(row.input()))


@ALL
def test_olora_is_the_qr_s_first_columns(row: Convolution) -> None:
    model = adapted(row, "olora")
    before, after, update = matrices(row, model)
    Q, upper = np.linalg.qr(before)
    np.testing.assert_allclose(update, ALPHA / R * Q[:, :R] @ upper[:R], atol=1e-12)
    np.testing.assert_allclose(after, before - update, atol=1e-12)
    close(model(row.input()), row.model()(row.input()))


@ALL
def test_orthogonal_starts_as_the_base(row: Convolution) -> None:
    model = adapted(row, "orthogonal")
    before, after, update = matrices(row, model)
    layer = model.base_model.model.conv
    assert layer.lora_A["default"].weight.any() and layer.lora_B["default"].weight.any()
    np.testing.assert_allclose(update, 0, atol=1e-6)  # drawn in float32, as PEFT draws it
    np.testing.assert_allclose(after, before, atol=1e-15)


@ALL
@pytest.mark.parametrize("bits", [4, 8])
def test_loftq_is_nearer_than_the_quantised_weight_alone(row: Convolution, bits: int) -> None:
    model = adapted(row, "loftq", loftq_config=LoftQConfig(loftq_bits=bits, loftq_iter=3))
    before, after, update = matrices(row, model)
    alone = np.linalg.norm(before - rounded_to(torch.from_numpy(before), bits).numpy())
    assert np.linalg.norm(before - after - update) < alone
    if bits == 8:
        scale = np.abs(after).max(1, keepdims=True) / 127
        np.testing.assert_allclose(after / scale, np.round(after / scale), atol=1e-6)
    else:
        groups = after.shape[0] * -(-after.shape[1] // 64)  # of an output channel each
        assert len(np.unique(np.round(after / np.abs(after).max(), 9))) <= 16 * groups


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_on_a_pointwise_kernel_it_is_peft_s_on_a_linear(init: str) -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(12, 10))
    conv = nn.Sequential(nn.Conv1d(12, 10, 1))
    with torch.no_grad():
        conv[0].weight.copy_(linear[0].weight[..., None])
        conv[0].bias.copy_(linear[0].bias)
    settings = config(init, r=3, target_modules=["0"])
    theirs = get_peft_model(linear, settings).base_model.model[0]
    with audiolora.enabled():
        ours = get_peft_model(conv, config(init, r=3, target_modules=["0"])).base_model.model[0]
    torch.testing.assert_close(ours.get_delta_weight("default")[..., 0], theirs.get_delta_weight("default"))
    torch.testing.assert_close(ours.base_tensor()[..., 0], theirs.base_layer.weight)


def test_orthogonal_draws_as_peft_does() -> None:
    factors = []
    for net in (nn.Sequential(nn.Linear(12, 10)), nn.Sequential(nn.Conv1d(4, 10, 3))):
        with audiolora.enabled():
            model = get_peft_model(net, LoraConfig(r=4, target_modules=["0"]))
            torch.manual_seed(1)
            layer = model.base_model.model[0]
            if isinstance(net[0], nn.Linear) or "Linear" in type(layer).__name__:
                layer.orthogonal_init("default")
            else:
                from audiolora.layers.starts import start

                start(layer, "default", LoraConfig(r=4, init_lora_weights="orthogonal"))
        factors.append([layer.lora_A["default"].weight.flatten(1), layer.lora_B["default"].weight.flatten(1)])
    for theirs, ours in zip(*factors, strict=True):
        torch.testing.assert_close(ours, theirs)


def gradients(model: nn.Module, settings: LoraConfig, x: torch.Tensor) -> None:
    """Of the convolution alone: torch has no backward hooks, which PEFT uses, under an activation in place."""
    with audiolora.enabled():
        preprocess_loraga(model, settings, lambda: model.conv(x).square().mean().backward())


@pytest.mark.parametrize("direction", ["ArBr", "A2rBr", "ArB2r", "random"])
@pytest.mark.parametrize("scale", ["stable", "weight_svd", "gd_scale", "unit"])
@pytest.mark.parametrize("name", ["dilation 2", "groups 2", "transposed, groups 2, dilation 2"])
def test_lora_ga_takes_the_gradient_s_directions(name: str, scale: str, direction: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    model, x = row.model(), row.input()
    settings = config("lora_ga", lora_ga_config=LoraGAConfig(direction=direction, scale=scale))
    gradients(model, settings, x)
    gradient = as_matrix(row, model.conv._peft_loraga_grad)
    W = row.model().conv.weight.detach().requires_grad_()
    row.reference(x, W, row.model().conv.bias).square().mean().backward()
    np.testing.assert_allclose(gradient, as_matrix(row, W.grad), atol=1e-12)
    with audiolora.enabled():
        adapted = get_peft_model(model, settings).eval()
    before, after, update = matrices(row, adapted)
    np.testing.assert_allclose(after, before - update, atol=1e-12)
    close(adapted(x), row.model()(x))
    assert not hasattr(adapted.base_model.model.conv.get_base_layer(), "_peft_loraga_grad")
    U, S, Vh = np.linalg.svd(gradient, full_matrices=False)
    layer = adapted.base_model.model.conv
    A = layer.lora_A["default"].weight.detach().flatten(1).numpy()
    B = layer.lora_B["default"].weight.detach().flatten(1).numpy()
    of_A = {"ArBr": [1, 3], "A2rBr": [2, 3], "ArB2r": [0, 1]}.get(direction)
    of_B = {"ArBr": [0, 2], "A2rBr": [0, 1], "ArB2r": [2, 3]}.get(direction)
    spread = ALPHA / R if scale == "gd_scale" else 1
    factor = {
        "stable": len(before) ** 0.25 / LoraGAConfig().stable_gamma ** 0.5,
        "weight_svd": np.linalg.norm(before, 2) / (S[of_B[0]] if of_B else 1),
        "gd_scale": 1 / spread,
    }.get(scale, 1)
    if of_A is not None and of_B is not None:
        np.testing.assert_allclose(np.abs(A @ Vh.T) * spread, np.eye(len(S))[of_A], atol=1e-9)
        np.testing.assert_allclose(np.abs(U.T @ B), (S * factor * np.eye(len(S)))[:, of_B], atol=1e-9)


CONVERTED = ["plain", "groups 2", "depthwise", "old weight_norm", "transposed, weight_norm"]


@pytest.mark.filterwarnings("ignore:`path_initial_model_for_weight_conversion`")
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "lora_ga"])
@pytest.mark.parametrize("name", CONVERTED)
def test_converted_it_is_the_same_over_the_untouched_base(name: str, init: str, tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.name == name)
    if init == "lora_ga" and ("norm" in name or name == "depthwise"):
        pytest.skip("refused: the weight is computed, or of too low a rank")
    model, x = row.model(), row.input()
    settings = config(init, lora_ga_config=LoraGAConfig() if init == "lora_ga" else None)
    if init == "lora_ga":
        gradients(model, settings, x)
    with audiolora.enabled():
        model = get_peft_model(model, settings).eval()
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(str(tmp_path / "start"))
        model.peft_config["default"].init_lora_weights = init
        randomise(model)
        y = model(x).detach()
        model.save_pretrained(
            str(tmp_path / "trained"), path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
        close(model(x), y)
        loaded = PeftModel.from_pretrained(row.model(), str(tmp_path / "trained")).eval()
    close(loaded(x), y)
    assert loaded.peft_config["default"].r == 2 * R
    close(loaded.base_model.model.conv.base_tensor(), base_weight(row.model().conv))
    loaded.merge_adapter()
    close(loaded(x), y)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loaded_as_it_is_the_base_is_corrected_again(init: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.name == "groups 2")
    model, x = adapted(row, init), row.input()
    randomise(model)
    model.save_pretrained(str(tmp_path))
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(row.model(), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage).eval()
    close(loaded(x), model(x).detach())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"init_lora_weights": "pissa", "r": 7}, r"last: .*'pissa' finds at most 4 directions.*got r=7; try r=4"),
    ({"init_lora_weights": "olora", "r": 5}, r"last: .*'olora' finds at most 4 directions"),
    ({"init_lora_weights": "pissa_niter_0"}, "first: .*'pissa_niter_0' must be 'pissa' or 'pissa_niter_N'"),
    ({"init_lora_weights": "orthogonal", "r": 3}, "first: .*'orthogonal' needs an even rank, got r=3; try r=4"),
    ({"init_lora_weights": "corda"}, "first: .*'corda' is not defined for a convolution"),
    ({"init_lora_weights": "mica"}, "first: .*'mica' is not defined for a convolution"),
    (
        {"init_lora_weights": "loftq", "loftq_config": LoftQConfig(loftq_bits=3)},
        "first: .*4 or 8 bits, got loftq_bits=3",
    ),
    ({"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}, "first: .*run peft.*preprocess_loraga"),
]


class Two(nn.Module):
    """A convolution that any start fits, a Linear of PEFT's, and a small convolution that some do not fit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 9, 3))
        self.linear = nn.Linear(9, 8)
        self.last = nn.Conv1d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.linear(self.first(x).mT).mT)


@pytest.mark.parametrize("settings, message", REFUSED, ids=[str(settings) for settings, _ in REFUSED])
def test_a_refusal_leaves_every_weight_as_it_was(settings: dict[str, Any], message: str) -> None:
    model, plain = Two(), Two()
    with audiolora.enabled(), pytest.raises(ValueError, match=message):
        get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["first", "linear", "last"], **settings}))
    same_tensors(model, plain)
    assert type(model.linear) is nn.Linear and type(model.last) is nn.Conv1d


def test_a_tied_weight_is_refused() -> None:
    model = nn.ModuleDict({"one": nn.Conv1d(4, 4, 3), "two": nn.Conv1d(4, 4, 3)})
    model["two"].weight = model["one"].weight
    before = model["one"].weight.detach().clone()
    with audiolora.enabled(), pytest.raises(ValueError, match="one: .*'pissa' changes its weight, .*that of two"):
        get_peft_model(model, LoraConfig(r=2, target_modules=["one"], init_lora_weights="pissa"))
    assert torch.equal(model["one"].weight, before) and model["one"].weight is model["two"].weight


def test_a_second_adapter_may_not_change_the_base_of_the_first() -> None:
    row = ROWS[0]
    model = adapted(row, True)
    randomise(model)
    y = model(row.input())
    with pytest.raises(ValueError, match="conv: .*'pissa' changes the base, and with it what the adapters"):
        model.add_adapter("second", config("pissa"))
    assert torch.equal(model(row.input()), y)


def test_a_computed_weight_has_no_gradient_for_lora_ga() -> None:
    row = next(row for row in ROWS if row.name == "old weight_norm")
    settings = config("lora_ga", lora_ga_config=LoraGAConfig())
    with pytest.raises(ValueError, match="conv: its weight is computed"):
        gradients(row.model(), settings, row.input())
