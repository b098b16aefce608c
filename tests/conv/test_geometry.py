"""Lengths and padding against what torch's own convolution gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from audiolora.conv.geometry import ConvGeometry, resolve_padding


@given(
    k=st.integers(1, 6),
    length=st.integers(1, 30),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
)
def test_output_length_is_torch_s(k: int, length: int, stride: int, padding: int, dilation: int) -> None:
    if length + 2 * padding < dilation * (k - 1) + 1:
        return
    y = F.conv1d(torch.zeros(1, 1, length), torch.zeros(1, 1, k), None, stride, padding, dilation)
    assert ConvGeometry(stride, padding, dilation).output_length(length, k) == y.shape[-1]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"dilation": -1}, "dilation must be at least 1, got -1"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"padding": -2}, "padding must not be negative, got -2"),
    ],
)
def test_what_no_convolution_can_have_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvGeometry(**settings)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(
    k=st.integers(1, 6),
    dilation=st.integers(1, 3),
    padding=st.sampled_from(["same", "valid", 0, 2]),
    tuples=st.booleans(),
)
def test_resolved_padding_means_the_same_convolution(k: int, dilation: int, padding: Any, tuples: bool) -> None:
    x, W = torch.randn(1, 2, 20, dtype=torch.float64), torch.randn(3, 2, k, dtype=torch.float64)
    expected = F.conv1d(x, W, None, 1, padding, dilation)
    if tuples:
        padding = padding if isinstance(padding, str) else (padding,)
        padded, geometry = resolve_padding(x, k, (1,), padding, (dilation,), 1)
    else:
        padded, geometry = resolve_padding(x, k, 1, padding, dilation, 1)
    y = F.conv1d(padded, W, None, geometry.stride, geometry.padding, geometry.dilation)
    torch.testing.assert_close(y, expected)


def test_padding_that_torch_refuses_is_refused_here() -> None:
    x = torch.zeros(1, 1, 9)
    with pytest.raises(ValueError, match="'same' is not defined for strided convolutions, got stride=2"):
        resolve_padding(x, 3, 2, "same", 1, 1)
    with pytest.raises(ValueError, match="'same' or 'valid', got 'full'"):
        resolve_padding(x, 3, 1, "full", 1, 1)
