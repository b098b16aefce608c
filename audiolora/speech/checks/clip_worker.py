"""A process that measures clips: ``python -m audiolora.speech.checks.clip_worker``, spoken to over pipes.

It imports neither torch nor the caller's own program, unlike a process that multiprocessing starts; it ends when its
caller does, even by kill -9; and where a decoder crashes on a file, the caller knows on which.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import BinaryIO

READY = "ready"


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer each list of clips with the facts of one after the other, until the requests end.

    Args:
        requests: pickled lists of clips, as `measure_clip` takes them.
        replies: `READY`, then the pickled `ClipFacts` of each clip.
    """
    from audiolora.speech.checks.clip_facts import measure_clip

    def reply(value: object) -> None:
        pickle.dump(value, replies)
        replies.flush()

    reply(READY)
    while True:
        try:
            clips = pickle.load(requests)
        except EOFError:
            return
        for clip in clips:
            reply(measure_clip(clip))


def main() -> None:
    """Serve over standard input and output; what libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the caller ends its workers
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(sys.stdin.buffer, replies)
    except BrokenPipeError:  # the caller is gone
        os._exit(0)


if __name__ == "__main__":
    main()
