"""A frozen BatchNorm does not move, and a trained one is as ever."""

import copy

import pytest
import torch
from torch import nn

import audiolora


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 1, 1))


def batch(seed: int) -> torch.Tensor:
    return 3 + torch.randn(8, 2, 20, generator=torch.Generator().manual_seed(seed))


def test_training_an_adapter_leaves_them_and_reloading_gives_the_same_function(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from peft import PeftModel

    base = network()
    base(batch(0))  # some statistics
    untouched = copy.deepcopy(base)
    model = audiolora.adapt(base, r=2)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    for step in range(3):
        model.train()(batch(step)).square().mean().backward()
        optimizer.step()
    assert torch.equal(model.get_buffer("base_model.model.1.running_mean"), untouched[1].running_mean)
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(untouched, str(tmp_path))
    torch.testing.assert_close(reloaded.eval()(batch(9)), model.eval()(batch(9)))


def test_one_whose_scale_is_trained_moves() -> None:
    net = network()
    assert audiolora.hold_statistics(net) == []
    net.requires_grad_(False)
    assert audiolora.hold_statistics(net) == ["1"] == audiolora.hold_statistics(net)
    assert len(net[1]._forward_pre_hooks) == 1, "asked twice, held once"
    net.requires_grad_(True)
    expected = copy.deepcopy(network())
    torch.testing.assert_close(net.train()(batch(1)), expected.train()(batch(1)))
    torch.testing.assert_close(net[1].running_mean, expected[1].running_mean)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_whole(backend: str) -> None:
    model = audiolora.adapt(network(), r=2).train()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(batch(1)), copy.deepcopy(model)(batch(1)))
    assert torch.equal(model.get_buffer("base_model.model.1.running_mean"), torch.zeros(4))
