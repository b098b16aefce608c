"""Rules for texts against Whisper's own, a second library, and what speakers of the languages would call one word."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from audiolora.speech.texts.metrics import error_rates, utterance_errors
from audiolora.speech.texts.normalizing import Normalizer, apart, without_symbols

ENGLISH = "Mr. Smith's COLOUR can't be twenty-one, [noise] Città!"
HINDI, TAMIL, THAI = "नमस्ते दुनिया", "வணக்கம் உலகம்", "สวัสดีครับ"


def test_english_is_whispers_own() -> None:
    table = {"colour": "color"}
    for language in ("en", "English", "en-GB"):
        for rules in ("auto", "whisper"):
            assert Normalizer(rules, language, table)(ENGLISH) == EnglishTextNormalizer(table)(ENGLISH)
    assert Normalizer("basic", "en")("Mr. Smith") == "mr smith"
    assert Normalizer("auto", None)("Mr. Smith") == "mr smith"  # an unknown language gets no English


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cn", "Co"))))
def test_where_there_are_no_marks_basic_is_whispers(text: str) -> None:
    if not any(unicodedata.category(c)[0] == "M" for c in unicodedata.normalize("NFKC", text.lower()).lower()):
        assert Normalizer("basic", "it")(text) == BasicTextNormalizer()(text).strip()


@pytest.mark.parametrize(("language", "text"), [("hi", HINDI), ("ta", TAMIL)])
def test_words_are_not_cut_at_their_marks(language: str, text: str) -> None:
    """arXiv 2409.02449, section 3: Whisper's rules make other words of these."""
    assert Normalizer("auto", language)(f"{text}!") == text
    assert len(Normalizer("whisper", language)(text).split()) > len(text.split())
    other = text.replace(text[-1], "") if language == "hi" else text[:-1]  # without its last vowel sign
    assert Normalizer("auto", language)(other) != Normalizer("auto", language)(text)


def test_the_two_ways_to_write_a_letter_are_one() -> None:
    for language, text in (("fr", "é"), ("ru", "й"), ("vi", "ế")):
        normalize = Normalizer("auto", language)
        assert normalize(unicodedata.normalize("NFD", text)) == normalize(unicodedata.normalize("NFC", text))


def test_turkish_has_two_letters_i() -> None:
    assert Normalizer("auto", "tr")("DIŞ İL") == "dış il"
    assert Normalizer("auto", "tr")(unicodedata.normalize("NFD", "DIŞ İL")) == "dış il"
    assert Normalizer("auto", "en-US", {})("DIS IL") == "dis il"


def test_where_there_are_no_spaces_characters_are_counted() -> None:
    assert apart("我用 python 三") == "我 用 python 三"
    assert apart(THAI).split() == ["ส", "วั", "ส", "ดี", "ค", "รั", "บ"]  # a vowel sign stands with its consonant
    normalize = Normalizer("auto", "zh")
    assert normalize.unspaced and not Normalizer("auto", "ko").unspaced
    rates = error_rates(["我爱你。"], ["我 碍你"], normalize=normalize)
    assert rates.reference_words == 3 and rates.substitutions == 1
    assert rates.wer.value == rates.cer.value == pytest.approx(100 / 3)
    mixed = utterance_errors(["我用python写"], ["我用 python 写"], normalize=normalize)
    assert mixed[0].words == 4 and mixed[0].errors == 0


def test_none_leaves_texts_alone() -> None:
    assert Normalizer("none", "en")(ENGLISH) == ENGLISH


def test_what_is_written_down() -> None:
    assert Normalizer("auto", "en", {"a": "b"}).record() == {"rules": "whisper", "language": "en", "spellings": 1}
    assert Normalizer("basic", "en", {"a": "b"}).record() == {"rules": "basic", "language": "en", "spellings": 0}


def test_unknown_rules_and_languages_are_told() -> None:
    with pytest.raises(ValueError, match="one of auto, whisper, basic, language, none, got 'english'"):
        Normalizer("english", "en")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no rules for language 'it', only for ar, bn"):
        Normalizer("language", "it")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "whisper_normalizer", None)
    with pytest.raises(ImportError, match=r"audiolora\[normalize\]"):
        Normalizer("language", "fr")("vingt et un")


def test_against_whisper_normalizer() -> None:
    basic = pytest.importorskip("whisper_normalizer.basic", reason="run with `make test-lm`")
    theirs = basic.BasicTextNormalizer(preserve_marks=True)
    for text in (HINDI, TAMIL, THAI, ENGLISH, "Ça va? (rires)", "Straße № 5"):
        assert Normalizer("basic", "x")(text) == theirs(text).strip()
    assert Normalizer("language", "fr")("Vingt et un, s'il vous plaît !") == "21 s il vous plaît"
    assert Normalizer("language", "ml")("കമ്പ്യൂട്ടറിനു്.") == "കമ്പ്യൂട്ടറിന്"  # the library's own example


def test_symbols_become_spaces() -> None:
    assert without_symbols("क्या?") == "क्या "
