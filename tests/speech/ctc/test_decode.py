"""Texts of CTC models: the tokenizer's own for each clip alone, whoever stands beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from audiolora.speech.ctc.decode import GreedyDecoder, ctc_log_probs, transcribe_ctc
from tests.export.ctc_models import clips, processor
from tests.speech.ctc.tiny_ctc import FAMILIES, tiny_ctc

LENGTHS = (9000, 4001, 20_000, 4001, 1300)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_s_text_does_not_depend_on_its_neighbours(tmp_path: Path, family: str, layer_norm: bool) -> None:
    """And it is what transformers writes of the clip alone."""
    loaded = tiny_ctc(tmp_path, family, layer_norm=layer_norm)
    audios, texts = clips(*LENGTHS), []
    for audio in audios:
        inputs = loaded.processor.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            path = loaded.model(**inputs).logits.argmax(-1)[0]
        if "Bert" in family or "Parakeet" in family:  # their extractors may pad a clip by a frame, masked
            count = getattr(loaded.model, "_get_subsampling_output_length", lambda steps: steps)
            path = path[: int(count(inputs["attention_mask"].sum(-1)))]
        path[(path >= 1) & (path <= 3)] = 0  # <s>, </s> and <unk>, which are no letters
        texts.append(loaded.processor.tokenizer.decode(path).strip())
    assert any(texts)
    for batch_size in (1, 2, 5):
        found = transcribe_ctc(loaded.model, loaded.processor, audios, batch_size=batch_size, progress=False)
        assert found == texts
    backwards = transcribe_ctc(loaded.model, loaded.processor, audios[::-1], batch_size=3, progress=False)
    assert backwards == texts[::-1]


def test_a_decoder_gets_the_log_probabilities_of_each_clip(tmp_path: Path) -> None:
    loaded = tiny_ctc(tmp_path, layer_norm=True)
    audios, seen = clips(*LENGTHS), []

    def decoder(log_probs: np.ndarray) -> str:
        seen.append(log_probs)
        return str(len(log_probs))

    loaded.model.train()
    texts = transcribe_ctc(loaded.model, loaded.processor, audios, decoder=decoder, batch_size=2, progress=False)
    assert loaded.model.training  # as it was
    assert texts == [str(int(loaded.model._get_feat_extract_output_lengths(torch.tensor(n)))) for n in LENGTHS]
    assert all(one.dtype == np.float32 and np.allclose(np.exp(one).sum(1), 1, atol=1e-5) for one in seen)
    assert {index for index, _ in ctc_log_probs(loaded.model, loaded.processor, audios, progress=False)} == set(
        range(5)
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [("hhe_l_ll", "hell"), ("he_e?el", "heeel"), ("|aa||b|", "a b"), ("___", ""), ("<>?", ""), ("aaab", "ab")],
)
def test_greedy_joins_repetitions_and_keeps_what_a_blank_parts(tmp_path: Path, path: str, text: str) -> None:
    """_ the blank, ? <unk>, < and > begin and end of a sentence."""
    tokenizer = processor(tmp_path).tokenizer
    named = {"_": "<pad>", "?": "<unk>", "<": "<s>", ">": "</s>"}
    ids = [tokenizer.encoder[named.get(c, c)] for c in path]
    assert GreedyDecoder(tokenizer)(np.eye(len(tokenizer), dtype=np.float32)[ids]) == text


def test_clips_that_cannot_be_heard_are_named(tmp_path: Path) -> None:
    loaded = tiny_ctc(tmp_path)
    good = clips(9000)[0]
    wrong = {
        r"clip 1 \(b\.wav\) lasts 0.006 s, shorter than": np.zeros(100, np.float32),
        r"clip 1 \(b\.wav\) holds NaN": np.full(9000, np.nan),
        r"clip 1 \(b\.wav\) must be mono": np.zeros((2, 9000)),
    }
    for message, audio in wrong.items():
        with pytest.raises(ValueError, match=message):
            transcribe_ctc(loaded.model, loaded.processor, [good, audio], names=["a.wav", "b.wav"], progress=False)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        transcribe_ctc(loaded.model, loaded.processor, [good], batch_size=0)
    with pytest.raises(ValueError, match="2 names, 1 clips"):
        transcribe_ctc(loaded.model, loaded.processor, [good], names=["a", "b"])
    assert transcribe_ctc(loaded.model, loaded.processor, [], progress=False) == []
