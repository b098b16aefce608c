"""The other ways to a convolution against torch's own in float64, over shapes that take them and some that do not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from audiolora.conv import native
from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.native import convolve, input_gradient, product, rows_against, rows_times, weight_gradient

WAYS = {
    "pointwise": ((2, 24, 3000), (40, 24, 1), ConvGeometry()),
    "pointwise, short": ((2, 24, 30), (40, 24, 1), ConvGeometry()),
    "pointwise, strided": ((2, 24, 3000), (40, 24, 1), ConvGeometry(stride=2)),
    "long": ((2, 6, 90), (4, 6, 39), ConvGeometry(padding=19)),
    "long, grouped, strided, dilated": ((3, 8, 120), (6, 4, 20), ConvGeometry(3, 5, 2, 2)),
    "long, wav2vec2's positions": ((1, 32, 20), (32, 2, 128), ConvGeometry(padding=64, groups=16)),
    "long and transposed": ((2, 6, 30), (6, 4, 20), ConvGeometry(stride=4, padding=2, transposed=True)),
    "depthwise": ((2, 8, 50), (8, 1, 31), ConvGeometry(padding=15, groups=8)),
    "depthwise, short kernel": ((2, 8, 50), (8, 1, 5), ConvGeometry(padding=4, dilation=2, groups=8)),
    "depthwise, strided": ((2, 8, 90), (8, 1, 17), ConvGeometry(stride=2, groups=8)),
    "depthwise, long kernel": ((2, 16, 400), (16, 1, 51), ConvGeometry(padding=25, groups=16)),
    "depthwise and transposed": ((2, 8, 20), (8, 1, 16), ConvGeometry(stride=8, groups=8, transposed=True)),
    "few inputs": ((2, 1, 6000), (64, 1, 10), ConvGeometry(stride=5)),
    "few inputs, padded": ((2, 3, 1500), (64, 3, 3), ConvGeometry(padding=1, dilation=2)),
    "strided": ((2, 64, 3001), (48, 64, 3), ConvGeometry(stride=2, padding=1)),
    "strided beyond its kernel": ((2, 64, 4200), (48, 64, 2), ConvGeometry(stride=3, dilation=2)),
    "dilated": ((4, 32, 200), (40, 32, 3), ConvGeometry(padding=9, dilation=16)),
    "dilated, grouped": ((4, 32, 200), (40, 8, 4), ConvGeometry(dilation=8, groups=4)),
    "dilated, reaching far": ((4, 32, 200), (40, 32, 3), ConvGeometry(padding=64, dilation=64)),
    "dilated, reaching far, grouped": ((4, 64, 150), (48, 32, 2), ConvGeometry(padding=3, dilation=90, groups=2)),
    "plain": ((2, 8, 40), (12, 8, 3), ConvGeometry(stride=2, padding=1)),
    "strided, dilated, padded": ((2, 3, 96), (64, 3, 11), ConvGeometry(3, 20, 2)),
    "strided, dilated, padded and transposed": ((3, 4, 38), (4, 120, 13), ConvGeometry(3, 24, 2, 1, True, 2)),
    "plain and transposed": ((2, 8, 40), (8, 6, 4), ConvGeometry(2, 1, 1, 2, True, 1)),
}


def reference(x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor | None, g: ConvGeometry) -> torch.Tensor:
    if g.transposed:
        return torch.conv_transpose1d(x, W, bias, g.stride, g.padding, g.output_padding, g.groups, g.dilation)
    return torch.conv1d(x, W, bias, g.stride, g.padding, g.dilation, g.groups)


def near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """To float32's accuracy of the whole."""
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-5 * expected.norm() + 1e-12


def assert_right(x_shape: tuple[int, ...], W_shape: tuple[int, ...], geometry: ConvGeometry, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64).requires_grad_()
    W = torch.randn(W_shape, generator=generator, dtype=torch.float64).requires_grad_()
    out_channels = W_shape[1] * geometry.groups if geometry.transposed else W_shape[0]
    bias = torch.randn(out_channels, generator=generator, dtype=torch.float64)
    y = reference(x, W, bias, geometry)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    dx, dW = torch.autograd.grad(y, [x, W], dy)
    x32, W32, dy32 = x.detach().float(), W.detach().float(), dy.float()
    near(convolve(x32, W32, bias.float(), geometry), y.detach())
    near(convolve(x32, W32, None, geometry), reference(x, W, None, geometry).detach())
    near(input_gradient(x32, W32, dy32, geometry), dx)
    near(weight_gradient(x32, W32, dy32, geometry), dW)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_convolution(way: str) -> None:
    assert_right(*WAYS[way])


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("strided, dilated")])
def test_every_way_is_differentiable_by_autograd(way: str) -> None:
    """Where no operator of ours stands around it: dropout, mixed batches. (Of the ways left out torch's own ∂W is
    wrong, and nobody here asks autograd for it.)"""
    x_shape, W_shape, geometry = WAYS[way]
    x, W = torch.randn(x_shape, requires_grad=True), torch.randn(W_shape, requires_grad=True)
    y, expected = convolve(x, W, None, geometry), reference(x.double(), W.double(), None, geometry)
    gradients = torch.autograd.grad(y.square().sum(), [x, W])
    for gradient, want in zip(gradients, torch.autograd.grad(expected.square().sum(), [x, W]), strict=True):
        near(gradient, want)


@settings(max_examples=60)
@given(
    channels=st.sampled_from([(1, 1), (1, 16), (3, 2), (4, 4)]),
    groups=st.integers(1, 3),
    length=st.integers(1, 60),
    k=st.integers(1, 40),
    stride=st.integers(1, 3),
    padding=st.integers(0, 20),
    dilation=st.integers(1, 2),
    transposed=st.booleans(),
)
def test_any_geometry(
    channels: tuple[int, int],
    groups: int,
    length: int,
    k: int,
    stride: int,
    padding: int,
    dilation: int,
    transposed: bool,
) -> None:
    geometry = ConvGeometry(stride, padding, dilation, groups, transposed)
    assume(geometry.output_length(length, k) > 0)
    into, out = channels
    W_shape = (into * groups, out, k) if transposed else (out * groups, into, k)
    assert_right((2, into * groups, length), W_shape, geometry)


def test_views_are_multiplied_as_their_copies() -> None:
    x, rows = torch.randn(2, 3000, 32).mT, torch.randn(5, 64)[:, ::2]
    near(rows_times(rows, x), torch.einsum("mc,ncl->nml", rows.double(), x.double()))
    wide = torch.randn(2, 32, 6000)[:, :, 1:5001]
    near(rows_times(rows, wide), torch.einsum("mc,ncl->nml", rows.double(), wide.double()))
    outer = torch.randn(2, 5, 6000)[:, :, :5000]
    near(rows_against(outer, wide), torch.einsum("nml,ncl->mc", outer.double(), wide.double()))
    near(product(rows, wide[0]), rows.double() @ wide[0].double())


@pytest.mark.parametrize("n, m, channels, length", [(2, 24, 32, 2048), (3, 8, 4, 7), (1, 5, 64, 1024), (0, 4, 3, 5)])
def test_products(n: int, m: int, channels: int, length: int) -> None:
    x, rows, each = torch.randn(n, channels, length), torch.randn(m, channels), torch.randn(n, m, channels)
    outer = torch.randn(n, m, length)
    near(rows_times(rows, x), torch.einsum("mc,ncl->nml", rows.double(), x.double()))
    near(rows_times(each, x), torch.einsum("nmc,ncl->nml", each.double(), x.double()))
    near(rows_against(outer, x), torch.einsum("nml,ncl->mc", outer.double(), x.double()))


def test_each_way_is_taken_by_some_of_the_shapes_above() -> None:
    """Else the tests above would compare torch with itself."""
    conditions = (native._is_pointwise, native._is_long, native._is_depthwise, native._has_few_inputs)
    for condition in (*conditions, native._is_dilated):
        taken = [condition(torch.empty(x), torch.empty(W), geometry) for x, W, geometry in WAYS.values()]
        assert any(taken) and not all(taken), condition.__name__
    dys = {name: torch.empty(2, W[0], 1500) for name, (_, W, _) in WAYS.items()}
    strided = [
        name for name, (x, W, g) in WAYS.items() if native._is_strided(torch.empty(x), torch.empty(W), dys[name], g)
    ]
    assert strided == ["strided", "strided beyond its kernel"]


@pytest.mark.parametrize("length", [70, 1500])
def test_products_of_frames_that_overlap(length: int) -> None:
    """What ``unfold`` gives: rows in one another's memory, which oneDNN refuses."""
    channels, m = 64, 8
    signal = torch.randn(2, length + channels - 1)
    x, rows = signal.unfold(1, channels, 1).mT, torch.randn(m, channels)
    outer = torch.randn(2, length + m - 1).unfold(1, m, 1).mT
    near(rows_times(rows, x), torch.einsum("mc,ncl->nml", rows.double(), x.double()))
    near(rows_against(outer, x), torch.einsum("nml,ncl->mc", outer.double(), x.double()))
