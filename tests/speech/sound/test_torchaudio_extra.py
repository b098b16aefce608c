"""The torchaudio extra, in three environments: absent, broken (a made-up one and the real wheel), and its DSP.

`make test` sees the first two. `make test-torchaudio` installs the real wheel beside this torch and runs them all.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolora.speech.sound import torchaudio_extra
from audiolora.speech.sound.torchaudio_extra import (
    BrokenTorchaudioError,
    TorchaudioStatus,
    require_working_torchaudio_or_none,
    speed_perturb,
    torchaudio_status,
)

INSTALLED = importlib.util.find_spec("torchaudio") is not None
without_torchaudio = pytest.mark.skipif(INSTALLED, reason="torchaudio is installed here")
with_torchaudio = pytest.mark.skipif(not INSTALLED, reason="torchaudio is not installed; `make test-torchaudio`")

# The failure of the real wheel: a loader's message, and torchaudio's own on top of it.
BROKEN = """
try:
    raise OSError("libc10_cuda.so: cannot open shared object file")
except OSError as error:
    raise OSError("Could not load this library: _torchaudio.abi3.so") from error
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a package named torchaudio, with the given source and version 9.8, first on the import path."""

    def install_source(source: str) -> None:
        (tmp_path / "torchaudio").mkdir()
        (tmp_path / "torchaudio" / "__init__.py").write_text(source)
        info = tmp_path / "torchaudio-9.8.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchaudio\nVersion: 9.8\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install_source


@without_torchaudio
def test_absent_is_no_error() -> None:
    status = require_working_torchaudio_or_none()
    assert (status.installed, status.works, status.version) == (False, False, None)
    assert "audiolora[torchaudio]" in status.remedy


@without_torchaudio
def test_speed_perturbation_names_the_extra() -> None:
    with pytest.raises(BrokenTorchaudioError, match=r"audiolora\[torchaudio\]"):
        speed_perturb(torch.zeros(1, 100), factor=1.1, sample_rate_hz=16000)


def test_broken_is_named_with_its_first_cause_and_the_remedy(install) -> None:
    install(BROKEN)
    status = torchaudio_status()
    assert (status.installed, status.works, status.version) == (True, False, "9.8")
    assert status.reason == "OSError: libc10_cuda.so: cannot open shared object file"
    with pytest.raises(BrokenTorchaudioError, match=r"9\.8 .*libc10_cuda\.so.*pip uninstall torchaudio"):
        require_working_torchaudio_or_none()
    assert "torchaudio" not in sys.modules


def test_one_that_ends_the_interpreter_is_survived(install) -> None:
    install("import os; os._exit(3)")
    assert "status 3" in torchaudio_status().reason


def test_one_that_hangs_is_given_up(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("import time; time.sleep(60)")
    monkeypatch.setattr(torchaudio_extra, "PROBE_TIMEOUT_S", 0.2)
    assert "over 0.2 s" in torchaudio_status().reason


def test_working_has_neither_reason_nor_remedy(install) -> None:
    install("print('a banner')")
    assert torchaudio_status() == TorchaudioStatus(True, True, "9.8", "", "")
    assert require_working_torchaudio_or_none().works


def test_the_remedy_on_a_cpu_torch_is_a_cuda_torch(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(BROKEN)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(sys, "platform", "linux")
    assert "CPU-only torch" in torchaudio_status().remedy


def test_the_remedy_on_a_cuda_torch_is_the_matching_wheel(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("raise RuntimeError('compiled with different CUDA versions')")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "CUDA 13.0" in torchaudio_status().remedy


@pytest.mark.parametrize(
    ("works", "reason", "remedy"), [(True, "why", ""), (False, "", "do"), (False, "why", ""), (True, "", "do")]
)
def test_a_status_that_contradicts_itself_is_refused(works: bool, reason: str, remedy: str) -> None:
    with pytest.raises(ValueError, match="reason and remedy"):
        TorchaudioStatus(True, works, "9.8", reason, remedy)


@pytest.mark.parametrize(
    ("waveform", "factor", "sample_rate_hz", "word"),
    [
        (torch.zeros(10), 0.0, 16000, "factor"),
        (torch.zeros(10), math.nan, 16000, "factor"),
        (torch.zeros(10), 1.1, 0, "sample_rate_hz"),
        (torch.zeros(10, dtype=torch.int16), 1.1, 16000, "int16"),
    ],
)
def test_speed_perturbation_refuses(waveform: torch.Tensor, factor: float, sample_rate_hz: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        speed_perturb(waveform, factor=factor, sample_rate_hz=sample_rate_hz)


def imports(statement: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=False)


@pytest.mark.slow
@with_torchaudio
def test_the_status_of_the_real_wheel_is_what_importing_it_shows() -> None:
    status = torchaudio_status()
    assert status.installed
    assert status.version == importlib.metadata.version("torchaudio")
    assert status.works == (imports("import torchaudio").returncode == 0)


@pytest.mark.slow
@with_torchaudio
@pytest.mark.skipif(
    torch.version.cuda is not None or sys.platform != "linux", reason="torch is no CPU-only Linux build"
)
def test_the_real_wheel_beside_a_cpu_torch_is_found_before_it_breaks_transformers() -> None:
    with pytest.raises(BrokenTorchaudioError, match=r"lib\w+\.so.*pip uninstall torchaudio.*CPU-only torch"):
        require_working_torchaudio_or_none()
    # Why we stop there: what a user would otherwise see.
    broken = imports("from transformers import WhisperForConditionalGeneration")
    assert broken.returncode != 0
    assert "Could not load this library" in broken.stderr


# torchaudio takes this path itself where its lib/ is empty: its Python without its C++ extension.
WITHOUT_EXTENSION = """
import sys, types
extension = types.ModuleType("torchaudio._extension")
extension._IS_TORCHAUDIO_EXT_AVAILABLE = extension._IS_ALIGN_AVAILABLE = False
extension._check_cuda_version = lambda: None
extension.fail_if_no_align = lambda function: function
sys.modules["torchaudio._extension"] = extension
import numpy, torch, torchaudio
from audiolora.speech.sound.torchaudio_extra import speed_perturb
seconds = torch.arange(16000, dtype=torch.float64) / 16000
tone = torch.sin(2 * torch.pi * 400 * seconds).expand(2, -1)
numpy.save(sys.argv[1], speed_perturb(tone, factor=1.25, sample_rate_hz=16000).numpy())
"""


@pytest.mark.slow
@with_torchaudio
def test_speed_perturbation_moves_a_tone_by_its_factor(tmp_path: Path) -> None:
    saved = tmp_path / "faster.npy"
    command = [sys.executable, "-c", WITHOUT_EXTENSION, str(saved)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
    faster = np.load(saved)
    assert faster.shape == (2, 12800)
    expected = np.sin(2 * np.pi * 500 * np.arange(12800) / 16000)
    inner = slice(200, -200)  # the resampling filter sees silence beyond both ends
    np.testing.assert_allclose(faster[0, inner], expected[inner], atol=2e-2)
