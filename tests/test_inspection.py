"""The table against counts by hand."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import audiolora


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Conv1d(8, 8, 5, padding=4, dilation=2, groups=2)
        self.q_proj = nn.Linear(8, 12)


class Net(nn.Module):
    """One strided convolution, then two like blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(3, 8, 7, stride=2, padding_mode="circular", padding=3)
        self.blocks = nn.ModuleList([Block(), Block()])


def test_rows_by_hand() -> None:
    model = audiolora.adapt(
        Net(), "lora", r={"front": 4, "local": 2, "q_proj": 3}, targets=["front", "local", "q_proj"]
    )
    found = audiolora.inspect(model)
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["front", "blocks.0.local", "blocks.0.q_proj", "blocks.1.local", "blocks.1.q_proj"]

    front = rows["front"]
    assert (front.kind, front.geometry, front.method, front.r) == ("Conv1d", "3→8 k7 s2 circular", "LoRA", 4)
    assert front.parameters == 4 * 3 * 7 + 8 * 4
    assert (front.gradients, front.overhead) == ("dense", 0.5), "r = 4 is not small against 8 channels"

    local = rows["blocks.1.local"]
    assert (local.geometry, local.r) == ("8→8 k5 d2 g2", 2)
    assert local.parameters == 2 * 4 * 5 + 8 * 2, "A is shared by the groups"
    assert (local.gradients, local.overhead) == ("dense", 0.5)

    q_proj = rows["blocks.0.q_proj"]
    assert (q_proj.kind, q_proj.geometry, q_proj.method) == ("Linear", "8→12", "LoRA (PEFT)")
    assert q_proj.parameters == 3 * (8 + 12)

    adapters = 116 + 2 * 56 + 2 * 60
    frozen = (8 * 3 * 7 + 8) + 2 * (8 * 4 * 5 + 8 + 8 * 12 + 12)
    assert (found.trainable_parameters, found.total_parameters) == (adapters, adapters + frozen)


def test_extra_work_by_hand() -> None:
    net = nn.ModuleDict({"conv": nn.Conv1d(32, 64, 5, stride=2, groups=2), "up": nn.ConvTranspose1d(64, 32, 8, 4)})
    conv, up = audiolora.inspect(audiolora.adapt(net, r=1, targets=["conv", "up"])).rows
    assert (conv.gradients, up.gradients) == ("low-rank", "low-rank")
    assert conv.overhead == pytest.approx((2 * 32 * 5 + 64) / (64 * 16 * 5)), "over both inputs of a stride"
    assert (up.geometry, up.parameters) == ("64→32 k8 s4", 64 * 8 + 32)
    assert up.overhead == pytest.approx((64 * 8 + 4 * 32) / (64 * 32 * 8))


def test_dora_counts_its_magnitude_and_weight_norm_keeps_its_class() -> None:
    net = nn.ModuleDict({"conv": torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3))})
    (row,) = audiolora.inspect(audiolora.adapt(net, "dora", r=2)).rows
    assert (row.kind, row.geometry, row.method) == ("Conv1d", "4→6 k3", "DoRA")
    assert row.parameters == 2 * 4 * 3 + 6 * 2 + 6


def test_every_adapter_has_its_row_and_embeddings_have_one() -> None:
    net = nn.ModuleDict({"conv": nn.Conv1d(4, 6, 3), "table": nn.Embedding(10, 4)})
    with audiolora.enabled():
        model = get_peft_model(net, LoraConfig(r=2, target_modules=["conv", "table"]))
        model.add_adapter("second", LoraConfig(r=5, target_modules=["conv"], lora_bias=True))
    rows = [(row.name, row.geometry, row.r, row.parameters) for row in audiolora.inspect(model).rows]
    assert rows == [
        ("conv", "4→6 k3", 2, 2 * 4 * 3 + 6 * 2),
        ("conv", "4→6 k3", 5, 5 * 4 * 3 + 6 * 5 + 6),
        ("table", "10→4", 2, 2 * (10 + 4)),
    ]


def test_like_modules_share_a_line() -> None:
    text = str(audiolora.inspect(audiolora.adapt(Net(), r=2, targets=["front", "local", "q_proj"])))
    (local,) = [line for line in text.splitlines() if "blocks.*.local" in line]
    assert "×2" in local and "Conv1d 8→8 k5 d2 g2" in local and "56 ×2" in local
    assert sum("front" in line for line in text.splitlines()) == 1
    trained = 2 * (3 * 7 + 8) + 2 * 56 + 2 * 2 * (8 + 12)
    assert f"{trained} of " in text and "parameters are trained" in text


def test_names_of_different_depth_share_their_last_part() -> None:
    net = nn.ModuleDict({"conv": nn.Conv1d(4, 4, 3), "deep": nn.ModuleDict({"conv": nn.Conv1d(4, 4, 3)})})
    assert "*.conv ×2" in str(audiolora.inspect(audiolora.adapt(net, r=2)))


def test_nothing_adapted_is_said() -> None:
    with pytest.raises(ValueError, match=r"nothing is adapted in this Net; call audiolora.adapt\(model\) first"):
        audiolora.inspect(Net())
