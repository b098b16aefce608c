"""Every way a table can come, into the same long frame; and what is wrong with it, by device and line."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from audiolora.series.frames import read
from audiolora.series.problems import SeriesError, notes
from tests.series.histories import device, fleet

LONG = fleet(device("a", [1.0, 2.0, np.nan]), device("b", [4.0, 5.0, 6.0]))


def wide(long: pd.DataFrame) -> pd.DataFrame:
    return long.pivot(index="ds", columns="unique_id", values="y").reset_index()


@pytest.mark.parametrize(
    "table", [LONG, wide(LONG), LONG.sample(frac=1, random_state=3), LONG.set_index(["unique_id", "ds"])]
)
@pytest.mark.parametrize("form", ["frame", "csv", "csv.gz", "parquet"])
def test_every_layout_and_file_gives_the_same_long_frame(tmp_path, table, form):
    source, path = table.copy(), tmp_path / f"fleet.{form}"
    if form.startswith("csv"):
        table.to_csv(path, index=table.index.names[0] is not None)
    elif form == "parquet":
        table.to_parquet(path)
    found = read(source if form == "frame" else path)
    assert_frame_equal(found, LONG, check_dtype=True)
    assert [str(dtype) for dtype in found.dtypes] == ["str", "datetime64[ns]", "float64"]
    assert_frame_equal(source, table)  # what was given is not changed


def test_columns_are_taken_by_the_names_given_and_covariates_as_they_are():
    table = LONG.rename(columns={"unique_id": "meter", "ds": "stamp", "y": "kwh"}).assign(on=True, site="x")
    found = read(table, id_col="meter", time_col="stamp", target_col="kwh", covariates=["on"])
    assert_frame_equal(found, LONG.assign(on=1.0))


@settings(max_examples=20)
@given(st.permutations(range(12)))
def test_any_order_of_rows_is_sorted_by_device_and_stamp(order):
    long = fleet(device("b", 6), device("a", 6))
    found = read(long.iloc[order], errors="report")
    assert_frame_equal(found, long.sort_values(["unique_id", "ds"], ignore_index=True))


def test_ids_and_lines_are_as_written(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("unique_id,ds,y\n007,2024-01-01,1\nNA,2024-01-01,2\n\n7,2024-01-01,wet\n7,2024-01-02,dry\n")
    with pytest.raises(
        SeriesError, match=r"1 problems.*\n  7, y: values that are no numbers: 2, .* at line 5 \('wet'\)"
    ):
        read(path)
    found = read(path, errors="report")
    assert found["unique_id"].tolist() == ["007", "7", "7", "NA"]
    assert [(one["unique_id"], one["column"], one["problem"], one["count"]) for one in notes(found)] == [
        ("7", "y", "not_a_number", 2)
    ]


def test_whole_numbers_as_ids_stay_whole_beside_a_missing_one():
    table = pd.DataFrame({"unique_id": [7.0, np.nan], "ds": ["2024-01-01"] * 2, "y": [1.0, 2.0]})
    with pytest.raises(SeriesError, match=r"1 rows without a device, the first at row 1"):
        read(table)
    assert read(table.head(1))["unique_id"].tolist() == ["7"]


def test_a_stamp_problem_names_device_and_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("unique_id,ds,y\na,2024-01-01T00:00Z,1\nb,2024-01-01 00:00,2\nb,soon,3\n")
    with pytest.raises(SeriesError) as error:
        read(path)
    said = str(error.value)
    assert "b, ds: no ISO 8601 stamp" in said and "1, the first at line 4 ('soon')" in said
    assert "b, ds: stamps without an offset in a column where others state one: 1, the first at line 3" in said
    found = read(path, errors="report")
    assert found["ds"].isna().tolist() == [False, True, True] and len(found) == 3


def test_two_columns_of_one_device_are_named_and_both_read(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text("ds,a,b,a\n2024-01-01,1,2,3\n")
    with pytest.raises(SeriesError, match=r"a, unique_id: 2 columns are called 'a'"):
        read(path)
    assert read(path, errors="report")["y"].tolist() == [1.0, 3.0, 2.0]
    with pytest.raises(SeriesError, match=r"a, unique_id: 2 columns are called 'a'"):
        read(pd.read_csv(path, header=None, skiprows=1).set_axis(["ds", "a", "b", "a"], axis=1))


WRONG_COLUMNS = {
    "names": (
        LONG.rename(columns={"ds": "time", "y": "kwh"}),
        {},
        [
            "the frame has the columns 'unique_id', 'time', 'kwh'",
            "'unique_id', 'ds', 'y'",
            "no column 'ds'; name yours by time_col=…",
            "no column 'y'; name yours by target_col=…",
        ],
    ),
    "no id": (LONG.drop(columns="unique_id"), {}, ["id_col=", "layout='wide'"]),
    "wide without stamps": (wide(LONG).drop(columns="ds"), {}, ["'a', 'b'", "no column 'ds'", "time_col="]),
    "wide without devices": (wide(LONG)[["ds"]], {}, ["no column beside 'ds'"]),
    "twice": (pd.concat([LONG, LONG[["y"]]], axis=1), {}, ["'y' is there 2 times"]),
    "covariates": (LONG, {"covariates": ["wind"]}, ["no covariates 'wind'"]),
    "wide covariates": (wide(LONG), {"covariates": ["wind"]}, ["write it in long form"]),
    "a name we need": (LONG.rename(columns={"y": "kwh"}).assign(y=1.0), {"target_col": "kwh"}, ["rename y"]),
}


@pytest.mark.parametrize(("table", "settings", "said"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS)
def test_wrong_columns_say_what_is_there_what_is_wanted_and_the_remedy(table, settings, said):
    with pytest.raises(SeriesError) as error:
        read(table, **settings)
    assert all(part in str(error.value) for part in said), str(error.value)


FILES = {
    "t.csv": ("", "cannot be read"),
    "more.csv": ("unique_id,ds,y\na,2024-01-01,1,2\n", "cannot be read"),
    "t.xlsx": ("", "must end in .csv, .csv.gz or .parquet"),
    "t.parquet": ("not parquet", "cannot be read"),
}


@pytest.mark.parametrize(("name", "text", "said"), [(name, *rest) for name, rest in FILES.items()])
def test_files_that_cannot_be_read_are_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(SeriesError, match=rf"{name}.*{said}"):
        read(tmp_path / name)


def test_what_is_no_source_is_refused():
    with pytest.raises(SeriesError, match="no such file"):
        read("nowhere.csv")
    with pytest.raises(TypeError, match="pandas.DataFrame, got list"):
        read([1, 2])
    with pytest.raises(ValueError, match="layout must be"):
        read(LONG, layout="tall")
    with pytest.raises(ValueError, match="errors must be"):
        read(LONG, errors="ignore")


def test_notes_survive_parquet(tmp_path):
    table = LONG.astype({"y": object}).assign(y=["x", *LONG["y"][1:]])
    found = read(table, errors="report")
    found.to_parquet(tmp_path / "t.parquet")
    assert notes(pd.read_parquet(tmp_path / "t.parquet")) == notes(found) != []
