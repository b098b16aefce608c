"""The default network: its size, its causality, its adapters."""

from __future__ import annotations

import copy

import torch

import audiolora
from audiolora.series.causality import receptive_field
from audiolora.series.nets import TCNForecaster
from audiolora.series.streaming import Stream
from tests.series.tiny_fleet import HORIZON, adapted, tiny_net


def test_the_default_is_of_about_a_hundred_thousand_parameters_and_reads_a_fortnight_of_hours():
    net = TCNForecaster(5, 24).eval()
    assert 80_000 < sum(p.numel() for p in net.parameters()) < 120_000
    assert receptive_field(net, 5, forward=net.at_every_step) == 341


def test_shapes():
    x = torch.zeros(3, 2, 48)
    assert tiny_net(2)(x).shape == (3, HORIZON)
    assert tiny_net(2, quantiles=3)(x).shape == (3, HORIZON, 3)


def test_a_stream_gives_each_window_s_forecast():
    """The last step of a stream is the forecast over all that came before, adapters on."""
    net = adapted(tiny_net()).eval()
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    stream = Stream(net, channels=1, forward=net.get_base_model().at_every_step)
    x = torch.randn(2, 1, 60)
    for chunk in x.split([13, 1, 46], -1):
        last = stream.push(chunk)[..., -1]
    with torch.no_grad():
        torch.testing.assert_close(last, net(x), atol=1e-5, rtol=1e-5)


def test_one_call_adapts_it():
    net = tiny_net().eval()
    x, before = torch.randn(2, 1, 48), copy.deepcopy(net)
    model = audiolora.adapt(net, r=1)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x))
    # six kernels: four of the blocks, two where the width changes, if it does
    assert len([name for name, _ in model.named_parameters() if "lora_A" in name]) >= 4


def test_rank_one_with_biases_and_head_leaves_the_base_alone():
    """PEFT's lora_bias and modules_to_save on our layers: trained beside the base, off when the adapter is off."""
    net = tiny_net().eval()
    x = torch.randn(4, 1, 48)
    with torch.no_grad():
        before = net(x)
    model = adapted(net)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert trained == {"default"}  # the head's copy
    model.eval()
    with torch.no_grad():
        assert not torch.allclose(model(x), before, atol=1e-3)
        with model.disable_adapter():
            assert torch.equal(model(x), before)
