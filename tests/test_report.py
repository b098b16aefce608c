"""The page stands alone, escapes what it shows, plays what it was given, and is written whole or not at all."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from audiolora.report import ClipResult, SpeechReport, speech_usage, write_json, write_report
from audiolora.report.audio import audio_data_uri, choose_codec
from audiolora.speech.texts.metrics import error_rates

RATE_HZ = 16_000
HOSTILE = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects elements and text, and checks that every element is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def voice(seed: int, duration_s: float = 1.0, gain: float = 0.3) -> np.ndarray:
    """A buzz with a moving pitch, syllables and some breath: (L,) float32."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(duration_s * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 1.3 * t + seed)) / RATE_HZ
    buzz = sum(np.sin(k * phase) / k for k in range(1, 20)) * (0.5 + 0.5 * np.sin(2 * np.pi * 4 * t)) / 2
    return (gain * buzz + 0.01 * rng.standard_normal(len(t))).astype(np.float32)


def make_report(n: int = 24, **changes: object) -> SpeechReport:
    sentences = [f"sentence number {i} is about the {i % 5} weather" for i in range(n)]
    before_texts = [["and again" * 3, "", "so " * 150][i % 3] for i in range(n)]
    after_texts = [s if i % 4 else s.replace("number", "lumber") + " today" for i, s in enumerate(sentences)]
    clips = [
        ClipResult(f"clip/{i}", voice(i), voice(i + 1000), sentences[i], before_texts[i], after_texts[i])
        for i in range(n)
    ]
    fields: dict = {
        "title": "Through a voice scrambler",
        "subtitle": "A test",
        "before": error_rates(sentences, before_texts, normalize=str.lower, resamples=100),
        "after": error_rates(sentences, after_texts, normalize=str.lower, resamples=100),
        "clips": clips,
        "normalize": str.lower,
        "facts": [("Base model", "openai/whisper-tiny.en")],
        "loss": [(10, 3.0), (20, 1.0)],
        "eval_loss": [(20, 1.2)],
        "usage": speech_usage("runs/my demo", "openai/whisper-tiny.en"),
        "notes": ["The channel is simulated on real speech."],
        "attribution": ["Speech: generated. See https://example.org/licence"],
        "channel": "invert",
    }
    return SpeechReport(**(fields | changes))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "run" / "report.html"
    write_report(path, make_report())
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_page_stands_alone(source: str, page: Page) -> None:
    assert not page.all("script")
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), f"<{tag} {name}={value[:60]!r}>"
        assert not any(name.startswith("on") for name in attributes)
    assert not re.findall(r"url\((?!#|\"#|'#)", source)
    assert "@import" not in source
    [policy] = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_ids_are_unique_and_every_link_lands(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a.get("href") or a.get("xlink:href") for tag, a in page.elements if tag in ("a", "use")]
    assert links and all(link is not None and link[0] == "#" and link[1:] in ids for link in links)
    assert all(a["aria-labelledby"] in ids for _, a in page.elements if "aria-labelledby" in a)


def test_drawings_have_a_text_and_follow_the_colour_scheme(source: str, page: Page) -> None:
    drawings = page.all("svg")
    assert len(drawings) == 4
    assert all(d["role"] == "img" and d["aria-label"] for d in drawings)
    assert "#01020" not in source, "a sentinel colour is left"
    for variable in set(re.findall(r"var\((--[a-z-]+)\)", source)):
        assert f"{variable}:" in source
    assert "prefers-color-scheme: dark" in source


def test_headline_and_counts_are_shown(page: Page) -> None:
    report = make_report()
    text = page.text.replace("\N{NARROW NO-BREAK SPACE}", "")
    for rates in (report.before, report.after):
        assert f"{rates.wer.value:.1f}%" in text
        assert f"[{rates.wer.low:.1f}, {rates.wer.high:.1f}]" in text
    assert "The channel is simulated on real speech." in text
    assert "audiolora transcribe recording.wav --adapter 'runs/my demo'" in text


def test_best_and_worst_do_not_meet(page: Page) -> None:
    labels = [a["aria-label"] or "" for a in page.all("audio")]
    shown = [label.split(": ")[1] for label in labels if label.startswith("As the model hears it")][1:]  # [0]: pictured
    numbers = [int(name.split("/")[1]) for name in shown]
    assert len(numbers) == len(set(numbers)) == 16
    assert all(i % 4 for i in numbers[:10]), "the best are clips that the adapted model wrote right"
    assert [i for i in numbers[10:] if i % 4] == [], "the worst are clips with an error; six of 24 have one"


def test_players_decode_to_the_clips(page: Page) -> None:
    import soundfile

    for attributes in page.all("audio"):
        kind, _, name = (attributes["aria-label"] or "").partition(": ")
        index = int(name.split("/")[1])
        media, _, payload = (attributes["src"] or "").partition(";base64,")
        assert media == "data:audio/flac"
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(payload)), dtype="float32")
        assert rate == RATE_HZ
        np.testing.assert_allclose(samples, voice(index + 1000 * (kind == "Clean")), atol=2 / 2**15)


def test_loud_clips_are_turned_down_not_clipped() -> None:
    import soundfile

    loud = voice(1, gain=3.0)
    assert np.abs(loud).max() > 1.5
    payload = audio_data_uri(loud, RATE_HZ).partition(";base64,")[2]
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(payload)), dtype="float32")
    np.testing.assert_allclose(samples, loud / np.abs(loud).max(), atol=2 / 2**15)


def test_long_pages_use_mp3_that_still_sounds_like_the_clip() -> None:
    import soundfile

    assert choose_codec(10.0) == "flac" and choose_codec(1200.0) == "mp3"
    clip = voice(3, duration_s=3.0)
    payload = audio_data_uri(clip, RATE_HZ, codec="mp3").partition(";base64,")[2]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(payload)), dtype="float32")
    assert rate == RATE_HZ and abs(len(samples) - len(clip)) < 0.1 * RATE_HZ
    # The codec may shift the signal by its own delay: compare at the best alignment.
    n = min(len(samples), len(clip))
    spectrum = np.fft.rfft(samples[:n], 2 * n) * np.conj(np.fft.rfft(clip[:n], 2 * n))
    correlation = np.fft.irfft(spectrum).max() / (np.linalg.norm(samples[:n]) * np.linalg.norm(clip[:n]))
    assert correlation > 0.98


def test_hostile_text_is_shown_not_run(tmp_path: Path) -> None:
    clips = [ClipResult(HOSTILE, voice(0), None, HOSTILE, HOSTILE + " x", HOSTILE)]
    report = make_report(
        title=HOSTILE,
        subtitle=HOSTILE,
        clips=clips,
        facts=[(HOSTILE, HOSTILE)],
        notes=[HOSTILE],
        attribution=[HOSTILE],
        usage=speech_usage(HOSTILE, HOSTILE),
        before_label=HOSTILE,
        channel=HOSTILE,
        language='"><script>',
    )
    write_report(tmp_path / "report.html", report)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert not page.all("script")
    assert "<script" not in source
    assert page.text.count(HOSTILE) >= 7


@pytest.mark.parametrize("duration_s", [4.25, pytest.param(30.0, marks=pytest.mark.slow)])
def test_twenty_clips_stay_small(tmp_path: Path, duration_s: float) -> None:
    """White noise, which nothing compresses: just short enough for FLAC, and as long as Whisper hears."""
    noise = np.random.default_rng(0).uniform(-1, 1, int(duration_s * RATE_HZ)).astype(np.float32)
    clips = [ClipResult(str(i), noise, noise, "a b c d", "", "a b c d") for i in range(20)]
    write_report(tmp_path / "report.html", make_report(clips=clips))
    assert (tmp_path / "report.html").stat().st_size < 10e6


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_clips(tmp_path: Path, n: int) -> None:
    write_report(tmp_path / "report.html", make_report(n, loss=(), eval_loss=(), usage=(), facts=()))
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_loss_that_is_not_finite_does_not_cost_the_report(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", make_report(2, loss=[(1, 3.0), (2, float("nan")), (3, float("inf"))]))
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_bad_clips_are_named() -> None:
    with pytest.raises(ValueError, match="clip 'x': audio must be one channel"):
        ClipResult("x", np.zeros((2, 5), np.float32), None, "a", "a", "a")
    with pytest.raises(ValueError, match="clip 'x', clean: audio must be finite, got nan at sample 1"):
        ClipResult("x", voice(0), np.array([0, np.nan], np.float32), "a", "a", "a")
    clip = ClipResult("x", voice(0), None, "a", "a", "a")
    with pytest.raises(ValueError, match="unique, got 'x' 2 times"):
        make_report(clips=[clip, clip])
    with pytest.raises(ValueError, match="at least one clip"):
        make_report(clips=[])


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_report_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "report.html"
    path.write_text("the old report", encoding="utf-8")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, make_report(2))
    assert path.read_text(encoding="utf-8") == "the old report"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_json_holds_dataclasses_paths_and_numpy(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    rates = make_report(2).after
    write_json(path, {"wer_after": rates.wer, "where": tmp_path, "seconds": np.float32(1.5), "text": "è"})
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["wer_after"] == {"value": rates.wer.value, "low": rates.wer.low, "high": rates.wer.high}
    assert (read["where"], read["seconds"], read["text"]) == (str(tmp_path), 1.5, "è")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match=r"summary\.json.*write None"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError, match="set"):
        write_json(path, {"a": {1}})
    assert json.loads(path.read_text()) == {"a": 1}
