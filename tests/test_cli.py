"""The commands do what the library does, say what is wrong in one line, and end with the status they promise."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from cyclopts import App

import audiolora.speech.data.prompts as prompts
from audiolora import cli, data_commands, speech_commands
from audiolora.speech.data.audio import read_audio
from audiolora.speech.data.manifests import Utterance
from audiolora.speech.whisper.adapter import load_adapted
from audiolora.speech.whisper.decode import transcribe
from audiolora.speech.whisper.weights import load_whisper
from tests.speech.tiny_run import tiny_run
from tests.speech.tiny_whisper import tiny_whisper

COMMANDS = {
    "transcribe": cli.transcribe,
    "inspect": cli.inspect,
    "merge": cli.merge,
    "data": data_commands.data,
    "data check": data_commands.check,
}
Said = SimpleNamespace  # status, out, err


@pytest.fixture
def audiolora(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command line: what it returns, writes to stdout and to stderr."""

    def run(*words: object, app: App = cli.app) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run_app(app, [str(word) for word in words])
        return Said(status=end.value.code, **capsys.readouterr()._asdict())

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A base, another one, a run over the first, and three clips of noise."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_whisper(folder / "base")
    tiny_whisper(folder / "other", seed=5)
    run = tiny_run(folder / "runs" / "tiny", folder / "base").folder
    clips = []
    for n, name in enumerate(("b.wav", "a.wav", "c.wav")):
        noise = np.random.default_rng(n).standard_normal(8000 * (n + 1)) * np.linspace(0, 0.3, 8000 * (n + 1))
        clips.append(folder / "clips" / name)
        clips[-1].parent.mkdir(exist_ok=True)
        soundfile.write(clips[-1], noise, 8000)
    return SimpleNamespace(base=folder / "base", other=folder / "other", run=run, clips=clips, folder=folder / "clips")


# --- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_every_option(name: str, audiolora: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    said = audiolora(*name.split(), "--help")
    assert said.status == 0 and cli.DEBUG_VARIABLE in said.out
    lines = [line.strip(" │*") for line in said.out.splitlines()]
    parameters = list(inspect.signature(COMMANDS[name]).parameters.values())
    for settings in [one for one in parameters if is_dataclass(one.default)]:  # each of its fields is an option
        parameters.remove(settings)
        parameters += [
            one.replace(kind=one.KEYWORD_ONLY)
            for one in inspect.signature(settings.default.__class__).parameters.values()
        ]
    for parameter in parameters:
        keyword = parameter.kind is parameter.KEYWORD_ONLY
        option = "--" + parameter.name.replace("_", "-") if keyword else parameter.name.upper()
        [line] = [line for line in lines if line.split(" ")[0] == option]
        described = " ".join(line.partition("  ")[2].split("[")[0].split())
        assert len(described) > 12, f"{name} {option} is not described: {line!r}"


def test_help_loads_nothing_heavy() -> None:
    script = """
import sys
from audiolora import cli, data_commands
for command in ("transcribe", "inspect", "merge", "data", "data check"):
    try:
        cli.run_app(cli.app, [*command.split(), "--help"])
    except SystemExit:
        pass
heavy = {"torch", "numpy", "peft", "transformers", "soundfile", "librosa"} & set(sys.modules)
print(heavy or "nothing", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == "nothing\n"


# --- transcribe


def test_transcribe_is_the_library_with_the_adapters_own_context(
    place: SimpleNamespace, audiolora: Callable[..., Said]
) -> None:
    adapted, whisper, _ = load_adapted(place.run)
    audios = [read_audio(clip) for clip in place.clips]
    auto, full = (
        transcribe(adapted, whisper.processor, audios, context=context, progress=False) for context in ("auto", "full")
    )
    plain = transcribe(load_whisper(place.base).model, whisper.processor, audios, context="full", progress=False)
    assert len({*auto, *full, *plain}) == 9 and all(auto), "the texts tell the ways apart"

    said = audiolora("transcribe", *place.clips, "--adapter", place.run)
    assert said.status == 0 and "transcribing" in said.err and "warning" not in said.err
    assert said.out == "".join(f"{clip}\t{text}\n" for clip, text in zip(place.clips, auto, strict=True))
    assert audiolora("transcribe", *place.clips, "--adapter", place.run / "adapter").out == said.out
    assert audiolora("transcribe", place.clips[0], "--adapter", place.run).out == auto[0] + "\n"

    other_way = audiolora("transcribe", *place.clips, "--adapter", place.run, "--context", "full", "--batch-size", 2)
    assert [line.partition("\t")[2] for line in other_way.out.splitlines()] == full
    assert "warning: trained at context auto, decoded at full as asked" in other_way.err

    as_json = json.loads(audiolora("transcribe", place.folder, "--model", place.base, "--json").out)
    assert [(Path(row["audio"]).name, row["text"]) for row in as_json] == sorted(
        (clip.name, text) for clip, text in zip(place.clips, plain, strict=True)
    )


def test_a_merged_model_transcribes_as_the_adapter_does(
    place: SimpleNamespace, audiolora: Callable[..., Said], tmp_path: Path
) -> None:
    merged = audiolora("merge", place.run, "--out", tmp_path / "merged")
    assert merged.status == 0 and "short audio context" in merged.out
    assert f"from_pretrained('{tmp_path / 'merged'}')" in merged.out
    by_adapter = audiolora("transcribe", place.folder, "--adapter", place.run, "--format", "tsv")
    by_merged = audiolora("transcribe", place.folder, "--model", tmp_path / "merged", "--format", "tsv")
    assert by_merged.status == 0 and by_merged.out == by_adapter.out and by_merged.out.startswith("audio\ttext\n")
    swapped = audiolora("transcribe", place.folder, "--adapter", tmp_path / "merged")
    assert swapped.status == 2 and "whole model and no adapter; name it with --model" in swapped.err
    again = audiolora("merge", place.run, "--out", tmp_path / "merged")
    assert again.status == 2 and "--overwrite" in again.err


def test_a_multilingual_adapter_keeps_its_language(
    audiolora: Callable[..., Said], place: SimpleNamespace, tmp_path: Path
) -> None:
    tiny_whisper(tmp_path / "base", multilingual=True)
    run = tiny_run(tmp_path / "run", tmp_path / "base", language="it").folder
    adapted, whisper, _ = load_adapted(run)
    audio = read_audio(place.clips[0])
    italian, russian = (
        transcribe(adapted, whisper.processor, [audio], language=language, progress=False)[0]
        for language in ("it", "ru")
    )
    assert italian != russian
    assert audiolora("transcribe", place.clips[0], "--adapter", run).out == f"{italian}\n"
    warned = audiolora("transcribe", place.clips[0], "--adapter", run, "--language", "ru")
    assert warned.out == f"{russian}\n" and "trained on language it, decoded as ru" in warned.err
    by_name = audiolora("transcribe", place.clips[0], "--adapter", run, "--language", "Italian")
    assert by_name.out == f"{italian}\n" and "warning" not in by_name.err
    of_ctc = audiolora("transcribe", place.clips[0], "--adapter", run, "--beam-width", "8")
    assert of_ctc.status == 2 and "is a Whisper; leave it out" in of_ctc.err
    unknown = audiolora("transcribe", place.clips[0], "--adapter", run, "--language", "itt")
    assert unknown.status == 2 and "'itt'" in unknown.err


def test_faulty_files_stop_everything_or_are_left_out(
    place: SimpleNamespace, audiolora: Callable[..., Said], tmp_path: Path
) -> None:
    missing, corrupt, nan = (tmp_path / f"{name}.wav" for name in ("missing", "corrupt", "nan"))
    corrupt.write_bytes(b"RIFF....")
    soundfile.write(nan, np.array([0.0, np.nan, 0.0]), 8000, "FLOAT")
    faulty = (missing, corrupt, nan)
    stopped = audiolora("transcribe", place.clips[0], *faulty, "--adapter", place.run)
    assert stopped.status == 2 and stopped.out == ""
    assert all(str(file) in stopped.err for file in faulty) and str(place.clips[0]) not in stopped.err
    assert "error: 3 of 4 files cannot be transcribed" in stopped.err and "--skip-bad" in stopped.err

    alone = audiolora("transcribe", place.clips[0], "--adapter", place.run).out
    skipped = audiolora("transcribe", place.clips[0], *faulty, "--adapter", place.run, "--skip-bad")
    assert skipped.status == 3 and skipped.out == f"{place.clips[0]}\t{alone}"
    assert skipped.err.count("left out: ") == 3
    nothing = audiolora("transcribe", *faulty, "--adapter", place.run, "--skip-bad")
    assert nothing.status == 2 and nothing.out == "" and "nothing is left to transcribe" in nothing.err


def test_captions_of_one_name_are_told_before_the_work(
    place: SimpleNamespace, audiolora: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one/x.wav", "two/x.flac"):
        (tmp_path / name).parent.mkdir()
        soundfile.write(tmp_path / name, np.full(800, 0.1), 8000)
    monkeypatch.setattr(speech_commands, "_transcriber", lambda *_: pytest.fail("the model was loaded"))
    how = ("--adapter", place.run, "--format", "srt", "--out", tmp_path / "out")
    said = audiolora("transcribe", tmp_path / "one", tmp_path / "two", *how)
    assert said.status == 2 and said.out == "" and "would both be" in said.err and "Traceback" not in said.err
    assert "x.wav" in said.err and "x.flac" in said.err and not (tmp_path / "out").exists()


def test_out_takes_the_texts(place: SimpleNamespace, audiolora: Callable[..., Said], tmp_path: Path) -> None:
    words = ("transcribe", place.folder, "--adapter", place.run)
    shown = audiolora(*words).out
    written = audiolora(*words, "--out", tmp_path / "new" / "texts.txt")
    assert (written.status, written.out) == (0, "") and (tmp_path / "new" / "texts.txt").read_text() == shown
    # A file cannot be written below a file: what was decoded is shown all the same.
    failed = audiolora(*words, "--out", tmp_path / "new" / "texts.txt" / "again")
    assert failed.status == 2 and failed.out == shown and "texts.txt" in failed.err
    assert audiolora(*words, "--out", tmp_path).status == 2


def test_a_wrong_base_is_refused_by_name(
    place: SimpleNamespace, audiolora: Callable[..., Said], tmp_path: Path
) -> None:
    for words in (
        ("transcribe", place.clips[0], "--adapter", place.run),
        ("merge", place.run, "--out", tmp_path / "m"),
    ):
        said = audiolora(*words, "--base", place.other)
        assert said.status == 2 and said.out == ""
        assert f"trained over {place.base}" in said.err and f"{place.other} is another model" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_gone_is_named_with_the_remedy(
    audiolora: Callable[..., Said], place: SimpleNamespace, tmp_path: Path
) -> None:
    tiny_whisper(tmp_path / "base")
    run = tiny_run(tmp_path / "run", tmp_path / "base").folder
    (tmp_path / "base").rename(tmp_path / "moved")
    gone = audiolora("transcribe", place.clips[0], "--adapter", run)
    assert gone.status == 2 and str(tmp_path / "base") in gone.err and "--base" in gone.err
    found = audiolora("transcribe", place.clips[0], "--adapter", run, "--base", tmp_path / "moved")
    assert found.status == 0 and found.out.strip()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["CLIP"], "either --adapter RUN or --model NAME"),
        (["CLIP", "--adapter", "RUN", "--model", "BASE"], "either --adapter RUN or --model NAME"),
        (["CLIP", "--model", "BASE", "--base", "BASE"], "--base goes with --adapter"),
        (["CLIP", "--adapter", "RUN", "--json", "--format", "tsv"], "contradict"),
        (["CLIP", "--adapter", "RUN", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--adapter", "RUN"], "name at least one audio file"),
        (["RUN", "--adapter", "RUN"], "holds no audio"),
        (["CLIP", "--adapter", "nowhere"], "nowhere holds no adapter"),
        (["CLIP", "--adapter", "BASE"], "whole model and no adapter"),
        (["CLIP", "--model", "nowhere/at all"], "no such file or directory"),
        (["CLIP", "--model", "RUN/adapter"], "this is an adapter, not a model"),
        (["CLIP", "--adapter", "RUN", "--language", "it"], "English-only Whisper can only transcribe English"),
        (["CLIP", "--adapter", "RUN", "--context", "mix"], "context"),
        (["CLIP", "--adaptor", "RUN"], "--adaptor"),
    ],
)
def test_a_mistake_is_told(
    words: list[str],
    message: str,
    place: SimpleNamespace,
    audiolora: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    names = {"CLIP": place.clips[0], "RUN": place.run, "BASE": place.base, "RUN/adapter": place.run / "adapter"}
    said = audiolora("transcribe", *(names.get(word, word) for word in words))
    assert said.status == 2 and said.out == "" and message in said.err and "Traceback" not in said.err, said.err


# --- inspect and data


def test_inspect(place: SimpleNamespace, audiolora: Callable[..., Said], tmp_path: Path) -> None:
    finished = audiolora("inspect", place.run)
    assert finished.status == 0 and "tiny: finished" in finished.out and "zero-shot" in finished.out
    adapter = audiolora("inspect", place.run / "adapter")
    assert adapter.status == 0 and "adapted modules" in adapter.out and "zero-shot" not in adapter.out
    (tmp_path / "settings.json").write_text('{"model": "m"}')
    begun = audiolora("inspect", tmp_path)
    assert begun.status == 0 and "no whole checkpoint yet" in begun.out
    early = audiolora("merge", tmp_path, "--out", tmp_path / "merged")
    assert early.status == 2 and "a run that is not finished" in early.err
    for folder, fault in ((place.base, "neither settings.json nor"), (tmp_path / "none", "no such folder")):
        refused = audiolora("inspect", folder)
        assert refused.status == 2 and str(folder) in refused.err and fault in refused.err


def test_data_lists_and_fetches(
    place: SimpleNamespace, audiolora: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["data"], ["data", "list"]):
        assert [line.split()[0] for line in audiolora(*words).out.splitlines()] == list(prompts.BUILTIN)
    unknown = audiolora("data", "prompts-xx")
    assert unknown.status == 2 and "prompts-en" in unknown.err
    spoken = [Utterance(clip.stem, clip, "noise", clip.name) for clip in place.clips]
    noise = prompts.Builtin("noise", "three clips", "CC0", "nobody", lambda: spoken, lambda: place.folder)
    monkeypatch.setitem(prompts.BUILTIN, "noise", noise)
    fetched = audiolora("data", "noise")
    assert fetched.status == 0 and "3 clips, 0.1 minutes" in fetched.out and "CC0" in fetched.out


# --- run_app, which the recipes share


def app_of(body: Callable[[], object]) -> App:
    app = App(name="sample")
    app.default(body)
    return app


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def test_what_the_machine_or_audiolora_complains_of_is_one_line(
    audiolora: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    full = OSError(28, "No space left on device")
    writer = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    for error in (full, SafetensorError("I/O error: No space left on device"), writer):
        said = audiolora(app=app_of(raising(error)))
        assert said.status == 2 and said.out == "" and str(error) in said.err and said.err.count("\n") == 1
    mistake = app_of(lambda: prompts.fetch_builtin("nope"))
    said = audiolora(app=mistake)
    assert said.status == 2 and said.err.startswith("error: no built-in set 'nope'") and said.err.count("\n") == 1
    with pytest.raises(prompts.DataError):
        cli.run_app(mistake, ["--debug"])
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(OSError, match="No space"):
        cli.run_app(app_of(raising(full)), [])
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "0")
    assert audiolora(app=mistake).status == 2


@pytest.mark.parametrize("body", [raising(RuntimeError("a fault")), lambda: int("x"), lambda: json.loads("{")])
def test_a_fault_of_the_program_keeps_its_traceback(body: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        cli.run_app(app_of(body), [])


def test_statuses(audiolora: Callable[..., Said]) -> None:
    interrupted = audiolora(app=app_of(raising(KeyboardInterrupt())))
    assert (interrupted.status, interrupted.out, interrupted.err) == (130, "", "")
    assert audiolora(app=app_of(lambda: None)).status == 0
    assert audiolora(app=app_of(lambda: 3)).status == 3


def test_a_reader_that_has_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-c", "from audiolora.cli import main; main()", "data", "list"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
