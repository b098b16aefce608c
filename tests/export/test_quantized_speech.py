"""Speech in int8: a tied table is kept once, weights are unpacked or not, and what it costs is the error rates."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import numpy_helper
from torch import nn
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

import audiolora
from audiolora import cli
from audiolora.edge import Session
from audiolora.export import export, export_whisper
from audiolora.export.spoken import Spoken, evaluation_clips
from audiolora.speech.data.manifests import read_utterances
from audiolora.speech.data.prompts import load_spoken_digits
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.texts.metrics import error_rates
from audiolora.speech.training.clips import Clips
from audiolora.speech.whisper.adapter import load_adapted
from audiolora.speech.whisper.decode import transcribe
from audiolora.speech.whisper.language import text_normalizer
from audiolora.speech.whisper.weights import load_whisper
from tests.export.ctc_models import adapted as adapted_ctc
from tests.export.ctc_models import ctc_model, processor
from tests.export.networks import randomise
from tests.export.test_speech import clips
from tests.speech.tiny_run import tiny_run
from tests.speech.tiny_whisper import tiny_whisper

WORDS, WIDTH = 20_000, 64  # as large as a table that torch does not store once more, turned over


class Tied(nn.Module):
    """Tokens in, logits out, over one table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(WORDS, WIDTH), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.out = nn.Linear(WIDTH, WORDS, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(self.table(tokens).mT).mT)


def tokens(n: int, steps: int) -> torch.Tensor:
    return torch.randint(WORDS, (n, steps), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("form", ["wsum", "fact"])
def test_a_table_that_is_a_linear_s_weight_too_is_kept_once_in_int8(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Tied()
    weight, kernel = net.table.weight.detach().numpy().copy(), net.conv.weight.detach().numpy().copy()
    model = audiolora.adapt(net, r=2, targets=["conv"])
    randomise(model)
    how: dict[str, Any] = {"dynamic": {"tokens": {0: "batch", 1: "steps"}}, "form": form, "quantize": "int8"}
    made = export(model, tmp_path / "b", tokens(2, 7), **how)
    assert max(made.differences.values()) <= 1e-5
    constants = onnx.load(tmp_path / "b" / "base" / "base.onnx").graph.initializer
    arrays = [numpy_helper.to_array(constant) for constant in constants]
    (codes,) = [array for array in arrays if array.dtype == np.int8 and array.size == weight.size]
    assert not [array for array in arrays if array.dtype == np.float32 and array.size > WORDS]
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert np.array_equal(codes.reshape(weight.shape), np.rint(weight / scale))

    rounded = codes.reshape(weight.shape) * scale
    of_kernel = np.abs(kernel).max(axis=(1, 2), keepdims=True) / 127
    heard = torch.from_numpy(rounded[tokens(3, 5).numpy()]).mT
    seen = torch.conv1d(heard, torch.from_numpy(np.rint(kernel / of_kernel) * of_kernel), net.conv.bias, padding=1)
    wanted = seen.mT.detach().numpy() @ rounded.T
    for unpack in (None, True, False):
        y = Session(tmp_path / "b", threads=1, unpack=unpack).run(tokens(3, 5).numpy())
        np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def manifest(folder: Path, name: str = "calls.csv") -> Path:
    """Five clips with transcripts that are wrong for each."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["audio", "text", "id", "speaker"])
        for i, clip in enumerate(clips()):
            soundfile.write(folder / f"{i}.wav", clip, 16_000, subtype="FLOAT")
            rows.writerow([f"{i}.wav", f"press {'one two three'.split()[i % 3]} now", f"clip{i}", f"door{i % 2}"])
    return folder / name


def run_over(data: Path, run: Path, base: Path, channel: str = "invert", held: tuple[int, ...] = (0, 3)) -> Path:
    """A finished run that was trained over this data."""
    if not (run / "summary.json").exists():
        tiny_run(run, base, context="auto", language="en")
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps({**settings, "data": str(data), "channel": channel}))
    rest = [i for i in range(5) if i not in held]
    parts = {"train": rest[1:], "dev": rest[:1], "test": held}
    (run / "split.json").write_text(json.dumps({part: [f"clip{i}" for i in ids] for part, ids in parts.items()}))
    return run


def test_the_command_line_hears_what_a_run_held_out(tmp_path: Path) -> None:
    tiny_whisper(tmp_path / "base", multilingual=True)
    data, other = manifest(tmp_path / "data"), manifest(tmp_path / "others")
    door = run_over(data, tmp_path / "door", tmp_path / "base")
    found = evaluation_clips(data, [door / "adapter", door])
    assert [one.id for one in found.utterances] == ["clip0", "clip3"]
    assert np.array_equal(found[1]["audio"], parse_channel("invert").apply(clips()[3], "clip3"))
    plain = evaluation_clips(other, [door])
    assert len(plain) == 5 and np.array_equal(plain[3]["audio"], clips()[3])
    yard = run_over(data, tmp_path / "yard", tmp_path / "base", held=(3, 4))
    assert [one.id for one in evaluation_clips(data, [door, yard]).utterances] == ["clip3"]
    run_over(data, yard, tmp_path / "base", held=(4,))
    with pytest.raises(ValueError, match="held nothing out in common"):
        evaluation_clips(data, [door, yard])
    run_over(data, yard, tmp_path / "base", channel="gsm")
    with pytest.raises(ValueError, match="have the channels gsm and invert; export them apart"):
        evaluation_clips(data, [door, yard])


def test_a_whisper_s_error_rates_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_whisper(tmp_path / "base", multilingual=True)
    data = manifest(tmp_path / "data")
    door = run_over(data, tmp_path / "door", tmp_path / "base")
    words = ["export", door, "--out", tmp_path / "b", "--quantize", "int8", "--evaluate", data]
    with pytest.raises(SystemExit) as end:
        cli.run_app(cli.app, list(map(str, words)))
    assert not end.value.code
    printed = capsys.readouterr().out

    heard = evaluation_clips(data, [door])
    model, whisper, _ = load_adapted(door)
    how: dict[str, Any] = {"normalize": text_normalizer(whisper.processor, "en")}
    said = [one.text for one in heard.utterances]
    texts = transcribe(model, whisper.processor, heard.audios(), context="auto", language="en", progress=False)
    session = Session(tmp_path / "b", threads=1)
    session.load("door")
    rates = [error_rates(said, each, **how) for each in (texts, session.transcribe(heard.audios(), 16_000, "door"))]
    before, after = (f"{r.wer.value:.2f} % [{r.wer.low:.1f}, {r.wer.high:.1f}]" for r in rates)
    line = next(line for line in printed.splitlines() if line.startswith("door") and "WER" in line)
    assert line.split(maxsplit=1)[1] == f"WER {before} float, {after} quantised"
    assert "2 utterances, 6 words, 95% intervals" in printed and "base                 WER" in printed
    for graph in ("encoder", "decoder"):
        stored = onnx.load(tmp_path / "b" / "base" / f"{graph}.onnx").graph.initializer
        assert any(constant.data_type == onnx.TensorProto.INT8 for constant in stored)
    packed = Session(tmp_path / "b", threads=1, unpack=False)
    assert packed.selftest() <= 1e-5 and session.selftest("door") <= 1e-5


@pytest.mark.slow
def test_a_ctc_model_s_error_rates_before_and_after(tmp_path: Path) -> None:
    its_processor = processor(tmp_path)
    model = adapted_ctc(ctc_model(num_hidden_layers=1), "bob")
    utterances = read_utterances(manifest(tmp_path / "data"))
    made = export(model, tmp_path / "b", processor=its_processor, quantize="int8", evaluate=utterances)
    session = Session(tmp_path / "b", threads=1)
    session.load("bob")
    written = session.transcribe(clips(), 16_000, "bob")
    wanted = error_rates([one.text for one in utterances], written, normalize=BasicTextNormalizer())
    before, after = made.accuracy.rates["bob"]
    assert (after.cer, after.utterances) == (wanted.cer, 5) and before.reference_words == wanted.reference_words
    assert set(made.accuracy.rates) == {"base", "bob"}
    slower = tmp_path / "slow"
    slower.mkdir()
    its_processor.feature_extractor.sampling_rate = 8000
    with pytest.raises(ValueError, match="evaluate is read at 16000 Hz, and this model hears 8000 Hz"):
        export(model, slower / "b", processor=its_processor, quantize="int8", evaluate=utterances)


def test_what_cannot_be_heard_is_refused_before_any_work(tmp_path: Path) -> None:
    tiny_whisper(tmp_path / "base")
    whisper = load_whisper(tmp_path / "base")
    utterances = read_utterances(manifest(tmp_path / "data"))
    long = tmp_path / "long.csv"
    soundfile.write(tmp_path / "long.wav", np.zeros(31 * 16_000), 16_000)
    long.write_text("audio,text\nlong.wav,one\n")
    for arguments, told in (
        ({"quantize": "int8", "evaluate": read_utterances(long)}, "1 of 1 utterances cannot be used"),
        ({"quantize": "int8", "evaluate": [3]}, "evaluate must be utterances"),
        ({"quantize": "qdq"}, "'qdq' is not for a Whisper.*take quantize='int8'"),
        ({"evaluate": utterances}, "evaluate measures what quantising costs"),
    ):
        with pytest.raises(ValueError, match=told):
            export_whisper(whisper.model, whisper.processor, tmp_path / "b", **arguments)
    assert not (tmp_path / "b").exists()


def test_an_adapter_named_after_a_speaker_is_measured_on_that_speaker(tmp_path: Path) -> None:
    class Echo:
        def transcribe(self, audios: list[np.ndarray], sample_rate_hz: int) -> list[str]:
            assert sample_rate_hz == 16_000
            return ["press one now"] * len(audios)

    spoken = Spoken.of(Clips(read_utterances(manifest(tmp_path / "d")), parse_channel("clean")), str.lower)
    network: Any = Echo()
    assert [spoken.rates(network, name).utterances for name in ("base", "door0", "door1")] == [5, 3, 2]


@pytest.mark.slow
def test_the_real_tiny_whisper_in_int8(tmp_path: Path) -> None:
    whisper = load_whisper("openai/whisper-tiny.en")
    digits = load_spoken_digits()[::100][:24]
    how: dict[str, Any] = {"context": "auto", "quantize": "int8", "evaluate": digits}
    made = export_whisper(whisper.model, whisper.processor, tmp_path / "b", **how)
    assert made.bytes["base/decoder.onnx"] < 30e6 and made.bytes["base/encoder.onnx"] < 12e6
    before, after = made.accuracy.rates["base"]
    audios = Clips(digits, parse_channel("clean")).audios()
    texts = transcribe(whisper.model, whisper.processor, audios, context="auto", progress=False)
    normalize = text_normalizer(whisper.processor, "en")
    assert before.wer == error_rates([one.text for one in digits], texts, normalize=normalize).wer
    assert after.wer.value <= before.wer.value + 10
