"""Checks of many rows: every bad one is told with its reason, and nothing that is good."""

import logging
import re
from pathlib import Path

import pytest

import audiolora.speech
from audiolora.speech.checks.checking import check_utterances
from audiolora.speech.data.findings import KINDS, Finding, summary, write_findings
from audiolora.speech.data.manifests import DataError, read_all, read_utterances
from tests.speech.checks.broken_manifest import BROKEN, LETTERS, write_broken_manifest


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))


def encode(text):
    return [LETTERS.index(letter) for letter in text.replace(" ", "")]


def listed(path):
    """{row: kind} of a table of findings; no row stands there twice."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert header == "row\tkind\treason"
    cells = [line.split("\t") for line in lines]
    assert all(len(three) == 3 and three[2] for three in cells)
    assert len({row for row, _, _ in cells}) == len(cells)
    return {row: kind for row, kind, _ in cells}


def check_every_broken_row(tmp_path, caplog, n_rows, n_broken):
    expected = write_broken_manifest(tmp_path, n_rows, n_broken)
    assert len(expected) == n_broken and len(set(expected.values())) == len({kind for kind, _ in BROKEN})
    data, table = read_all(tmp_path / "manifest.jsonl"), tmp_path / "run" / "bad_rows.tsv"
    with pytest.raises(DataError, match=rf"^{n_broken:,} of {n_rows:,} utterances cannot be used") as caught:
        check_utterances(data, encode=encode, bad_rows=table)
    told = str(caught.value)
    assert str(table) in told and len(told.splitlines()) == 22 and "NaN or infinite samples" in told.splitlines()[0]
    assert listed(table) == expected
    with caplog.at_level(logging.WARNING):
        good = check_utterances(data, encode=encode, skip_bad=True, bad_rows=table)
    assert [one.where for one in good] == [
        f"manifest.jsonl row {n}" for n in range(1, n_rows + 1) if f"manifest.jsonl row {n}" not in expected
    ]
    assert listed(table) == expected
    assert len(caplog.messages) == 21 and f"skipped {n_broken - 20:,} more" in caplog.messages[-1]


def test_every_broken_row_of_two_thousand(tmp_path, caplog):
    check_every_broken_row(tmp_path, caplog, 2000, 40)


@pytest.mark.slow
def test_every_broken_row_of_a_hundred_thousand(tmp_path, caplog):
    check_every_broken_row(tmp_path, caplog, 100_000, 1000)


def test_bad_rows_of_the_reader_and_of_the_check_are_told_together(tmp_path):
    expected = write_broken_manifest(tmp_path, 48, 12)
    with pytest.raises(DataError) as reading:
        read_utterances(tmp_path / "manifest.jsonl")
    assert len(reading.value.problems) == 3  # a missing file, no text, an id used twice
    with pytest.raises(DataError) as checking:
        check_utterances(read_all(tmp_path / "manifest.jsonl"), encode=encode, progress=False)
    told = str(checking.value)
    assert told.startswith("12 of 48 utterances cannot be used:") and all(row + ": " in told for row in expected)


def test_a_table_of_bad_rows_goes_when_none_is_bad(tmp_path):
    write_broken_manifest(tmp_path, 48, 12)
    data, table = read_all(tmp_path / "manifest.jsonl"), tmp_path / "bad_rows.tsv"
    good = check_utterances(data, encode=encode, skip_bad=True, bad_rows=table, progress=False)
    assert table.is_file() and len(good) == 36
    assert check_utterances(good, encode=encode, bad_rows=table, progress=False) == good and not table.exists()


def test_a_finding_is_one_line_of_a_table(tmp_path):
    write_findings(tmp_path / "a.tsv", [Finding("row", "x\ty row 1", "a line\nand half a pair \ud800\tof it")])
    assert listed(tmp_path / "a.tsv") == {"x y row 1": "row"}


def test_a_summary_counts_by_kind_in_their_order():
    findings = [Finding(kind, "x", "y") for kind in ("nan", "missing", "nan")]
    assert summary(findings) == "1 audio file missing, 2 NaN or infinite samples"


def test_every_kind_that_is_raised_has_its_description():
    sources = Path(audiolora.speech.__file__).parent.rglob("*.py")
    named = {kind for path in sources for kind in re.findall(r'kind="([\w-]+)"', path.read_text("utf-8"))}
    assert len(named) > 8 and named <= set(KINDS)
