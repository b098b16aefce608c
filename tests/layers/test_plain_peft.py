"""The verdict on a module: does plain PEFT compute its adapter's function?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import nn

import audiolora
from audiolora.layers.plain_peft import why_plain_peft_differs
from tests.layers.convolutions import CELLS, Causal, Net, Transposing, weight_norm
from tests.layers.test_lora import config, trained


def test_both_verdicts_occur() -> None:
    """The table above would hold if everything were refused."""
    by_method = {"dora": LoraConfig(use_dora=True), "lora": LoraConfig()}
    agree = {
        (row.name, method)
        for row, method in (cell.values for cell in CELLS)
        if method in by_method and why_plain_peft_differs(row.model().conv, by_method[method]) is None
    }
    for name in ("plain", "k=1", "stride 2", "even kernel, padding same", "causal subclass"):
        assert (name, "lora") in agree and (name, "dora") in agree
    assert ("transposing subclass", "lora") in agree and ("transposing subclass", "dora") not in agree
    for name in ("circular", "groups 2", "weight_norm dim 0", "derived weight", "dilation 2, padding same"):
        assert (name, "lora") not in agree


class Scaled(nn.Conv1d):
    """Not linear in what PEFT adds to."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.tanh(super().forward(input))


class PadsToFour(nn.Conv1d):
    """Depends on the length alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(input, (0, -input.shape[-1] % 4)))


class Renamed(nn.Conv1d):
    """Adds nothing."""


def hooked(conv: nn.Conv1d) -> nn.Conv1d:
    conv.register_forward_pre_hook(lambda module, args: (F.pad(args[0], (1, 1)),))
    return conv


def replaced(conv: nn.Conv1d) -> nn.Conv1d:
    conv.forward = lambda x: nn.Conv1d.forward(conv, F.pad(x, (1, 1)))  # type: ignore[method-assign]
    return conv


def on_a_device(conv: nn.Conv1d) -> nn.Conv1d:
    """As accelerate leaves a module that it dispatched."""
    return add_hook_to_module(conv, AlignDevicesHook(io_same_device=True))


VERDICTS: list[tuple[str, Callable[[], nn.Module], str | None]] = [
    ("k=1 with dilation", lambda: nn.Conv1d(4, 6, 1, dilation=3), None),
    ("k=1, same, reflect", lambda: nn.Conv1d(4, 6, 1, padding="same", padding_mode="reflect"), None),
    ("reflect without padding", lambda: nn.Conv1d(4, 6, 3, padding_mode="reflect"), None),
    ("reflect, same", lambda: nn.Conv1d(4, 6, 3, padding="same", padding_mode="reflect"), "padding_mode='reflect'"),
    ("one channel", lambda: nn.Conv1d(1, 1, 3, groups=1), None),
    ("transposed", lambda: nn.ConvTranspose1d(4, 6, 3), "PEFT adapts no ConvTranspose1d"),
    ("weight norm", lambda: weight_norm(nn.Conv1d(4, 6, 3)), r"computed \(WeightNorm\), and a merge"),
    ("hooked", lambda: hooked(nn.Conv1d(4, 6, 3)), "forward hooks are not run"),
    ("replaced forward", lambda: replaced(nn.Conv1d(4, 6, 3)), "forward was replaced"),
    ("accelerate's forward", lambda: on_a_device(nn.Conv1d(4, 6, 3)), None),
    ("subclass that adds nothing", lambda: Renamed(4, 6, 3, padding=1), None),
    ("subclass, tanh", lambda: Scaled(4, 6, 3), "on Scaled is another function"),
    ("subclass, pads by length", lambda: PadsToFour(4, 6, 3), "fails on PadsToFour|on PadsToFour is another"),
    ("causal, on meta", lambda: Causal(4, 6, 3, device="meta"), None),
    ("causal, float16", lambda: Causal(4, 6, 3, dtype=torch.float16), None),
    ("transposing, as many channels as samples", lambda: Transposing(14, 14, 4), "another function|fails"),
]


@pytest.mark.parametrize("build, reason", [v[1:] for v in VERDICTS], ids=[v[0] for v in VERDICTS])
def test_the_verdict_on_a_module(build: Callable[[], nn.Module], reason: str | None) -> None:
    module = build()
    state = torch.get_rng_state()
    tensors = {key: (id(value), value._version) for key, value in module.named_parameters()}
    why = why_plain_peft_differs(module, LoraConfig(use_dora=True))
    if reason is None:
        assert why is None
    else:
        assert why is not None
        with pytest.raises(ValueError, match=reason):
            raise ValueError(why)
    assert torch.equal(torch.get_rng_state(), state), "a probe draws from nobody's random state"
    assert {key: (id(value), value._version) for key, value in module.named_parameters()} == tensors


def test_the_verdict_is_the_same_once_our_map_is_on() -> None:
    for row, method in (cell.values for cell in CELLS):
        settings = config(row, method)
        before = why_plain_peft_differs(row.model().conv, settings)
        layer = trained(row, method).base_model.model.conv
        assert (why_plain_peft_differs(layer.get_base_layer(), settings) is None) is (before is None), row.name


def test_a_streaming_convolution_keeps_its_memory() -> None:
    class Streaming(nn.Conv1d):
        seen: torch.Tensor | None = None

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            past = input.new_zeros(*input.shape[:2], 2) if self.seen is None else self.seen
            self.seen = input[..., -2:]
            return super().forward(torch.cat([past, input], -1))

    conv = Streaming(4, 6, 3).double()
    conv.seen = torch.ones(1, 4, 2, dtype=torch.float64)
    memory = conv.seen.clone()
    model = Net(conv, {}).eval()
    with audiolora.enabled():
        get_peft_model(model, LoraConfig(r=2, target_modules=["conv"]))
    assert torch.equal(conv.seen, memory)
