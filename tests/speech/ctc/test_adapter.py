"""A CTC adapter on disk says what it was trained over, and comes back as it was, with a head of its own or without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from audiolora.speech.ctc.adapter import (
    CtcInfo,
    adapt_ctc,
    ctc_fingerprint,
    describe_ctc,
    is_ctc_adapter,
    load_adapted_ctc,
    read_ctc_info,
    save_ctc_adapter,
)
from audiolora.speech.ctc.collate import ctc_features
from audiolora.speech.ctc.models import load_ctc
from audiolora.speech.ctc.vocabulary import Vocabulary
from tests.export.ctc_models import clips
from tests.export.networks import randomise
from tests.speech.ctc.tiny_ctc import tiny_ctc

SPANISH = Vocabulary(tuple("abcdeñó"))


@pytest.fixture
def base(tmp_path: Path) -> str:
    loaded = tiny_ctc(tmp_path / "made", layer_norm=True)
    loaded.model.save_pretrained(tmp_path / "base")
    loaded.processor.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def quiet(*_: Any) -> None:
    pass


def logits(model: Any, processor: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**ctc_features(processor, clips(9000, 6000))).logits


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_is_saved_is_loaded(base: str, tmp_path: Path, new: bool, method: str) -> None:
    loaded = load_ctc(base, vocabulary=SPANISH if new else None, replace=new, log=quiet)
    info = describe_ctc(loaded, base, "es")
    model = adapt_ctc(loaded, method, r={"conv": 2, "attention": 3}, targets=["conv", "attention"])
    randomise(model)
    wanted = logits(model.eval(), loaded.processor)
    assert wanted.shape[-1] == (len(SPANISH.tokens) if new else 32)
    save_ctc_adapter(model, loaded.processor, tmp_path / "adapter", info, "# card\n")
    assert is_ctc_adapter(tmp_path) and read_ctc_info(tmp_path / "adapter") == info
    again, of, said = load_adapted_ctc(tmp_path, log=quiet)
    assert said == info and said.new_head == new and of.new_head == new
    torch.testing.assert_close(logits(again.eval(), of.processor), wanted, rtol=0, atol=0)
    vocabulary = of.processor.tokenizer.convert_ids_to_tokens(list(range(len(said.vocabulary))))
    assert tuple(vocabulary) == said.vocabulary
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "audiolora.json", "README.md", "processor"} == files
    elsewhere = Path(base).rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="its base model cannot be loaded.*--base"):
        load_adapted_ctc(tmp_path, log=quiet)
    moved, of, _ = load_adapted_ctc(tmp_path, base=str(elsewhere), trainable=True, log=quiet)
    torch.testing.assert_close(logits(moved.eval(), of.processor), wanted, rtol=0, atol=0)
    assert any(p.requires_grad for p in moved.parameters())


def test_another_base_is_refused(base: str, tmp_path: Path) -> None:
    """Even one that has the same convolutions, as models fine-tuned with a frozen feature encoder have."""
    loaded = load_ctc(base, log=quiet)
    info, model = describe_ctc(loaded, base, None), adapt_ctc(loaded, r=2)
    save_ctc_adapter(model, loaded.processor, tmp_path / "adapter", info, "")
    other = load_ctc(base, log=quiet)
    with torch.no_grad():
        other.model.wav2vec2.encoder.layers[1].feed_forward.output_dense.bias[3] += 1e-3
    other.model.save_pretrained(tmp_path / "other")
    other.processor.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="trained over .*base .*but .*other is another model"):
        load_adapted_ctc(tmp_path, base=str(tmp_path / "other"), log=quiet)


def test_the_fingerprint_is_of_the_base_alone(base: str) -> None:
    """Not of what is drawn anew at each load, nor of the head that a new alphabet replaces."""
    plain = load_ctc(base, log=quiet)
    before = ctc_fingerprint(plain.model)
    with torch.no_grad():
        plain.model.wav2vec2.masked_spec_embed.normal_()
    assert ctc_fingerprint(plain.model) == before
    assert ctc_fingerprint(load_ctc(base, vocabulary=SPANISH, replace=True, log=quiet).model) == before


def test_a_description_that_is_another_s_is_an_error(base: str, tmp_path: Path) -> None:
    loaded = load_ctc(base, log=quiet)
    info = describe_ctc(loaded, base, "en")
    save_ctc_adapter(adapt_ctc(loaded, r=2), loaded.processor, tmp_path / "adapter", info, "")
    file = tmp_path / "adapter" / "audiolora.json"
    says = json.loads(file.read_text())
    whisper = {"base_model": "w", "base_fingerprint": "f", "context": "auto", "language": None, "format": 1}
    file.write_text(json.dumps(whisper))
    assert not is_ctc_adapter(tmp_path)
    with pytest.raises(ValueError, match="not a CTC adapter's description"):
        read_ctc_info(tmp_path / "adapter")
    file.write_text(json.dumps({**says, "task": "rnnt"}))
    with pytest.raises(ValueError, match="task must be 'ctc', got 'rnnt'"):
        read_ctc_info(tmp_path / "adapter")
    file.write_text("{")
    with pytest.raises(ValueError, match="not an adapter description"):
        is_ctc_adapter(tmp_path)
    with pytest.raises(ValueError, match="task must be 'ctc'"):
        CtcInfo("a", "b", None, ("a",), False, task="whisper")  # type: ignore[arg-type]
