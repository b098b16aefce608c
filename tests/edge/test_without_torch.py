"""The device's side where torch and everything else of the training side cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from audiolora.edge import Session
from audiolora.export import make_keys
from tests.export.small_bundle import factors, reference, sample, write_adapter, write_base

ROOT = Path(__file__).parents[2]
FORBIDDEN = ("torch", "peft", "transformers", "safetensors", "pandas", "scipy", "onnx", "rich", "cyclopts", "sklearn")

BEFORE = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN!r}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Refuse())
"""

PROGRAM = """
import audiolora
import audiolora.edge
assert "onnxruntime" not in sys.modules  # no work at import
import numpy as np
session = audiolora.edge.Session({bundle!r}, key={key!r}, threads=1)
session.load("user1")
x = np.load({x!r})
np.save({y!r}, np.stack([session.run(x, "user1"), session.bind("user1").run(x), session.run(x)]))
assert session.selftest("user1") < 1e-5
"""


def run_without_torch(program: str) -> str:
    """What it prints, in a process that can import none of `FORBIDDEN`."""
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_session_runs_without_torch(tmp_path: Path) -> None:
    import numpy as np

    private, public = make_keys(tmp_path / "ours")
    write_base(tmp_path / "b", key=private)
    write_adapter(tmp_path / "b", key=private)
    np.save(tmp_path / "x.npy", sample())
    files = {name: str(tmp_path / f"{name}.npy") for name in "xy"}
    run_without_torch(PROGRAM.format(bundle=str(tmp_path / "b"), key=str(public), **files))
    swapped, bound, base = np.load(files["y"])
    for found, adapter in ((swapped, factors()), (bound, factors()), (base, None)):
        np.testing.assert_allclose(found, reference(sample(), adapter), rtol=0, atol=1e-5)


HEARING = """
texts = session.transcribe(list(x), 16_000, "door")
assert session.bind("door").transcribe(x[0], 16_000) == texts[0]
assert "wave" in sys.modules
print("|".join(texts))
"""


@pytest.mark.slow
def test_a_whisper_hears_without_torch(tmp_path: Path) -> None:
    import numpy as np

    from audiolora.export.runs import export_runs
    from audiolora.export.speech import drawn_clip
    from tests.speech.tiny_run import tiny_run
    from tests.speech.tiny_whisper import tiny_whisper

    tiny_whisper(tmp_path / "base")
    tiny_run(tmp_path / "door", tmp_path / "base")
    export_runs([tmp_path / "door"], tmp_path / "b")
    x = np.stack([drawn_clip(), drawn_clip()[::-1]])
    np.save(tmp_path / "x.npy", x)
    begin = PROGRAM.partition("x = np.load")[0].replace('"user1"', '"door"')
    program = begin + f"x = np.load({str(tmp_path / 'x.npy')!r})" + HEARING
    said = run_without_torch(program.format(bundle=str(tmp_path / "b"), key=None))
    session = Session(tmp_path / "b", threads=1)
    session.load("door")
    assert said.rstrip("\n") == "|".join(session.transcribe(list(x), 16_000, "door"))
