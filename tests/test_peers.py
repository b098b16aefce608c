"""benchmarks/peers.py: what its judge says where the answer is known, and the committed table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from benchmarks.peers_cells import beside_the_base, judge
from tests.layers.convolutions import CONVOLUTIONS, METHODS
from tests.layers.test_lora import ALPHA, config, randomise, reference, row_named

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "peers.csv"


@pytest.mark.parametrize(
    "row, library, verdict",
    [
        ("plain", "PEFT", "ok"),
        ("circular", "PEFT", "WRONG (forward)"),
        ("dilation 2", "PEFT", "error (start, RuntimeError)"),
        ("groups 2", "PEFT", "merge refused"),
        ("depthwise", "PEFT", "merge refused (r=4, as r=2 is refused)"),
        ("old weight_norm", "PEFT", "merge LOST"),
        ("depthwise", "audiolora", "ok"),
        ("old weight_norm", "audiolora", "ok"),
    ],
)
def test_verdicts(row: str, library: str, verdict: str) -> None:
    assert str(judge(row_named(row), "lora", library)) == verdict


@pytest.mark.parametrize("method", METHODS)
def test_peft_s_function_without_groups_is_the_dense_formula(method: str) -> None:
    row = row_named("stride 2")
    generator = torch.Generator().manual_seed(1)
    shapes = {"A": (row.r, 4, 5), "B": (6, row.r, 1)} | {"lora_bias": {"b": (6,)}, "dora": {"m": (1, 6, 1)}}.get(
        method, {}
    )
    factors = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    x = row.input()
    torch.testing.assert_close(beside_the_base(row, x, factors, method), reference(row, x, factors, method))


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_peft_s_function_with_groups_is_what_its_modules_compute() -> None:
    row = row_named("groups 2")
    model = get_peft_model(row.model(), config(row, "lora"))
    randomise(model)
    layer, x = model.base_model.model.conv, row.input()
    A, B = layer.lora_A["default"], layer.lora_B["default"]
    expected = torch.nn.functional.leaky_relu(layer.base_layer(x) + ALPHA / row.r * B(A(x)), 0.1)
    factors = {"A": A.weight, "B": B.weight}
    torch.testing.assert_close(beside_the_base(row, x, factors, "lora"), expected)


def test_the_committed_table_has_every_row_and_nothing_of_ours_fails() -> None:
    """But for lora_bias without a bias, which is refused by name (tests/layers/test_lora.py)."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(dict.fromkeys(line["row"] for line in lines if line["table"] == "convolution")) == [
        row.name for row in CONVOLUTIONS
    ]
    ours = [line for line in lines if line["library"] == "audiolora" and line["table"] != "feature"]
    assert [(line["row"], line["method"]) for line in ours if line["verdict"] != "ok"] == [("no bias", "lora_bias")]
