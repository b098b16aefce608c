"""The facts of clips measured before, kept between runs in one SQLite file.

A clip is known by the path of its file (and, of a part of a file, by which part), with the file's size and its times of
modification and of change to the nanosecond: a file that was written since is measured anew, even where a tool that
copies sets the old time of modification on it. Bytes are known by their SHA-256.

SQLite keeps the file whole under kill -9 and lets several processes use it at once. It is in rollback mode, since its
write-ahead log does not work on a home directory that machines share over a network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from audiolora.packages import cache_dir
from audiolora.speech.checks.clip_facts import FACTS_VERSION, ClipFacts
from audiolora.speech.data.findings import printable
from audiolora.speech.data.sources import AudioSource, file_of

MAX_CLIPS = 1_000_000
"""Clips kept, about 400 MB; past it, those that went longest without being asked for are dropped."""
_YOUNG_S = 2.0  # a file may change once more inside one tick of its clock (two seconds on FAT), and look the same
_BUSY_S = 30.0
_DAY_S = 86_400
_TABLE = """CREATE TABLE IF NOT EXISTS clips
(clip TEXT PRIMARY KEY, stamp TEXT NOT NULL, facts TEXT NOT NULL, day INTEGER NOT NULL) WITHOUT ROWID"""

logger = logging.getLogger(__name__)


class ClipKey(NamedTuple):
    """What a clip is known by.

    Args:
        clip: its path and part, or the digest of its bytes.
        stamp: what changes when its file does.
        kept: whether its facts may be kept; not those of a file that was written a moment ago.
    """

    clip: str
    stamp: str
    kept: bool = True


def clip_key(audio: AudioSource) -> ClipKey | None:
    """What a clip is known by; None where its file cannot be looked at.

    >>> clip_key(b"RIFF").clip[:14]
    'sha256:a7ad8d7'
    """
    if isinstance(audio, bytes):
        return ClipKey(f"sha256:{hashlib.sha256(audio).hexdigest()}", str(len(audio)))
    file = file_of(audio)
    try:
        if file is None:
            return None
        status = file.stat()
    except OSError:
        return None
    changed_s = max(status.st_mtime_ns, status.st_ctime_ns) / 1e9
    stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    part = "" if audio is file else f" {audio!r}"
    # Names that are not UTF-8 hold what SQLite cannot.
    called = printable(os.path.abspath(file) + part)
    return ClipKey(called, stamp, time.time() - changed_s > _YOUNG_S)


def cache_file() -> Path:
    """Where the facts are kept: below `cache_dir`, a file for each version of what is measured."""
    return cache_dir() / f"clip-facts-{FACTS_VERSION}.sqlite"


class ClipCache:
    """The kept facts. Whatever goes wrong with the file is warned of once, and everything is measured anew.

    Args:
        file: the SQLite file; made where it is missing, made anew where it is none.
        max_clips: see `MAX_CLIPS`.
        anew: find nothing, so that every clip is measured again; what is found then is kept.

    >>> ClipCache(Path("facts.sqlite")).find([clip_key(Path("clip.wav"))])  # doctest: +SKIP
    [ClipFacts(fault=None, ...)]
    """

    def __init__(self, file: Path | None = None, *, max_clips: int = MAX_CLIPS, anew: bool = False) -> None:
        self.file, self.max_clips = file or cache_file(), max_clips
        self.anew, self._broken = anew, False

    def find(self, keys: Sequence[ClipKey | None]) -> list[ClipFacts | None]:
        """The facts of each clip as its file is now; None for those that are not kept."""
        if not any(keys) or self.anew or self._broken:
            return [None] * len(keys)
        try:
            with closing(self._open()) as database:
                return self._find(database, keys)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            return [None] * len(keys)

    def keep(self, found: Iterable[tuple[ClipKey | None, ClipFacts]]) -> None:
        """Keep the facts of some clips, all or none; those that say more of the machine than of the file are not."""
        today = int(time.time() // _DAY_S)
        rows = [
            (key.clip, key.stamp, json.dumps([getattr(facts, name) for name in ClipFacts.__slots__]), today)
            for key, facts in found
            if key is not None and key.kept and facts.kind not in ("missing", "unreadable")
        ]
        if not rows or self._broken:
            return
        try:
            with closing(self._open()) as database, database:
                database.executemany("INSERT OR REPLACE INTO clips VALUES (?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def drop_oldest(self) -> None:
        """Keep no more than `max_clips`; call it once after many were kept."""
        if self._broken or not self.file.exists():
            return
        try:
            with closing(self._open()) as database, database:
                (n_clips,) = database.execute("SELECT count(*) FROM clips").fetchone()
                if n_clips > self.max_clips:  # a tenth more than must be, so that it is not done every time
                    surplus = n_clips - self.max_clips + self.max_clips // 10
                    database.execute(
                        "DELETE FROM clips WHERE clip IN (SELECT clip FROM clips ORDER BY day LIMIT ?)", (surplus,)
                    )
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _open(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, read-only, a full disk: the file may be sound
                raise
            logger.warning("%s: not a cache of clips (%s); it is made anew", self.file, error)
            self.file.unlink(missing_ok=True)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.file, timeout=_BUSY_S)
        try:
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(_TABLE)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _find(self, database: sqlite3.Connection, keys: Sequence[ClipKey | None]) -> list[ClipFacts | None]:
        found: list[ClipFacts | None] = []
        used, today = [], int(time.time() // _DAY_S)
        for key in keys:
            query = "SELECT facts, day FROM clips WHERE clip = ? AND stamp = ?"
            row = None if key is None else database.execute(query, (key.clip, key.stamp)).fetchone()
            found.append(None if row is None else ClipFacts(*json.loads(row[0])))
            if key is not None and row is not None and row[1] != today:
                used.append((today, key.clip))
        if used:  # once a day, so that a second run the same day writes nothing
            with database:
                database.executemany("UPDATE clips SET day = ? WHERE clip = ?", used)
        return found

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        logger.warning("%s: %s; clips are measured without it", self.file, error)
