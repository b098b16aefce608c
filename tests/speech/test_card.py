import pytest
from huggingface_hub import ModelCard

from audiolora.speech.card import header_language, model_card
from audiolora.speech.texts.metrics import ErrorRates, Interval
from audiolora.speech.whisper.adapter import AdapterInfo

BEFORE = ErrorRates(Interval(148.26, 140.0, 155.0), Interval(90.0, 80.0, 99.0), 3, 2, 0, 1, 4)
AFTER = ErrorRates(Interval(7.94, 5.21, 11.0), Interval(3.4, 2.0, 5.0), 1, 0, 0, 3, 4)


def card(language: str | None = None) -> str:
    info = AdapterInfo("openai/whisper-base", "abc", "auto", language)
    said = {"tag": "whisper", "decoding": "Decode at `auto`.", "language": language or "en"}
    notes = {"notes": ["One.", "Two."], "attribution": ["A", "B"]}
    return model_card("demo", "Trained on calls.", info, BEFORE, AFTER, **said, **notes)


def header(text: str) -> dict[str, str]:
    """The lines between the first two rules, as the hub reads them (YAML)."""
    _, lines, _ = text.split("---\n", 2)
    return dict(line.split(": ", 1) for line in lines.splitlines())


def test_the_header_is_the_hubs():
    assert header(card("it")) == {
        "base_model": "openai/whisper-base",
        "library_name": "peft",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": "[audiolora, lora, whisper]",
        "metrics": "[wer, cer]",
        "language": "it",
    }
    assert header(card())["language"] == "en"  # an English-only model


@pytest.mark.parametrize("language", ["no", "nn", "it", "pt-BR"])
def test_the_hub_reads_the_language(language):
    """Bare, YAML takes Norwegian's code for false, and the hub refuses a card whose language is no text."""
    assert ModelCard(card(language)).data.language == language
    assert ModelCard(f"---\n{header_language(language)}---\n").data.language == language


def test_the_card_says_figures_context_notes_and_sources():
    text = card()
    assert "| zero-shot | 148.3 [140.0, 155.0] | 90.0 |" in text
    assert "| adapted | 7.9 [5.2, 11.0] | 3.4 |" in text
    assert "Decode at `auto`." in text and "One.\n\nTwo." in text and text.endswith("- A\n- B\n")
