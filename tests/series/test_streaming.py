"""A stream in any chunks equals the whole input at once; what cannot be streamed is refused by name."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

import audiolora
from audiolora.series.causality import NotCausal, receptive_field
from audiolora.series.streaming import Stream
from tests.series.causal_networks import CAUSAL, CHANNELS, NOT_CAUSAL, CausalConv1d, Shift, StepsFirst, pytorch_tcn

MODES = ("states", "context")
METHODS = ("none", "lora", "dora")


@functools.cache
def network(name: str, method: str = "none") -> nn.Module:
    """In evaluation; with an adapter, its factors all drawn, and not merged."""
    torch.manual_seed(0)
    net = CAUSAL[name]().eval()
    if method == "none":
        return net
    with audiolora.enabled():
        adapted = audiolora.adapt(net, method=method, r=2).eval()
    for parameter in (p for n, p in adapted.named_parameters() if "lora_" in n):
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return adapted


@functools.cache
def stream(name: str, method: str, mode: str) -> Stream:
    return Stream(network(name, method), CHANNELS, mode=mode)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CAUSAL)
@settings(max_examples=6)
@given(sizes=st.lists(st.integers(0, 14), min_size=1, max_size=12), streams=st.integers(1, 3))
def test_any_chunks_equal_the_whole(name, method, mode, sizes, streams):
    runner, x = stream(name, method, mode), numbers(streams, CHANNELS, sum(sizes))
    runner.reset()
    chunked = torch.cat([runner.push(chunk) for chunk in x.split(sizes, dim=-1)], -1)
    if x.shape[-1] == 0:
        assert chunked.shape[0] == streams and chunked.shape[-1] == 0
        return
    with torch.no_grad():
        whole = network(name, method)(x)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CAUSAL)
def test_auto_takes_the_cheap_way_for_each_of_them(name, method):
    assert Stream(network(name, method), CHANNELS).mode == "states"


@pytest.mark.parametrize("name", CAUSAL)
def test_the_receptive_field_is_that_of_the_gradient(name):
    """Dense autograd in float64: the earliest input that the last output has a gradient for."""
    torch.manual_seed(0)
    net = CAUSAL[name]().eval().double()
    x = numbers(8, CHANNELS, 80).double().requires_grad_()
    net(x)[..., -1].sum().backward()
    read = (x.grad != 0).any(0).any(0).nonzero()
    assert receptive_field(net, CHANNELS) == 80 - int(read.min())


def test_the_receptive_field_counts_pruned_taps_and_adapters_that_are_still_zero():
    net = nn.Sequential(CausalConv1d(1, 2, 3, dilation=5)).eval()
    nn.init.zeros_(net[0].weight)
    assert receptive_field(net, 1) == 11


def test_a_long_receptive_field_is_found():
    net = nn.Sequential(*[CausalConv1d(1, 1, 2, dilation=2**i) for i in range(11)]).eval()
    assert receptive_field(net, 1) == 2**11
    with pytest.raises(NotCausal, match="512 steps before.*no end"):
        receptive_field(net, 1, longest=512)


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_what_is_not_causal_is_refused_by_name(name):
    build, said = NOT_CAUSAL[name]
    with pytest.raises(NotCausal, match=said):
        Stream(build().eval(), CHANNELS)


def test_a_wrapped_network_names_the_module_as_its_author_did():
    net = nn.Sequential(CausalConv1d(CHANNELS, 4, 3), nn.Conv1d(4, 4, 3, padding=1))
    with pytest.raises(NotCausal, match=r"^1 \(Conv1d\) looks ahead.*1 or more steps later"):
        Stream(audiolora.adapt(net, r=1).eval(), CHANNELS)


def test_training_mode_is_refused_and_left_alone():
    net = nn.Sequential(CausalConv1d(CHANNELS, 4, 2), nn.BatchNorm1d(4))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(NotCausal, match=r"training mode; 1 takes its statistics over all of time.*net.eval\(\)"):
        Stream(net, CHANNELS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    runner = Stream(net.eval(), CHANNELS)
    net[1].train()
    with pytest.raises(NotCausal, match="1 \\(BatchNorm1d\\) is in training mode"):
        runner.push(numbers(1, CHANNELS, 4))


@pytest.mark.parametrize("mode", MODES)
def test_a_state_is_a_value_that_can_be_saved(mode):
    runner, x = stream("pytorch-tcn", "lora", mode), numbers(2, CHANNELS, 30)
    first, state = runner.step(x[..., :11], {})
    then, _ = runner.step(x[..., 11:], state)
    again, _ = Stream(network("pytorch-tcn", "lora"), CHANNELS, mode=mode).step(x[..., 11:], load(save(state)))
    assert torch.equal(then, again)
    with torch.no_grad():
        whole = network("pytorch-tcn", "lora")(x)
    torch.testing.assert_close(torch.cat([first, then], -1), whole, atol=1e-5, rtol=1e-5)


def test_reset_begins_anew_with_any_number_of_streams():
    runner, x = stream("residual", "none", "states"), numbers(3, CHANNELS, 9)
    runner.reset()
    first = runner.push(x)
    with pytest.raises(ValueError, match="not one of 2 streams.*reset"):
        runner.push(x[:2])
    runner.reset()
    assert torch.equal(runner.push(x[:2]), first[:2])


def test_a_network_that_looks_back_by_slicing_keeps_its_context():
    net = nn.Sequential(Shift(), CausalConv1d(CHANNELS, 2, 3)).eval()
    runner, x = Stream(net, CHANNELS), numbers(1, CHANNELS, 24)
    assert (runner.mode, runner.receptive_field) == ("context", 6)
    chunked = torch.cat([runner.push(chunk) for chunk in x.split([1, 2, 4, 17], -1)], -1)
    torch.testing.assert_close(chunked, net(x).detach(), atol=1e-5, rtol=1e-5)
    with pytest.raises(NotCausal, match="mode='states' is not right for it.*use mode='context'"):
        Stream(net, CHANNELS, mode="states")


@pytest.mark.parametrize("mode", ("auto", "context"))
def test_steps_before_channels(mode):
    net = StepsFirst().eval()
    runner, x = Stream(net, CHANNELS, time_dim=1, mode=mode), numbers(2, 20, CHANNELS)
    chunked = torch.cat([runner.push(chunk) for chunk in x.split([3, 1, 16], 1)], 1)
    torch.testing.assert_close(chunked, net(x).detach(), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=re.escape("a chunk must be (N, n, 3), got (2, 3, 20)")):
        runner.push(x.mT)


def test_it_equals_the_streaming_of_pytorch_tcn_itself():
    torch.manual_seed(0)
    net = pytorch_tcn().eval()
    runner, x = Stream(net, CHANNELS), numbers(1, CHANNELS, 20)
    net.reset_buffers()
    for chunk in x.split(4, -1):
        with torch.no_grad():
            torch.testing.assert_close(runner.push(chunk), net(chunk, inference=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_other_types(dtype, tolerance):
    torch.manual_seed(0)
    net = CAUSAL["residual"]().eval().to(dtype)
    runner, x = Stream(net, CHANNELS), numbers(1, CHANNELS, 20).to(dtype)
    chunked = torch.cat([runner.push(chunk) for chunk in x.split([7, 13], -1)], -1)
    torch.testing.assert_close(chunked, net(x).detach(), atol=tolerance, rtol=tolerance)


def test_broken_weights_are_said_to_be_broken():
    net = nn.Sequential(CausalConv1d(1, 2, 3)).eval()
    nn.init.constant_(net[0].bias, torch.nan)
    with pytest.raises(NotCausal, match="its weights are broken"):
        Stream(net, 1)
