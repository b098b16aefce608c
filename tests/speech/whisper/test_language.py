import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from audiolora.speech.data.utterance import Utterance
from audiolora.speech.whisper.decoding import WhisperTexts
from audiolora.speech.whisper.language import set_language, set_languages, spoken_language, text_normalizer
from audiolora.speech.whisper.weights import LoadedWhisper, load_whisper
from tests.speech.tiny_whisper import tiny_whisper


@pytest.fixture(scope="module")
def english(tmp_path_factory) -> LoadedWhisper:
    folder = tmp_path_factory.mktemp("english")
    tiny_whisper(folder)
    return load_whisper(folder)


@pytest.fixture
def multilingual(tmp_path) -> LoadedWhisper:
    tiny_whisper(tmp_path / "whisper", multilingual=True)
    return load_whisper(tmp_path / "whisper")


@pytest.mark.parametrize(
    ("data", "asked", "language"),
    [
        ("prompts-it", None, "it"),
        ("prompts-it", "es", "es"),
        ("calls-it.csv", None, None),
        ("calls.csv", "fr", "fr"),
    ],
)
def test_the_language_is_the_one_asked_for_or_the_built_in_sets(data, asked, language):
    assert spoken_language(data, asked) == language


def test_an_english_only_whisper(english):
    plain = english.processor.tokenizer("hello").input_ids
    for language in (None, "en", "english"):
        assert set_language(english.model, english.processor, language) is None
    assert english.processor.tokenizer("hello").input_ids == plain
    with pytest.raises(ValueError, match="language 'it' on an English-only Whisper"):
        set_language(english.model, english.processor, "it")


def test_a_multilingual_whisper_writes_its_prompt(multilingual):
    assert set_language(multilingual.model, multilingual.processor, "it") == "it"
    tokenizer = multilingual.processor.tokenizer
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("ciao").input_ids)
    # Radford et al., figure 1: start, language, task, no timestamps
    assert tokens[:4] == ["<|startoftranscript|>", "<|it|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokens[-1] == "<|endoftext|>"
    with pytest.raises(ValueError, match="told which language it hears; name it"):
        set_language(multilingual.model, multilingual.processor, None)
    with pytest.raises(ValueError, match="klingon"):
        set_language(multilingual.model, multilingual.processor, "klingon")


def test_a_language_token_that_an_english_only_whisper_has_not_is_told(english):
    rows = [Utterance("a", b"not read", "hello", "a:1")]
    with pytest.raises(ValueError, match="language token 'en' does nothing"):
        set_languages(english.model, english.processor, rows, WhisperTexts(language_token="en"))


def test_texts_are_normalised_by_whispers_own_rules(english):
    text = "Mr. Smith's COLOUR can't be twenty-one, Città!"
    for language in (None, "en", "english"):
        assert text_normalizer(english.processor, language)(text) == EnglishTextNormalizer({"colour": "color"})(text)
    assert text_normalizer(english.processor, "it")(text) == BasicTextNormalizer()(text).strip()
