"""Clips and batches: the audio that the channel makes, the tokenizer's labels, the loss computed by hand."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from audiolora.speech.data.audio import AudioError, read_audio
from audiolora.speech.data.manifests import Utterance, read_utterances
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.training import clips as clips_module
from audiolora.speech.training.clips import Clips
from audiolora.speech.whisper.collate import WhisperCollator
from audiolora.speech.whisper.context import ContextPolicy, audio_context
from audiolora.speech.whisper.weights import LoadedWhisper, load_whisper
from tests.speech.tiny_training import write_clips
from tests.speech.tiny_whisper import tiny_whisper

NOISE = parse_channel("noise10dB")


@pytest.fixture(scope="module")
def utterances(tmp_path_factory) -> list[Utterance]:
    return read_utterances(write_clips(tmp_path_factory.mktemp("clips"), 6))


@pytest.fixture(scope="module", params=[False, True], ids=["English", "multilingual"])
def whisper(request, tmp_path_factory) -> LoadedWhisper:
    folder = tmp_path_factory.mktemp("whisper")
    tiny_whisper(folder, multilingual=request.param)
    loaded = load_whisper(folder)
    if request.param:
        loaded.processor.tokenizer.set_prefix_tokens(language="it", task="transcribe")
    return loaded


def collator(whisper: LoadedWhisper, mode: str = "auto", training: bool = False) -> WhisperCollator:
    return WhisperCollator(
        whisper.processor, ContextPolicy(mode), whisper.model.config.decoder_start_token_id, training
    )


def test_a_clip_is_its_audio_through_the_channel(utterances):
    item = Clips(utterances, NOISE)[2]
    plain, _ = soundfile.read(utterances[2].audio, dtype="float32")
    assert item["id"] == utterances[2].id and item["text"] == utterances[2].text
    np.testing.assert_array_equal(item["audio"], NOISE.apply(plain, utterances[2].id))
    np.testing.assert_array_equal(Clips(utterances, parse_channel("clean"))[2]["audio"], plain)


def test_durations_are_those_of_the_files(utterances):
    expected = [soundfile.info(utterance.audio).duration for utterance in utterances]
    assert Clips(utterances, NOISE).durations_s == pytest.approx(expected)


@pytest.mark.parametrize("kept_s", [0.0, 3600.0])
def test_a_clip_sounds_the_same_in_whatever_order(utterances, monkeypatch, kept_s):
    monkeypatch.setattr(clips_module, "KEPT_S", kept_s)
    forwards, backwards = Clips(utterances, NOISE), Clips(utterances[::-1], NOISE)
    for audio, other in zip(forwards.audios(), backwards.audios()[::-1], strict=True):
        np.testing.assert_array_equal(audio, other)
    np.testing.assert_array_equal(forwards[3]["audio"], forwards[3]["audio"])


def test_two_clips_do_not_share_their_noise(utterances):
    same = [Utterance(name, utterances[0].audio, "text", "row 1") for name in ("a", "b")]
    first, second = Clips(same, NOISE).audios()
    assert np.abs(first - second).max() > 0.01


def test_short_sets_are_read_once_and_long_ones_are_not_kept(utterances, monkeypatch):
    read = []
    monkeypatch.setattr(
        clips_module, "read_audio", lambda *args, **kwargs: read.append(1) or read_audio(*args, **kwargs)
    )
    kept = Clips(utterances, NOISE)
    kept[0], kept[0]
    assert len(read) == 1
    monkeypatch.setattr(clips_module, "KEPT_S", 1.0)
    passing = Clips(utterances, NOISE)
    passing[0], passing[0]
    assert len(read) == 3


def test_a_worker_process_is_not_sent_the_samples(utterances):
    clips = Clips(utterances, NOISE)
    audio, size = clips[0]["audio"], len(pickle.dumps(Clips(utterances, NOISE)))
    sent = pickle.dumps(clips)
    assert len(sent) == size
    np.testing.assert_array_equal(pickle.loads(sent)[0]["audio"], audio)


def test_no_clips_and_clips_that_went_away(utterances, tmp_path):
    with pytest.raises(ValueError, match="no clips"):
        Clips([], NOISE)
    path = tmp_path / "gone.wav"
    soundfile.write(path, np.zeros(100), 16_000)
    utterance = Utterance("gone", path, "text", "clips.jsonl row 7")
    clips = Clips([utterance], NOISE)
    os.remove(path)
    with pytest.raises(AudioError, match="clips.jsonl row 7: no such file"):
        clips[0]
    with pytest.raises(AudioError, match="clips.jsonl row 7: no such file"):
        Clips([utterance], NOISE)


def test_labels_are_the_tokenizers_without_its_start(whisper, utterances):
    items = [Clips(utterances, NOISE)[i] for i in range(3)] + [
        {**Clips(utterances, NOISE)[3], "text": "a much longer text"}
    ]
    labels = collator(whisper)(items)["labels"]
    tokenizer, start = whisper.processor.tokenizer, whisper.model.config.decoder_start_token_id
    for row, item in zip(labels.tolist(), items, strict=True):
        expected = tokenizer(item["text"]).input_ids
        assert expected[0] == start and expected[-1] == tokenizer.eos_token_id
        assert row == expected[1:] + [-100] * (labels.shape[1] - len(expected) + 1)
    assert start not in labels


def test_features_are_the_extractors(whisper, utterances):
    """The first frames of the 30 s that transformers' own extractor makes, as many as the longest clip needs."""
    items = [Clips(utterances, NOISE)[i] for i in range(6)]  # 0.3 to 0.72 s
    whole = whisper.processor.feature_extractor(
        [item["audio"] for item in items], sampling_rate=16_000, return_tensors="pt"
    ).input_features
    for mode, n_frames in (("auto", 100), ("full", 3000)):
        features = collator(whisper, mode)(items)["input_features"]
        assert features.shape == (6, 80, n_frames) and features.dtype == torch.float32
        torch.testing.assert_close(features, whole[:, :, :n_frames], atol=1e-5, rtol=0)


def test_only_training_draws_a_context(whisper, utterances):
    item = Clips(utterances, NOISE)[0]
    items = [item]
    batches = [[{**item, "key": f"0/{epoch}/a"}] for epoch in range(60)]
    drawn = [collator(whisper, "mix", training=True)(batch)["input_features"].shape[-1] for batch in batches]
    assert set(drawn) == {100, 3000} and 5 < drawn.count(3000) < 25  # one in four
    again = [collator(whisper, "mix", training=True)(batch)["input_features"].shape[-1] for batch in reversed(batches)]
    assert again[::-1] == drawn  # the key decides, nothing that was drawn before
    with pytest.raises(ValueError, match=r"Clips.augmented"):
        collator(whisper, "mix", training=True)(items)
    assert collator(whisper, "mix", training=False)(items)["input_features"].shape[-1] == 100


def test_the_loss_is_the_mean_log_likelihood_of_the_text(whisper, utterances):
    """From the logits, in NumPy: token t is predicted from the start token and the t - 1 tokens before it."""
    batch = collator(whisper)([Clips(utterances, NOISE)[i] for i in range(4)])
    labels, start = batch["labels"].numpy(), whisper.model.config.decoder_start_token_id
    shown = np.concatenate([np.full((4, 1), start), labels[:, :-1]], axis=1)
    shown[shown == -100] = whisper.model.config.pad_token_id
    with torch.no_grad(), audio_context(whisper.model, batch["input_features"].shape[-1]):
        loss = whisper.model(**batch).loss.item()
        logits = whisper.model(batch["input_features"], decoder_input_ids=torch.from_numpy(shown)).logits
    scores = logits.double().numpy()
    log_likelihood = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    kept = labels != -100
    expected = -np.mean(np.take_along_axis(log_likelihood, np.where(kept, labels, 0)[..., None], -1)[..., 0][kept])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_workers_make_the_same_batches(whisper, utterances):
    clips = Clips(utterances, NOISE)
    batches = [
        list(DataLoader(clips, batch_size=2, num_workers=workers, collate_fn=collator(whisper))) for workers in (0, 2)
    ]
    assert len(batches[0]) == len(batches[1]) == 3
    for alone, worked in zip(*batches, strict=True):
        assert torch.equal(alone["input_features"], worked["input_features"])
        assert torch.equal(alone["labels"], worked["labels"])


@pytest.mark.parametrize("spec", ["clean", "gsm", "rate0.5", "rate1.8", "rate0.33333", "rate0.5,noise10dB,rate1.25"])
def test_a_channel_says_how_much_longer_it_makes_a_clip(spec):
    channel = parse_channel(spec)
    audio = 0.1 * np.sin(np.arange(16_000, dtype=np.float32))
    assert len(channel.apply(audio, "key")) == pytest.approx(16_000 * channel.stretch, abs=2)
