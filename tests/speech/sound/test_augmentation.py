"""The spec of an augmentation, and its draws: by their key alone, at the rates asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolora.speech.sound.augment_spec import EFFECTS
from audiolora.speech.sound.augmentation import keyed_generator, parse_augmentation, torch_generator
from audiolora.speech.sound.effects import SAMPLES

AUDIO = (0.1 * np.random.default_rng(0).standard_normal(4000)).astype(np.float32)


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("", ""),
        ("speed0.1,noise5-20dB@0.5", "speed0.1@1,noise5-20dB@0.5"),
        (" Noise5-20DB@.25 , GSM ", "noise5-20dB@0.25,gsm@0.5"),
        ("noise-5-10", "noise-5-10dB@0.5"),
        ("noise-10--5dB", "noise-10--5dB@0.5"),
        ("noise12.5dB", "noise12.5dB@0.5"),
        ("mp3", "mp3:16-64kbps@0.5"),
        ("mp3:32kbps@1", "mp3:32kbps@1"),
        ("gsm|opus|mp3:24-32kbps@0.3", "gsm|opus8-32kbps|mp3:24-32kbps@0.3"),
        ("speed|gain", "speed0.1|gain-6-6dB@0.5"),
    ],
)
def test_a_spec_is_read_and_written_in_full(spec, canonical):
    augmentation = parse_augmentation(spec)
    assert str(augmentation) == canonical
    assert parse_augmentation(str(augmentation)) == augmentation
    assert len(augmentation.describe()) == len(augmentation.steps)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nois5dB", "unknown effect 'nois5dB'; did you mean 'noise'. There are speed0.1, rir0.15-0.5s"),
        ("hum", "unknown effect 'hum'. There are"),
        ("gsm,,opus", "unknown effect ''"),
        ("gsm|", "unknown effect ''"),
        ("gsm8", "'gsm8' is not how gsm is written: gsm"),
        ("noise5-20Hz", "'noise5-20Hz' is not how noise is written: noise5-20dB"),
        ("speed0.1-0.2", "speed takes one number, e.g. speed0.1"),
        ("noise20-5dB", "numbers of noise go from -30 to 60dB, the lower one first"),
        ("opus2kbps", "numbers of opus go from 6 to 128kbps"),
        ("bandpass1000-1200Hz", "upper limit must be at least 1.5 times the lower"),
        ("gsm@0", "probability above 0 and at most 1, got '0'; e.g. gsm@0.5"),
        ("gsm@1.5", "probability above 0 and at most 1, got '1.5'"),
        ("gsm@", "probability above 0 and at most 1, got ''"),
        ("gsm@nan", "probability above 0 and at most 1, got 'nan'"),
    ],
)
def test_a_wrong_spec_is_told_with_its_remedy(spec, message):
    with pytest.raises(ValueError) as raised:
        parse_augmentation(spec)
    assert message.replace("'noise'.", "'noise'?") in str(raised.value)


def test_every_effect_has_samples_and_a_default_within_its_limits():
    assert EFFECTS.keys() == SAMPLES.keys()
    for name, kind in EFFECTS.items():
        assert str(parse_augmentation(name)).startswith(kind.written(name, *(kind.default or (0, 0))))


def test_folders_that_are_missing_or_not_used(tmp_path):
    with pytest.raises(ValueError, match=r"--noise-folder .*: nothing would use it; add noise to --augment"):
        parse_augmentation("gsm", noise_folder=tmp_path).check()
    with pytest.raises(ValueError, match=r"--rir-folder .*gone: no such folder"):
        parse_augmentation("rir", rir_folder=tmp_path / "gone").check()
    with pytest.raises(ValueError, match=r"rir0.2-0.3s: measured rooms have their own reverberation; write rir alone"):
        parse_augmentation("rir0.2-0.3s", rir_folder=tmp_path).check()
    with pytest.raises(ValueError, match="holds no audio"):
        parse_augmentation("noise", noise_folder=tmp_path).prepare()


def test_simulated_rooms_without_their_library(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "audiolora\[augment\]".*--rir-folder'):
        parse_augmentation("rir").check()
    parse_augmentation("rir", rir_folder=tmp_path).check()


def test_reading_a_spec_loads_no_library():
    """What `--help` and a wrong spec need is quick: neither torch nor NumPy."""
    code = (
        "import sys, audiolora.speech.training.settings as s; s.TrainingSettings(augment='speed0.1,noise5-20dB@0.5');"
        "print({'torch', 'numpy', 'scipy', 'librosa'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@given(st.text(max_size=20), st.text(max_size=20))
def test_generators_are_decided_by_their_key(key, other):
    first, second = keyed_generator(key).random(4), keyed_generator(key).random(4)
    assert (first == second).all()
    assert (first == keyed_generator(other).random(4)).all() == (key == other)
    assert torch_generator(key).initial_seed() == torch_generator(key).initial_seed()


def test_another_process_draws_the_same():
    code = (
        "import json; from audiolora.speech.sound.augmentation import *; import numpy as np;"
        "audio = (0.1 * np.random.default_rng(0).standard_normal(4000)).astype(np.float32);"
        "a = parse_augmentation('noise5-20dB,gain3dB|gain5-9dB,gain');"
        "print(json.dumps([[float(x) for x in a.apply(audio, f'0/{e}/a')[:50]] for e in range(8)]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    augmentation = parse_augmentation("noise5-20dB,gain3dB|gain5-9dB,gain")
    ours = [augmentation.apply(AUDIO, f"0/{epoch}/a")[:50] for epoch in range(8)]
    np.testing.assert_array_equal(np.array(json.loads(answer), dtype=np.float32), np.array(ours))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 1.0])
def test_an_effect_comes_as_often_as_asked(probability):
    augmentation = parse_augmentation(f"gain6dB@{probability}")
    n = 600
    louder = sum(augmentation.apply(AUDIO[:4], f"0/0/{clip}")[0] != AUDIO[0] for clip in range(n))
    assert abs(louder - n * probability) <= 4 * np.sqrt(n * probability * (1 - probability))  # four standard deviations


def test_of_several_each_comes_equally_often_and_ranges_are_filled():
    augmentation = parse_augmentation("gain-40--20dB|gain10-30dB@1")
    gains = [20 * np.log10(augmentation.apply(AUDIO[:4], str(i))[0] / AUDIO[0]) for i in range(600)]
    quiet = [gain for gain in gains if gain < 0]
    assert 240 < len(quiet) < 360
    assert np.quantile(quiet, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([-40, -35, -30, -25, -20], abs=1.5)


def test_a_step_added_at_the_end_changes_no_draw_before_it():
    short, long = (parse_augmentation(spec) for spec in ("noise0-30dB,gain", "noise0-30dB,gain,gain0.001dB@0.001"))
    for key in map(str, range(20)):
        np.testing.assert_array_equal(short.apply(AUDIO, key), long.apply(AUDIO, key))


def test_what_is_told():
    said = parse_augmentation("noise5-20dB@0.25,gsm|opus12kbps", noise_folder="sounds").describe()
    assert said == [
        "recorded noise at 5 to 20 dB SNR: 25 % of the clips",
        "GSM 06.10 full-rate codec at 8 kHz, or Opus at 12 kbit/s: 50 % of the clips",
        "noise from sounds",
    ]
    assert parse_augmentation("noise10dB@1,rir0.2s").describe() == [
        "white noise at 10 dB SNR: 100 % of the clips",
        "a simulated room whose sound dies away by 60 dB in 0.2 s: 50 % of the clips",
    ]
