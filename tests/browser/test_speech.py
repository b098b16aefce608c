"""Sound in, text out, in the browser: the texts are the session's, for CTC models and Whisper, whatever the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiolora.edge import Session
from audiolora.export import export
from tests.browser.opened import NEEDS, Opened, chromium, served

pytestmark = NEEDS
RATE_HZ = 16_000


def clips() -> list[np.ndarray]:
    """A rising tone in noise, and noise alone."""
    draw, t = np.random.default_rng(1), np.arange(24_000) / RATE_HZ
    tone = 0.3 * np.sin(2 * np.pi * (300 + 400 * t) * t) + 0.05 * draw.normal(size=t.size)
    return [tone.astype(np.float32), (0.2 * draw.normal(size=9_000)).astype(np.float32)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder that is served, with bundles of tiny random models and the clips."""
    import soundfile

    folder = tmp_path_factory.mktemp("site")
    ctc_bundles(folder)
    whisper_bundle(folder, tmp_path_factory.mktemp("whisper"))
    for i, clip in enumerate(clips()):
        # Floats: of 16-bit samples Chromium divides positive ones by 32767, others by 32768.
        soundfile.write(folder / f"{i}.wav", clip, RATE_HZ, subtype="FLOAT")
    with served(folder) as url:
        yield folder, url


def ctc_bundles(folder: Path) -> None:
    from tests.export.ctc_models import LAYER, adapted, ctc_model, processor

    for name, masked in (("alone", False), ("masked", True)):
        model = adapted(ctc_model(num_hidden_layers=1, **(LAYER if masked else {})))
        export(model, folder / name, processor=processor(folder, masked=masked), web=True)


def whisper_bundle(folder: Path, made: Path) -> None:
    """Its base detects the language and hears 30 s, its adapter is told Italian and hears a clip's own length."""
    from audiolora import cli
    from tests.speech.tiny_run import tiny_run
    from tests.speech.tiny_whisper import tiny_whisper

    tiny_whisper(made / "base", multilingual=True)
    tiny_run(made / "door", made / "base", context="auto", language="it")
    for name, how in (("whisper", []), ("whisper8", ["--quantize", "int8"])):
        with pytest.raises(SystemExit) as end:
            cli.run_app(cli.app, ["export", str(made / "door"), "--out", str(folder / name), "--web", *how])
        assert not end.value.code


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("bundle", ["alone", "masked", "whisper", "whisper8"])
def test_the_texts_are_pythons(site: tuple[Path, str], browser: Any, bundle: str) -> None:
    folder, url = site
    page, python = Opened(browser, url), Session(folder / bundle, threads=1)
    page.bundle(f"../{bundle}")
    texts = set()
    for adapter in (None, *python.available()):
        if adapter is not None:
            python.load(adapter)
        page.adapter(adapter)
        for i, clip in enumerate(clips()):
            page.file(folder / f"{i}.wav")
            wanted = python.transcribe(clip, RATE_HZ, adapter)
            assert (page.error, page.page.text_content("#text")) == ("", wanted)
            texts.add(wanted)
    assert len(texts) == len(clips()) * (1 + len(python.available())) and all(texts)
    page.page.close()


def test_a_clip_that_is_too_short_is_told(site: tuple[Path, str], browser: Any, tmp_path: Path) -> None:
    import soundfile

    page = Opened(browser, site[1])
    page.bundle("../alone")
    soundfile.write(tmp_path / "short.wav", np.zeros(40), RATE_HZ, subtype="FLOAT")
    page.file(tmp_path / "short.wav")
    assert "and the network needs" in page.error
    (tmp_path / "no.wav").write_bytes(b"no sound")
    page.file(tmp_path / "no.wav")
    assert "no sound that this browser can decode" in page.error
    page.page.close()
