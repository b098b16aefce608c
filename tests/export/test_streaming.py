"""The graph of a stream's chunk, in torch: any split of the input gives what the whole gives; what cannot is told."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import audiolora
from audiolora.export import export
from audiolora.export.streaming import StreamPlan, split_run, stream_plan
from audiolora.series.nets import TCNForecaster
from audiolora.series.scaling import Standard
from tests.export.networks import randomise
from tests.series.causal_networks import CAUSAL, CHANNELS, CONTEXT, NOT_CAUSAL, CausalConv1d, StepsFirst
from tests.series.tiny_fleet import LOOKBACK, fleet, forecaster, tiny_net

NETWORKS = {name: build for name, build in (CAUSAL | CONTEXT).items() if name != "pointwise"}


class MaxPool(nn.Module):
    """Pads with -inf, which no sum could be taken off again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool1d(F.pad(x, (2, 0), value=-torch.inf), 3, 1)


@functools.cache
def network(name: str) -> nn.Module:
    """With LoRA and DoRA, factors drawn; in double precision, for an exact comparison."""
    torch.manual_seed(0)
    net = NETWORKS[name]().eval() if name in NETWORKS else nn.Sequential(CausalConv1d(CHANNELS, 4, 2), MaxPool()).eval()
    model = audiolora.adapt(net, method="dora", r=2)
    randomise(model)
    return model.double().eval()


@functools.cache
def plan(name: str) -> StreamPlan:
    return stream_plan(network(name), CHANNELS)


@pytest.mark.parametrize("name", [*NETWORKS, "max pooling"])
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 14), min_size=1, max_size=9), streams=st.integers(1, 3))
def test_any_split_equals_the_whole(name: str, sizes: list[int], streams: int) -> None:
    x = torch.randn(streams, CHANNELS, sum(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    states = {key: zeros.to(torch.float64) for key, zeros in plan(name).states(streams).items()}
    y, after = split_run(plan(name)(network(name)), x, sizes, states)
    with torch.no_grad():
        torch.testing.assert_close(y, network(name)(x), atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(plan(name).offline(network(name))(x), network(name)(x))
    fixed = {key: value.shape for key, value in after.items() if plan(name).mode == "states"}
    assert fixed == {key: value.shape for key, value in states.items() if fixed}


def test_which_networks_have_states_and_which_a_context() -> None:
    assert {name: plan(name).mode for name in NETWORKS} == {
        name: "context" if name in CONTEXT else "states" for name in NETWORKS
    }
    assert plan("shifted by slicing").states(2)["context"].shape == (2, CHANNELS, 0)
    assert set(plan("pad with a value").states(1)) == {"padding0", "started"}
    assert set(plan("left pad").states(1)) == {"padding0"}


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_what_is_not_causal_is_refused_by_name(tmp_path: Path, name: str) -> None:
    build, said = NOT_CAUSAL[name]
    with pytest.raises(ValueError, match=said):
        export(build().eval(), tmp_path / "b", torch.randn(1, CHANNELS, 20), streaming=True)
    assert not list(tmp_path.iterdir())


def test_what_a_stream_cannot_be_of_is_told(tmp_path: Path) -> None:
    net = nn.Sequential(CausalConv1d(3, 4, 3))
    two = {"x": torch.randn(2, 3, 9), "y": torch.randn(2, 3, 9)}
    for model, x, how, message in (
        (nn.Conv1d(3, 4, 1), torch.randn(2, 3, 9), {}, "its own step alone, so there is nothing to remember"),
        (net, torch.randn(3, 9), {}, r"one float32 input \(N, channels, L\), got .*\(3, 9\)"),
        (net, torch.randn(2, 3, 9).double(), {}, "one float32 input"),
        (nn.Bilinear(9, 9, 2), two | {"x": two["x"]}, {}, "example must name forward's first arguments"),
        (net, torch.randn(2, 3, 9), {"dynamic": {"input": {0: "batch"}}}, "a network of a fixed length cannot be"),
    ):
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "b", x, streaming=True, **how)
    assert not list(tmp_path.iterdir())


def test_forecasters_that_no_stream_equals_are_refused(tmp_path: Path) -> None:
    standard = Standard().fit(fleet())
    long = TCNForecaster(1, 6, channels=6, dilations=(1, 16))

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = CausalConv1d(1, 6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)[..., -1]

    class Wrong(Bare):
        def at_every_step(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.conv(x)

    for made, message in (
        (forecaster(tiny_net()), "scales each window by itself.*'standard' or 'robust'"),
        (forecaster(long, scaler=standard), f"reads 69 steps and the forecaster's windows have {LOOKBACK}"),
        (forecaster(Wrong(), scaler=standard), re.escape("whose last step is what forward gives")),
        (forecaster(Bare(), scaler=standard), "gave an output .*at_every_step"),
    ):
        with pytest.raises(ValueError, match=message):
            export(made, tmp_path / "b", streaming=True)
    assert not list(tmp_path.iterdir())


def test_steps_before_channels() -> None:
    net, x = StepsFirst().eval(), torch.randn(2, 20, CHANNELS)
    found = stream_plan(net, CHANNELS, time_dim=1)
    y, _ = split_run(found(net), x, [1, 3, 16], found.states(2))
    torch.testing.assert_close(y, net(x).detach(), atol=1e-5, rtol=1e-5)
