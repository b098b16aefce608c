"""Sets of Hugging Face `datasets` on disk: what save_to_disk wrote, Arrow files and Parquet files; nothing is decoded.

What `datasets` would decode with torchcodec, our `read_audio` reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from audiolora.files import folder_beside, replace_folder
from audiolora.packages import cache_dir
from audiolora.speech.data.layouts.parts import part_of, part_of_split
from audiolora.speech.data.layouts.tables import arrow_rows, n_rows, named_rows, parquet_rows
from audiolora.speech.data.rows import DataError, RowSet


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved(folder: Path, split: str | None = None) -> list[RowSet]:
    """The rows of a saved `Dataset`, or of a `DatasetDict`'s parts or of one split of it.

    Raises:
        DataError: it cannot be read, or has no such split, or none that is a train, dev or test part.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: cannot be read as a saved data set ({error})") from error
    return sets_of(loaded, str(folder), folder.name, split, folder)


def sets_of(loaded: Any, data: str, called: str, split: str | None, root: Path) -> list[RowSet]:
    """The rows of what `datasets` loaded.

    Args:
        loaded: a `Dataset` or a `DatasetDict`.
        data: how its user names it, for errors.
        called: what rows call it.
        split: one split of it, which then is no part.
        root: what its relative paths are relative to.

    Raises:
        DataError: as `saved`.
    """
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        chosen = choose_splits(data, loaded, split)
        return [_set(loaded[name], f"{called}:{name}", root, part) for name, part in chosen]
    if split is not None:
        raise DataError(f"{data}: is one data set without splits; leave ':{split}' away")
    return [_set(loaded, called, root, None)]


def choose_splits(data: str, names: Iterable[str], split: str | None) -> list[tuple[str, str | None]]:
    """Which splits are read, and as which part: the one asked for, else all if each is a part, else the only one.

    Raises:
        DataError: no such split, or several of which some are no part.
    """
    there = list(names)
    choices = "choose one of " + ", ".join(f"{data}:{name}" for name in there)
    if split is not None:
        if split not in there:
            raise DataError(f"{data}: has no split {split!r}; {choices}")
        return [(split, None)]
    if len(there) == 1:
        return [(there[0], None)]
    if others := [name for name in there if part_of_split(name) is None]:
        raise DataError(
            f"{data}: holds several splits, and {', '.join(map(repr, others))} is not a train, dev or test part by "
            f"its name; {choices}"
        )
    return [(name, part_of_split(name)) for name in there]


def _set(dataset: Any, called: str, root: Path, part: str | None) -> RowSet:
    files = [Path(file["filename"]) for file in dataset.cache_files]
    # One split cut out of another (`train[:10%]`), rows chosen or shuffled: their Arrow files hold other rows too.
    if dataset._indices is not None or sum(map(n_rows, files)) != len(dataset):
        copy = cache_dir() / "rows" / dataset._fingerprint
        if not copy.is_dir():
            with folder_beside(copy) as new:
                dataset.save_to_disk(str(new))
                replace_folder(new, copy)
        files = sorted(copy.glob("*.arrow"))
    return RowSet(called, named_rows(arrow_rows(files, called)), root, None, part)


def is_arrow(path: Path) -> bool:
    """Whether a file is named like an Arrow file."""
    return path.suffix == ".arrow"


def arrow(path: Path) -> list[RowSet]:
    """The rows of an Arrow file."""
    return [RowSet(path.name, named_rows(arrow_rows([path], path.name)), path.parent)]


def is_parquet(path: Path) -> bool:
    """Whether a file is named like a Parquet file."""
    return path.suffix == ".parquet"


def parquet(path: Path) -> list[RowSet]:
    """The rows of a Parquet file."""
    return [RowSet(path.name, named_rows(parquet_rows([path], path.name)), path.parent)]


def has_parquet(folder: Path) -> bool:
    """Whether there are Parquet files in a folder, in its `data`, or in its parts."""
    return bool(_parquet_files(folder))


def parquet_folder(folder: Path, split: str | None = None) -> list[RowSet]:
    """The rows of a folder's Parquet files, named as on the hub: `data/train-00000-of-00002.parquet`.

    Raises:
        DataError: as `saved`; or no Parquet file there.
    """
    by_split: dict[str, list[Path]] = {}
    for path in _parquet_files(folder):
        name = path.parent.name if part_of(path.parent.name) else path.stem.partition("-")[0]
        by_split.setdefault(name, []).append(path)
    if not by_split:
        raise DataError(f"{folder}: no .parquet files in it, in its folder data, or in folders train, dev, test")
    if split is None and len(by_split) > 1 and not any(part_of_split(name) for name in by_split):
        by_split = {folder.name: [path for paths in by_split.values() for path in paths]}  # shards of some other name
    return [
        RowSet(name, named_rows(parquet_rows(by_split[name], name)), by_split[name][0].parent, None, part)
        for name, part in choose_splits(str(folder), by_split, split)
    ]


def _parquet_files(folder: Path) -> list[Path]:
    for where in (folder, folder / "data"):
        if found := sorted(where.glob("*.parquet")):
            return found
    return [
        path for below in sorted(folder.iterdir()) if part_of(below.name) for path in sorted(below.glob("*.parquet"))
    ]
