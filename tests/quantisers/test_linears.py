"""Models whose Linears bitsandbytes or torchao has quantised: their convolutions beside them, in one adapter.

`make test-quantisers` makes an environment with both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

import audiolora
from audiolora.layers.lora import LoraConv1d
from audiolora.layers.quantized import quantization_of

pytest.importorskip("bitsandbytes", reason="make test-quantisers has bitsandbytes and torchao")
pytest.importorskip("torchao", reason="make test-quantisers has bitsandbytes and torchao")

from transformers import BitsAndBytesConfig, TorchAoConfig, WhisperConfig, WhisperForConditionalGeneration

SIZES: dict[str, Any] = {
    "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 200, "max_source_positions": 100, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "begin_suppress_tokens": None,
}  # fmt: skip
INPUTS = {
    "input_features": torch.randn(2, 80, 200, generator=torch.Generator().manual_seed(0)),
    "labels": torch.randint(3, 200, (2, 7), generator=torch.Generator().manual_seed(0)),
}


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


LIBRARIES: dict[str, Callable[[], Any]] = {
    "bitsandbytes": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "torchao": _torchao,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("whisper")
    WhisperForConditionalGeneration(WhisperConfig(**SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(params=LIBRARIES)
def model(saved: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of casts and of what the CPU lacks
        settings = LIBRARIES[request.param]()
        yield WhisperForConditionalGeneration.from_pretrained(
            saved, quantization_config=settings, device_map="cpu", dtype=torch.float32
        )


def test_convolutions_are_quantised_beside_their_linears(model: Any) -> None:
    theirs = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    before = model(**INPUTS).logits
    audiolora.quantize(model)
    kept = {name for name, module in model.named_modules() if quantization_of(module) is not None}
    assert kept == {"model.encoder.conv1", "model.encoder.conv2"}
    assert len(theirs) > 10
    assert (model(**INPUTS).logits - before).abs().max() < 0.1 * before.abs().max()


def test_one_adapter_trains_over_both_is_saved_and_read_again(model: Any, saved: Path, tmp_path: Path) -> None:
    adapted = audiolora.adapt(audiolora.quantize(model), r=4)
    assert isinstance(adapted.get_submodule("base_model.model.model.encoder.conv1"), LoraConv1d)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(4):
        loss = adapted(**INPUTS).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    expected = adapted.eval()(**INPUTS).logits
    adapted.save_pretrained(tmp_path)
    adapted.unload()
    again = PeftModel.from_pretrained(model, tmp_path).eval()
    torch.testing.assert_close(again(**INPUTS).logits, expected)


def test_a_linear_of_theirs_that_is_named_is_refused_and_nothing_is_changed(model: Any) -> None:
    with pytest.raises(ValueError, match=r"encoder.layers.0.fc1: its weight is .*, quantised by something else"):
        audiolora.quantize(model, target_modules=["conv1", "fc1"])
    assert quantization_of(model.model.encoder.conv1) is None


@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_methods_that_cannot_merge_into_their_weights_are_refused(model: Any, method: str) -> None:
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=r"v_proj: its weight is .*take LoRA.*audiolora.quantize"):
        audiolora.adapt(model, method, r=4)
    assert set(model.state_dict()) == before


def test_no_bundle_has_their_numbers(model: Any, tmp_path: Path) -> None:
    from audiolora.export import export

    features = {"input_features": INPUTS["input_features"]}
    with pytest.raises(ValueError, match=r"layers.0.*its weight is .*no exported graph would be equal"):
        export(model.model.encoder, tmp_path / "bundle", features)
    assert not (tmp_path / "bundle").exists()
