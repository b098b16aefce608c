import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora.speech.data.manifests import DataError, read_utterances
from audiolora.speech.data.prompts import (
    BUILTIN,
    clean_transcript,
    fetch_builtin,
    load_prompts,
    load_spoken_digits,
    parse_transcripts,
)


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("That agent is already logged on.  Please wait.", "That agent is already logged on. Please wait."),
        ("[ascending tones]", ""),
        ("At the tone (not used) the time is...", "At the tone the time is"),
        ("« Bonjour… à tous »", "Bonjour à tous"),
        ("<beep> press 1.5", "press 1.5"),
    ],
)
def test_transcripts_are_cleaned(raw, clean):
    assert clean_transcript(raw) == clean


def test_prompts_without_words_are_dropped():
    text = "\ufeff; English\n\nactivated: Activated.\nbeep: [a tone]\ndots: ...\ntime: It is: now\nno colon here\n"
    assert parse_transcripts(text) == {"activated": "Activated.", "time": "It is: now"}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A cache in which the English packages are already unpacked, with four prompts."""
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path))
    voice = tmp_path / "debian/asterisk-core-sounds-en-wav/usr/share/asterisk/sounds/en_US_f_Allison"
    for name in ("activated", "digits/1", "beep", "silence/1", "unlisted"):
        path = voice / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(4000, dtype=np.float32), 8000)
    documents = tmp_path / "debian/asterisk-core-sounds-en/usr/share/doc/asterisk-core-sounds-en"
    documents.mkdir(parents=True)
    listed = "activated: Activated.\ndigits/1: one\nbeep: [tone]\nsilence/1: silence\ngone: There is no such file.\n"
    (documents / "core-sounds-en.txt.gz").write_bytes(gzip.compress(listed.encode()))
    return voice


def test_prompts_are_the_clips_with_words(packages):
    found = load_prompts("en")
    assert [(utterance.id, utterance.text) for utterance in found] == [
        ("en/activated", "Activated."),
        ("en/digits/1", "one"),
    ]
    assert found[0].audio == packages / "activated.wav" and found[0].speaker == "en_US_f_Allison"
    assert read_utterances("prompts-en") == found


def test_summary_gives_size_licence_and_names(packages):
    summary = fetch_builtin("prompts-en")
    assert "2 clips, 0.0 minutes" in summary and "CC BY-SA 3.0" in summary and "Allison Smith" in summary


def test_a_package_of_another_shape_is_named(packages):
    (packages.parent / "second_voice").mkdir()
    with pytest.raises(DataError, match=r"asterisk-core-sounds-en: must hold one voice.*found 2"):
        load_prompts("en")


def test_unknown_names():
    with pytest.raises(DataError, match=r"no prompts in 'xx'; there are en, es, fr, it, ru"):
        load_prompts("xx")
    with pytest.raises(DataError, match=r"no built-in set 'prompts-xx'; there are prompts-en"):
        fetch_builtin("prompts-xx")


def test_spoken_digits_need_their_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("AUDIOLORA_DATA", raising=False)
    with pytest.raises(DataError, match=r"set AUDIOLORA_DATA"):
        read_utterances("spoken-digits")
    monkeypatch.setenv("AUDIOLORA_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"no folder {tmp_path}/spoken_digits/recordings"):
        read_utterances("spoken-digits")


@pytest.mark.skipif(
    not (Path(os.environ.get("AUDIOLORA_DATA", "/nowhere")) / "spoken_digits").is_dir(),
    reason="spoken_digits is not at hand: AUDIOLORA_DATA does not name a folder with it",
)
def test_spoken_digits_are_three_thousand():
    found = load_spoken_digits()
    assert len(found) == 3000 and len({utterance.speaker for utterance in found}) == 6
    assert {(utterance.id[0], utterance.text) for utterance in found} >= {("0", "zero"), ("9", "nine")}
    assert len({utterance.text for utterance in found}) == 10


@pytest.mark.slow
@pytest.mark.parametrize("language, clips, minutes", [("en", 551, 24.3), ("it", 582, 22.6)])
def test_real_prompts(language, clips, minutes):
    name = f"prompts-{language}"
    assert f"{clips} clips, {minutes} minutes" in fetch_builtin(name)
    copyright_file = BUILTIN[name].folder() / f"usr/share/doc/asterisk-core-sounds-{language}-wav/copyright"
    stanza = copyright_file.read_text().split("Files: it-*")[1 if language == "it" else 0]
    licence = stanza.split("\nLicense: ")[1].splitlines()[0]
    assert licence == BUILTIN[name].licence.replace("CC ", "CC-").replace(" 3.0", "-3.0")
    assert {"en": "Allison Smith", "it": "Carlo Flora"}[language] in stanza
