"""An adapter's life on somebody else's network: put in, trained for two steps, merged, saved and loaded again."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

import audiolora


def needs(library: str) -> list[pytest.MarkDecorator]:
    """Marks of a test that needs a library which audiolora does not depend on."""
    missing = find_spec(library) is None
    return [pytest.mark.slow, pytest.mark.skipif(missing, reason=f"{library} is not installed; `make test-nets`")]


def adapted_names(model: nn.Module) -> list[str]:
    """The adapted modules' names in their network."""
    layers = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    return [name.removeprefix("base_model.model.") for name in layers]


def frozen(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of everything that training must leave alone, buffers too."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in trained}


def assert_unmoved(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    now = model.state_dict()
    assert [name for name, tensor in before.items() if not torch.equal(now[name], tensor)] == []


def two_steps(model: nn.Module, run: Callable[[Any], torch.Tensor]) -> None:
    """Adam on the mean square of the output; at the first step only B has a gradient, for B starts at zero."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        run(model).square().mean().backward()
        optimizer.step()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == [], "these took no part"


def check_life(
    build: Callable[[], nn.Module], run: Callable[[Any], torch.Tensor], folder: Path, **settings: Any
) -> PeftModel:
    """Build, adapt, train, merge, save, load; ``settings`` are `audiolora.adapt`'s.

    Args:
        build: makes the same network at each call, in eval mode.
        run: network → output.
        folder: for the adapter.
        settings: method, r, targets.

    Returns:
        The adapted network, trained, not merged.
    """
    net = build()
    keys = list(net.state_dict())
    with torch.no_grad():
        plain = run(net)
    model = audiolora.adapt(net, **settings).eval()
    with torch.no_grad():
        torch.testing.assert_close(run(model), plain, rtol=1e-5, atol=1e-6)
    before = frozen(model)
    two_steps(model, run)
    assert_unmoved(model, before)
    with torch.no_grad():
        after = run(model)
        assert (after - plain).abs().max() > 1e-4, "training changed nothing"
        with model.disable_adapter():
            torch.testing.assert_close(run(model), plain, rtol=1e-5, atol=1e-6)

        model.save_pretrained(folder)
        with audiolora.enabled():
            loaded = PeftModel.from_pretrained(build(), folder).eval()
        assert_unmoved(loaded, model.state_dict())
        torch.testing.assert_close(run(loaded), after, rtol=1e-6, atol=1e-6)  # sums go by where tensors lie in memory

        model.merge_adapter(safe_merge=True)
        torch.testing.assert_close(run(model), after, rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()
        torch.testing.assert_close(run(model), after, rtol=1e-5, atol=1e-6)  # PEFT's Linear subtracts ΔW again
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(run(merged), after, rtol=1e-4, atol=1e-5)
        assert list(merged.state_dict()) == keys
        again = build()
        again.load_state_dict(merged.state_dict())
        torch.testing.assert_close(run(again), run(merged), rtol=1e-5, atol=1e-6)
    return model
