"""What each way trains of a base, at which size."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from transformers import WhisperConfig, WhisperForConditionalGeneration

import audiolora
from audiolora.comparison.ways import WAYS, groups_of, prepared, rank_for, shipped_bytes, ways_for
from audiolora.series.nets import TCNForecaster

HEAD = ("head",)


def base() -> TCNForecaster:
    torch.manual_seed(0)
    return TCNForecaster(1, 6, channels=8, dilations=(1, 4)).requires_grad_(False)


def tiny_whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    settings = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64, "num_mel_bins": 16}
    counts = {f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(**settings, **counts, **tokens, max_source_positions=50, max_target_positions=20)
    return WhisperForConditionalGeneration(config).requires_grad_(False)


def trained(net: torch.nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


def test_a_network_of_convolutions_has_no_attention_to_adapt() -> None:
    ways = ways_for(base())
    assert {"lora-attention", "lora-conv"}.isdisjoint(ways) and {"frozen", "full", "lora", "dora"} <= set(ways)
    assert set(ways_for(tiny_whisper())) == set(WAYS)
    assert ways_for(base(), ("lora", "frozen")) == ("frozen", "lora")
    with pytest.raises(ValueError, match="tucker is none of them"):
        ways_for(base(), ("tucker",))
    with pytest.raises(ValueError, match="has targets of the kinds conv, so that lora-attention has nothing"):
        ways_for(base(), ("lora-attention",))


@pytest.mark.parametrize("way", ways_for(base()))
def test_a_way_begins_at_the_base_and_trains_what_it_says(way: str) -> None:
    plain, x = base().eval(), torch.randn(3, 1, 48)
    made = prepared(copy.deepcopy(plain), way, head=HEAD, parameters=600, steps=100, seed=0)
    close = {"rtol": 0, "atol": 0.2} if WAYS[way].bits else {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(made.net.eval()(x), plain(x), **close)
    names = trained(made.net)
    count = sum(p.numel() for p in made.net.parameters() if p.requires_grad)
    if way == "frozen":
        assert not names and shipped_bytes(made.net) == 0
    elif way == "head":
        assert names == {"head.weight", "head.bias"}
    elif way == "bias":
        assert names == {name for name, _ in plain.named_parameters() if name.endswith("bias")}
    elif way == "full":
        assert names == {name for name, _ in plain.named_parameters()}
    elif WAYS[way].method:
        assert (
            isinstance(made.net, PeftModel)
            and (150 if way == "lokr" else 300) <= count <= 1200
            and set(made.ranks) == {"conv"}
        )
        assert count * 4 <= shipped_bytes(made.net) <= count * 4 + 16_384
    if names:
        loss = made.net.train()(x).square().mean()
        loss.backward()
        assert all(p.grad is not None for p in made.net.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
def test_ranks_come_near_the_asked_size(method: str) -> None:
    net = tiny_whisper()
    sizes = {}
    for r in (1, 2, 3, 4, 5, 6, 8):
        adapted = audiolora.adapt(copy.deepcopy(net), method, r={"conv": r}, targets=["conv"])
        sizes[r] = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    for wanted in (sizes[2], sizes[4], (sizes[4] + sizes[5]) // 2, 1):
        nearest = min(abs(size - wanted) for size in sizes.values())
        r = rank_for(net, method, ["conv"], wanted)
        assert abs(sizes.get(r, 10**9) - wanted) <= nearest * 1.5 + 1


def test_both_groups_share_the_parameters() -> None:
    net = tiny_whisper()
    assert groups_of(net) == ("conv", "attention", "ffn")
    made = prepared(net, "lora", head=("proj_out",), parameters=8000, steps=100, seed=0)
    sizes = {"conv": 0, "attention": 0}
    for name, parameter in made.net.named_parameters():
        if parameter.requires_grad:
            sizes["conv" if ".conv" in name else "attention"] += parameter.numel()
    assert all(2400 <= size <= 5600 for size in sizes.values())


def test_a_last_layer_that_is_tied_to_an_embedding_is_found() -> None:
    net = tiny_whisper()
    assert net.proj_out.weight is net.model.decoder.embed_tokens.weight
    made = prepared(net, "head", head=("proj_out",), parameters=1, steps=1, seed=0)
    assert [p for p in made.net.parameters() if p.requires_grad] == [net.proj_out.weight]
