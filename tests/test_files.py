"""Atomic writes: at every moment the old or the new, whole."""

import dataclasses
import errno
import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolora.files import replace_folder, write_json, write_text

FULL = OSError(errno.ENOSPC, "No space left on device")


def fail(*args: object, **kwargs: object) -> None:
    raise FULL


def test_text_is_written_as_it_is(tmp_path):
    write_text(tmp_path / "new" / "folder" / "file.txt", "ä\nß\r\n")
    assert (tmp_path / "new" / "folder" / "file.txt").read_bytes() == "ä\nß\r\n".encode()


def test_the_file_gets_the_users_mode(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file.txt", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_synced(tmp_path, monkeypatch):
    path, seen = tmp_path / "file.txt", []
    write_text(path, "old")
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(path.read_text()), fsync(descriptor)))
    write_text(path, "new" * 10_000)
    assert seen == ["old"] and path.read_text() == "new" * 10_000


@dataclasses.dataclass
class Point:
    x: float
    y: Path


def test_json_holds_what_runs_are_made_of(tmp_path):
    value = {
        "point": Point(1.5, Path("a/b")),
        "numpy": [np.float32(0.5), np.int64(3), np.arange(2)],
        "torch": torch.tensor([1.0, 2.0]),
        "text": "Città",
        "none": None,
    }
    write_json(tmp_path / "file.json", value)
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == {
        "point": {"x": 1.5, "y": "a/b"},
        "numpy": [0.5, 3, [0, 1]],
        "torch": [1.0, 2.0],
        "text": "Città",
        "none": None,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan")])
def test_json_refuses_numbers_that_it_cannot_hold(tmp_path, value):
    with pytest.raises(ValueError, match=r"file.json: cannot be written as JSON.*write None"):
        write_json(tmp_path / "file.json", {"loss": value})
    assert not list(tmp_path.iterdir())


def test_json_refuses_other_types(tmp_path):
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        write_json(tmp_path / "file.json", object())


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_a_folder_is_put_in_place_or_replaced_whole(tmp_path):
    target = tmp_path / "adapter"
    replace_folder(folder(tmp_path / "first", "1"), target)
    assert (target / "file").read_text() == "1"
    (target / "stale").touch()
    replace_folder(folder(tmp_path / "second", "2"), target)
    assert [path.name for path in target.iterdir()] == ["file"] and (target / "file").read_text() == "2"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_replaced_is_left_as_it_was(tmp_path, monkeypatch):
    target, new = folder(tmp_path / "adapter", "old"), folder(tmp_path / "new", "new")
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda source, goal: fail() if source == new else rename(source, goal))
    with pytest.raises(OSError, match="No space left"):
        replace_folder(new, target)
    assert (target / "file").read_text() == "old"
