"""``audiolora transcribe | inspect | merge | export`` on CTC runs: what transformers, PEFT and the library give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForCTC, AutoProcessor

import audiolora
from audiolora.cli import app as cli
from audiolora.cli import run_app
from audiolora.edge import Session
from audiolora.speech.ctc import decode
from audiolora.speech.ctc.adapter import load_adapted_ctc
from audiolora.speech.ctc.decode import transcribe_ctc
from audiolora.speech.ctc.decoding import CtcDecoding
from audiolora.speech.ctc.merging import merge_ctc_adapter
from audiolora.speech.ctc.vocabulary import Vocabulary
from audiolora.speech.data.audio import read_audio
from audiolora.speech.merged import MergeError
from tests.speech.ctc.ctc_place import place, save_run
from tests.speech.ctc.saved_models import save_base


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(tmp_path_factory.mktemp("ctc"))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str | Path) -> SimpleNamespace:
        with pytest.raises(SystemExit) as ended:
            run_app(cli, [str(word) for word in words])
        out, err = capsys.readouterr()
        return SimpleNamespace(status=ended.value.code, out=out, err=err)

    return run


def audios(root: Path) -> list[np.ndarray]:
    return [read_audio(path) for path in sorted((root / "clips").glob("*.wav"))]


def texts(root: Path, run: str = "run") -> list[str]:
    """What the library writes with a run's adapter, and greedy decoding by transformers' own tokenizer."""
    model, loaded, _ = load_adapted_ctc(root / run, log=lambda line: None)
    return transcribe_ctc(model.eval(), loaded.processor, audios(root), progress=False)


def test_transcribe_decodes_as_asked(there: Path, said: Any) -> None:
    told = said("transcribe", there / "clips", "--adapter", there / "run", "--json", "--beam-width", "8")
    model, loaded, _ = load_adapted_ctc(there / "run", log=lambda line: None)
    by_beams = transcribe_ctc(
        model.eval(), loaded.processor, audios(there), decoder=CtcDecoding(beam_width=8), progress=False
    )
    assert told.status == 0 and [row["text"] for row in json.loads(told.out)] == by_beams


def test_transcribe_with_a_run_and_with_its_base(there: Path, said: Any) -> None:
    told = said("transcribe", there / "clips", "--adapter", there / "run", "--json")
    assert told.status == 0
    wanted = texts(there)
    assert [row["text"] for row in json.loads(told.out)] == wanted
    plain = said("transcribe", there / "clips", "--model", there / "base", "--json")
    assert plain.status == 0
    base = AutoModelForCTC.from_pretrained(there / "base").eval()
    processor = AutoProcessor.from_pretrained(there / "base")
    for row, audio in zip(json.loads(plain.out), audios(there), strict=True):
        given = processor(audio, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            ids = base(**given).logits.argmax(-1)
        (greedy,) = processor.batch_decode(ids)
        assert row["text"] == " ".join(re.sub(r"</?s>|<unk>", "", greedy).split())
    assert [row["text"] for row in json.loads(plain.out)] != wanted


@pytest.mark.parametrize("option", [("--language", "en"), ("--context", "full")])
def test_what_a_ctc_model_does_not_take_is_refused(there: Path, said: Any, option: tuple[str, str]) -> None:
    told = said("transcribe", there / "clips", "--adapter", there / "run", *option)
    assert told.status == 2 and f"{option[0]} is Whisper's" in told.err and "CTC" in told.err


def test_what_is_too_short_for_a_frame_says_nothing(there: Path, said: Any, tmp_path: Path) -> None:
    """1.01 s of silence in pieces of at most 1 s: the last piece has 160 samples, and a frame takes 400."""
    noise = 1e-4 * np.random.default_rng(0).standard_normal(16_160)
    soundfile.write(tmp_path / "a.wav", noise, 16_000)
    soundfile.write(tmp_path / "b.wav", noise[:160], 16_000)
    told = said("transcribe", tmp_path, "--adapter", there / "run", "--json", "--piece", "1")
    assert told.status == 0, told.err
    model, loaded, _ = load_adapted_ctc(there / "run", log=lambda line: None)
    alone = transcribe_ctc(model.eval(), loaded.processor, [read_audio(tmp_path / "a.wav")[:16_000]], progress=False)
    assert [row["text"] for row in json.loads(told.out)] == [*alone, ""]
    assert f"warning: {tmp_path / 'b.wav'}: shorter than what the model makes one frame of" in told.err


def test_short_files_share_batches(there: Path, said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, batches = np.random.default_rng(0), []
    for number in range(5):
        soundfile.write(tmp_path / f"{number}.wav", 1e-2 * generator.standard_normal(8000), 16_000)
    make = decode.ctc_features
    monkeypatch.setattr(decode, "ctc_features", lambda p, clips: (batches.append(len(clips)), make(p, clips))[1])
    told = said("transcribe", tmp_path, "--adapter", there / "run", "--json", "--batch-size", "4")
    assert told.status == 0 and batches == [4, 1]
    model, loaded, _ = load_adapted_ctc(there / "run", log=lambda line: None)
    alone = [
        transcribe_ctc(model.eval(), loaded.processor, [read_audio(path)], progress=False)[0]
        for path in sorted(tmp_path.glob("*.wav"))
    ]
    assert [row["text"] for row in json.loads(told.out)] == alone


def test_inspect_tells_the_alphabet(there: Path, said: Any) -> None:
    told = said("inspect", there / "run" / "adapter")
    assert told.status == 0
    shown = " ".join(told.out.split())
    assert "kind CTC" in shown and "vocabulary 32 outputs: <pad> <s> </s> <unk> | a b c" in shown
    assert "output layer the base's" in shown and "pos_conv_embed" in shown
    assert said("inspect", there / "run").status == 0


def test_a_merged_run_is_a_model_that_transformers_alone_loads(there: Path, said: Any, tmp_path: Path) -> None:
    told = said("merge", there / "run", "--out", tmp_path / "merged")
    assert told.status == 0 and "Wav2Vec2ForCTC.from_pretrained" in told.out
    again = said("transcribe", there / "clips", "--model", tmp_path / "merged", "--json")
    assert [row["text"] for row in json.loads(again.out)] == texts(there)

    model, loaded, _ = load_adapted_ctc(there / "run", log=lambda line: None)
    given = {"input_values": torch.from_numpy(audios(there)[0])[None]}
    wanted = model.eval()(**given).logits
    audiolora.disable()
    alone = AutoModelForCTC.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(alone(**given).logits, wanted, rtol=1e-4, atol=1e-5)
    assert AutoProcessor.from_pretrained(tmp_path / "merged").tokenizer.get_vocab() == (
        loaded.processor.tokenizer.get_vocab()
    )
    assert json.loads((tmp_path / "merged/audiolora.json").read_text())["task"] == "ctc"
    assert "| WER | 12 |" in (tmp_path / "merged/README.md").read_text()


def test_merge_keeps_to_its_rules(there: Path, said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert "is not empty" in said("merge", there / "run", "--out", tmp_path / "full").err
    assert "no config.json" in said("merge", there / "run", "--out", tmp_path / "full", "--overwrite").err
    monkeypatch.setattr("audiolora.speech.merged.TOLERANCE", -1.0)
    with pytest.raises(MergeError, match="the merged model is not the adapted one"):
        merge_ctc_adapter(there / "run", tmp_path / "merged", log=lambda line: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_head_of_the_adapter_s_own_is_merged_too(tmp_path: Path, said: Any) -> None:
    save_base(tmp_path / "base")
    adapted, _ = save_run(tmp_path / "run", tmp_path / "base", vocabulary=Vocabulary(tuple("abcñ")))
    told = said("merge", tmp_path / "run", "--out", tmp_path / "merged")
    assert told.status == 0, told.err
    audiolora.disable()
    alone = AutoModelForCTC.from_pretrained(tmp_path / "merged").eval()
    given = {"input_values": torch.randn(1, 9_000, generator=torch.Generator().manual_seed(0))}
    assert alone.config.vocab_size == 7 and alone.config.pad_token_id == 0
    torch.testing.assert_close(alone(**given).logits, adapted(**given).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ghost", "ghost/model"])
def test_a_model_that_is_nowhere_is_told(there: Path, said: Any, name: str) -> None:
    told = said("transcribe", there / "clips", "--model", name)
    assert told.status == 2 and name in told.err and "HF_HUB_OFFLINE" in told.err


@pytest.mark.slow
def test_an_exported_run_writes_the_same_texts_on_the_device(there: Path, said: Any, tmp_path: Path) -> None:
    save_run(there / "other", there / "base", targets="conv", seed=5)
    told = said("export", there / "run", there / "other", "--out", tmp_path / "bundle")
    assert told.status == 0, told.err
    assert said("verify", tmp_path / "bundle", "--self-test").status == 0
    session = Session(tmp_path / "bundle", threads=1)
    for run in ("run", "other"):
        session.load(run)
        assert session.transcribe(audios(there), 16_000, run) == texts(there, run)


@pytest.mark.slow
def test_an_exported_head_of_its_own(tmp_path: Path, said: Any) -> None:
    """Another alphabet than the base's, and another size; the bundle's base has it too."""
    root = place(tmp_path)
    save_run(root / "spanish", root / "base", vocabulary=Vocabulary(tuple("abcdeñ")))
    assert "one of its base, 32 outputs; a bundle has one shape of it" in (
        said("export", root / "run", root / "spanish", "--out", root / "both").err
    )
    told = said("export", root / "spanish", "--out", root / "bundle")
    assert told.status == 0, told.err
    session = Session(root / "bundle", threads=1)
    session.load("spanish")
    assert session.manifest.task.vocabulary == ("<pad>", "<unk>", "|", *"abcdeñ")
    written = session.transcribe(audios(root), 16_000, "spanish")
    assert written == texts(root, "spanish") and set("".join(written)) <= set("abcdeñ ")


def test_what_is_not_exported_is_told(there: Path, said: Any, tmp_path: Path) -> None:
    save_base(tmp_path / "base", num_hidden_layers=1)
    save_run(tmp_path / "shallow", tmp_path / "base")
    told = said("export", there / "run", tmp_path / "shallow", "--out", tmp_path / "bundle")
    assert told.status == 2 and "a bundle has one base: export them apart" in told.err
    told = said("export", there / "run", "--out", tmp_path / "bundle", "--shape", "1,4000")
    assert told.status == 2 and "speech runs know what they take" in told.err
    save_base(tmp_path / "bert", "Wav2Vec2BertForCTC")
    save_run(tmp_path / "mel", tmp_path / "bert")
    told = said("export", tmp_path / "mel", "--out", tmp_path / "bundle")
    assert told.status == 2 and "hears log-mel features, which audiolora.edge does not compute" in told.err
    assert not (tmp_path / "bundle").exists()
