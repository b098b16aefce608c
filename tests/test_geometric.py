"""GmP: the same function to rounding, there and back; its gradients; what trains; what is over and under it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from torch.nn.utils import parametrize
from transformers import Wav2Vec2Config, Wav2Vec2Model, WhisperConfig, WhisperForConditionalGeneration

import audiolora
from audiolora import geometric
from audiolora.layers.lora import LoraConv1d
from tests.export.test_geometries import with_slots
from tests.layers.convolutions import CONVOLUTIONS, Convolution

PLAIN = [row for row in CONVOLUTIONS if "weight_norm" not in row.name and row.name != "wav2vec2's positions"]
ROWS = [pytest.param(row, id=row.name) for row in PLAIN]

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Mixed(nn.Module):
    """Every kind that can be converted, and what cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv1d(4, 6, 3, groups=2), nn.ConvTranspose1d(6, 4, 4, stride=2, groups=2)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.tanh(self.up(torch.tanh(self.conv(x)))).mT))


def mixed() -> Mixed:
    torch.manual_seed(0)
    return Mixed().double()


def sample() -> torch.Tensor:
    return torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def stored(row: Convolution, c: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """c (C_out,) beside every number of its output channel, as the convolution stores them."""
    return row.stored(c[:, None, None].expand(-1, row.in_per_group, shape[2]))


def norms(row: Convolution, W: torch.Tensor) -> torch.Tensor:
    """‖W‖ (C_out,), one output channel after the other."""
    g = row.transposed_groups
    if g is None:
        return torch.stack([channel.square().sum().sqrt() for channel in W])
    groups = W.chunk(g)
    return torch.stack([group[:, i].square().sum().sqrt() for group in groups for i in range(W.shape[1])])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("row", ROWS)
def test_there_and_back_it_is_the_same_model(row: Convolution, dtype: torch.dtype, tolerance: float) -> None:
    model, base, x = row.model().to(dtype), row.model().to(dtype), row.input().to(dtype)
    expected = base(x)
    scale = max(1.0, expected.abs().max().item())
    assert geometric.convert(model) == ["conv"]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=tolerance * scale)
    chain = model.conv.parametrizations.weight
    torch.testing.assert_close(norms(row, chain.original1), torch.ones_like(chain.original0))
    torch.testing.assert_close(chain.original0.detach(), norms(row, base.conv.weight).detach())
    assert geometric.plain_state_dict(model).keys() == base.state_dict().keys()
    assert geometric.revert(model) == ["conv"]
    assert type(model.conv) is type(base.conv) and isinstance(model.conv.weight, nn.Parameter)
    assert list(model.state_dict()) == list(base.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in base.named_parameters()]
    torch.testing.assert_close(model.conv.weight, base.conv.weight, rtol=0, atol=tolerance)
    base.load_state_dict(model.state_dict())
    assert torch.equal(model(x), base(x))


@pytest.mark.parametrize("row", ROWS)
def test_forward_and_gradients_are_those_of_the_formula(row: Convolution) -> None:
    model = row.model()
    geometric.convert(model)
    (r,), (theta,) = geometric.lengths(model).values(), geometric.directions(model).values()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        for p in (r, theta):  # as after training: θ is not of length 1
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    leaves = [p.detach().clone().requires_grad_() for p in (r, theta)]
    W = leaves[1] * stored(row, leaves[0] / norms(row, leaves[1]), theta.shape)
    expected = F.leaky_relu(row.reference(row.input(), W, model.conv.bias), 0.1)
    y = model(row.input())
    close(y, expected)
    y.square().sum().backward()
    gradients = torch.autograd.grad(expected.square().sum(), leaves)
    close(r.grad, gradients[0])
    close(theta.grad, gradients[1])


@pytest.mark.parametrize("name, channel", [("conv", 2), ("up", 1), ("head", 0)])
def test_a_channel_that_is_zero_stays_zero_and_can_learn(name: str, channel: int) -> None:
    net = mixed()
    weight = net.get_submodule(name).weight
    with torch.no_grad():  # transposed, of the first of its two groups: inputs 0 to 2
        (weight[:3].transpose(0, 1) if name == "up" else weight)[channel] = 0
    before, expected = weight.detach().clone(), net(sample())
    geometric.convert(net)
    close(net(sample()), expected)
    net(sample()).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    geometric.revert(net)
    close(net.get_submodule(name).weight.detach(), before)


@pytest.mark.parametrize("which", ["lengths", "directions"])
def test_only_one_part_is_trained(which: str) -> None:
    net = mixed()
    geometric.convert(net)
    net.requires_grad_(False)
    for p in getattr(geometric, which)(net).values():
        p.requires_grad_()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 0.1)
    net(sample()).square().mean().backward()
    optimiser.step()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(getattr(geometric, which)(net)) and len(changed) == 3
    plain = mixed()
    geometric.revert(net)
    W, W0 = net.conv.weight, plain.conv.weight
    cosine = torch.cosine_similarity(W.flatten(1), W0.flatten(1)).abs()
    length = W.flatten(1).norm(dim=1) / W0.flatten(1).norm(dim=1)
    moved, same = (length, cosine) if which == "lengths" else (cosine, length)
    close(same, torch.ones_like(same))
    assert (moved - 1).abs().min() > 1e-4
    assert net.conv.weight.requires_grad and not net.conv.bias.requires_grad


def test_it_trains_whole_and_its_checkpoint_loads(tmp_path: Path) -> None:
    net, x = mixed(), sample()
    geometric.convert(net)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-2, weight_decay=0)
    losses = []
    for _ in range(30):
        loss = (net(x) - 0.3).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other, plain = Mixed().double(), Mixed().double()
    geometric.convert(other)
    other.load_state_dict(torch.load(tmp_path / "net.pt"))
    assert torch.equal(other(x), net(x))
    plain.load_state_dict(geometric.plain_state_dict(net))
    close(plain(x), net(x))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_over_it(method: str, tmp_path: Path) -> None:
    def converted() -> Mixed:
        net = mixed()
        geometric.convert(net)
        return net

    x = sample()
    torch.manual_seed(3)
    model = audiolora.adapt(converted(), method, r=2, targets=["conv", "up", "head"]).eval()
    assert all(isinstance(model.base_model.model.get_submodule(n), LoraConv1d) for n in ("conv", "up", "head"))
    close(model(x), mixed()(x))
    twin = audiolora.adapt(mixed(), method, r=2, targets=["conv", "up", "head"]).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.add_(0.3 * torch.randn_like(p))
                twin.get_parameter(name).copy_(p)
    for m in (model, twin):
        m.train()(x).square().sum().backward()
        m.eval()
    close(model(x), twin(x))
    for name, p in twin.named_parameters():
        if "lora_" in name:
            close(model.get_parameter(name).grad, p.grad)
    with torch.no_grad():
        assert model.base_model.model.conv.weight is model.base_model.model.conv.weight  # kept for inference
    rows = [(row.name, row.kind, row.method) for row in audiolora.inspect(model).rows]
    assert rows == [(n, k, {"lora": "LoRA", "dora": "DoRA"}[method]) for n, k in KINDS]
    expected = model(x).detach()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(converted(), tmp_path).eval()
    close(loaded(x), expected)
    with pytest.raises(TypeError, match=r"conv.base_layer: an adapter.*unload\(\)"):
        geometric.revert(model)
    model.merge_adapter()
    close(model(x), expected)
    model.unmerge_adapter()
    assert torch.equal(model(x), expected)
    merged = model.merge_and_unload()
    close(merged(x), expected)
    geometric.revert(merged)
    assert list(merged.state_dict()) == list(mixed().state_dict())
    close(merged(x), expected)


KINDS = [("conv", "Conv1d"), ("up", "ConvTranspose1d"), ("head", "Linear")]


def test_lengths_train_beside_an_adapter() -> None:
    net = mixed()
    geometric.convert(net)
    model = audiolora.adapt(net, r=2, targets=["conv", "up", "head"])
    for r in geometric.lengths(model).values():
        r.requires_grad_()
    x = sample()
    model(x).square().sum().backward()
    plain, leaves = mixed(), {}
    for name in ("conv", "up", "head"):
        W = plain.get_submodule(name).weight.detach()
        axes = {"conv": (1, 2), "up": (0, 2), "head": (1,)}[name]
        parts = W.chunk(2) if name == "up" else (W,)
        leaves[name] = torch.cat([part.square().sum(axes).sqrt() for part in parts]).requires_grad_()
        units = [part / part.square().sum(axes, keepdim=True).sqrt() for part in parts]
        shape = {"conv": (-1, 1, 1), "up": (1, -1, 1), "head": (-1, 1)}[name]
        lengths = leaves[name].chunk(2) if name == "up" else (leaves[name],)
        weight = torch.cat([unit * r.view(shape) for unit, r in zip(units, lengths, strict=True)])
        plain.get_submodule(name)._parameters["weight"] = weight  # type: ignore[assignment]
    gradients = torch.autograd.grad(plain(x).square().sum(), list(leaves.values()))
    for r, gradient in zip(geometric.lengths(model).values(), gradients, strict=True):
        close(r.grad, gradient)


def test_an_adapter_over_it_is_exported() -> None:
    net = mixed().float()
    geometric.convert(net)
    model = audiolora.adapt(net, "dora", r=2, targets=["conv", "up", "head"]).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.add_(0.3 * torch.randn_like(p))
    x = sample().float()
    owner, values = with_slots(model, "wsum", x)
    torch.testing.assert_close(owner(x, values), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["whisper", "wav2vec2"])
def test_speech_models_keep_their_outputs_and_what_cannot_be_converted(family: str) -> None:
    torch.manual_seed(0)
    if family == "whisper":
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
        sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 40, "num_mel_bins": 8}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 20}
        model: Any = WhisperForConditionalGeneration(WhisperConfig(**sizes, **heads, **tokens)).eval()
        inputs = {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": torch.randint(4, 40, (2, 5))}
        left = "proj_out"  # tied to the embedding
    else:
        convs = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 16}
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        # In float64: tiny norms after random weights make much of a rounding.
        model = Wav2Vec2Model(Wav2Vec2Config(**sizes, **convs, num_conv_pos_embedding_groups=4)).double().eval()
        inputs = {"input_values": torch.randn(2, 400, dtype=torch.float64)}
        left = "encoder.pos_conv_embed.conv"  # weight-normed
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(**inputs)[0]
        names = geometric.convert(model)
        assert left not in names and len(names) > 10
        torch.testing.assert_close(model(**inputs)[0], expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
        with pytest.raises(ValueError, match=f"{left}: its weight is (also that of|computed already)"):
            geometric.convert(model, [left])
        geometric.revert(model)
    assert list(model.state_dict()) == list(before)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=1e-6)


def test_copies_are_their_own() -> None:
    net = mixed()
    geometric.convert(net)
    twin = copy.deepcopy(net)
    geometric.revert(twin)
    assert parametrize.is_parametrized(net.conv) and not parametrize.is_parametrized(twin.conv)
    close(net(sample()), twin(sample()))
