"""Labels: each row's own language, timestamps kept or dropped, moved with a clip that was made longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiolora.speech.data.rows import DataError
from audiolora.speech.data.utterance import Utterance
from audiolora.speech.whisper.decoding import WhisperTexts
from audiolora.speech.whisper.labels import check_stamps, label_ids, with_stamps, without_stamps
from audiolora.speech.whisper.language import compared_as, set_languages
from audiolora.speech.whisper.weights import LoadedWhisper, load_whisper
from tests.speech.tiny_whisper import tiny_whisper


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], LoadedWhisper]:
    folder = tmp_path_factory.mktemp("labels")
    for multilingual in (False, True):
        tiny_whisper(folder / str(multilingual), multilingual)
    return lambda multilingual: load_whisper(folder / str(multilingual))


def rows(*languages: str | None, text: str = " hello") -> list[Utterance]:
    return [
        Utterance(str(n), b"RIFF", text, f"x.csv row {n + 2}", language=language)
        for n, language in enumerate(languages)
    ]


def labelled(whisper: LoadedWhisper, text: str, heard_s: float = 2.0, **item: Any) -> list[str]:
    """The special tokens, stamps and letters that a clip is trained to write."""
    audio = np.zeros(round(heard_s * 16_000), np.float32)
    tokenizer = whisper.processor.tokenizer
    ids = label_ids(tokenizer, whisper.model.config.decoder_start_token_id, {"audio": audio, "text": text, **item})
    return tokenizer.convert_ids_to_tokens(ids.tolist())


def test_each_row_has_its_own_language_token(load: Callable[[bool], LoadedWhisper]) -> None:
    whisper = load(True)
    told, common = set_languages(
        whisper.model, whisper.processor, rows("it", None, "pt-BR", "Spanish"), WhisperTexts("fr")
    )
    assert [one.language for one in told] == ["it", "fr", "pt", "es"] and common is None
    for one in told:
        found = labelled(whisper, one.text, language=one.language)
        assert found[:3] == [f"<|{one.language}|>", "<|transcribe|>", "<|notimestamps|>"]
        assert found[-1] == "<|endoftext|>" and len(found) > 4
    told, common = set_languages(whisper.model, whisper.processor, rows("it", None), WhisperTexts("it"))
    assert common == "it" and compared_as(told) == "it"
    assert labelled(whisper, " hello")[0] == "<|it|>", "a clip that says nothing takes the prompt's"
    assert compared_as(rows("en", None)) is None and compared_as(rows("en", "it")) == "it"


def test_an_english_only_whisper_has_no_language_tokens(load: Callable[[bool], LoadedWhisper]) -> None:
    whisper = load(False)
    told, common = set_languages(whisper.model, whisper.processor, rows("en", None, "en-US"), WhisperTexts())
    assert [one.language for one in told] == [None] * 3 and common is None
    assert labelled(whisper, " hello", language=None)[0] == "<|notimestamps|>"
    with pytest.raises(DataError, match=r"row 3: an English-only Whisper can only transcribe English.*'it'"):
        set_languages(whisper.model, whisper.processor, rows("en", "it"), WhisperTexts())


def test_a_language_without_a_token_takes_another_s_on_purpose(load: Callable[[bool], LoadedWhisper]) -> None:
    whisper = load(True)
    with pytest.raises(DataError, match=r"of 2 utterances:\n.*row 3: language 'lij' is none.*--language-token"):
        set_languages(whisper.model, whisper.processor, rows("it", "lij", "lij"), WhisperTexts())
    texts = WhisperTexts(language_token="it")
    told, common = set_languages(whisper.model, whisper.processor, rows("es", "lij"), texts)
    assert [one.language for one in told] == ["es", "it"] and common is None
    with pytest.raises(ValueError, match="language token 'it' does nothing"):
        set_languages(whisper.model, whisper.processor, rows("es"), texts)
    with pytest.raises(DataError, match="row 2: no language; name it with --language"):
        set_languages(whisper.model, whisper.processor, rows(None), texts)


STAMPED = "<|0.00|> hello<|1.00|><|1.20|> you<|2.00|>"


def test_timestamps_are_kept_or_dropped_on_purpose(load: Callable[[bool], LoadedWhisper]) -> None:
    whisper = load(True)
    told, _ = set_languages(whisper.model, whisper.processor, rows("it", text=STAMPED), WhisperTexts())
    assert told[0].text == "hello you" and "<|notimestamps|>" in labelled(whisper, STAMPED)
    assert not [token for token in labelled(whisper, STAMPED)[3:-1] if token.startswith("<|")]
    kept = WhisperTexts(timestamps="keep")
    told, _ = set_languages(whisper.model, whisper.processor, rows("it", text=STAMPED), kept)
    assert told[0].text == STAMPED
    found = labelled(whisper, STAMPED)
    assert found[:2] == ["<|it|>", "<|transcribe|>"] and "<|notimestamps|>" not in found
    assert [t for t in found[2:] if t.startswith("<|")] == "<|0.00|> <|1.00|> <|1.20|> <|2.00|> <|endoftext|>".split()
    slower = labelled(whisper, STAMPED, 4.0, duration_s=2.0)
    assert [t for t in slower[2:-1] if t.startswith("<|")] == "<|0.00|> <|2.00|> <|2.40|> <|4.00|>".split()
    whole = labelled(whisper, "hello", 1.05)
    assert whole[2] == "<|0.00|>" and whole[-2:] == ["<|1.04|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<|0.00|> a", "before and after it"),
        ("a<|0.00|> b<|1.00|>", "before and after it"),
        ("<|0.00|> <|1.00|> a", "before and after it"),
        ("<|1.00|> a<|0.50|>", "must rise"),
        ("<|0.00|> a<|30.02|>", "30.00 at most"),
        ("<|0.00|> a<|0.51|>", "steps of 0.02"),
        ("a", "no text has timestamps"),
    ],
)
def test_what_whisper_would_not_write_is_named_by_row(text: str, fault: str) -> None:
    with pytest.raises(DataError, match=rf"{fault}"):
        check_stamps(rows(None, text=text), "keep")
    assert [one.text for one in check_stamps(rows(None, text=text), "drop")] == [without_stamps(text)]


def test_stamps_never_pass_the_end() -> None:
    assert with_stamps("<|0.00|> a<|2.00|>", 1.5) == "<|0.00|> a<|1.50|>"
    assert without_stamps("no stamps,  as it was") == "no stamps,  as it was"
    assert with_stamps("a", 30.0) == "<|0.00|> a<|30.00|>"


def test_a_manifest_brings_languages(tmp_path: Path) -> None:
    from audiolora.speech.data.manifests import read_utterances

    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "x.csv").write_text("audio,text,id,locale\na.wav,ciao,1,it\na.wav,hola,2,\n")
    assert [one.language for one in read_utterances(tmp_path / "x.csv")] == ["it", None]
