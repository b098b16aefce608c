"""The speech task: rows of several languages are trained, decoded and compared as the recipe asr_whisper does it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import jiwer
import pytest

from audiolora.comparison.speech import SpeechTask
from audiolora.comparison.ways import prepared
from audiolora.speech.data.rows import DataError
from audiolora.speech.whisper.collate import WhisperCollator
from audiolora.speech.whisper.context import ContextPolicy
from audiolora.speech.whisper.decode import transcribe
from tests.speech.tiny_training import write_clips
from tests.speech.tiny_whisper import tiny_whisper

SAID = ["it-IT", "Spanish", "it"]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> SpeechTask:
    folder = tmp_path_factory.mktemp("speech")
    tiny_whisper(folder / "whisper", True)
    manifest = write_clips(folder / "clips", 9)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for index, row in enumerate(rows):
        row["text"] = f"<|0.00|> {row['text']}<|0.20|>"
        if index % 4:
            row["language"] = SAID[index % 4 - 1]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SpeechTask(str(folder / "whisper"), str(manifest), "clean", "fr", epochs=3, test=3, dev=2)


def test_each_row_has_its_own_language_and_no_timestamps(task: SpeechTask, tmp_path: Path) -> None:
    opened = task.open(tmp_path)
    clips = [item for part in opened.parts.values() for item in part]
    assert {item["language"] for item in clips} == {"fr", "it", "es"} and "<|" not in "".join(c["text"] for c in clips)
    tokenizer = opened.whisper.processor.tokenizer
    collate = WhisperCollator(
        opened.whisper.processor, ContextPolicy("auto"), opened.base().config.decoder_start_token_id, training=False
    )
    labels = collate(clips)["labels"]
    assert tokenizer.convert_ids_to_tokens(labels[:, 0]) == [f"<|{item['language']}|>" for item in clips]
    net = opened.base()
    heard = opened.parts["test"]
    texts = transcribe(
        net, opened.whisper.processor, heard.audios(), language=heard.languages(), context="full", progress=False
    )
    said, written = ([opened.normalize(text) for text in them] for them in ([u.text for u in heard.utterances], texts))
    assert opened.score(net, "test").rate == pytest.approx(100 * jiwer.wer(said, written))
    made = prepared(opened.base(), "lora", head=opened.head, parameters=500, steps=opened.steps, seed=0)
    before = opened.loss(made.net).item()
    opened.fit(made.net, 1e-2, 0, tmp_path / "scratch")
    assert opened.loss(made.net).item() < before


def test_a_multilingual_whisper_needs_a_language(task: SpeechTask, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no language; name it with --language"):
        replace(task, language=None).open(tmp_path)


def test_long_clips_are_left_out_by_number(task: SpeechTask, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        opened = replace(task, longest_s=0.7, test=2, dev=1).open(tmp_path)
    left = sum(map(len, opened.parts.values()))
    assert f"{9 - left} clips over 0.7 s are left out" in caplog.text and 3 < left < 9
    with pytest.raises(DataError, match=r"none of 9 clips lasts 0\.1 s or less"):
        replace(task, longest_s=0.1).open(tmp_path)
