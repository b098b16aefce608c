"""The contract of test_lora over convolutions drawn at random: settings that no row of the table combines."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.layers import test_lora as contract
from tests.layers import test_lycoris as lycoris
from tests.layers.convolutions import METHODS, Convolution, old_weight_norm, weight_norm

WRAPS = {"plain": None, "weight_norm": weight_norm, "old weight_norm": old_weight_norm}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]


@st.composite
def ordinary(draw: st.DrawFn) -> Convolution:
    """An nn.Conv1d of any settings."""
    groups, k, length = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 20))
    into, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding: Any = draw(st.one_of(st.integers(0, 6), st.just("same")))
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    if padding == "same":
        stride = 1
        total = dilation * (k - 1)
        left, right = total // 2, total - total // 2
    else:
        left = right = padding
    assume(length + left + right > dilation * (k - 1))
    assume(max(left, right) < length)  # torch's own rule for reflect; circular allows one more

    def reference(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        x = F.pad(x, (left, right), mode="constant" if mode == "zeros" else mode)
        return F.conv1d(x, W, b, stride, 0, dilation, groups)

    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    return row(draw, nn.Conv1d, into, out, k, length, arguments, reference)


@st.composite
def transposed(draw: st.DrawFn) -> Convolution:
    """An nn.ConvTranspose1d of any settings."""
    groups, k, length = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 12))
    into, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    stride, dilation, padding = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 3))
    output_padding = draw(st.integers(0, max(stride, dilation) - 1))
    assume((length - 1) * stride - 2 * padding + dilation * (k - 1) + output_padding + 1 > 0)
    arguments = {"stride": stride, "padding": padding, "output_padding": output_padding, "groups": groups}

    def reference(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        return F.conv_transpose1d(x, W, b, dilation=dilation, **arguments)

    return row(draw, nn.ConvTranspose1d, into, out, k, length, {**arguments, "dilation": dilation}, reference)


def row(
    draw: st.DrawFn, kind: Any, into: int, out: int, k: int, length: int, arguments: dict[str, Any], reference: Any
) -> Convolution:
    wrap = WRAPS[draw(st.sampled_from(sorted(WRAPS)))]

    def build() -> Any:
        module = kind(into, out, k, **arguments)
        return module if wrap is None else wrap(module)

    shape = (2, into, length) if draw(st.booleans()) else (into, length)
    return Convolution("drawn", build, reference, shape=shape, r=draw(st.integers(1, 5)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(row=st.one_of(ordinary(), transposed()), method=st.sampled_from(sorted(METHODS)))
def test_the_contract(row: Convolution, method: str) -> None:
    contract.test_starts_as_the_base_and_unloads_to_it(row, method)
    contract.test_forward_and_gradients_are_those_of_the_dense_formula(row, method)
    contract.test_merge_unmerge_disable_and_merge_and_unload(row, method)
    with tempfile.TemporaryDirectory() as folder:
        contract.test_saved_and_loaded_it_is_the_same(row, method, Path(folder))
    if row.batched:
        contract.test_a_mixed_batch_is_each_sample_by_itself(row, method)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(row=st.one_of(ordinary(), transposed()), method=st.sampled_from(sorted(lycoris.METHODS)))
def test_the_contract_of_loha_and_lokr(row: Convolution, method: str) -> None:
    lycoris.test_starts_as_the_base_and_unloads_to_it(row, method)
    lycoris.test_forward_and_gradients_are_those_of_the_dense_formula(row, method)
    lycoris.test_merge_unmerge_disable_and_merge_and_unload(row, method)
    lycoris.test_as_a_product_it_is_the_same_update(row, method)
    with tempfile.TemporaryDirectory() as folder:
        lycoris.test_saved_and_loaded_it_is_the_same_and_plain_peft_agrees_or_refuses(row, method, Path(folder))
