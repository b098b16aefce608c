"""WAV files by the standard library, against soundfile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora.edge import read_wav


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_samples_are_soundfile_s(tmp_path: Path, subtype: str, channels: int) -> None:
    audio = np.random.default_rng(0).uniform(-1, 1, (501, channels))
    audio[0], audio[1] = -1, 1  # full scale
    soundfile.write(tmp_path / "a.wav", audio, 8_000, subtype=subtype)
    wanted, _ = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)
    found, rate_hz = read_wav(tmp_path / "a.wav")
    assert found.dtype == np.float32 and found.shape == (501,) and rate_hz == 8_000
    np.testing.assert_allclose(found, wanted.mean(axis=1), rtol=0, atol=1e-7)


def test_what_is_no_such_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(100), 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a\.wav: no WAV file of whole numbers .*soundfile"):
        read_wav(path)
    soundfile.write(path, np.zeros(100), 16_000, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:-31])
    with pytest.raises(ValueError, match=r"a\.wav: truncated, 169 of 200 bytes"):
        read_wav(path)
    path.write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"a\.wav: no WAV file"):
        read_wav(path)
