"""Whispers and their adapters from runs to a bundle; the texts are those of torch, whatever the clips."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiolora import cli
from audiolora.edge import Session
from audiolora.edge.whisper import Assets
from audiolora.export import BundleError, add_adapter, export_whisper
from audiolora.export.speech import drawn_clip
from audiolora.export.whisper import whisper_parts
from audiolora.export.whisper_assets import settings_of, task_name, vocabulary
from audiolora.speech.whisper.adapter import load_adapted
from audiolora.speech.whisper.decode import log_mel, transcribe
from audiolora.speech.whisper.weights import LoadedWhisper, load_whisper
from tests.speech.tiny_run import tiny_run
from tests.speech.tiny_whisper import tiny_whisper


def clips() -> list[np.ndarray]:
    draw = np.random.default_rng(5)
    made = [drawn_clip(duration_s) * gain for duration_s, gain in ((0.3, 1.0), (2.0, 0.5), (2.4, 0.9), (0.9, 0.1))]
    return [*made, (0.1 * draw.normal(size=30_000)).astype(np.float32)]


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.run_app(cli.app, words)
    return int(end.value.code or 0)


def torchs(run: Path, context: str, language: str | None) -> list[str]:
    model, whisper, _ = load_adapted(run)
    return transcribe(model, whisper.processor, clips(), context=context, language=language, progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "base"
    tiny_whisper(folder, multilingual=True)
    return folder


@pytest.fixture(scope="module")
def door(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "door"
    tiny_run(run, base, context="auto", language="it")
    return run


@pytest.fixture(scope="module")
def bundle(door: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "speech"
    assert command("export", str(door), "--out", str(folder)) == 0
    return folder


def test_a_run_becomes_a_bundle_that_writes_the_same_texts(bundle: Path, door: Path, base: Path) -> None:
    session = Session(bundle, threads=1)
    session.load("door")
    assert session.manifest.form == "fact" and session.selftest("door") < 1e-5
    wanted = torchs(door, "auto", "it")
    assert len(set(wanted)) > 1 and all(wanted)
    assert session.transcribe(clips(), 16_000, "door") == wanted
    assert session.bind("door").transcribe(clips(), 16_000, batch_size=1) == wanted
    assert session.transcribe(clips()[1], 16_000, "door") == wanted[1]
    assert session.transcribe(clips(), 16_000, "door", language="de") == torchs(door, "auto", "de")
    plain = load_whisper(base)
    without = transcribe(plain.model, plain.processor, clips(), context="full", progress=False)  # detects languages
    assert session.transcribe(clips(), 16_000) == without != wanted
    with pytest.raises(ValueError, match="language must be one it knows"):
        session.transcribe(clips(), 16_000, language="klingon")


def test_an_adapter_that_comes_later_brings_its_context_and_language(bundle: Path, base: Path, tmp_path: Path) -> None:
    tiny_run(tmp_path / "yard", base, context="full")
    model, whisper, _ = load_adapted(tmp_path / "yard")
    task = settings_of(whisper.model, whisper.processor, context="full", language="fr")
    translating = settings_of(whisper.model, whisper.processor, context="full", task="translate")
    assert [task_name(whisper.model, each) for each in (task, translating)] == ["transcribe", "translate"]
    features = log_mel(whisper.processor, drawn_clip(0.1), 10)[None]
    where = add_adapter(model, bundle, id="yard", parts=whisper_parts(whisper.model, features), task=task)
    session = Session(bundle, threads=1)
    session.load("yard", where)
    assert session.transcribe(clips(), 16_000, "yard") == torchs(tmp_path / "yard", "full", "fr")


def test_nothing_in_the_files_tells_where_they_were_made(bundle: Path, base: Path) -> None:
    places = {str(part).encode() for part in (bundle.parent, base, Path.home(), Path(__file__).parents[2])}
    for path in bundle.rglob("*"):
        assert not path.is_file() or not [place for place in places if place in path.read_bytes()], path


def test_what_is_no_speech_is_told(tmp_path: Path) -> None:
    from tests.export.small_bundle import sample, write_base

    write_base(tmp_path / "b")
    with pytest.raises(ValueError, match="of no speech model"):
        Session(tmp_path / "b").transcribe(sample()[0, 0], 16_000)


@pytest.mark.parametrize("damaged", ["vocabulary.json", "mel.safetensors", "decoder.onnx"])
def test_a_damaged_file_is_refused(bundle: Path, tmp_path: Path, damaged: str) -> None:
    import shutil

    shutil.copytree(bundle, tmp_path / "b")
    path = tmp_path / "b" / "base" / damaged
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{damaged}.*sha256"):
        Session(tmp_path / "b")


def test_runs_that_do_not_go_together_are_refused(door: Path, tmp_path: Path, capsys: Any) -> None:
    tiny_whisper(tmp_path / "other", seed=3)
    tiny_run(tmp_path / "shed", tmp_path / "other")
    assert command("export", str(door), str(tmp_path / "shed"), "--out", str(tmp_path / "b")) == 2
    assert "a bundle has one base: export them apart" in " ".join(capsys.readouterr().err.split())
    assert command("export", str(door), "--out", str(tmp_path / "b"), "--shape", "2,3") == 2
    assert "leave --shape, --fixed-length and --processor out" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "pump").mkdir()
    (tmp_path / "pump" / "adapter_config.json").write_text("{}")
    for runs, told in (([tmp_path / "pump"], "--network"), ([door, tmp_path / "pump"], "not of a speech run")):
        assert command("export", *map(str, runs), "--out", str(tmp_path / "b")) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "b").exists()


def test_the_vocabulary_decodes_as_the_tokenizer_does(base: Path) -> None:
    tokenizer = load_whisper(base).processor.tokenizer
    pieces = vocabulary(tokenizer, len(tokenizer) + 5)
    known = Assets(np.zeros(0), np.zeros(0), pieces)
    draw = np.random.default_rng(0)
    for _ in range(300):
        tokens = [
            97,
            *draw.integers(0, len(tokenizer), 12).tolist(),
        ]  # not <|startofprev|> first, which none begins with
        tokens += draw.integers(128, 256, 6).tolist()  # bytes that begin and go on in other languages
        assert known.text(tokens) == tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert pieces[len(tokenizer) :] == [b""] * 5


def test_decoding_rules_that_a_device_has_not_are_refused(base: Path, tmp_path: Path) -> None:
    whisper = load_whisper(base)
    for name, value in (("repetition_penalty", 1.2), ("no_repeat_ngram_size", 3), ("eos_token_id", [1, 2])):
        before = getattr(whisper.model.generation_config, name)
        setattr(whisper.model.generation_config, name, value)
        with pytest.raises(ValueError, match=name):
            export_whisper(whisper.model, whisper.processor, tmp_path / "b")
        setattr(whisper.model.generation_config, name, before)
    whisper.model.generation_config.is_multilingual = False
    assert settings_of(whisper.model, whisper.processor, context="full", language="en").languages == {}
    whisper.model.generation_config.is_multilingual = True
    whisper.model.generation_config.lang_to_id = None
    with pytest.raises(ValueError, match=r"no lang_to_id, .*GenerationConfig\.from_pretrained"):
        settings_of(whisper.model, whisper.processor, context="full")


@pytest.mark.slow
def test_several_runs_and_every_form(base: Path, door: Path, tmp_path: Path) -> None:
    tiny_run(tmp_path / "yard", base, context="full", method="dora", language="fr")
    for form in ("wsum", "fact"):
        words = f"export {door} {tmp_path / 'yard'} --out {tmp_path / form} --form {form}"
        assert command(*shlex.split(words)) == 0
        session = Session(tmp_path / form, threads=1)
        for name, run, context, language in (("door", door, "auto", "it"), ("yard", tmp_path / "yard", "full", "fr")):
            session.load(name)
            assert session.transcribe(clips(), 16_000, name) == torchs(run, context, language)
    assert command(*shlex.split(f"export {tmp_path / 'yard'} --out {tmp_path / 'm'} --form merged")) == 0
    merged = Session(tmp_path / "m", threads=1).transcribe(clips(), 16_000)
    assert merged == torchs(tmp_path / "yard", "full", "fr")


@pytest.mark.slow
def test_a_text_that_is_not_torch_s_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from audiolora.edge import whisper as device

    whisper: LoadedWhisper = load_whisper(base)
    monkeypatch.setattr(device.Assets, "text", lambda *_: "something else")
    with pytest.raises(ValueError, match="the base: the bundle writes 'something else' for clip 0"):
        export_whisper(whisper.model, whisper.processor, tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_real_tiny_whisper_hears_digits_as_torch_does(tmp_path: Path) -> None:
    import audiolora
    from audiolora.speech.data.prompts import load_spoken_digits

    digits = load_spoken_digits()[::150][:8]
    audios = [_audio(digit) for digit in digits]
    whisper = load_whisper("openai/whisper-tiny.en")
    adapted = audiolora.adapt(whisper.model, "lora", r={"conv": 4, "attention": 2}, targets=["conv", "attention"])
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    own = {"default": settings_of(whisper.model, whisper.processor, context="auto")}
    export_whisper(adapted, whisper.processor, tmp_path / "b", tasks=own, clips=audios[:2])
    session = Session(tmp_path / "b", threads=1)
    session.load("default")
    how: dict[str, Any] = {"progress": False}
    assert session.transcribe(audios, 16_000, "default") == transcribe(adapted, whisper.processor, audios, **how)
    with adapted.disable_adapter():
        wanted = transcribe(adapted, whisper.processor, audios, context="full", progress=False)
    assert session.transcribe(audios, 16_000) == wanted


def _audio(utterance: Any) -> np.ndarray:
    from audiolora.speech.data.audio import read_audio

    return read_audio(utterance.audio)
