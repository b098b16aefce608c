"""The torchaudio extra: whether it works here, said before it can break anything, and speed perturbation through it.

torchaudio's Linux wheels are CUDA builds that state no dependency, so pip installs them beside a CPU-only torch, where
`import torchaudio` raises OSError. transformers imports torchaudio wherever it is installed, so its speech models, its
Trainer and PEFT then fail to import as well, far from the cause. `require_working_torchaudio_or_none` is called before
the first import of transformers and names the cause and the remedy instead.

What is deliberately not here, because transformers does it on the training device without torchaudio:

- SpecAugment (Park et al. 2019, arXiv 1904.08779): `config.apply_spec_augment = True` with `mask_time_prob`,
  `mask_time_length`, `mask_feature_prob`, `mask_feature_length`; Whisper masks the log-mel features, wav2vec2 the
  encoder's input, both in training only, from the generator that the Trainer seeds and checkpoints.
- log-mel features: `WhisperFeatureExtractor(..., device="cuda")`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROBE_TIMEOUT_S = 120

# Prints the first cause of the failure, for torchaudio raises "Could not load this library" on top of it.
PROBE = """
import json
try:
    import torchaudio
except Exception as error:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    print("PROBE" + json.dumps(f"{type(error).__name__}: {error}"))
else:
    print("PROBE" + json.dumps(""))
"""


class BrokenTorchaudioError(ValueError):
    """torchaudio is installed and cannot be imported, or is asked for and not installed."""


@dataclass(frozen=True)
class TorchaudioStatus:
    """Whether torchaudio is installed and imports, and if not, why and what to do.

    Attributes:
        installed: a package named torchaudio is found on the import path.
        works: it imports beside the torch that is installed.
        version: its version, or None where there is none to read.
        reason: why it does not work, one line; empty where it works.
        remedy: the commands that mend it; empty where it works.
    """

    installed: bool
    works: bool
    version: str | None
    reason: str
    remedy: str

    def __post_init__(self) -> None:
        if self.works and not self.installed:
            raise ValueError("TorchaudioStatus: works=True needs installed=True")
        if self.works == bool(self.reason) or self.works == bool(self.remedy):
            raise ValueError(f"TorchaudioStatus: reason and remedy are given exactly where works is False, got {self}")


def torchaudio_status() -> TorchaudioStatus:
    """Find out whether torchaudio works, without importing it into this process.

    Where it is installed, an interpreter of its own imports it once (about a second), since a failed import leaves
    half of its operators registered, and a mismatched binary may end the process.

    Returns:
        The status; asked again on the same import path, the same object.

    Example:
        >>> status = torchaudio_status()
        >>> status.works or bool(status.remedy)
        True
    """
    return _status_on(tuple(sys.path))


def require_working_torchaudio_or_none() -> TorchaudioStatus:
    """Stop where an installed torchaudio would break transformers; call it before transformers is imported.

    Returns:
        The status: torchaudio works, or is not installed, which is as good.

    Raises:
        BrokenTorchaudioError: it is installed and cannot be imported; the message has the reason and the remedy.

    Example:
        >>> require_working_torchaudio_or_none().reason  # doctest: +SKIP
        'torchaudio is not installed'
    """
    status = torchaudio_status()
    if status.installed and not status.works:
        raise BrokenTorchaudioError(
            f"torchaudio {status.version} is installed but cannot be imported, and transformers imports it wherever it "
            f"is installed, so no speech model would load. Reason: {status.reason}. Remedy: {status.remedy}"
        )
    return status


def require_torchaudio(purpose: str) -> None:
    """Stop where torchaudio is asked for and cannot be had.

    Raises:
        BrokenTorchaudioError: it is not installed, or cannot be imported; the message has the remedy.

    Example:
        >>> require_torchaudio("speed perturbation")  # doctest: +SKIP
    """
    if "torchaudio" not in sys.modules and not require_working_torchaudio_or_none().works:
        raise BrokenTorchaudioError(
            f'{purpose} needs torchaudio, which is not installed; pip install "audiolora[torchaudio]" beside a CUDA '
            "build of torch (on Linux) or any torch (on macOS)"
        )


def speed_perturb(waveform: torch.Tensor, *, factor: float, sample_rate_hz: int) -> torch.Tensor:
    """Play waveforms faster or slower, pitch included, on the device they are on (Ko et al., Interspeech 2015).

    Args:
        waveform: (N, L) or (L,), floating point.
        factor: speed, 1.1 for a tenth faster; the usual training set is 0.9, 1.0, 1.1.
        sample_rate_hz: of the waveform, which keeps it.

    Returns:
        (N, ceil(L / factor)) or (ceil(L / factor),), of the waveform's dtype and device.

    Raises:
        ValueError: factor or sample_rate_hz is not positive, or the waveform is not floating point.
        BrokenTorchaudioError: torchaudio is not installed or cannot be imported.

    Example:
        >>> speed_perturb(torch.zeros(2, 16000), factor=1.25, sample_rate_hz=16000).shape  # doctest: +SKIP
        torch.Size([2, 12800])
    """
    if not factor > 0:
        raise ValueError(f"speed_perturb: factor must be positive, got {factor}; 0.9 to 1.1 is usual")
    if sample_rate_hz <= 0:
        raise ValueError(f"speed_perturb: sample_rate_hz must be positive, got {sample_rate_hz}")
    if not waveform.is_floating_point():
        raise ValueError(
            f"speed_perturb: waveform must be floating point, got {waveform.dtype}; divide by its full scale"
        )
    require_torchaudio("speed perturbation")
    import torchaudio.functional

    faster, _ = torchaudio.functional.speed(waveform, sample_rate_hz, factor)
    return faster


@functools.cache
def _status_on(import_path: tuple[str, ...]) -> TorchaudioStatus:
    if importlib.util.find_spec("torchaudio") is None:
        remedy = 'pip install "audiolora[torchaudio]", only beside a CUDA build of torch on Linux; nothing needs it'
        return TorchaudioStatus(False, False, None, "torchaudio is not installed", remedy)
    try:
        version = importlib.metadata.version("torchaudio")
    except importlib.metadata.PackageNotFoundError:
        version = None
    reason = _reason_it_does_not_import(import_path)
    return TorchaudioStatus(True, not reason, version, reason, _remedy() if reason else "")


def _reason_it_does_not_import(import_path: tuple[str, ...]) -> str:
    """The exception that importing torchaudio raises in an interpreter of its own; empty where it imports."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in import_path if path)}
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-c", PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"importing it took over {PROBE_TIMEOUT_S} s"
    answers = [line.removeprefix("PROBE") for line in probe.stdout.splitlines() if line.startswith("PROBE")]
    if not answers:
        return f"importing it ended the interpreter with status {probe.returncode}"
    return " ".join(json.loads(answers[-1]).split())


def _remedy() -> str:
    import torch

    uninstall = "`pip uninstall torchaudio` (audiolora does not need it)"
    if torch.version.cuda is None and sys.platform == "linux":
        cuda_build = f"replace this CPU-only torch {torch.__version__} with a CUDA build, which runs without a GPU too"
        return f"{uninstall}, or {cuda_build}"
    return f"{uninstall}, or install the torchaudio that matches torch {torch.__version__} (CUDA {torch.version.cuda})"
