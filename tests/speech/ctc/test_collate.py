"""Batches of CTC models: each clip as transformers makes it alone, masks where the model wants them, and frames."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import soundfile
import torch

from audiolora.speech.ctc.collate import CtcCollator, Fits, ctc_features
from audiolora.speech.ctc.frames import FrameCount, hears_padding
from audiolora.speech.ctc.targets import frames_needed
from audiolora.speech.data.manifests import Utterance
from audiolora.speech.sound import effects
from audiolora.speech.sound.augmentation import parse_augmentation
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.training.clips import Clips
from tests.export.ctc_models import clips
from tests.speech.ctc.tiny_ctc import FAMILIES, tiny_ctc

MEL = ("Wav2Vec2BertForCTC", "ParakeetForCTC")
LENGTHS = (9000, 4001, 16_000, 655)


def item(audio, text="amber", name="a"):
    return {"audio": audio, "text": text, "id": name}


@pytest.mark.parametrize("family", ["Wav2Vec2ForCTC", *MEL])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
def test_each_clip_is_what_its_extractor_makes_of_it_alone(tmp_path, family, layer_norm, normalize):
    processor = tiny_ctc(tmp_path, family, layer_norm=layer_norm).processor
    processor.feature_extractor.do_normalize = normalize
    audios = clips(*LENGTHS)
    batch = ctc_features(processor, audios)
    name = "input_features" if family in MEL else "input_values"
    assert set(batch) == {name, *(["attention_mask"] if family in MEL or layer_norm else [])}
    for row, audio in enumerate(audios):
        alone = processor.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt")
        wanted = alone[name][0].float()
        torch.testing.assert_close(batch[name][row, : len(wanted)], wanted, rtol=0, atol=0)
        assert (batch[name][row, len(wanted) :] == processor.feature_extractor.padding_value).all()
        if "attention_mask" in batch:
            assert batch["attention_mask"][row].sum() == alone["attention_mask"].sum()
    if name == "input_values" and not normalize:
        np.testing.assert_array_equal(batch[name][0, :9000], audios[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_those_that_the_model_makes(tmp_path, family):
    """Of clips of many lengths, each alone; where a clip is too short the model makes none, or nothing of use."""
    loaded = tiny_ctc(tmp_path, family)
    frames = pickle.loads(pickle.dumps(FrameCount.of(loaded.model, loaded.processor.feature_extractor)))
    for n_samples in (1300, 1599, 1600, 1601, 4000, 4157, 9999, 16_000, 16_319):
        made = ctc_features(loaded.processor, clips(n_samples))
        with torch.no_grad():
            logits = loaded.model(**made).logits
        mask = made.get("attention_mask")
        assert 0 < frames(n_samples) <= logits.shape[1], n_samples
        if family in MEL:
            lengths = mask.sum(-1)
            count = getattr(loaded.model, "_get_subsampling_output_length", None)
            count = count or loaded.model._get_feat_extract_output_lengths
            assert frames(n_samples) == int(count(lengths))
        else:
            assert frames(n_samples) == logits.shape[1]
    assert frames(200) == 0 and frames(1) == 0


@pytest.mark.parametrize(
    ("family", "layer_norm"),
    [(family, layer_norm) for family in FAMILIES for layer_norm in (False, True) if not (layer_norm and family in MEL)],
)
def test_who_hears_the_padding(tmp_path, family, layer_norm):
    """In float64: the logits of a clip in a batch are those of it alone exactly where `hears_padding` says so."""
    loaded = tiny_ctc(tmp_path, family, layer_norm=layer_norm)
    model, audios = loaded.model.double(), clips(9000, 4001, 2305)
    frames = FrameCount.of(model, loaded.processor.feature_extractor)

    def logits(several):
        made = ctc_features(loaded.processor, several)
        with torch.no_grad():
            return model(**{k: v.double() if v.is_floating_point() else v for k, v in made.items()}).logits

    apart = 0.0
    together = logits(audios)
    for row, audio in enumerate(audios):
        n = frames(len(audio))
        apart = max(apart, float((together[row, :n] - logits([audio])[0, :n]).abs().max()))
    if hears_padding(model, loaded.processor.feature_extractor):
        assert apart > 1e-6
    else:
        assert apart < 1e-9


def test_labels_are_the_tokenizer_s_and_padded(tmp_path):
    loaded = tiny_ctc(tmp_path)
    frames = FrameCount.of(loaded.model, loaded.processor.feature_extractor)
    collate = pickle.loads(pickle.dumps(CtcCollator(frames, loaded.processor, None)))
    one, two = clips(9000, 12_000)
    batch = collate([item(one, "Amber!"), item(two, "it's fern")])
    tokenizer = loaded.processor.tokenizer
    assert batch["labels"].tolist() == [tokenizer("amber").input_ids + [-100] * 4, tokenizer("it's fern").input_ids]
    with pytest.raises(ValueError, match="clip7: 'é' not in the model's vocabulary"):
        collate([item(one, "café", "clip7")])
    with pytest.raises(ValueError, match=r"clip8: the text 'aa+' takes 59 frames \(30 tokens and 29 blanks"):
        collate([item(one, "a" * 30, "clip8")])


def test_a_speed_that_a_text_does_not_fit_is_left_out(tmp_path, monkeypatch):
    """The lengths are what matters here; test_effects has the sound."""
    monkeypatch.setattr(effects, "change_rate", lambda x, factor: np.resize(x, -int(-len(x) // factor)))
    loaded = tiny_ctc(tmp_path)
    frames = FrameCount.of(loaded.model, loaded.processor.feature_extractor)
    tight = next(n for n in range(1000, 9000) if frames(n) == frames_needed([5, 17, 6, 9, 22]))
    soundfile.write(tmp_path / "tight.wav", clips(tight)[0], 16_000, subtype="FLOAT")
    utterance = Utterance("tight", tmp_path / "tight.wav", "amber", "row 1")
    plain, speed = Clips([utterance], parse_channel("clean")), parse_augmentation("speed0.5")

    def lengths(fits: Fits | None) -> set[int]:
        heard = plain.augmented(speed, seed=0, fits=fits)
        found = set()
        for epoch in range(30):
            heard.set_epoch(epoch)
            found.add(len(heard[0]["audio"]))
        return found

    assert lengths(None) == {tight, tight * 2, -(-tight * 2 // 3)}
    assert lengths(pickle.loads(pickle.dumps(Fits(frames, loaded.processor, None)))) == {tight, tight * 2}
    assert lengths(Fits(frames, loaded.processor, None, mask_time_length=frames(tight * 2) + 1)) == {tight}
