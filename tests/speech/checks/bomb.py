"""A clip on which the process ends that reads it, as decoders do on some broken files."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from audiolora.speech.data.sources import Source


@dataclass(frozen=True, slots=True)
class Bomb(Source):
    """It lies beside a file that is there; `wait_s` makes it slow instead, `how` is the signal it ends by."""

    path: Path
    wait_s: float = 0.0
    how: int = signal.SIGABRT

    @property
    def file(self) -> Path:
        return self.path

    def read(self) -> bytes:
        if not self.wait_s:
            os.kill(os.getpid(), self.how)
        time.sleep(self.wait_s)
        return self.path.read_bytes()
