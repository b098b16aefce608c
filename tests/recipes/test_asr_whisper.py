"""The Whisper recipe from end to end on generated clips and a random Whisper, and everything that may go wrong."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import psutil
import pytest
import soundfile
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import audiolora
from audiolora.speech.data.audio import AudioError
from audiolora.speech.data.manifests import DataError, read_utterances
from audiolora.speech.data.split import load_split
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.training.clips import Clips
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.whisper.decoding import WhisperTexts
from tests.speech.tiny_training import write_clips
from tests.speech.tiny_whisper import tiny_whisper

RECIPE = Path(__file__).parents[2] / "recipes" / "asr_whisper.py"
ARGUMENTS: dict[str, Any] = {"name": "tiny", "channel": "noise20dB", "r_conv": 2, "r_attention": 2, "test": 3, "dev": 2}
TRAINING = TrainingSettings(epochs=2, batch_size=4, learning_rate=3e-2)
OPTIONS = (
    "--name tiny --channel noise20dB --r-conv 2 --r-attention 2 --test 3 --dev 2 --epochs 2 --batch-size 4".split()
)
OPTIONS += ["--learning-rate", "0.03"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPE.parents[1])}


@pytest.fixture(scope="module")
def recipe() -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location("asr_whisper", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """`whisper/` and `clips/`, a manifest of twelve clips; not to be changed."""
    folder = tmp_path_factory.mktemp("recipe")
    tiny_whisper(folder / "whisper")
    write_clips(folder / "clips", 12)
    return folder


@pytest.fixture(scope="module")
def call(recipe, root) -> Callable[..., Path]:
    """Call the recipe on the clips, or as told, and return the run's folder."""

    def run(out: Path, training: TrainingSettings = TRAINING, **changes: Any) -> Path:
        given = {"model": str(root / "whisper"), "data": str(root / "clips" / "clips.jsonl"), **ARGUMENTS, **changes}
        recipe(training=training, out=out, **given)
        return out / given["name"]

    return run


@pytest.fixture(scope="module")
def finished(call, tmp_path_factory) -> Path:
    """A finished run; not to be changed."""
    return call(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def unsaved(finished, tmp_path) -> Path:
    """A copy of it as it was when training had ended and nothing was written down yet."""
    folder = shutil.copytree(finished, tmp_path / "runs" / "tiny")
    for name in ("summary.json", "report.html", "metrics.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "adapter")
    return folder


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def assert_same_result(run: Path, reference: Path) -> None:
    ours, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, reference))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    figures, expected = summary(run), summary(reference)
    for varying in ("seconds", "base", "adapter", "settings"):
        figures.pop(varying), expected.pop(varying)
    assert figures == expected


def assert_nothing_looks_whole(run: Path) -> None:
    left = {path.name for path in run.iterdir()} if run.exists() else set()
    assert left <= {"settings.json", "bad_rows.tsv"}


# What a run leaves.


def test_a_run_leaves_what_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *("adapter", "training", "settings.json", "texts.jsonl", "split.json", "before.json"),
        *("metrics.jsonl", "summary.json", "report.html"),
    }
    assert (finished / "metrics.jsonl").read_text() == (finished / "training" / "metrics.jsonl").read_text()
    history = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval_loss" in entry for entry in history) == 2
    page = (finished / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert not re.search(r'(src|href)="https?://', page)  # one file: nothing is fetched
    card = (finished / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card and f"{summary(finished)['wer_after']['value']:.1f}" in card


def test_the_figures_are_those_of_the_texts(finished, root):
    """Word error rates from jiwer alone, the adapter loaded by PEFT alone."""
    from peft import PeftModel

    from audiolora.speech.whisper.decode import transcribe
    from audiolora.speech.whisper.weights import load_whisper

    figures, whisper = summary(finished), load_whisper(root / "whisper")
    split = load_split(finished / "split.json", read_utterances(root / "clips" / "clips.jsonl"))
    assert [len(part) for part in (split.train, split.dev, split.test)] == [7, 2, 3]
    normalize = whisper.processor.tokenizer.normalize
    references = [normalize(utterance.text) for utterance in split.test]
    before = json.loads((finished / "before.json").read_text())
    with audiolora.enabled():
        adapted = PeftModel.from_pretrained(whisper.model, finished / "adapter")
    heard = Clips(split.test, parse_channel("noise20dB"))
    after = transcribe(adapted, whisper.processor, heard.audios(), context="auto", progress=False)
    for when, texts in (("before", before), ("after", after)):
        value, low, high = (figures[f"wer_{when}"][name] for name in ("value", "low", "high"))
        assert value == pytest.approx(100 * jiwer.wer(references, [normalize(text) for text in texts]))
        assert low <= value <= high
    weights = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert figures["parameters"]["trained"] == sum(tensor.numel() for tensor in weights.values())
    assert all(seconds > 0 for seconds in figures["seconds"].values())


def test_training_changed_the_function(finished):
    weights = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert all(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name)


def test_a_second_call_shows_the_run_and_trains_nothing(finished, call, monkeypatch, capsys):
    import audiolora.speech.whisper.weights

    monkeypatch.setattr(audiolora.speech.whisper.weights, "load_whisper", lambda *args, **kwargs: pytest.fail("loaded"))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert call(finished.parent) == finished
    shown = capsys.readouterr().out
    assert "zero-shot" in shown and "adapted" in shown and f"{summary(finished)['wer_after']['value']:.1f}" in shown
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_other_settings_are_refused_by_name(finished, call):
    other = replace(TRAINING, epochs=3)
    with pytest.raises(ValueError, match=r"channel was 'noise20dB', now 'gsm'; epochs was 2, now 3.*--fresh"):
        call(finished.parent, other, channel="gsm")
    with pytest.raises(ValueError, match="text_column was 'text', now 'words'"):
        call(finished.parent, text_column="words")
    assert summary(finished)["settings"]["epochs"] == 2


def test_fresh_begins_anew(finished, call, tmp_path):
    shutil.copytree(finished, tmp_path / "tiny")
    run = call(tmp_path, replace(TRAINING, epochs=1), fresh=True)
    assert summary(run)["settings"]["epochs"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}


def test_a_multilingual_whisper_with_its_language(recipe, call, root, tmp_path):
    tiny_whisper(tmp_path / "multilingual", multilingual=True)
    with pytest.raises(ValueError, match="12 utterances(.|\n)*no language; name it with --language"):
        call(tmp_path, model=str(tmp_path / "multilingual"))
    run = call(
        tmp_path,
        replace(TRAINING, epochs=1),
        model=str(tmp_path / "multilingual"),
        texts=WhisperTexts("it"),
        method="dora",
    )
    assert summary(run)["adapter"]["language"] == "it"
    assert "language: it" in (run / "adapter" / "README.md").read_text()


def test_the_command_line(finished, root, tmp_path):
    """The same from a shell: the same weights and figures, and an error where there is one."""
    done = subprocess.run(command(root, tmp_path), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "zero-shot" in done.stdout and "report.html" in done.stdout
    assert_same_result(tmp_path / "tiny", finished)


# Bad input: each is told with its file and row before anything is trained.


def write_wav(path: Path, samples: np.ndarray, rate_hz: int = 16_000) -> str:
    soundfile.write(path, samples.astype(np.float32), rate_hz, subtype="FLOAT")
    return str(path)


TONE = 0.1 * np.sin(np.arange(8000))

Rows = list[dict[str, Any]]


def missing(rows: Rows, folder: Path) -> None:
    rows[2]["audio"] = "nowhere.wav"


def corrupt(rows: Rows, folder: Path) -> None:
    soundfile.write(folder / "bad.flac", TONE, 16_000)
    (folder / "bad.flac").write_bytes((folder / "bad.flac").read_bytes()[:3000])
    rows[2]["audio"] = str(folder / "bad.flac")


def not_audio(rows: Rows, folder: Path) -> None:
    (folder / "bad.wav").write_text("not audio")
    rows[2]["audio"] = str(folder / "bad.wav")


def zero_length(rows: Rows, folder: Path) -> None:
    rows[2]["audio"] = write_wav(folder / "bad.wav", TONE[:0])


def nan_samples(rows: Rows, folder: Path) -> None:
    rows[2]["audio"] = write_wav(folder / "bad.wav", np.where(np.arange(8000) == 1600, np.nan, TONE))


def too_long(rows: Rows, folder: Path) -> None:
    rows[2]["audio"] = write_wav(folder / "bad.wav", np.zeros(31 * 16_000))


def long_text(rows: Rows, folder: Path) -> None:
    rows[2]["text"] = "qwertyuiop " * 60


def no_words(rows: Rows, folder: Path) -> None:
    rows[2]["text"] = "Hmm..."


def empty_text(rows: Rows, folder: Path) -> None:
    rows[2]["text"] = "  "


def half_a_surrogate(rows: Rows, folder: Path) -> None:
    rows[2]["text"] = "caf\udc80"


def same_id(rows: Rows, folder: Path) -> None:
    rows[2]["id"] = rows[0]["id"]


def no_text_column(rows: Rows, folder: Path) -> None:
    for row in rows:
        row["words"] = row.pop("text")


def no_rows(rows: Rows, folder: Path) -> None:
    rows.clear()


def one_sentence(rows: Rows, folder: Path) -> None:
    for row in rows:
        row["text"] = "the same"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, r"clips.jsonl row 3: audio file .*nowhere.wav does not exist"),
        (corrupt, r"clips.jsonl row 3: .*bad.flac: corrupt"),
        (not_audio, r"clips.jsonl row 3: .*bad.wav: corrupt, or not audio"),
        (zero_length, r"clips.jsonl row 3: .*bad.wav: zero length"),
        (nan_samples, r"clips.jsonl row 3: .*bad.wav: NaN or infinite samples, the first at 0.100 s"),
        (too_long, r"clips.jsonl row 3: .*bad.wav: 31.0 s, longer than the limit of 30 s"),
        (long_text, r"clips.jsonl row 3: the text has \d+ tokens, more than the limit of 440"),
        (no_words, r"clips.jsonl row 3: no word is left of the text 'Hmm...' when it is normalised"),
        (empty_text, r"clips.jsonl row 3: the text is empty"),
        (half_a_surrogate, r"clips.jsonl row 3: the text holds half a surrogate pair"),
        (same_id, r"clips.jsonl row 3: id 'clip0' was already used in clips.jsonl row 1"),
        (no_text_column, r"clips.jsonl: no column 'text'; found 'audio', 'id', 'words'"),
        (no_rows, r"clips.jsonl: empty, it holds no utterances"),
        (one_sentence, r"1 different sentences cannot fill 3 parts"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_data_is_told_by_file_and_row(call, root, tmp_path, spoil, message):
    rows = rows_of(root)
    spoil(rows, tmp_path)
    data = tmp_path / "clips.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        call(tmp_path / "runs", data=str(data))
    assert_nothing_looks_whole(tmp_path / "runs" / "tiny")


def rows_of(root: Path) -> Rows:
    rows = [json.loads(line) for line in (root / "clips" / "clips.jsonl").read_text().splitlines()]
    for row in rows:
        row["audio"] = str(root / "clips" / row["audio"])
    return rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no/such/model"}, "no such file or directory"),
        ({"data": "no-such-data"}, "no-such-data: no such file or folder"),
        ({"channel": "inverted"}, "unknown channel 'inverted'; did you mean 'invert'"),
        ({"texts": WhisperTexts("it")}, "an English-only Whisper can only transcribe English, got language='it'"),
        ({"method": "loha"}, "method must be"),
        ({"r_conv": 0, "r_attention": 0}, "targets is empty"),
        ({"r_conv": -4}, "conv: r must be a positive integer, got -4"),
        ({"test": 11, "dev": 1}, "take 12 of 12 utterances and leave none to train on"),
        ({"test": 0}, "no clips.*more than 0 with test and dev"),
        ({"dev": 0}, "no clips.*more than 0 with test and dev"),
        ({"test": -1}, "test=-1 must be a count"),
        ({"test": 1.5}, "test=1.5 must be a count"),
        ({"text_column": "words"}, "no column 'words'"),
    ],
    ids=str,
)
def test_bad_arguments_are_told_before_anything_is_decoded(call, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path, **changes)
    assert_nothing_looks_whole(tmp_path / "tiny")


def test_a_channel_that_makes_a_clip_too_long_names_it(call, root, tmp_path):
    rows = rows_of(root)
    rows[5]["audio"] = write_wav(tmp_path / "slow.wav", 0.1 * np.sin(np.arange(16 * 16_000)))
    data = tmp_path / "clips.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = r"row 6: .*slow.wav \(2 times as long after the channel\): 16.0 s, longer than the limit of 15 s"
    with pytest.raises(DataError, match=message):
        call(tmp_path / "runs", data=str(data), channel="gsm,rate0.5")
    assert_nothing_looks_whole(tmp_path / "runs" / "tiny")


def test_rates_stereo_and_bad_rows_that_may_be_skipped(call, root, tmp_path):
    """Any sample rate and channel count will do; with skip_bad the bad rows are left out."""
    rows = rows_of(root)
    rows[0]["audio"] = write_wav(tmp_path / "44100.wav", TONE, 44_100)
    rows[1]["audio"] = write_wav(tmp_path / "8000.wav", TONE, 8_000)
    rows[2]["audio"] = write_wav(tmp_path / "stereo.wav", np.stack([TONE, -0.5 * TONE], axis=1))
    nan = write_wav(tmp_path / "nan.wav", TONE * np.nan)
    rows += [{"audio": nan, "text": "bad", "id": "nan"}, {"audio": rows[0]["audio"], "text": "hmm", "id": "hmm"}]
    data = tmp_path / "clips.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = call(tmp_path / "runs", replace(TRAINING, epochs=1), data=str(data), skip_bad=True)
    split = json.loads((run / "split.json").read_text())
    assert sorted(i for part in split.values() for i in part) == sorted(f"clip{i}" for i in range(12))
    assert summary(run)["wer_after"]["value"] >= 0


def test_a_mistake_may_be_corrected_under_the_same_name(call, tmp_path):
    with pytest.raises(DataError):
        call(tmp_path, data="no-such-data")
    assert (call(tmp_path, replace(TRAINING, epochs=1)) / "summary.json").exists()


def test_data_that_changed_since_the_run_began(unsaved, call, root, tmp_path):
    data = root / "clips" / "clips.jsonl"
    text = data.read_text()
    try:
        data.write_text("".join(text.splitlines(keepends=True)[1:]))
        with pytest.raises(DataError, match=r"split.json: .*(have changed|lacks)"):
            call(unsaved.parent)
    finally:
        data.write_text(text)
    assert not (unsaved / "summary.json").exists()


def test_a_damaged_file_of_the_run_is_named(unsaved, call):
    (unsaved / "before.json").write_text('["half')
    with pytest.raises(ValueError, match=r"before.json: not a JSON file .*--fresh"):
        call(unsaved.parent)


# A full disk, Ctrl-C and kill -9: the run is not finished, the last whole checkpoint stays, the same call continues.

FULL = OSError(errno.ENOSPC, "No space left on device")


def fail(error: BaseException) -> Callable[..., None]:
    def raises(*args: Any, **kwargs: Any) -> None:
        raise error

    return raises


def full_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    error = SafetensorError("I/O error: No space left on device")
    monkeypatch.setattr("peft.peft_model.safe_save_file", fail(error))


def full_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiolora.speech.whisper.adapter.write_text", fail(FULL))


def full_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiolora.report.speech_run.write_report", fail(FULL))


def full_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, synced = os.fsync, []

    def fill_up(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if "summary.json" in synced[-1]:
            raise FULL
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)


@pytest.mark.parametrize(
    "fill_up",
    [
        full_adapter,
        pytest.param(full_card, marks=pytest.mark.slow),
        pytest.param(full_report, marks=pytest.mark.slow),
        full_summary,
    ],
    ids=lambda fill_up: fill_up.__name__,
)
def test_a_full_disk_after_training(unsaved, finished, call, monkeypatch, fill_up):
    if fill_up is full_summary and not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    with monkeypatch.context() as patch:
        fill_up(patch)
        with pytest.raises((OSError, SafetensorError), match="No space left"):
            call(unsaved.parent)
    assert not (unsaved / "summary.json").exists()
    assert not (unsaved / "adapter").exists() or fill_up in (full_report, full_summary)
    assert list((unsaved / "training").glob("checkpoint-*/whole"))
    assert_same_result(call(unsaved.parent), finished)
    assert {path.name for path in unsaved.iterdir()} == {path.name for path in finished.iterdir()}


@pytest.mark.parametrize("at_step", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_ctrl_c_in_training(finished, call, monkeypatch, tmp_path, at_step):
    from audiolora.speech.whisper.training import WhisperTrainer

    step = WhisperTrainer.training_step

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == at_step:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(WhisperTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call(tmp_path)
    assert not (tmp_path / "tiny" / "summary.json").exists() and not (tmp_path / "tiny" / "adapter").exists()
    assert_same_result(call(tmp_path), finished)


def command(root: Path, out: Path) -> list[str | Path]:
    data = root / "clips" / "clips.jsonl"
    return [sys.executable, RECIPE, "--model", root / "whisper", "--data", data, "--out", out, *OPTIONS]


@pytest.fixture
def ctrl_c_is_heeded() -> Iterator[None]:
    """Also where pytest runs in a shell's background, which ignores Ctrl-C and hands that on to what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c_is_heeded")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_signals_at_random_moments(finished, root, tmp_path, sign):
    draw, run, signals = random.Random(int(sign)), tmp_path / "tiny", 0
    while True:
        there = set(run.rglob("*"))
        process = subprocess.Popen(
            command(root, tmp_path), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if signals < 6:  # soon after something new was written
            while process.poll() is None and set(run.rglob("*")) <= there:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 1))
            process.send_signal(sign)
        output = process.communicate()[0].decode()
        if process.returncode == 0:
            break
        assert process.returncode in (-sign, 128 + sign), output
        signals += 1
    assert signals > 0
    assert_same_result(run, finished)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 300 kB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    mounted = (
        mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=300k", "none", disk], check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("may not mount a small file system here")
    yield disk
    subprocess.run([shutil.which("umount") or "umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free_kb", [20, 60, 100, 140, 180])
def test_a_disk_that_is_really_full(finished, call, small_disk, free_kb):
    """Whatever it is that no longer fits, the same call continues once there is room."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300 * 1024 - free_kb * 1024))
    with pytest.raises((OSError, SafetensorError, RuntimeError)):
        call(small_disk)
    assert not (small_disk / "tiny" / "summary.json").exists()
    ballast.unlink()
    subprocess.run([shutil.which("mount") or "mount", "-o", "remount,size=20m", small_disk], check=True)
    assert_same_result(call(small_disk), finished)


@pytest.mark.slow
def test_two_processes(finished, root, tmp_path):
    """The files are written once, by the main process, and a second call under one process shows them."""
    # `accelerate launch` starts just one process on a machine without a GPU; on one with, it calls torchrun itself.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ran = subprocess.run(
        [*launch, *command(root, tmp_path)[1:]], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    run = tmp_path / "tiny"
    assert ran.stdout.count("zero-shot") == 1 and ran.stdout.count("to train on") == 1
    assert {path.name for path in run.iterdir()} >= {"adapter", "summary.json", "report.html", "split.json"}
    assert not list(run.glob(".*"))
    assert summary(run)["wer_after"]["value"] >= 0
    # 7 clips, 2 processes with 4 each: one step an epoch
    assert [path.name for path in (run / "training").glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(list((run / "training" / "checkpoint-2").glob("rng_state*"))) == 2
    # before the first step the two see what one process sees, and the loss is a mean, not a sum
    alone, both = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (finished, run)
    )
    losses = [[entry["eval_loss"] for entry in history if "eval_loss" in entry] for history in (alone, both)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.2)


@pytest.mark.slow
def test_accelerate_launch(finished, root, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    ran = subprocess.run(
        [*launch, *command(root, tmp_path)[1:]], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert_same_result(tmp_path / "tiny", finished)


@pytest.mark.slow
def test_two_processes_resume(root, tmp_path):
    """Killed, both of them, at a random moment after the first checkpoint; then on to the same weights."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for out, kill in ((tmp_path / "reference", False), (tmp_path / "run", True), (tmp_path / "run", False)):
        call = [*launch, *command(root, out)[1:]]
        call[call.index("--epochs") + 1] = "12"
        process = subprocess.Popen(call, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        while kill and not list((out / "tiny" / "training").glob("checkpoint-*/whole")) and process.poll() is None:
            time.sleep(0.02)
        if kill:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        assert process.wait() == (-signal.SIGKILL if kill else 0)
    assert_same_result(tmp_path / "run" / "tiny", tmp_path / "reference" / "tiny")


def test_errors_are_value_errors():
    assert issubclass(DataError, ValueError) and issubclass(AudioError, ValueError)
