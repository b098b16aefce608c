"""`hf:NAME[:CONFIG][:SPLIT]`: what `datasets.load_dataset` loads, from the hub or from a folder.

All of it, as `datasets` keeps it in its own cache; or, for sets larger than the disk, as much as is asked for:
`hf:NAME:CONFIG:SPLIT?hours=10` and `?rows=5000` stream from the beginning of each split and keep what was taken as
Parquet in the cache folder, so that the next run reads the same clips without a network.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiolora.files import folder_beside, replace_folder
from audiolora.packages import cache_dir
from audiolora.speech.data.audio import AudioError, duration_s
from audiolora.speech.data.layouts.saved import choose_splits, parquet_folder, sets_of
from audiolora.speech.data.rows import DataError, RowSet

_WRITTEN = 100  # rows to a row group: what reading one clip reads
_COLON = re.compile(r":(?![^\[]*\])")  # not those in train[:10%]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubData:
    """A set as `hf:` names it.

    Args:
        name: on the hub, or a folder.
        words: what stands behind it: a configuration, a split, or both.
        rows: how many rows of each split are taken, from its beginning.
        hours: how much sound is, likewise.

    >>> HubData.parse("google/fleurs:it_it:train?hours=2")
    HubData(name='google/fleurs', words=('it_it', 'train'), rows=None, hours=2.0)
    """

    name: str
    words: tuple[str, ...] = ()
    rows: int | None = None
    hours: float | None = None

    @classmethod
    def parse(cls, written: str) -> HubData:
        """Read NAME[:CONFIG][:SPLIT][?rows=N|?hours=H].

        Raises:
            DataError: it is written in another way.
        """
        place, _, limit = written.partition("?")
        name, *words = _COLON.split(place)
        wanted = "write hf:NAME, hf:NAME:CONFIG:SPLIT, hf:NAME::SPLIT, and ?rows=5000 or ?hours=10 behind it"
        if not name or len(words) > 2:
            raise DataError(f"hf:{written}: not a data set's name; {wanted}")
        found = re.fullmatch(r"(?:rows=([1-9]\d*)|hours=(\d+(?:\.\d+)?))", limit)
        if limit and (found is None or (found[2] is not None and not float(found[2]))):
            raise DataError(f"hf:{written}: {limit!r} is not a limit above 0; {wanted}")
        rows, hours = (found[1], found[2]) if found else (None, None)
        return cls(name, tuple(words), None if rows is None else int(rows), None if hours is None else float(hours))

    def __str__(self) -> str:
        return ":".join((f"hf:{self.name}", *self.words))


def hub(written: str) -> list[RowSet]:
    """The rows of `hf:` and what is written behind it.

    Raises:
        DataError: no such set, configuration or split; it cannot be fetched; or a limit that is none.

    >>> hub("google/fleurs:it_it:train?hours=2")[0].called  # doctest: +SKIP
    'train'
    """
    import datasets

    data = HubData.parse(written)
    try:
        config, split = _config_and_split(data)
        if data.rows is None and data.hours is None:
            loaded = datasets.load_dataset(data.name, config, split=split)
            return sets_of(loaded, str(data), str(data), None, Path())
        return _streamed(data, config, split)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        # Sets of audio files that are no Parquet yet are encoded with torchcodec, which we do not need.
        remedy = f"; stream it, which needs none: hf:{written}?hours=1000" if isinstance(cause, ImportError) else ""
        raise DataError(f"{data}: datasets cannot load it ({type(cause).__name__}: {cause}){remedy}") from error


def _config_and_split(data: HubData) -> tuple[str | None, str | None]:
    """Of one word behind the name, whether it is a configuration or a split is asked of the set."""
    if len(data.words) == 2:
        return data.words[0] or None, data.words[1] or None
    if not data.words:
        return None, None
    import datasets

    (word,) = data.words
    configs = datasets.get_dataset_config_names(data.name)
    if word in configs:
        return word, None
    if len(configs) > 1:
        raise DataError(f"{data}: has no configuration {word!r}, and needs one; there are {', '.join(configs)}")
    return None, word


def _streamed(data: HubData, config: str | None, split: str | None) -> list[RowSet]:
    import datasets

    key = repr((data.name, config, split, data.rows, data.hours))
    kept = cache_dir() / "streamed" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not kept.is_dir():
        loaded = datasets.load_dataset(data.name, config, split=split, streaming=True)
        several = loaded if isinstance(loaded, datasets.IterableDatasetDict) else {split or "all": loaded}
        choose_splits(str(data), several, None)
        with folder_beside(kept) as new:
            for name, stream in several.items():
                _take(stream, data, new / f"{name.replace('-', '_')}.parquet")
            replace_folder(new, kept)
    logger.info("%s: the clips taken lie in %s; delete that folder to take them anew", data, kept)
    return parquet_folder(kept)


def _take(stream: Any, data: HubData, path: Path) -> None:
    """Write the first rows of a stream, up to the limit."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = stream if stream.features is not None else stream._resolve_features()
    sounds = [name for name, feature in (stream.features or {}).items() if isinstance(feature, datasets.Audio)]
    if not sounds:
        raise DataError(f"{data}: no column of sound in the stream; found {', '.join(stream.features or {})}")
    for name in sounds:
        stream = stream.cast_column(name, _as_stored())
    writer = None
    try:
        for rows in _batches(_up_to(stream, data, sounds[0]), _WRITTEN):
            for row in rows:
                row.update({name: _embedded(row[name]) for name in sounds})
            table = pa.Table.from_pylist(rows, schema=stream.features.arrow_schema)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise DataError(f"{data}: the stream holds no rows")


def _as_stored() -> Any:
    """A feature that hands out a clip's bytes or path; `datasets.Audio(decode=False)` would still want torchcodec."""
    import datasets

    class Stored(datasets.Audio):
        def encode_example(self, value: Any) -> dict[str, Any]:
            return value if isinstance(value, dict) else {"bytes": None, "path": str(value)}

    return Stored(decode=False)


def _up_to(stream: Any, data: HubData, sound: str) -> Iterator[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import track

    left_s = None if data.hours is None else data.hours * 3600
    rows = track(stream, f"taking {data}", total=data.rows, console=Console(stderr=True), transient=True)
    for row in itertools.islice(rows, data.rows):
        yield row
        if left_s is not None:
            left_s -= _seconds(row[sound])
            if left_s <= 0:
                return


def _seconds(clip: dict[str, Any]) -> float:
    try:
        return duration_s(_embedded(clip)["bytes"] or b"")
    except AudioError:  # it is told, with its row, when the clips are checked
        return 0.0


def _embedded(clip: dict[str, Any]) -> dict[str, Any]:
    """A clip with its bytes: streams of folders and archives hand out where they lie."""
    if clip["bytes"] is None and clip["path"] is not None:
        import fsspec

        with fsspec.open(clip["path"], "rb") as file:
            clip["bytes"] = file.read()
    return clip


def _batches(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch
