"""The caller's side of the processes that measure clips (`clip_worker`)."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

from audiolora.speech.checks.clip_facts import ClipFacts
from audiolora.speech.checks.clip_worker import READY
from audiolora.speech.data.sources import AudioSource

_ENDED_BY_OTHERS = (signal.SIGTERM, getattr(signal, "SIGKILL", None))  # a system short of memory kills
_CRASH = "the decoder crashes on it ({}); convert the file with another program, or remove the row"


class Crew:
    """Worker processes, each with a thread that speaks to it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="clips")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ended = False

    def measure(self, clips: list[AudioSource]) -> Future[list[ClipFacts]]:
        """The facts of some clips, later."""
        return self._threads.submit(self._facts, clips)

    def end(self) -> None:
        """Kill the workers, whatever they are doing."""
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def _facts(self, clips: list[AudioSource]) -> list[ClipFacts]:
        """In a thread: by its own worker, and by a new one after a clip that ends it."""
        found: list[ClipFacts] = []
        while len(found) < len(clips):
            process, errors = self._worker()
            try:
                assert process.stdin is not None and process.stdout is not None
                pickle.dump(clips[len(found) :], process.stdin)
                process.stdin.flush()
                while len(found) < len(clips):
                    found.append(pickle.load(process.stdout))
            except (EOFError, OSError, pickle.UnpicklingError):
                self._own.worker = None
                if self._ended:
                    return found
                found.append(_crashed(process, errors))
        return found

    def _worker(self) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        """This thread's process and what it writes to standard error; started if there is none."""
        if getattr(self._own, "worker", None) is not None:
            return self._own.worker
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        errors = tempfile.TemporaryFile()  # decoders write there of files that are broken
        with self._lock:
            if self._ended:
                raise EOFError
            process = subprocess.Popen(
                [sys.executable, "-m", "audiolora.speech.checks.clip_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
            self._processes.append(process)
        try:
            assert process.stdout is not None
            started = pickle.load(process.stdout) == READY
        except EOFError:
            started = self._ended
        if not started:
            raise RuntimeError(f"a process that decodes audio did not start: {_last_words(errors)}; try workers=0")
        self._own.worker = process, errors
        return self._own.worker


def _crashed(process: subprocess.Popen[bytes], errors: IO[bytes]) -> ClipFacts:
    """What to say of the clip on which a worker ended."""
    status = process.wait()
    if -status in _ENDED_BY_OTHERS:
        raise RuntimeError(
            f"a process that decodes audio was ended from outside (signal {-status}); where memory is short, give it "
            "fewer workers. What was measured is kept"
        )
    if status in (0, 1):  # not the decoder: an exception of ours
        raise RuntimeError(f"a process that decodes audio failed: {_last_words(errors)}")
    return ClipFacts(fault=_CRASH.format(f"signal {-status}" if status < 0 else f"status {status}"), kind="crash")


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    return (errors.read().decode(errors="replace").strip().splitlines() or ["it left no message"])[-1]
