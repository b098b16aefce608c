"""Log-mel features and greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from audiolora.speech.whisper.context import ContextPolicy, audio_context
from audiolora.speech.whisper.decode import is_multilingual, log_mel, transcribe
from audiolora.speech.whisper.decoding import WhisperDecoding
from audiolora.speech.whisper.openai_format import ModelDimensions, generation_config
from audiolora.speech.whisper.whisper_tokenizer import build_tokenizer

N_VOCAB = 256 + 2 + 99 + 6 + 1501


@pytest.fixture(scope="module")
def processor() -> WhisperProcessor:
    tokenizer = build_tokenizer({bytes([byte]): byte for byte in range(256)})
    return WhisperProcessor(WhisperFeatureExtractor(), tokenizer)


def random_whisper(processor: WhisperProcessor, *, multilingual: bool = False) -> WhisperForConditionalGeneration:
    """A Whisper with random weights whose decoder writes printable letters, and ends at a random place."""
    torch.manual_seed(3)
    tokenizer = processor.tokenizer
    end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
    config = WhisperConfig(
        vocab_size=N_VOCAB,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        init_std=0.5,
    )
    model = WhisperForConditionalGeneration(config).eval()
    dims = ModelDimensions(80, 1500, 16, 2, 1, 51865 if multilingual else 51864, 448, 16, 2, 1)
    model.generation_config = generation_config(dims, tokenizer)
    written = {*range(ord("a"), ord("z") + 1), end}
    model.generation_config.suppress_tokens = [token for token in range(N_VOCAB) if token not in written]
    return model


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    source = np.random.default_rng(seed)
    return (0.1 * source.standard_normal(round(duration_s * 16_000))).astype(np.float32)


@pytest.mark.parametrize("duration_s", [0.3, 2.0, 29.999, 30.0])
def test_log_mel_of_30_s_is_whisper_s_own_exactly(processor: WhisperProcessor, duration_s: float) -> None:
    audio = noise(duration_s)
    expected = processor.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt").input_features[0]
    torch.testing.assert_close(log_mel(processor, audio, 3000), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("duration_s", "n_frames"), [(0.3, 100), (1.0, 100), (1.49999, 150), (2.0, 250), (7.77, 778), (29.98, 2998)]
)
def test_log_mel_of_a_short_context_is_the_beginning_of_the_30_s(
    processor: WhisperProcessor, duration_s: float, n_frames: int
) -> None:
    audio = noise(duration_s)
    audio[-3000:] *= 100  # the maximum, that scales all of it, lies at the very end
    found = log_mel(processor, audio, n_frames)
    expected = processor.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt").input_features[0]
    assert found.shape == (80, n_frames) and found.dtype == torch.float32 and found.is_contiguous()
    torch.testing.assert_close(found, expected[:, :n_frames], rtol=0, atol=2e-6)


def test_log_mel_of_digital_silence_is_finite(processor: WhisperProcessor) -> None:
    # power 0 is floored at 1e-10: log10 gives -10, and (-10 + 4) / 4 = -1.5
    torch.testing.assert_close(log_mel(processor, np.zeros(16_000), 100), torch.full((80, 100), -1.5))


@pytest.mark.parametrize(
    ("audio", "n_frames", "message"),
    [
        (np.zeros(16_001), 100, r"lasts 1\.00 s, more than the 1\.00 s of context"),
        (np.zeros(0), 100, "at least one sample"),
        (np.zeros((2, 100)), 100, r"mono.*got shape \(2, 100\)"),
        (np.full(100, np.nan), 100, "NaN or infinite"),
        (np.zeros(100), 3002, "between 1 and 3000, got 3002"),
    ],
)
def test_log_mel_refuses(processor: WhisperProcessor, audio: np.ndarray, n_frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_mel(processor, audio, n_frames)


def greedy(
    model: WhisperForConditionalGeneration, features: torch.Tensor, prompt: Sequence[int], n_tokens: int
) -> list[int]:
    """Greedy decoding by its definition: the whole sequence through the model for each token."""
    config = model.generation_config
    ids, heard = list(prompt), model.model.encoder(features[None])
    for position in range(n_tokens):
        logits = model(encoder_outputs=heard, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        logits[config.suppress_tokens] = -torch.inf
        if position == 0:
            logits[config.begin_suppress_tokens] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == config.eos_token_id:
            break
    return ids[len(prompt) :]


AUDIOS = [noise(duration_s, seed) for seed, duration_s in enumerate([0.5, 1.7, 1.2, 0.9, 1.4])]


@pytest.mark.parametrize("context", ["auto", "full"])
@pytest.mark.parametrize("language", [None, "it"])
@torch.no_grad()
def test_texts_are_those_of_greedy_decoding_clip_by_clip(
    processor: WhisperProcessor, context: Any, language: str | None
) -> None:
    model = random_whisper(processor, multilingual=language is not None)
    token = processor.tokenizer.convert_tokens_to_ids
    names = ["<|startoftranscript|>", *([f"<|{language}|>", "<|transcribe|>"] if language else []), "<|notimestamps|>"]
    expected = []
    for audio in AUDIOS:
        duration_s = len(audio) / 16_000
        n_frames = ContextPolicy(context).n_frames([duration_s])
        with audio_context(model, n_frames):
            n_tokens = 16 + int(np.ceil(24 * duration_s))
            ids = greedy(model, log_mel(processor, audio, n_frames), [token(name) for name in names], n_tokens)
        expected.append(processor.tokenizer.decode(ids, skip_special_tokens=True))
    assert len(set(expected)) > 2 and len({len(text) for text in expected}) > 2  # the clips matter
    for batch_size in (1, 3):
        options: dict[str, Any] = {"context": context, "language": language, "batch_size": batch_size}
        assert transcribe(model, processor, AUDIOS, progress=False, **options) == expected


def test_the_language_is_detected_clip_by_clip(processor: WhisperProcessor) -> None:
    model = random_whisper(processor, multilingual=True)
    features = torch.stack([log_mel(processor, audio) for audio in AUDIOS[:2]])
    found = model.detect_language(features)
    codes = [token.strip("<|>") for token in processor.tokenizer.convert_ids_to_tokens(found.tolist())]
    given = [
        transcribe(model, processor, [a], context="full", language=c)[0] for a, c in zip(AUDIOS, codes, strict=False)
    ]
    assert transcribe(model, processor, AUDIOS[:2], context="full", progress=False) == given


def test_modes_come_back_and_max_new_tokens_bounds(processor: WhisperProcessor) -> None:
    model = random_whisper(processor).train()
    model.model.encoder.eval()
    before = [module.training for module in model.modules()]
    config = model.generation_config.to_dict()
    texts = transcribe(model, processor, AUDIOS, max_new_tokens=3, progress=False)
    assert all(len(text) <= 3 for text in texts) and any(len(text) == 3 for text in texts)
    assert [module.training for module in model.modules()] == before
    assert model.generation_config.to_dict() == config and model.config.max_source_positions == 1500


def test_a_peft_model_decodes_with_its_adapter(processor: WhisperProcessor) -> None:
    from peft import LoraConfig, get_peft_model

    model = random_whisper(processor)
    plain = transcribe(model, processor, AUDIOS, progress=False)
    torch.manual_seed(1)
    lora = LoraConfig(target_modules=["q_proj", "v_proj", "out_proj"], init_lora_weights=False, r=4, lora_alpha=64)
    adapted = get_peft_model(model, lora)
    assert transcribe(adapted, processor, AUDIOS, progress=False) != plain
    with adapted.disable_adapter():
        assert transcribe(adapted, processor, AUDIOS, progress=False) == plain


def test_no_clips_no_texts(processor: WhisperProcessor, capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe(random_whisper(processor), processor, []) == []
    assert transcribe(random_whisper(processor), processor, AUDIOS[:1], progress=False) != []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"piece_s": 31.0}, "piece_s must be between 1 and 30 s, got 31"),
        ({"language": ["en", "en"]}, "2 languages, 1 clips"),
        ({"decoding": WhisperDecoding(prompt="a" * 300)}, "prompt has 301 tokens, more than the 223"),
        ({"decoding": WhisperDecoding(prompt="a<|en|>")}, "special tokens"),
        ({"audios": [np.zeros(0)]}, "clip 0 must be mono"),
        ({"audios": [np.full(9, np.inf)], "names": ["x.wav"]}, r"clip 0 \(x\.wav\) holds NaN or infinite"),
        ({"names": ["a", "b"]}, "2 names, 1 clips"),
        ({"language": "it"}, "English-only Whisper can only transcribe English, got language='it'"),
        ({"task": "translate"}, "English-only"),
        ({"task": "summarise"}, "'summarise'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_new_tokens": 445}, "between 1 and 444, got 445"),
        ({"max_new_tokens": 0}, "between 1 and 444, got 0"),
        ({"context": "short"}, "context must be one of auto, full, mix, got 'short'"),
    ],
)
def test_transcribe_refuses(processor: WhisperProcessor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transcribe(random_whisper(processor), processor, **{"audios": AUDIOS[:1], "progress": False, **options})


def test_languages_go_by_code_or_name(processor: WhisperProcessor) -> None:
    model = random_whisper(processor, multilingual=True)
    assert is_multilingual(model) and not is_multilingual(random_whisper(processor))
    by_name = transcribe(model, processor, AUDIOS[:2], language="Italian", progress=False)
    assert by_name == transcribe(model, processor, AUDIOS[:2], language="it", progress=False)
    with pytest.raises(ValueError, match="'itallian' is none of the 99 .*did you mean italian"):
        transcribe(model, processor, AUDIOS[:1], language="itallian")
    english = random_whisper(processor)
    assert transcribe(english, processor, AUDIOS[:1], language="en") == transcribe(english, processor, AUDIOS[:1])


def test_a_model_without_whisper_is_refused(processor: WhisperProcessor) -> None:
    with pytest.raises(TypeError, match="Linear holds 0 Whisper"):
        transcribe(torch.nn.Linear(2, 2), processor, AUDIOS[:1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "language", "n_clips", "limit"),
    [("openai/whisper-tiny.en", "en", 40, 10.0), ("openai/whisper-base", "it", 20, 45.0)],
)
def test_real_weights_transcribe_real_prompts(name: str, language: str, n_clips: int, limit: float) -> None:
    """Known word error rates on telephone prompts: about 6 % for tiny.en, 27 % for base on Italian."""
    import jiwer

    from audiolora.speech.data.audio import read_audio
    from audiolora.speech.data.prompts import load_prompts
    from audiolora.speech.whisper.weights import load_whisper

    whisper = load_whisper(name)
    rows = [row for row in load_prompts(language) if len(row.text.split()) > 2]
    chosen = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))[:n_clips]]
    audios = [read_audio(row.audio) for row in chosen]
    texts = transcribe(whisper.model, whisper.processor, audios, context="full", language=language)
    normalize = (
        whisper.processor.tokenizer.normalize if language == "en" else whisper.processor.tokenizer.basic_normalize
    )
    rate = 100 * jiwer.wer([normalize(row.text) for row in chosen], [normalize(text) for text in texts])
    assert rate < limit
