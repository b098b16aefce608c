"""PEFT's own tests with our layers in place: whatever passes with PEFT's convolutions passes with ours.

`make test-peft` fetches PEFT's sources and runs this; elsewhere it is skipped, by name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest

ROOT = Path(__file__).parents[2]

# Found by recording which tests of the whole suite give an nn.Conv1d to LoRA; the pass below records it again.
SELECTION = ["tests/test_custom_models.py", "tests/test_lora_variants.py"]
KEYWORDS = "(Conv1d and LoRA and not Embedding) or TestLoraVariants"
OURS, PEFTS = "audiolora.layers.lora.LoraConv1d", "peft.tuners.lora.layer.Conv1d"

Outcomes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def sources() -> Path:
    """The unpacked source distribution of the PEFT that is installed."""
    folder = os.environ.get("PEFT_SOURCES")
    if not folder:
        pytest.skip("PEFT_SOURCES is not set: it names PEFT's unpacked source distribution; run `make test-peft`")
    path = Path(folder) / f"peft-{peft.__version__}"
    assert (path / "tests" / "test_custom_models.py").is_file(), f"{path} does not hold PEFT {peft.__version__}'s tests"
    return path


def outcomes(sources: Path, convolutions: str, folder: Path) -> Outcomes:
    """Each selected test's outcome and layers, with PEFT's or with our convolutions."""
    report, settings = folder / f"{convolutions}.json", folder / "pytest.ini"
    # Instead of PEFT's own settings, which ask for a coverage plug-in.
    settings.write_text("[pytest]\nmarkers =\n    regression: PEFT's own\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "convolution_layers"]
    command += ["-c", str(settings), "--rootdir", str(sources), "--convolutions", convolutions]
    command += ["--outcomes", str(report), *SELECTION, "-k", KEYWORDS]
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        command, cwd=sources, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert report.is_file(), f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return json.loads(report.read_text("utf-8"))


def test_the_sources_are_of_the_peft_that_is_installed() -> None:
    requirements = (Path(__file__).parent / "requirements.txt").read_text("utf-8")
    assert f"\npeft=={peft.__version__} --hash=sha256:" in requirements, "raise PEFT's line and hash here too"


@pytest.mark.slow
def test_what_passes_with_peft_s_convolutions_passes_with_ours(sources: Path, tmp_path: Path) -> None:
    stock, ours = (outcomes(sources, whose, tmp_path) for whose in ("peft", "audiolora"))
    assert stock.keys() == ours.keys()
    adapted = [name for name, result in stock.items() if result["layers"] == [PEFTS]]
    passed = [name for name in adapted if stock[name]["outcome"] == "passed"]
    assert len(passed) >= 100, f"PEFT's suite has moved: {len(passed)} of {len(adapted)} convolution tests pass"
    failed = {name: ours[name]["message"] for name in passed if ours[name]["outcome"] != "passed"}
    assert failed == {}, "\n".join(f"{name}\n{message}" for name, message in failed.items())
    assert [name for name in passed if ours[name]["layers"] != [OURS]] == [], "PEFT's layer where ours belongs"
    others = [name for name in stock.keys() - set(adapted) if stock[name]["outcome"] != ours[name]["outcome"]]
    assert others == [], "tests without a convolution came out differently"
    print(f"{len(passed)} of PEFT {peft.__version__}'s tests of an adapted nn.Conv1d pass with PEFT's layer and ours")
