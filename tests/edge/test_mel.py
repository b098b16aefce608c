"""Log-mel features, against the formula with librosa and against transformers' feature extractor."""

from __future__ import annotations

from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from audiolora.edge.mel import log_mel
from audiolora.speech.whisper.decode import log_mel as torchs


def drawn(kind: str, n_samples: int) -> np.ndarray:
    draw = np.random.default_rng(n_samples)
    t = np.arange(n_samples) / 16_000
    made = {
        "noise": lambda: draw.normal(size=n_samples),
        "quiet": lambda: 1e-4 * draw.normal(size=n_samples),
        "tone": lambda: np.sin(2 * np.pi * 441 * t),
        "clicks": lambda: (draw.random(n_samples) > 0.999).astype(float),
        "loud end": lambda: draw.normal(size=n_samples) * np.where(t > t[-1] - 0.01, 100, 1),
        "silence": lambda: np.zeros(n_samples),
    }[kind]()
    return made.astype(np.float32)


KINDS = ("noise", "quiet", "tone", "clicks", "loud end", "silence")
# A pure tone leaves bands of almost nothing: there the window's rounding to float32 tells, as in Whisper's own.
ALLOWED = dict.fromkeys(KINDS, 1e-5) | {"tone": 1e-4}
LENGTHS = [(1, 100), (4_800, 100), (16_000, 100), (23_999, 150), (32_000, 200), (480_000, 3000)]


def by_librosa(audio: np.ndarray, n_frames: int, n_mels: int) -> np.ndarray:
    """In float64: the power in mel bands, its logarithm, at least 8 below the clip's largest, scaled."""
    computed = min(n_frames + 1, 3000)
    padded = np.pad(audio.astype(np.float64), (0, computed * 160 - len(audio)))
    power = np.abs(librosa.stft(padded, n_fft=400, hop_length=160, pad_mode="reflect", dtype=np.complex128)) ** 2
    mel = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=n_mels, dtype=np.float64) @ power[:, :computed]
    levels = np.log10(np.maximum(mel, 1e-10))
    return ((np.maximum(levels, levels.max() - 8) + 4) / 4)[:, :n_frames]


@pytest.fixture(scope="module", params=[80, 128])
def extractor(request: pytest.FixtureRequest) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=request.param)


def ours(extractor: WhisperFeatureExtractor, audio: np.ndarray, n_frames: int) -> np.ndarray:
    filters, window = extractor.mel_filters.astype(np.float32), torch.hann_window(400).numpy()
    return log_mel(audio, n_frames, filters=filters, window=window, hop=160, max_frames=3000)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_formula_s(extractor: WhisperFeatureExtractor, kind: str) -> None:
    for n_samples, n_frames in LENGTHS:
        audio = drawn(kind, n_samples)
        found = ours(extractor, audio, n_frames)
        assert found.shape == (extractor.feature_size, n_frames) and found.dtype == np.float32
        wanted = by_librosa(audio, n_frames, extractor.feature_size)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=ALLOWED[kind], err_msg=str(n_samples))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_torch_side(extractor: WhisperFeatureExtractor, kind: str) -> None:
    for n_samples, n_frames in LENGTHS:
        audio = drawn(kind, n_samples)
        wanted = torchs(SimpleNamespace(feature_extractor=extractor), audio, n_frames).numpy()
        np.testing.assert_allclose(ours(extractor, audio, n_frames), wanted, rtol=0, atol=ALLOWED[kind])
