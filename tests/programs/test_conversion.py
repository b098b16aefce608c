"""An adapted Whisper in openai-whisper and in CTranslate2 (faster-whisper) says what it says in transformers.

They are not installed with audiolora: `make test-programs` runs these tests in an environment that has them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import audiolora
from audiolora.run import open_run
from audiolora.speech.data.audio import duration_s, read_audio
from audiolora.speech.data.prompts import load_prompts
from audiolora.speech.texts.metrics import error_rates
from audiolora.speech.whisper.adapter import AdapterInfo, fingerprint, save_adapter
from audiolora.speech.whisper.conversion import convert_whisper
from audiolora.speech.whisper.decode import log_mel, transcribe
from audiolora.speech.whisper.weights import load_whisper

openai_whisper = pytest.importorskip("whisper", reason="openai-whisper is not installed; run make test-programs")
ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed; run make test-programs")
faster_whisper = pytest.importorskip("faster_whisper", reason="faster-whisper is not installed; run make test-programs")

pytestmark = pytest.mark.slow
MODEL_OF = {None: "openai/whisper-tiny.en", "it": "openai/whisper-base"}
MODELS = {"openai/whisper-tiny.en": None, "openai/whisper-base": "it"}
# Enough to change what is said, and not to spoil it.
STRENGTH = {"openai/whisper-tiny.en": 0.06, "openai/whisper-base": 0.02}


@pytest.fixture(scope="module", params=MODELS, ids=lambda name: name.rpartition("/")[2])
def adapted(request, tmp_path_factory):
    """(a run over real weights whose adapter changes what they say, its texts at 30 s, clips, language)."""
    name, language = request.param, MODELS[request.param]
    whisper = load_whisper(name)
    info = AdapterInfo(name, fingerprint(whisper.model), "full", language)
    torch.manual_seed(3)
    model = audiolora.adapt(whisper.model, r={"conv": 4, "attention": 2}, targets=["conv", "attention"])
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=STRENGTH[name])
    run = open_run(tmp_path_factory.mktemp("runs") / "calls", {"model": name})
    save_adapter(model, run.adapter, info, "# calls\n")
    # A clip of a second leaves a model in doubt, and programs compute their features to rounding.
    spoken = [utterance for utterance in load_prompts(language or "en") if 2 < duration_s(utterance.audio) < 8]
    clips = [read_audio(utterance.audio) for utterance in spoken[:180:20]]
    texts = transcribe(model, whisper.processor, clips, context="full", language=language, progress=False)
    with model.disable_adapter():
        plain = transcribe(model, whisper.processor, clips, context="full", language=language, progress=False)
    assert texts != plain and all(texts)
    return run.folder, texts, clips, language


def test_openai_whisper_says_the_same(adapted, tmp_path: Path) -> None:
    run, texts, clips, language = adapted
    done = convert_whisper(run, tmp_path / "calls.pt", "openai")
    assert done.difference < 1e-3
    model = openai_whisper.load_model(str(done.out), device="cpu")
    options = openai_whisper.DecodingOptions(language=language or "en", without_timestamps=True, fp16=False)
    for clip, text in zip(clips, texts, strict=True):
        mel = openai_whisper.log_mel_spectrogram(openai_whisper.pad_or_trim(clip))
        assert openai_whisper.decode(model, mel, options).text.strip() == text


def test_ctranslate2_says_the_same(adapted, tmp_path: Path) -> None:
    run, texts, clips, language = adapted
    done = convert_whisper(run, tmp_path / "calls-ct2", "ctranslate2")
    assert done.difference < 1e-3
    processor = load_whisper(MODEL_OF[language]).processor
    runtime = ctranslate2.models.Whisper(str(done.out), device="cpu", compute_type="float32")
    words = ["<|startoftranscript|>", *([f"<|{language}|>", "<|transcribe|>"] if language else []), "<|notimestamps|>"]
    prompt = processor.tokenizer.convert_tokens_to_ids(words)
    for clip, text in zip(clips, texts, strict=True):
        features = np.ascontiguousarray(log_mel(processor, clip)[None].numpy())
        answer = runtime.generate(ctranslate2.StorageView.from_array(features), [prompt], beam_size=1)
        assert processor.tokenizer.decode(answer[0].sequences_ids[0], skip_special_tokens=True).strip() == text


def test_faster_whisper_loads_it(adapted, tmp_path: Path) -> None:
    """It fills up 30 s with zeros in the log-mel features, where Whisper has silence, so that texts may differ."""
    run, texts, clips, language = adapted
    done = convert_whisper(run, tmp_path / "calls-ct2", "ctranslate2")
    model = faster_whisper.WhisperModel(str(done.out), device="cpu", compute_type="float32", cpu_threads=1)
    said = []
    for clip in clips[:3]:
        segments, info = model.transcribe(clip, language=language or "en", beam_size=1, without_timestamps=True)
        said.append(" ".join(segment.text.strip() for segment in segments))
        assert info.language == (language or "en")
    assert error_rates(texts[:3], said, normalize=str.lower, resamples=10).wer.value < 60


def test_what_is_not_to_be_written_over(adapted, tmp_path: Path) -> None:
    run, *_ = adapted
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "old.pt").write_text("old")
    for to, out, message in (
        ("openai", tmp_path / "calls.bin", r"ends in \.pt"),
        ("openai", tmp_path / "old.pt", "exists; name another file"),
        ("ctranslate2", tmp_path / "old.pt", "is a file; name a folder"),
        ("ctranslate2", tmp_path / "thesis", "is not empty"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_whisper(run, out, to)
    with pytest.raises(ValueError, match="something else than a CTranslate2 model"):
        convert_whisper(run, tmp_path / "thesis", "ctranslate2", overwrite=True)
