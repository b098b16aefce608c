"""Alphabets, from wherever they are written."""

import json
from pathlib import Path

import pytest

from audiolora.speech.checks.model_limits import limits_of_vocabulary


@pytest.mark.parametrize("name", ["letters.txt", "letters", "alphabet.lst", "vocab.json"])
def test_an_alphabet_in_a_file_of_any_name_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    letters = ["a", "b", "c"]
    as_json = json.dumps({letter: i for i, letter in enumerate(letters)})
    (tmp_path / name).write_text(as_json if name.endswith("json") else "\n".join(letters) + "\n")
    monkeypatch.chdir(tmp_path)
    for written in (name, str(tmp_path / name)):
        assert limits_of_vocabulary(written).letters_outside(["bad cabs", "lt"]) == [
            ("d", 1),
            ("l", 1),
            ("s", 1),
            ("t", 1),
        ]


def test_what_is_no_file_is_the_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abc").mkdir()
    assert limits_of_vocabulary("abc").letters_outside(["bad"]) == [("d", 1)]
    assert limits_of_vocabulary("~abc/").letters_outside(["bad"]) == [("d", 1)]
    for fault in ("./abc", "gone.txt", "gone.json"):
        with pytest.raises(ValueError, match="cannot be read as an alphabet"):
            limits_of_vocabulary(fault)
