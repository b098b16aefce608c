"""CTC models as bundles: logits and texts are transformers', from audio, for any batch and length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import wave
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiolora.edge import Session
from audiolora.edge.network import difference
from audiolora.export import add_adapter, export
from audiolora.export.ctc import ctc_part, ctc_task
from tests.edge.test_without_torch import FORBIDDEN, ROOT
from tests.export.ctc_models import LAYER, LETTERS, adapted, clips, ctc_model, processor

ADAPTERS = (None, "anna", "bob")
RATE_HZ = 16_000


@cache
def made(masked: bool) -> Any:
    """With one layer: tracing is what takes the time."""
    return adapted(ctc_model(num_hidden_layers=1, **(LAYER if masked else {})))


@pytest.fixture(scope="module", params=[False, True], ids=["group norm", "layer norm"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """Folder, model, processor."""
    folder = tmp_path_factory.mktemp("ctc")
    masked: bool = request.param
    its_processor = processor(folder, masked=masked)
    export(made(masked), folder / "bundle", processor=its_processor)
    return folder / "bundle", made(masked), its_processor


@pytest.fixture(scope="module")
def session(bundle: tuple[Path, Any, Any]) -> Session:
    made = Session(bundle[0], threads=1)
    made.load("anna")
    made.load("bob")
    return made


def transformers_logits(model: Any, adapter: str | None, inputs: Any) -> np.ndarray:
    """(N, frames, vocabulary)."""
    with torch.no_grad():
        if adapter is None:
            with model.disable_adapter():
                return model(**inputs).logits.numpy()
        model.set_adapter(adapter)
        return model(**inputs).logits.numpy()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_texts_are_transformers_for_each_clip(bundle: Any, session: Session, adapter: str | None) -> None:
    _, model, its_processor = bundle
    several = clips(9000, 4001, 20_000, 655)
    wanted = []
    for clip in several:
        inputs = its_processor(clip, sampling_rate=RATE_HZ, return_tensors="pt")
        path = transformers_logits(model, adapter, inputs).argmax(axis=2)
        wanted += its_processor.batch_decode(path)
    assert session.transcribe(several, RATE_HZ, adapter, batch_size=3) == wanted
    assert session.transcribe(several[0], RATE_HZ, adapter) == wanted[0]
    assert session.bind(adapter).transcribe(several[0], RATE_HZ) == wanted[0]
    words = session.words(several[0], RATE_HZ, adapter)
    assert " ".join(word.text for word in words) == " ".join(wanted[0].split())
    assert all(0 <= word.start_s < word.end_s <= 9000 / RATE_HZ for word in words)


def test_a_padded_batch_is_transformers(bundle: Any, session: Session) -> None:
    """The graph itself: with its mask where it has one; without, the padding is heard, as transformers hears it."""
    _, model, its_processor = bundle
    for lengths in ((9000, 4001, 655), (2000,), (12_345, 12_000)):
        how = {"sampling_rate": RATE_HZ, "padding": True, "return_tensors": "pt"}
        inputs = its_processor(clips(*lengths), **how)
        wanted = transformers_logits(model, "bob", inputs)
        given = {"input_values": inputs["input_values"].numpy()}
        if "attention_mask" in inputs:
            given["lengths"] = np.array(lengths, np.int64)
        assert set(given) == {spec.name for spec in session.manifest.graphs["base"].inputs}
        assert difference(session.run(given, "bob"), wanted) < 1e-5


def test_a_masked_clip_does_not_hear_its_neighbours(bundle: Any, session: Session) -> None:
    if not session.manifest.task.masked:
        pytest.skip("such a clip runs alone")
    several = clips(9000, 4001, 20_000)
    together = session.transcribe(several, RATE_HZ, "anna", batch_size=3)
    assert together == [session.transcribe(clip, RATE_HZ, "anna") for clip in several]


def test_the_manifest_says_how_audio_becomes_text(session: Session, bundle: Any) -> None:
    task = session.manifest.task
    assert (task.sample_rate_hz, task.normalized, task.stride, task.fewest_samples) == (RATE_HZ, True, 320, 245)
    assert (task.vocabulary, task.blank, task.delimiter, task.dropped) == (LETTERS, "<pad>", "|", ())
    assert session.selftest("anna") < 1e-5
    with pytest.raises(ValueError, match="sample_rate_hz must be 16000.*got 8000; resample first"):
        session.transcribe(clips(9000)[0], 8000)
    assert session.manifest.graphs["base"].outputs[0].name == "logits"


def spoken(path: Path) -> np.ndarray:
    """A clip at 8 kHz with each sample twice, which is enough of a resampling here."""
    with wave.open(str(path), "rb") as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (8000, 2, 1)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return np.repeat(samples / np.float32(32768), 2)


def test_spoken_digits(bundle: Any, session: Session, audiolora_data: Path) -> None:
    _, model, its_processor = bundle
    names = ("0_george_0", "7_jackson_3", "9_theo_11")
    several = [spoken(audiolora_data / "spoken_digits" / "recordings" / f"{name}.wav") for name in names]
    for clip, found in zip(several, session.transcribe(several, RATE_HZ, "bob"), strict=True):
        inputs = its_processor(clip, sampling_rate=RATE_HZ, return_tensors="pt")
        (wanted,) = its_processor.batch_decode(transformers_logits(model, "bob", inputs).argmax(axis=2))
        assert found == wanted


PROGRAM = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Refuse())
import numpy as np
from audiolora.edge import Session
session = Session({bundle!r}, threads=1)
session.load("anna")
audio = np.load({audio!r})
print(session.transcribe(audio, 16000, "anna"))
print(session.transcribe([audio], 16000, "anna", beam_width=4)[0])
print(" ".join(word.text for word in session.words(audio, 16000, "anna")))
"""


def test_audio_becomes_text_without_torch(bundle: Any, session: Session, tmp_path: Path) -> None:
    (clip,) = clips(9000)
    np.save(tmp_path / "audio.npy", clip)
    where = {"bundle": str(bundle[0]), "audio": str(tmp_path / "audio.npy")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    program = [sys.executable, "-c", PROGRAM.format(forbidden=FORBIDDEN, **where)]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    text = session.transcribe(clip, RATE_HZ, "anna")
    searched = session.transcribe(clip, RATE_HZ, "anna", beam_width=4)
    assert done.stdout == f"{text}\n{searched}\n{' '.join(str(text).split())}\n"


def test_an_adapter_with_an_alphabet_of_its_own(bundle: Any, tmp_path: Path) -> None:
    folder, model, _ = bundle
    letters = (*LETTERS[:5], *(chr(ord("а") + i) for i in range(27)))  # Cyrillic
    own = ctc_task(model, processor(tmp_path, masked=True, letters=letters))
    own = replace(own, masked=json.loads((folder / "base/manifest.json").read_text())["task"]["masked"])
    add_adapter(model, folder, "anna", id="anya", task=own)
    session = Session(folder, threads=1)
    session.load("anya")
    session.load("anna")
    latin, cyrillic = (session.transcribe(clips(9000)[0], RATE_HZ, name) for name in ("anna", "anya"))
    assert cyrillic == latin.translate(dict(zip(map(ord, LETTERS[5:]), letters[5:], strict=True)))
    for short in (letters[:-1], (*letters, "ю")):
        with pytest.raises(ValueError, match="vocabulary must be of the base's size, 32"):
            add_adapter(model, folder, "anna", id="short", task=replace(own, vocabulary=short))


def test_a_squeezing_model_is_traced_with_a_frame_left_over(tmp_path: Path) -> None:
    """At a whole number of squeezed frames SEW pads nothing, and the graph never would."""
    its_processor = processor(tmp_path)
    task = replace(ctc_task(ctc_model("SEWForCTC"), its_processor), masked=False)
    assert task.fewest_frames == 2
    for n_frames, wanted in ((30, 29), (31, 31)):
        part = ctc_part(task, its_processor, clips(task.samples(n_frames))[0])
        assert task.frames(part.inputs["input_values"].shape[1]) == wanted
    assert {task.frames(inputs["input_values"].shape[1]) % 2 for inputs in part.trials()} == {0, 1}


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    model = adapted(ctc_model(), "anna")
    model.get_base_model().lm_head.modules_to_save["anna"] = torch.nn.Linear(32, 40)
    with pytest.raises(ValueError, match=r"lm_head.weight: \(40, 32\) in adapter 'anna', \(32, 32\) in the base"):
        export(model, tmp_path / "b", processor=processor(tmp_path))
    assert not (tmp_path / "b").exists()


def test_what_is_no_such_model_or_processor_is_refused(tmp_path: Path) -> None:
    its_processor = processor(tmp_path)

    def refused(message: str, model: Any = None, by: Any = its_processor, **how: Any) -> None:
        with pytest.raises(ValueError, match=message):
            export(ctc_model() if model is None else model, tmp_path / "b", processor=by, **how)
        assert not (tmp_path / "b").exists()

    refused("goes with one of Wav2Vec2ForCTC.*got Linear", torch.nn.Linear(2, 2))
    bert = type("Wav2Vec2BertForCTC", (torch.nn.Module,), {})()
    refused("Wav2Vec2BertForCTC hears log-mel features.*no processor", bert)
    refused("processor.feature_extractor must be a Wav2Vec2FeatureExtractor, got NoneType", by=object())
    refused("tokenizer is another model's: x, y, z, '", ctc_model(vocab_size=28))
    refused("blank is output 5 .*writes as 'a', and its pad_token is '<pad>'", ctc_model(pad_token_id=5))
    refused("blank is output None .*writes as None", ctc_model(pad_token_id=None))
    refused("example must be a clip.*at least 565", example=np.zeros(300, np.float32))
    refused("give none beside it", parts=[])
    left = processor(tmp_path)
    left.feature_extractor.padding_side = "left"
    refused("must pad one channel with zeros on the right.*padding_side='left'", by=left)
    with pytest.raises(ValueError, match="drop names <noise>"):
        ctc_task(ctc_model(), its_processor, drop=["<noise>"])


NETWORK = """
from tests.export.ctc_models import ctc_model

def network():
    return ctc_model(num_hidden_layers=1)

def other():
    return ctc_model(num_hidden_layers=1, vocab_size=40)
"""


@pytest.mark.slow
def test_runs_become_a_bundle_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from audiolora import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "speech_network.py").write_text(NETWORK, encoding="utf-8")
    for name, letters in (("anna", LETTERS), ("bob", (*LETTERS[:5], *LETTERS[:4:-1]))):
        one = adapted(ctc_model(num_hidden_layers=1), name)
        one.save_pretrained("saved")
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "saved" / name).rename(tmp_path / "runs" / name / "adapter")
        processor(tmp_path, letters=letters).save_pretrained(f"runs/{name}/processor")

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as end:
            cli.run_app(cli.app, ["export", "runs/anna", "runs/bob", "--out", "site", *words])
        return int(end.value.code or 0)

    assert run("--network", "speech_network:network") == 0
    session = Session("site", threads=1)
    for name in ("anna", "bob"):
        session.load(name)
        model = adapted(ctc_model(num_hidden_layers=1), name)
        its_processor = processor(tmp_path, letters=session.network(name).task.vocabulary)
        inputs = its_processor(clips(9000)[0], sampling_rate=RATE_HZ, return_tensors="pt")
        path = transformers_logits(model, name, inputs).argmax(axis=2)
        assert session.transcribe(clips(9000)[0], RATE_HZ, name) == its_processor.batch_decode(path)[0]
    assert session.network("bob").task.vocabulary[5] == "'"
    capsys.readouterr()
    for words, message in (
        (("--network", "speech_network:other"), "not of the sizes of this Wav2Vec2ForCTC"),
        (("--network", "speech_network:network", "--shape", "2,3"), "which --shape is not for"),
        (("--network", "speech_network:network", "--processor", "runs"), "no Wav2Vec2Processor"),
    ):
        assert run(*words, "--overwrite") != 0
        assert message in " ".join(capsys.readouterr().err.split())
