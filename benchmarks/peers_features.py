"""PEFT's features on an adapted ``nn.Conv1d`` in `peers.py`: each tried with stock PEFT and with audiolora.

Each feature is one that PEFT has for other layers. The convolution is a plain one (4 → 6 channels, kernel 3), which
PEFT's own layer gets right, but where the feature's name says otherwise. An adapter's function is W' = W + s·B·A.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter

from benchmarks.peers_cells import Verdict, difference, failure, library, wrong
from tests.layers.convolutions import METHODS, Convolution
from tests.layers.test_lora import ALPHA, randomise, row_named
from tests.models.tiny_settings import WHISPER

ADAPTERS, WEIGHTS = ("default", "second"), [0.7, 0.3]


def settings(r: int, method: str = "lora") -> LoraConfig:
    return LoraConfig(r=r, lora_alpha=ALPHA, target_modules=["conv"], **METHODS[method])


def with_two(row: Convolution, method: str = "lora") -> PeftModel:
    """Two adapters of the row's rank, as after training."""
    model = get_peft_model(row.model(), settings(row.r, method)).eval()
    model.add_adapter("second", settings(row.r, method))
    randomise(model)
    randomise(model, "second", seed=4)
    return model


def mixed_batch(name: str, method: str) -> Verdict:
    """Two samples, an adapter each: what each adapter gives by itself."""
    row = row_named("plain")
    model, x = with_two(row, method), row.input()
    y = model(x, adapter_names=list(ADAPTERS))
    alone = []
    for i, adapter in enumerate(ADAPTERS):
        model.set_adapter(adapter)
        alone.append(model(x[i : i + 1]))
    off = difference(y, torch.cat(alone))
    return wrong("mixed batch", off) if off else Verdict("ok", detail="each sample as with its adapter alone")


def combination(name: str, kind: str, row_name: str = "plain") -> Verdict:
    """0.7 and 0.3 of two adapters: what is promised as exact adds that sum of their updates to the outputs."""
    row = row_named(row_name)
    model, x = with_two(row), row.input()
    wanted = sum(w * update(model, adapter, x) for w, adapter in zip(WEIGHTS, ADAPTERS, strict=True))
    options = {"svd_rank": 2 * row.r} if kind == "svd" else {}
    model.add_weighted_adapter(list(ADAPTERS), WEIGHTS, "both", combination_type=kind, **options)
    off = float((update(model, "both", x) - wanted).norm() / wanted.norm())
    return Verdict("ok", detail="exact") if off < 1e-9 else wrong(kind, f"the outputs' change is off by {off:.0%}")


def linear(name: str) -> Verdict:
    """At the adapters' own rank no combination is exact: how far the kernel is off, and how far it must be."""
    row = row_named("plain")
    model = with_two(row)
    model.add_weighted_adapter(list(ADAPTERS), WEIGHTS, "both", combination_type="linear")
    conv = model.base_model.model.conv
    wanted = sum(w * conv.get_delta_weight(adapter) for w, adapter in zip(WEIGHTS, ADAPTERS, strict=True)).flatten(1)
    off = (conv.get_delta_weight("both").flatten(1) - wanted).norm() / wanted.norm()
    least = torch.linalg.svdvals(wanted)[row.r :].norm() / wanted.norm()
    return Verdict("inexact", detail=f"the update is off by {off:.0%}; the best of rank {row.r} by {least:.0%}")


def update(model: PeftModel, adapter: str, x: torch.Tensor) -> torch.Tensor:
    """What the adapter adds to the convolution's own output."""
    model.set_adapter(adapter)
    conv = model.base_model.model.conv
    with torch.no_grad(), model.disable_adapter():
        plain = conv(x)
    with torch.no_grad():
        return conv(x) - plain


def hot_swap(name: str, r: int) -> Verdict:
    """From rank 3 to r: the outputs of the file loaded afresh."""
    row = row_named("plain")
    other = get_peft_model(row.model(), settings(r)).eval()
    randomise(other, seed=7)
    model = get_peft_model(row.model(), settings(row.r)).eval()
    randomise(model)
    with tempfile.TemporaryDirectory() as folder:
        other.save_pretrained(folder)
        hotswap_adapter(model, folder, adapter_name="default", torch_device="cpu")
    off = difference(model(row.input()), other(row.input()))
    return wrong("hot-swap", off) if off else Verdict("ok", detail="the outputs of the file loaded afresh")


def whisper_step(name: str, method: str) -> Verdict:
    """A training step with an adapter in conv1: every factor has a gradient."""
    torch.manual_seed(0)
    whisper = transformers.WhisperModel(transformers.WhisperConfig(**WHISPER))
    model = get_peft_model(
        whisper, LoraConfig(r=2, target_modules=["conv1"], init_lora_weights=False, **METHODS[method])
    )
    out = model(input_features=torch.randn(1, 8, 40), decoder_input_ids=torch.tensor([[3, 4]]))
    out[0].square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    return wrong("step", f"no gradient: {without}") if without else Verdict("ok", detail="every factor has a gradient")


def initialisation(name: str, kind: str) -> Verdict:
    """PEFT's initialisations for linear layers."""
    row = row_named("plain")
    config = LoraConfig(r=row.r, lora_alpha=ALPHA, target_modules=["conv"], init_lora_weights=kind)
    model = get_peft_model(row.model(), config).eval()
    off = difference(model(row.input()), row.model()(row.input()))
    return wrong("start", off) if off else Verdict("ok", detail="starts as the base")


def _tried(stage: str, feature: Callable[..., Verdict], *arguments: Any) -> Callable[[str], Verdict]:
    def tried(name: str) -> Verdict:
        with library(name):
            try:
                return feature(name, *arguments)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                return failure(stage, error)

    return tried


FEATURES: dict[str, Callable[[str], Verdict]] = {
    "mixed batch, LoRA": _tried("forward", mixed_batch, "lora"),
    "mixed batch, DoRA": _tried("forward", mixed_batch, "dora"),
    "add_weighted_adapter, svd at the sum of the ranks": _tried("svd", combination, "svd"),
    "add_weighted_adapter, cat": _tried("cat", combination, "cat"),
    "add_weighted_adapter, cat, groups 2": _tried("cat", combination, "cat", "groups 2"),
    "add_weighted_adapter, linear": _tried("linear", linear),
    "hot-swap, the same rank": _tried("swap", hot_swap, 3),
    "hot-swap, a lower rank": _tried("swap", hot_swap, 2),
    "hot-swap, a higher rank": _tried("swap", hot_swap, 5),
    "training step through Whisper's conv1": _tried("step", whisper_step, "lora"),
    "training step through Whisper's conv1, DoRA": _tried("step", whisper_step, "dora"),
    "init_lora_weights='pissa'": _tried("inject", initialisation, "pissa"),
    "init_lora_weights='olora'": _tried("inject", initialisation, "olora"),
}
