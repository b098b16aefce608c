"""examples/browser on a server of its own, in a real Chromium, as somebody would use it."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "examples" / "browser"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

_LACKING = [
    name
    for name, there in {
        "playwright": find_spec("playwright"),
        "a Chromium on PATH": CHROMIUM,
        "onnxruntime-web": (PAGE / "vendor" / "ort.wasm.bundle.min.mjs").exists(),
    }.items()
    if not there
]
NEEDS = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(_LACKING), reason=f"{', '.join(_LACKING)} is not here; `make test-browser`"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """What ``python -m http.server`` runs, without its log."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The page at URL/page/, and what else is in the folder."""
    (folder / "page").symlink_to(PAGE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser, with a microphone that beeps."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        # Chromium has no sandbox for root, in a container for one.
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """The page: what is clicked, and what it says."""

    def __init__(self, browser: Any, url: str, **look: Any) -> None:
        self.page = browser.new_page(**look)
        self.page.set_default_timeout(60_000)
        self.broken: list[str] = []
        self.page.on("pageerror", lambda error: self.broken.append(str(error)))
        self.page.goto(f"{url}/page/index.html")

    def settled(self) -> None:
        """Everything that was asked for is done, and nothing threw."""
        self.page.wait_for_selector("body:not([aria-busy='true'])", state="attached")
        assert self.broken == []

    def bundle(self, address: str, key: Path | None = None) -> None:
        self._trust(key)
        self.page.fill("#url", address)
        self.page.click("#open button.primary")
        self.settled()

    def folder(self, folder: Path, key: Path | None = None) -> None:
        self._trust(key)
        self.page.set_input_files("#folder", folder)
        self.settled()

    def file(self, path: Path) -> None:
        self.page.set_input_files("#file", path)
        self.settled()

    def series(self, name: str) -> None:
        self.page.select_option("#series", name)
        self.settled()

    def adapter(self, name: str | None) -> None:
        self.page.click(f"#adapters button[data-id='{name or ''}']")
        self.settled()

    def click(self, button: str) -> None:
        self.page.click(button)
        self.settled()

    @property
    def error(self) -> str:
        return self.page.text_content("#error")

    @property
    def running(self) -> str:
        """The adapter that is pressed, "" for the base."""
        return self.page.get_attribute("#adapters button[aria-pressed='true']", "data-id")

    @property
    def numbers(self) -> np.ndarray:
        """The table's cells, without the first column."""
        rows = self.page.eval_on_selector_all(
            "#numbers tr:not(:first-child)", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )
        return np.array(rows, np.float64)[:, 1:]

    def _trust(self, key: Path | None) -> None:
        if self.page.get_attribute("#trust", "open") is None:
            self.page.click("#trust summary")
        self.page.fill("#key", "" if key is None else key.read_text())
