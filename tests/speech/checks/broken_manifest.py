"""A manifest of any size over generated clips, some of its rows broken in every way that we know of."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 8000
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Row = dict[str, Any]


def wav_bytes(samples: np.ndarray, *, float32: bool = False) -> bytes:
    """A WAV file of (n,) samples in [-1, 1], written by hand: the reference that soundfile is not."""
    kind, bits = (3, 32) if float32 else (1, 16)
    data = samples.astype("<f4").tobytes() if float32 else np.round(samples * 32767).astype("<i2").tobytes()
    step = bits // 8
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, 1, RATE_HZ, RATE_HZ * step, step, bits)
    chunks = form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


def clip(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """(n,) noise whose loudness goes up and down; no two alike."""
    n = round(seconds * RATE_HZ)
    return 0.2 * rng.uniform(-1, 1, n) * (1 + 0.5 * np.sin(np.arange(n) / 300))


def _spell(number: int) -> str:
    """A word of letters that no other number has."""
    word = ""
    while True:
        number, rest = divmod(number, len(LETTERS))
        word += LETTERS[rest]
        if not number:
            return word


def _file(content: Callable[[bytes], bytes]) -> Callable[[Row, Path, bytes], None]:
    return lambda row, path, whole: path.write_bytes(content(whole)) and None


def _change(**columns: Any) -> Callable[[Row, Path, bytes], None]:
    return lambda row, path, whole: row.update(columns)


def _nan(row: Row, path: Path, whole: bytes) -> None:
    path.write_bytes(wav_bytes(np.full(400, np.nan), float32=True))


def _flac_cut(row: Row, path: Path, whole: bytes) -> None:
    import soundfile

    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), RATE_HZ, format="FLAC")
    path.write_bytes(path.read_bytes()[:12_000])


BROKEN: list[tuple[str, Callable[[Row, Path, bytes], None]]] = [
    ("missing", lambda row, path, whole: path.unlink()),
    ("empty", _file(lambda whole: b"")),
    ("empty", _file(lambda whole: wav_bytes(np.zeros(0)))),
    ("corrupt", _file(lambda whole: whole[:8] + bytes(40))),
    ("corrupt", _file(lambda whole: b"<html>404 Not Found</html>")),
    ("truncated", _file(lambda whole: whole[:-200])),
    ("corrupt", _flac_cut),
    ("nan", _nan),
    ("no-text", _change(text="  ")),
    ("vocabulary", _change(text="ein straßenname")),
    ("long", _file(lambda whole: wav_bytes(np.tile(clip(np.random.default_rng(1), 1.0), 31)))),
    ("duplicate-id", _change(id="clip0")),
]
"""(the kind of finding, what breaks a row and its file)."""


def write_broken_manifest(folder: Path, n_rows: int, n_broken: int) -> dict[str, str]:
    """Write `manifest.jsonl` and `clips/`, a file of its own for each row, `n_broken` of them broken in turn.

    Returns: {row: kind of finding} of the broken rows.
    """
    rng, expected = np.random.default_rng(0), {}
    every, broken = n_rows // n_broken, 0
    with open(folder / "manifest.jsonl", "w", encoding="utf-8") as manifest:
        for i in range(n_rows):
            part = folder / "clips" / f"{i // 1000:03}"
            part.mkdir(parents=True, exist_ok=True)
            path, whole = part / f"{i}.wav", wav_bytes(clip(rng, rng.uniform(0.4, 0.6)))
            row = {"audio": str(path.relative_to(folder)), "text": f"word {_spell(i)}", "id": f"clip{i}"}
            path.write_bytes(whole)
            if i % every == every - 1 and broken < n_broken:
                kind, spoil = BROKEN[broken % len(BROKEN)]
                spoil(row, path, whole)
                expected[f"manifest.jsonl row {i + 1}"] = kind
                broken += 1
            manifest.write(json.dumps(row) + "\n")
    return expected
