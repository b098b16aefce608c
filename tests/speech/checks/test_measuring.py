"""Many clips: worker processes give what one process gives, and the cache what was measured, never anything else."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from audiolora.speech.checks import measuring
from audiolora.speech.checks.clip_cache import ClipCache, clip_key
from audiolora.speech.checks.clip_facts import ClipFacts, measure_clip
from audiolora.speech.checks.measuring import durations_s, measure_clips
from audiolora.speech.data.audio import duration_s
from audiolora.speech.data.sources import Segment
from audiolora.speech.data.utterance import Utterance
from tests.speech.checks.bomb import Bomb
from tests.speech.checks.broken_manifest import clip, wav_bytes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def clips(tmp_path):
    """Forty files, three of them broken."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i:02}.wav" for i in range(40)]
    for path in paths:
        path.write_bytes(wav_bytes(clip(rng, 0.1)))
    paths[3].write_bytes(b"")
    paths[17].write_bytes(b"junk")
    paths[30].write_bytes(paths[30].read_bytes()[:-50])
    return paths


@pytest.fixture
def grown_up(monkeypatch):
    """Facts of files that were just written are kept, too."""
    monkeypatch.setattr("audiolora.speech.checks.clip_cache._YOUNG_S", -1.0)


@pytest.fixture
def measured(monkeypatch):
    """The clips that were really measured, in this process."""
    seen = []
    monkeypatch.setattr(measuring, "measure_clip", lambda source: seen.append(source) or measure_clip(source))
    return seen


def test_worker_processes_give_the_same_in_order(clips):
    expected = [measure_clip(path) for path in clips]
    assert [facts.kind for facts in expected if facts.fault] == ["empty", "corrupt", "truncated"]
    assert measure_clips(clips, workers=0, progress=False) == expected
    assert measure_clips([*clips[5:], *clips], workers=2, progress=False) == [*expected[5:], *expected]
    assert measure_clips([path.read_bytes() for path in clips[:2]], workers=1, progress=False) == expected[:2]
    assert measure_clips([], workers=2, progress=False) == []
    with pytest.raises(ValueError, match="workers must not be negative, got -1"):
        measure_clips(clips, workers=-1)


def test_a_clip_that_crashes_its_decoder_is_told_and_the_others_are_measured(clips):
    mined = [*clips[:5], Bomb(clips[0]), *clips[5:9], Bomb(clips[1]), clips[9]]
    found = measure_clips(mined, workers=1, progress=False)
    assert [i for i, facts in enumerate(found) if facts.kind == "crash"] == [5, 10]
    assert "crashes on it (signal 6)" in found[5].fault
    assert [facts for facts in found if facts.kind != "crash"] == [measure_clip(path) for path in clips[:10]]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_somebody_ended_is_no_fault_of_the_clip(clips, tmp_path, how):
    """As the system does where memory is short: the clip would be called bad, from the cache, for ever after."""
    cache = ClipCache(tmp_path / "facts.sqlite")
    with pytest.raises(RuntimeError, match=rf"ended from outside \(signal {int(how)}\).*fewer workers"):
        measure_clips([Bomb(clips[0], how=how)], workers=1, cache=cache, progress=False)
    assert cache.find([clip_key(Bomb(clips[0], how=how))]) == [None]


def test_a_file_whose_name_is_not_utf8_is_told(clips, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    path.write_bytes(clips[0].read_bytes())
    cache = ClipCache(tmp_path / "facts.sqlite")
    (facts,) = measure_clips([path], cache=cache, progress=False)
    assert (facts.fault, facts.kind) == ("the file's name is not UTF-8; rename it", "unreadable")


def test_a_worker_that_does_not_start_says_why(clips, monkeypatch):
    monkeypatch.setattr("audiolora.speech.checks.clip_crew.sys.path", [])
    monkeypatch.setattr("audiolora.speech.checks.clip_crew.sys.executable", "/usr/bin/env")
    with pytest.raises(RuntimeError, match="did not start: .*; try workers=0"):
        measure_clips(clips, workers=1, progress=False)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_when_the_main_process_ends_so_do_its_workers(clips, tmp_path, how):
    script = f"""
from pathlib import Path
from audiolora.speech.checks.measuring import measure_clips
from tests.speech.checks.bomb import Bomb
print("started", flush=True)
measure_clips([Bomb(Path({str(clips[0])!r}), wait_s=0.05 + i / 1e6) for i in range(8000)], workers=2, progress=False)
"""
    main = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    main.stdout.readline()
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        time.sleep(0.05)
        workers = psutil.Process(main.pid).children(recursive=True)
    time.sleep(0.5)
    main.send_signal(how)
    _, errors = main.communicate(timeout=60)  # of the 200 s that the clips take
    assert (b"KeyboardInterrupt" in errors) == (how == signal.SIGINT) and b"clip_worker" not in errors
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert len(gone) == 2 and not alive


def test_a_second_run_measures_nothing(clips, tmp_path, grown_up, measured):
    cache = ClipCache(tmp_path / "facts.sqlite")
    first = measure_clips([*clips, *clips[:5]], cache=cache, progress=False)
    assert measured == clips, "each file once, however often it stands in the data"
    assert measure_clips([*clips, *clips[:5]], cache=ClipCache(cache.file), progress=False) == first
    assert measured == clips
    measure_clips(clips[:7], cache=ClipCache(cache.file, anew=True), progress=False)
    assert measured == [*clips, *clips[:7]]


def test_lengths_are_those_of_the_headers_measured_before_or_not(clips, tmp_path, grown_up, monkeypatch):
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    good = [path for i, path in enumerate(clips) if i not in (3, 17, 30)]
    sources = [*good, Segment(good[0], 0.02, 0.05), Segment(good[1], 0.02), good[2].read_bytes()]
    utterances = [Utterance(str(i), source, "x", f"row {i}") for i, source in enumerate(sources)]
    expected = tuple(duration_s(source) for source in sources)
    assert durations_s(utterances) == expected
    measure_clips(sources, cache=ClipCache(), progress=False)
    opened = []
    monkeypatch.setattr(measuring, "duration_s", lambda source, name: opened.append(source) or duration_s(source))
    assert durations_s(utterances) == expected and opened == sources[-3:]


def rewrite(path):
    path.write_bytes(wav_bytes(clip(np.random.default_rng(9), 0.1)))


def rewrite_and_keep_the_time(path):
    """As `rsync --times` or `cp -p` of another file of the same size."""
    before = path.stat()
    rewrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"LIST\0\0\0\0")


def replace_it(path):
    rewrite(path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize("change", [rewrite, rewrite_and_keep_the_time, lengthen, replace_it])
def test_a_file_that_changed_is_measured_again(clips, tmp_path, grown_up, measured, change):
    cache = ClipCache(tmp_path / "facts.sqlite")
    first = measure_clips(clips, cache=cache, progress=False)
    time.sleep(0.02)  # a tick of the file system's clock
    change(clips[8])
    again = measure_clips(clips, cache=cache, progress=False)
    assert measured[len(clips) :] == [clips[8]]
    assert again[8] == measure_clip(clips[8]) and again[:8] + again[9:] == first[:8] + first[9:]
    clips[9].unlink()
    assert measure_clips(clips, cache=cache, progress=False)[9].kind == "missing"


def test_facts_of_a_file_that_was_just_written_are_not_kept(clips, tmp_path, measured):
    cache = ClipCache(tmp_path / "facts.sqlite")
    for times in (1, 2):
        measure_clips(clips, cache=cache, progress=False)
        assert len(measured) == times * len(clips)
    assert not clip_key(clips[0]).kept and clip_key(b"RIFF").kept


def test_what_the_machine_did_is_not_kept(tmp_path, grown_up):
    cache = ClipCache(tmp_path / "facts.sqlite")
    (tmp_path / "a.wav").write_bytes(b"")
    key = clip_key(tmp_path / "a.wav")
    cache.keep([(key, ClipFacts(fault="too many open files", kind="unreadable"))])
    assert cache.find([key]) == [None]


def test_only_so_many_are_kept_and_the_oldest_go(clips, tmp_path, grown_up, monkeypatch):
    cache = ClipCache(tmp_path / "facts.sqlite", max_clips=20)
    now = time.time()
    for day, some in ((1, clips[:15]), (2, clips[15:30])):
        monkeypatch.setattr("audiolora.speech.checks.clip_cache.time.time", lambda day=day: now + 86_400 * day)
        measure_clips(some, cache=cache, progress=False)
    kept = [facts is not None for facts in cache.find([clip_key(path) for path in clips])]
    assert sum(kept) <= 20 and all(kept[15:30]) and not any(kept[30:])


@pytest.mark.parametrize("content", [b"not a database " * 100, b""])
def test_a_damaged_cache_is_made_anew(clips, tmp_path, grown_up, content, caplog):
    cache = ClipCache(tmp_path / "facts.sqlite")
    cache.file.write_bytes(content)
    expected = measure_clips(clips, cache=cache, progress=False)
    assert ("made anew" in caplog.text) == bool(content)
    assert ClipCache(cache.file).find([clip_key(path) for path in clips]) == expected


def test_where_nothing_can_be_kept_everything_is_measured_and_it_is_said_once(clips, tmp_path, grown_up, caplog):
    (tmp_path / "file").write_text("no folder")
    cache = ClipCache(tmp_path / "file" / "facts.sqlite")
    assert measure_clips(clips, cache=cache, progress=False) == [measure_clip(path) for path in clips]
    assert caplog.text.count("clips are measured without it") == 1


WRITER = """
import sys
from pathlib import Path
from audiolora.speech.checks.clip_cache import ClipCache, ClipKey
from audiolora.speech.checks.clip_facts import ClipFacts
who, n = sys.argv[2], int(sys.argv[3])
cache = ClipCache(Path(sys.argv[1]))
print("started", flush=True)
for i in range(n):
    cache.keep([(ClipKey(f"{who}{i}-{j}", "x"), ClipFacts(duration_s=float(j))) for j in range(50)])
    print(i, flush=True)
"""


@pytest.mark.slow
def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path):
    file = tmp_path / "facts.sqlite"
    words = [sys.executable, "-c", WRITER, file]
    writers = [subprocess.Popen([*words, who, "15"], cwd=ROOT, stdout=subprocess.DEVNULL) for who in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT count(*) FROM clips").fetchone() == (2 * 15 * 50,)


@pytest.mark.slow
def test_a_kill_leaves_whole_portions(tmp_path):
    file = tmp_path / "facts.sqlite"
    for attempt in range(10):
        words = [sys.executable, "-c", WRITER, file, f"w{attempt}-", "100000"]
        writer = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        said = [writer.stdout.readline() for _ in range(3 + attempt)]
        writer.kill()
        writer.communicate()
        assert said[0] == "started\n"
        with sqlite3.connect(file) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert database.execute("SELECT count(*) FROM clips").fetchone()[0] % 50 == 0
