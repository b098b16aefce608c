"""What the layer owes to whoever holds it: PEFT, the model, copy, autocast, checkpointing, compile and export."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import audiolora
from audiolora.layers.lora import LoraConv1d


class Two(nn.Module):
    """Two convolutions, the second grouped and strided, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 6, 3, padding=1)
        self.conv2 = nn.Conv1d(6, 8, 5, stride=2, groups=2)
        self.head = nn.Linear(8, 3)
        self.checkpointed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = checkpoint(self.features, x, use_reentrant=False) if self.checkpointed else self.features(x)
        return self.head(features.mean(-1))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.conv2(F.relu(self.conv1(x), inplace=True)))


def base(dtype: torch.dtype = torch.float64) -> Two:
    torch.manual_seed(0)
    return Two().to(dtype)


def adapted(dtype: torch.dtype = torch.float64, **settings: Any) -> PeftModel:
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["conv1", "conv2"]} | settings
    with audiolora.enabled():
        model = get_peft_model(base(dtype), LoraConfig(**settings))
    randomise(model)
    return model


def randomise(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(
                    0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
                )


def sample(dtype: torch.dtype = torch.float64, n: int = 3) -> torch.Tensor:
    return torch.randn(n, 4, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def layer(model: PeftModel, name: str = "conv1") -> LoraConv1d:
    found = model.base_model.model.get_submodule(name)
    assert isinstance(found, LoraConv1d)
    return found


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained_step(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return y.detach(), gradients(model)


METHODS = [pytest.param({}, id="lora"), pytest.param({"use_dora": True}, id="dora")]


def test_the_base_s_settings_are_read_through_the_layer() -> None:
    conv = layer(adapted(), "conv2")
    assert (conv.stride, conv.kernel_size, conv.groups, conv.padding, conv.padding_mode) == (
        (2,),
        (5,),
        2,
        (0,),
        "zeros",
    )
    assert conv.weight.shape == (8, 3, 5)
    assert conv.bias is not None
    with pytest.raises(AttributeError, match="no_such"):
        getattr(conv, "no_such")  # noqa: B009


@pytest.mark.parametrize("settings", METHODS)
def test_whoever_reads_the_weight_sees_the_adapted_one(settings: dict[str, Any]) -> None:
    model, x = adapted(**settings), sample()
    conv = layer(model, "conv2")
    features = F.relu(model.base_model.model.conv1(x))
    torch.testing.assert_close(F.conv1d(features, conv.weight, conv.bias, 2, 0, 1, 2), conv(features))
    torch.testing.assert_close(conv.weight + 0, conv.base_tensor() + conv.get_delta_weight("default"))


def test_only_the_factors_train_and_the_base_s_parameters_are_the_same_objects() -> None:
    plain = base()
    before = {id(parameter) for parameter in plain.parameters()}
    with audiolora.enabled():
        model = get_peft_model(plain, LoraConfig(r=2, target_modules=["conv1", "conv2"]))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_A" in name or "lora_B" in name for name in trainable) and len(trainable) == 4
    assert {id(parameter) for name, parameter in model.named_parameters() if "lora_" not in name} == before


def test_torch_s_parametrizations_do_not_take_the_layer_for_its_base() -> None:
    model, x = adapted(), sample()
    y = model(x)
    for change in (parametrizations.weight_norm, lambda conv: parametrize.remove_parametrizations(conv, "weight")):
        with pytest.raises(ValueError, match="does not have"):
            change(layer(model))
    assert torch.equal(model(x), y)


def test_hooks_on_the_base_still_run() -> None:
    model, seen = adapted(), []
    layer(model).get_base_layer().register_forward_hook(lambda module, args, y: seen.append(y.shape))
    model(sample())
    assert seen == [(3, 6, 20)]


def test_a_safe_merge_of_a_broken_adapter_leaves_the_base_alone() -> None:
    model = adapted()
    with torch.no_grad():
        layer(model).lora_B["default"].weight[0] = torch.nan
    weight = layer(model).base_tensor().clone()
    with pytest.raises(ValueError, match="NaNs detected in the merged weight.*default"):
        layer(model).merge(safe_merge=True)
    assert not layer(model).merged
    assert torch.equal(layer(model).base_tensor(), weight)


def test_adapters_merged_one_by_one_and_unmerged_together() -> None:
    model, x = adapted(), sample()
    model.add_adapter("second", LoraConfig(r=3, target_modules=["conv1", "conv2"]))
    randomise(model, seed=5)
    weight, conv = layer(model).base_tensor().clone(), layer(model)
    features = x
    model.base_model.set_adapter(["default", "second"])
    expected = conv(features)
    conv.merge(adapter_names=["default"])
    conv.merge(adapter_names=["second"])
    assert conv.merged_adapters == ["default", "second"]
    torch.testing.assert_close(conv(features), expected)
    conv.unmerge()
    assert torch.equal(conv.base_tensor(), weight) and not conv.merged


def test_mixed_batches_say_what_they_cannot_do() -> None:
    model, x = adapted().eval(), sample()
    with pytest.raises(ValueError, match="2 names, 3 samples"):
        layer(model)(x, adapter_names=["default", "__base__"])
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        layer(model)(x, adapter_names=["default"] * 3)


def test_an_adapter_on_one_layer_alone_is_the_base_elsewhere() -> None:
    """As PEFT has it: a name that a layer does not know leaves that layer plain."""
    model, x = adapted(target_modules=["conv1"]), sample()
    with audiolora.enabled():
        model.add_adapter("second", LoraConfig(r=2, target_modules=["conv2"]))
    randomise(model, seed=3)
    model.set_adapter("second")
    torch.testing.assert_close(layer(model)(x), base().conv1(x), rtol=0, atol=0)
    features = layer(model)(x)
    assert not torch.allclose(layer(model, "conv2")(features), base().conv2(features))


def test_deleting_an_adapter() -> None:
    model, x = adapted(), sample()
    before = model(x)
    model.add_adapter("second", LoraConfig(r=3, target_modules=["conv1", "conv2"]))
    randomise(model, seed=3)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert not any("default" in name for name, _ in model.named_parameters())
    assert not torch.allclose(model(x), before)


def test_adapters_concatenated_are_their_sum() -> None:
    """PEFT's add_weighted_adapter: shared factors make it exact with groups too."""
    model = adapted()
    model.add_adapter("second", LoraConfig(r=3, lora_alpha=7, target_modules=["conv1", "conv2"]))
    randomise(model, seed=3)
    with audiolora.enabled():
        model.add_weighted_adapter(["default", "second"], [0.5, 2.0], "both", combination_type="cat")
    for name in ("conv1", "conv2"):
        conv = layer(model, name)
        expected = 0.5 * conv.get_delta_weight("default") + 2.0 * conv.get_delta_weight("second")
        torch.testing.assert_close(conv.get_delta_weight("both"), expected)


@pytest.mark.parametrize("settings", METHODS)
def test_a_copy_is_independent(settings: dict[str, Any]) -> None:
    model, x = adapted(**settings), sample()
    before = model(x).detach()
    twin = copy.deepcopy(model)
    randomise(model, seed=8)
    assert torch.equal(twin(x), before)
    assert not torch.allclose(model(x), before)
    after = model(x).detach()
    trained_step(twin, x)
    twin.merge_and_unload()
    assert gradients(model) == {}
    assert torch.equal(model(x).detach(), after)


@pytest.mark.parametrize("settings", METHODS)
def test_checkpointing_gives_the_same_gradients(settings: dict[str, Any]) -> None:
    model, x = adapted(**settings), sample().requires_grad_()
    y, expected = trained_step(model, x)
    model.base_model.model.checkpointed = True
    y_checkpointed, found = trained_step(model, x)
    assert torch.equal(y, y_checkpointed)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("settings", METHODS)
def test_autocast_trains_near_float32_in_torch_s_dtypes(settings: dict[str, Any]) -> None:
    model, x = adapted(torch.float32, **settings), sample(torch.float32)
    y, expected = trained_step(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(model)(x).dtype == base(torch.float32).conv1(x).dtype == torch.bfloat16
        y_low, found = trained_step(model, x)
    assert (y_low - y).norm() < 0.02 * y.norm()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.05 * expected[name].norm(), name


@pytest.mark.parametrize("settings", METHODS)
def test_a_bf16_base_has_float32_adapters(settings: dict[str, Any]) -> None:
    """PEFT's autocast_adapter_dtype: steps of 1e-4 would vanish in bf16 factors."""
    model, exact = adapted(torch.bfloat16, **settings), adapted(torch.float32, **settings)
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}
    y, found = trained_step(model, sample(torch.bfloat16))
    y_exact, expected = trained_step(exact, sample(torch.float32))
    assert y.dtype == torch.bfloat16
    assert (y.float() - y_exact).norm() < 0.05 * y_exact.norm()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.1 * expected[name].norm(), name
    model.merge_adapter()
    assert layer(model).base_tensor().dtype == torch.bfloat16


def test_an_input_of_another_dtype_raises_as_conv1d_does() -> None:
    model = adapted(torch.float32)
    with pytest.raises(RuntimeError):
        base(torch.float32)(sample())
    with pytest.raises(TypeError, match="float64.*float32.*autocast"):
        model(sample())


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("settings", METHODS)
def test_export_gives_plain_operators_and_the_same_outputs(settings: Any, training: bool, strict: bool) -> None:
    model, x = adapted(torch.float32, **settings).train(training), sample(torch.float32)
    inner = model.base_model.model
    exported = torch.export.export(inner, (x,), strict=strict)
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert all(target.startswith(("aten.", "<built-in", "_operator")) for target in targets), targets
    torch.testing.assert_close(exported.module()(x), inner(x), rtol=1e-5, atol=1e-6)


def test_an_exported_program_is_saved_and_loaded() -> None:
    model, x = adapted(torch.float32).eval(), sample(torch.float32)
    inner, buffer = model.base_model.model, io.BytesIO()
    torch.export.save(torch.export.export(inner, (x,), strict=False), buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.export.load(buffer).module()(x), inner(x), rtol=1e-5, atol=1e-6)


def test_dropout_in_training_cannot_be_exported() -> None:
    model = adapted(torch.float32, lora_dropout=0.5).train()
    with pytest.raises(Exception, match=r"lora_dropout=0\.5.*torch\.export"):
        torch.export.export(model.base_model.model, (sample(torch.float32),), strict=False)


@pytest.mark.parametrize("settings", METHODS)
def test_compile_traces_a_training_step_whole(settings: dict[str, Any]) -> None:
    """fullgraph=True raises at any break; aot_eager runs the traced forward and backward without a C++ compiler."""
    model, x = adapted(torch.float32, **settings), sample(torch.float32)
    y, expected = trained_step(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y_compiled, found = trained_step(compiled, x)
    torch.testing.assert_close(y_compiled, y, rtol=1e-5, atol=1e-6)
    assert len(found) == len(expected)
    for gradient, want in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("settings", METHODS)
def test_compile_with_inductor_trains(settings: dict[str, Any]) -> None:
    model, x = adapted(torch.float32, **settings), sample(torch.float32)
    y, expected = trained_step(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    y_compiled, found = trained_step(compiled, x)
    torch.testing.assert_close(y_compiled, y, rtol=1e-5, atol=1e-5)
    for gradient, want in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", METHODS)
def test_low_cpu_mem_usage(settings: dict[str, Any], tmp_path: Path) -> None:
    model, x = adapted(**settings).eval(), sample()
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=True).eval()
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(x), model(x).detach())
    tensors = loaded.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())


def test_modules_to_save_travel_along(tmp_path: Path) -> None:
    model, x = adapted(modules_to_save=["head"]), sample()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    y = model.eval()(x)
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(base(), tmp_path).eval()
    torch.testing.assert_close(loaded(x), y.detach())
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x), y)
    assert not torch.equal(merged.head.weight, base().head.weight)


def test_rank_and_alpha_patterns() -> None:
    model = adapted(rank_pattern={"conv2": 5}, alpha_pattern={"conv2": 20})
    assert layer(model, "conv1").lora_A["default"].weight.shape == (2, 4, 3)
    assert layer(model, "conv2").lora_A["default"].weight.shape == (5, 3, 5)
    assert (layer(model, "conv1").scaling["default"], layer(model, "conv2").scaling["default"]) == (1.5, 4.0)


def test_trained_biases_are_saved_under_bias_all(tmp_path: Path) -> None:
    model, x = adapted(bias="all").eval(), sample()
    biases = [parameter for name, parameter in model.named_parameters() if "bias" in name]
    assert len(biases) == 3 and all(bias.requires_grad for bias in biases)
    with torch.no_grad():
        for bias in biases:
            bias.add_(1.0)
    y = model(x).detach()
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(base(), tmp_path).eval()
    torch.testing.assert_close(loaded(x), y)


def test_moved_to_another_dtype_it_follows() -> None:
    model = adapted(torch.float32).double()
    torch.testing.assert_close(model(sample()).float(), adapted(torch.float32)(sample(torch.float32)))


@pytest.mark.parametrize("settings", METHODS)
def test_adapting_a_copy_leaves_the_original_alone(settings: dict[str, Any]) -> None:
    """torch's deep copies of a weight-normed module share its class; taking one apart must not break the other."""
    plain = base()
    torch.nn.utils.parametrizations.weight_norm(plain.conv1)
    x, twin = sample(), copy.deepcopy(plain)
    y = plain(x)
    with audiolora.enabled():
        model = get_peft_model(twin, LoraConfig(r=2, target_modules=["conv1"], **settings))
    randomise(model)
    assert torch.equal(plain(x), y)
    model.merge_and_unload()
    assert torch.equal(plain(x), y)
    torch.nn.utils.parametrize.remove_parametrizations(plain.conv1, "weight")
    assert twin(x).isfinite().all()


def test_a_weight_that_a_hook_sets_is_refused() -> None:
    plain = base()
    torch.nn.utils.spectral_norm(plain.conv1)
    keys, hooks = list(plain.state_dict()), len(plain.conv1._forward_pre_hooks)
    with audiolora.enabled(), pytest.raises(ValueError, match="conv1: its weight is set by something else.*spectral"):
        get_peft_model(plain, LoraConfig(r=2, target_modules=["conv1"]))
    assert list(plain.state_dict()) == keys and len(plain.conv1._forward_pre_hooks) == hooks


def test_a_parametrization_that_cannot_hold_the_merged_weight_refuses_it() -> None:
    """A spectral norm would divide W' by its own largest singular value."""
    plain = base().eval()
    torch.nn.utils.parametrizations.spectral_norm(plain.conv1)
    x = sample()
    with audiolora.enabled():
        model = get_peft_model(plain, LoraConfig(r=2, target_modules=["conv1"])).eval()
    randomise(model)
    y = model(x)
    with pytest.raises(ValueError, match="cannot hold the merged weight.*leave the adapter unmerged"):
        model.merge_adapter()
    assert not layer(model).merged
    torch.testing.assert_close(model(x), y)


def test_lora_bias_added_while_another_adapter_is_merged() -> None:
    model = adapted()
    before = layer(model).base_tensor("bias").clone(), layer(model).base_tensor().clone()
    model.merge_adapter()
    with audiolora.enabled():
        model.add_adapter("second", LoraConfig(r=2, target_modules=["conv1", "conv2"], lora_bias=True))
    randomise(model, seed=6)
    model.merge_adapter(["second"])
    assert not torch.equal(layer(model).base_tensor("bias"), before[0])
    model.unmerge_adapter()
    assert torch.equal(layer(model).base_tensor("bias"), before[0])
    assert torch.equal(layer(model).base_tensor(), before[1])


def test_lora_bias_beside_a_bias_that_trains_is_refused() -> None:
    with pytest.raises(ValueError, match="conv1: lora_bias=True.*bias='all' trains; set bias='none'"):
        adapted(lora_bias=True, bias="all")
