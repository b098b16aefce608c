"""``peft.utils.hotswap`` on our layers: after a swap the model is what loading the file afresh makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

import audiolora
from tests.peft_features.networks import METHODS, adapted, base, close, config, layers, randomise, sample

pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor")  # lora_B.bias, to PEFT a factor


def saved(folder: Path, r: int, alpha: float, seed: int = 7, **settings: Any) -> Path:
    adapted(seed=seed, r=r, lora_alpha=alpha, **settings).save_pretrained(folder)
    return folder


def loaded_afresh(folder: Path) -> PeftModel:
    with audiolora.enabled():
        return PeftModel.from_pretrained(base(), folder).eval()


def swap(model: torch.nn.Module, folder: Path) -> None:
    with audiolora.enabled():
        hotswap_adapter(model, str(folder), adapter_name="default", torch_device="cpu")


def prepare(model: PeftModel, target_rank: int) -> None:
    with audiolora.enabled():
        prepare_model_for_compiled_hotswap(model, target_rank=target_rank)


@pytest.mark.parametrize("r", [3, 5, 2], ids=["same rank", "higher", "lower"])
@pytest.mark.parametrize("prepared", [False, True], ids=["as loaded", "prepared"])
@pytest.mark.parametrize("method", METHODS)
def test_a_swapped_adapter_is_the_one_in_the_file(method: str, prepared: bool, r: int, tmp_path: Path) -> None:
    model, x = adapted(r=3, lora_alpha=4, **METHODS[method]).eval(), sample()
    before = model(x)
    first = saved(tmp_path / "first", 3, 4, seed=1, **METHODS[method])
    exact = {"rtol": 1e-5, "atol": 1e-6} if prepared else {}  # PEFT's preparation keeps the scaling in float32
    if prepared:
        prepare(model, target_rank=5)
        close(model(x), before, **exact)
    swap(model, saved(tmp_path / "second", r, 9, **METHODS[method]))
    close(model(x), loaded_afresh(tmp_path / "second")(x), **exact)
    assert not torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)
    swap(model, first)
    close(model(x), before, **exact)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_swapped_adapter_trains_on(method: str, tmp_path: Path) -> None:
    model, x = adapted(r=3, **METHODS[method]), sample()
    swap(model, saved(tmp_path / "higher", 5, 9, **METHODS[method]))
    model(x).sum().backward()
    for _, layer in layers(model):
        assert layer.lora_A["default"].weight.shape[0] == 5
        assert layer.lora_A["default"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_the_new_adapter_leaves_out_is_the_base_again(method: str, tmp_path: Path) -> None:
    """PEFT zeroes what is missing, DoRA's m with it, which would silence the convolution."""
    model, x = adapted(**METHODS[method]).eval(), sample()
    swap(model, saved(tmp_path, 2, 3, target_modules=["grouped"], **METHODS[method]))
    close(model(x), loaded_afresh(tmp_path)(x))


def test_scalings_follow_the_new_adapter_s_patterns(tmp_path: Path) -> None:
    patterns = {"alpha_pattern": {"grouped": 11}}
    model, x = adapted(r=3, **patterns).eval(), sample()
    swap(model, saved(tmp_path, 3, 8, rank_pattern={"plain": 4, "grouped": 2}, **patterns))
    expected = loaded_afresh(tmp_path)
    close(model(x), expected(x))
    assert [layer.scaling["default"] for _, layer in layers(model)] == [2.0, 5.5, 8 / 3]
    assert [layer.r["default"] for _, layer in layers(model)] == [layer.r["default"] for _, layer in layers(expected)]


def test_a_rank_over_the_prepared_one_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    model, x = adapted(r=2).eval(), sample()
    prepare(model, target_rank=3)
    before = model(x)
    with pytest.raises(
        ValueError, match=r"depthwise.*grouped.*plain\.lora_A.*\(5, 4, 3\), here \(3, 4, 3\).*target_rank"
    ):
        swap(model, saved(tmp_path, 5, 3))
    assert torch.equal(model(x), before)


def test_preparing_below_an_adapter_s_rank_is_refused() -> None:
    model, x = adapted(r=4).eval(), sample()
    before = model(x)
    with pytest.raises(ValueError, match="plain: adapter 'default' has rank 4, over target_rank=2"):
        prepare(model, target_rank=2)
    close(model(x), before)


def test_tensors_of_another_network_are_all_named(tmp_path: Path) -> None:
    model = adapted(r=2).eval()
    tensors = {name: torch.zeros(2, 5, 7) for name, _ in model.named_parameters() if "lora_A" in name}
    with audiolora.enabled(), pytest.raises(ValueError, match=r"plain.*\(2, 5, 7\).*grouped.*depthwise"):
        import peft.utils.hotswap as hotswap

        hotswap.hotswap_adapter_from_state_dict(model, tensors, "default", LoraConfig(r=2))


def test_what_peft_refuses_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """A module that the model has no adapter for; those before it fit and have a higher rank."""
    model, x = adapted(target_modules=["plain"]).eval(), sample()
    before = model(x)
    with pytest.raises(RuntimeError, match="unexpected keys found.*grouped"):
        swap(model, saved(tmp_path, 5, 3))
    close(model(x), before)


def test_a_merged_adapter_is_refused_as_peft_does(tmp_path: Path) -> None:
    model = adapted(r=2).eval()
    folder = saved(tmp_path, 4, 3)
    model.merge_adapter()
    with pytest.raises(ValueError, match="currently merged"):
        swap(model, folder)
    assert {layer.lora_A["default"].weight.shape[0] for _, layer in layers(model)} == {2}


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_another_adapter_is_left_alone(method: str, tmp_path: Path) -> None:
    model, x = adapted(**METHODS[method]).eval(), sample()
    with audiolora.enabled():
        model.add_adapter("second", config(r=4, **METHODS[method]))
    randomise(model, "second", seed=9)
    model.set_adapter("second")
    second = model(x)
    swap(model, saved(tmp_path, 3, 5, **METHODS[method]))
    assert torch.equal(model(x), second)
    model.set_adapter("default")
    close(model(x), loaded_afresh(tmp_path)(x))


def compiled_swaps(model: PeftModel, backend: str, tmp_path: Path, method: str) -> None:
    """No graph is compiled again for another rank or alpha, and each gives what a fresh model gives."""
    x = sample()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True), torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        compiled(x)
        for r, alpha in ((2, 3), (5, 1), (4, 8)):
            folder = saved(tmp_path / str(r), r, alpha, seed=r, **METHODS[method])
            swap(compiled, folder)
            close(compiled(x), loaded_afresh(folder)(x), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_compiled_a_swap_keeps_the_graph(method: str, tmp_path: Path) -> None:
    model = adapted(r=3, **METHODS[method]).eval()
    prepare(model, target_rank=5)
    compiled_swaps(model, "aot_eager", tmp_path, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_compiled_by_inductor_a_swap_keeps_the_graph(method: str, tmp_path: Path) -> None:
    model = adapted(r=3, **METHODS[method]).eval()
    prepare(model, target_rank=5)
    compiled_swaps(model, "inductor", tmp_path, method)
