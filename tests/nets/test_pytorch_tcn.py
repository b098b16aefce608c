"""pytorch-tcn's TCN: weight-normed, dilated, causal, with convolutions of its own class, and streaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_tcn import TCN

import audiolora
from tests.nets.lifecycle import adapted_names, check_life

METHODS = ("lora", "dora")


def build(**settings: Any) -> TCN:
    torch.manual_seed(0)
    settings = {"num_channels": [6, 6, 8], "kernel_size": 3, "dropout": 0.0, "input_shape": "NCL"} | settings
    return TCN(3, **settings).eval()


def sample(length: int = 40, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, length, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_norm": None, "use_skip_connections": True},
        {"use_norm": "layer_norm", "causal": False, "use_gate": True},
        {"dilations": [1, 3, 9], "output_projection": 2},
    ],
    ids=str,
)
def test_its_life(settings: dict[str, Any], method: str, tmp_path: Path) -> None:
    model = check_life(lambda: build(**settings), lambda net: net(sample()), tmp_path, method=method, r=2)
    names = adapted_names(model)
    assert len(names) == sum(isinstance(module, torch.nn.Conv1d) for module in build(**settings).modules())
    assert {"network.0.conv1", "network.2.conv2"} <= set(names)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [1, 7])
def test_streaming_with_the_adapter_on_is_the_whole_at_once(method: str, chunk: int) -> None:
    model = audiolora.adapt(build(), method, r=2).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
        x = sample(n=1)
        offline = model(x)
        with model.disable_adapter():
            assert (offline - model(x)).abs().max() > 0.1
        model.reset_buffers()
        steps = [model(part, inference=True) for part in x.split(chunk, dim=-1)]
        torch.testing.assert_close(torch.cat(steps, dim=-1), offline, rtol=1e-5, atol=1e-5)

        model.merge_adapter()
        model.reset_buffers()
        merged = [model(part, inference=True) for part in x.split(chunk, dim=-1)]
        torch.testing.assert_close(torch.cat(merged, dim=-1), offline, rtol=1e-4, atol=1e-4)


def test_a_stream_goes_on_when_the_adapter_changes() -> None:
    """What a stream remembers is its input, so another adapter takes over from the next sample on."""
    model = audiolora.adapt(build(num_channels=[6]), r=2).eval()
    x = sample(n=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
        model.reset_buffers()
        model(x[..., :20], inference=True)
        with model.disable_adapter():
            after = model(x[..., 20:], inference=True)
            offline = model(x)[..., 20:]
    reach = 2 * (3 - 1)
    torch.testing.assert_close(after[..., reach:], offline[..., reach:], rtol=1e-5, atol=1e-5)
