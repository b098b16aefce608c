"""Adapted modules that a model's forward does not use are named, once, and no others."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from torch.utils.checkpoint import checkpoint

import audiolora
from audiolora import BypassedModuleWarning
from audiolora.layers.participation import LAYERDROP_FORWARDS

ALL = ["called", "read", "dense", "embedded", "unused", "past"]


class Net(nn.Module):
    """Uses its parts in every way there is, and two of them not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.called = nn.Conv1d(4, 4, 3, padding=1)
        self.read = nn.Conv1d(4, 4, 1)
        self.dense = nn.Linear(4, 4)
        self.embedded = nn.Embedding(5, 4)
        self.unused = nn.Conv1d(4, 4, 1)
        self.past = nn.Linear(4, 4)
        self.checkpointed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x)
        return F.linear(y, self.past.weight, self.past.bias)  # as WavLM's attention does: PEFT's layer is not called

    def body(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv1d(self.called(x), self.read.weight, self.read.bias)
        return self.dense(y.mT) + self.embedded(torch.zeros(1, dtype=torch.long))


BYPASSED = ("unused", "past")


def config(targets: list[str] = ALL, **settings: Any) -> LoraConfig:
    return LoraConfig(r=2, target_modules=targets, **settings)


def adapted(targets: list[str] = ALL, model: nn.Module | None = None, **settings: Any) -> PeftModel:
    with audiolora.enabled():
        return get_peft_model(model or Net(), config(targets, **settings)).eval()


X = torch.ones(1, 4, 8)


@contextmanager
def named(*expected: str) -> Iterator[None]:
    """Exactly one warning in the block, which names exactly these; none if there are none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = [each.message for each in caught if isinstance(each.message, BypassedModuleWarning)]
    assert [message.modules for message in ours] == ([expected] if expected else [])
    assert all(name in str(message) for message in ours for name in expected)


def hooks(model: nn.Module) -> int:
    """Of ours, on any module."""
    dicts = [hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    found = [hook for hooks in dicts for hook in hooks.values()]
    return sum(type(hook).__module__ == "audiolora.layers.participation" for hook in found)


def test_what_took_no_part_is_named_once_and_nothing_stays() -> None:
    model = adapted()
    assert hooks(model) > 0
    with named(*BYPASSED):
        model(X)
    assert hooks(model) == 0
    with named():
        model(X)


def test_the_warning_says_what_it_means_and_what_to_do() -> None:
    with pytest.warns(BypassedModuleWarning, match="past: adapted, but took no part.*leave them out of target_modules"):
        adapted(["past"])(X)
    nets = nn.ModuleDict({f"n{i}": nn.Linear(1, 1) for i in range(12)})
    nets.forward = lambda x: x
    with pytest.warns(BypassedModuleWarning, match=r"n0, n1, .*, n7 and 4 more: adapted") as caught:
        adapted(list(nets), nets)(X)
    assert len(caught[0].message.modules) == 12


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_with_every_method(settings: dict[str, Any]) -> None:
    with named("unused"):
        adapted(["called", "read", "dense", "unused"], **settings)(X)


def test_a_bias_that_is_read_is_no_part_taken() -> None:
    class ReadsBias(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.called(x) + self.read.bias[:, None]

    with named("read"):
        adapted(["called", "read"], ReadsBias(), lora_bias=True)(X)


class TestEveryRoad:
    def test_adapt(self) -> None:
        with named("unused"):
            audiolora.adapt(Net(), targets=["called", "unused"])(X)

    def test_from_pretrained_and_load_adapter(self, tmp_path: Path) -> None:
        adapted().save_pretrained(tmp_path)
        with audiolora.enabled():
            model = PeftModel.from_pretrained(Net(), tmp_path).eval()
            with named(*BYPASSED):
                model(X)
            model.load_adapter(tmp_path, "second")
            with named(*BYPASSED):
                model(X)

    def test_a_second_adapter_answers_for_its_own_modules(self) -> None:
        model = adapted()
        with named(*BYPASSED):
            model(X)
        with audiolora.enabled():
            model.add_adapter("second", config(["called", "unused"]))
        with named("unused"):
            model(X)

    def test_injection_without_a_peft_model(self) -> None:
        with audiolora.enabled():
            model = inject_adapter_in_model(config(), Net())
        with named(*BYPASSED):
            model(X)

    def test_not_where_audiolora_is_off(self) -> None:
        audiolora.enable()
        audiolora.disable()
        with audiolora.enabled():
            pass
        with named():
            get_peft_model(Net(), config(["dense", "past"]))(X)


class TestWhatCounts:
    def test_a_forward_that_fails_decides_nothing(self) -> None:
        model = adapted()
        with named(), pytest.raises(RuntimeError):
            model(torch.ones(1, 3, 8))
        with named(*BYPASSED):
            model(X)

    def test_a_part_that_ran_before_the_whole(self) -> None:
        """As in generate, which calls the encoder by itself."""
        model = adapted()
        model.get_base_model().unused(X)
        with named("past"):
            model(X)

    def test_audiolora_inspect_is_no_part_taken(self) -> None:
        model = adapted()
        audiolora.inspect(model)
        str(model), model.state_dict()
        with named(*BYPASSED):
            model(X)

    @pytest.mark.parametrize("state", ["disabled", "merged"])
    def test_whatever_the_adapters_do(self, state: str) -> None:
        model = adapted()
        if state == "merged":
            model.merge_adapter()
        with named(*BYPASSED):
            if state == "disabled":
                with model.disable_adapter():
                    model(X)
            else:
                model(X)

    def test_unloaded_before_the_first_forward(self) -> None:
        model = adapted().merge_and_unload()
        assert hooks(model) == 0
        assert b"audiolora" not in pickle.dumps(nn.Sequential(model))
        with named():
            model(X)
        with audiolora.enabled():
            assert hooks(adapted(["dense"]).unload()) == 0  # PEFT's own tuner

    def test_gradient_checkpointing(self) -> None:
        model = adapted().train()
        model.get_base_model().checkpointed = True
        with named(*BYPASSED):
            model(X).sum().backward()

    def test_a_layer_inside_another_is_the_outer_s_business(self) -> None:
        """PEFT's MultiheadAttention holds an adapted out_proj and computes with its weight."""
        attention = nn.Sequential(nn.MultiheadAttention(4, 2))
        attention.forward = lambda x: attention[0](x, x, x)[0]
        with named():
            adapted(["0"], attention)(torch.ones(3, 1, 4))

    def test_copies_decide_for_themselves(self) -> None:
        model = adapted()
        model.get_base_model().unused(X)
        duplicate = copy.deepcopy(model)
        with named("past"):
            duplicate(X)
        assert hooks(duplicate) == 0 and hooks(model) > 0

    def test_pickles_too(self) -> None:
        """Of PEFT's layers: torch pickles nothing that is parametrized."""
        model = pickle.loads(pickle.dumps(adapted(["dense", "past"])))
        with named("past"):
            model(X)
        assert hooks(model) == 0

    def test_distributed_data_parallel(self, tmp_path: Path) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", world_size=1, rank=0)
        try:
            model = adapted().train()
            wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
            with named(*BYPASSED):
                wrapped(X).sum().backward()
        finally:
            torch.distributed.destroy_process_group()
        assert hooks(model) == 0


class DropsLayers(nn.Module):
    """In training each layer sits out when its turn comes."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.never = nn.Linear(4, 4)
        self.layerdrop, self.turn = drop, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.turn += 1
        for i, layer in enumerate(self.layers):
            if not (self.training and self.layerdrop and i == self.turn % 3):
                x = layer(x)
        return x


class TestLayerdrop:
    X = torch.ones(1, 4)

    def test_a_dropped_layer_is_no_bypassed_layer(self) -> None:
        model = adapted(["0", "1", "2", "never"], DropsLayers(0.1)).train()
        with named():
            for _ in range(LAYERDROP_FORWARDS - 1):
                model(self.X)
        with named("never"):
            model(self.X)
        with named():
            model(self.X)

    def test_the_first_forward_in_eval_decides(self) -> None:
        model = adapted(["0", "1", "2", "never"], DropsLayers(0.1)).train()
        model(self.X)
        model.eval()
        with named("never"):
            model(self.X)

    def test_without_layerdrop_the_first_forward_decides(self) -> None:
        with named("never"):
            adapted(["0", "1", "2", "never"], DropsLayers(0.0)).train()(self.X)

    def test_all_took_part_at_once(self) -> None:
        model = DropsLayers(0.1)
        model.turn = -1
        model.layers.append(nn.Identity())
        model = adapted(["1", "2"], model).train()
        model(self.X)
        assert hooks(model) == 0


class TestCompilers:
    @pytest.mark.parametrize("trains", [False, True], ids=["inference", "training"])
    def test_compile_speaks_while_it_traces(self, trains: bool) -> None:
        model = adapted().train(trains)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with named(*BYPASSED):
            compiled(X)
        with named(), torch._dynamo.config.patch(error_on_recompile=True):
            torch.testing.assert_close(compiled(X), model(X))
            compiled(X)
            copy.deepcopy(model)(X)

    def test_a_compiled_part(self) -> None:
        model = adapted()
        model.get_base_model().called.compile(fullgraph=True, backend="eager")
        with named(*BYPASSED):
            model(X)
        with named(), torch._dynamo.config.patch(error_on_recompile=True):
            model(X)

    def test_compile_after_the_first_forward(self) -> None:
        model = adapted()
        with named(*BYPASSED):
            y = model(X)
        with named():
            torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(X), y)

    def test_a_compiled_copy(self) -> None:
        model = copy.deepcopy(adapted().merge_and_unload())
        with named():
            torch.compile(model, fullgraph=True, backend="eager")(X)

    @pytest.mark.parametrize("strict", [False, True])
    def test_export(self, strict: bool) -> None:
        model = adapted()
        with named(*BYPASSED):
            program = torch.export.export(model, (X,), strict=strict)
        torch.testing.assert_close(program.module()(X), model(X))
