"""Windows against a slow reference in plain pandas, over random gaps, missing values, bounds and strides."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.series.frames import read
from audiolora.series.problems import SeriesError
from audiolora.series.windows import latest, split_times, windows
from tests.series.histories import device, fleet


def reference(frame, lookback, horizon, *, freq, stride=1, after=None, until=None, known=()):
    """Every window by hand: a loop over devices, and one over all cutoffs between first and last measurement."""
    past = [name for name in frame.columns if name not in ("unique_id", "ds", *known)]
    found = []
    for name, rows in frame.groupby("unique_id", sort=False):
        table = rows.set_index("ds").drop(columns="unique_id").sort_index()
        measured = table.index[table["y"].notna()]
        if not len(measured):
            continue
        table = table.reindex(pd.date_range(measured.min(), table.index.max(), freq=freq))
        stamps, y, seen, ahead = (
            table.index,
            table["y"].to_numpy(),
            table[past].to_numpy().T,
            table[[*known]].to_numpy().T,
        )
        counted = None  # strides are counted from the first window, and with `after` from the first target behind it
        for at in range(len(table[: measured.max()]) - lookback - horizon + 1):
            begin, end = at + lookback, at + lookback + horizon
            if (after is not None and stamps[begin] <= after) or (until is not None and stamps[end - 1] > until):
                continue
            if counted is None:
                origin = stamps[0] + lookback * table.index.freq if after is None else after
                counted = -(-(stamps[begin] - origin) // pd.Timedelta(freq)) - (after is not None) - 1
            counted += 1
            x = np.concatenate([seen[:, at:begin], ahead[:, at + horizon : end]])
            if counted % stride == 0 and np.isfinite(x).all() and np.isfinite(y[begin:end]).all():
                found.append((name, stamps[begin - 1], x, y[begin:end], stamps[begin:end]))
    return found


@st.composite
def gappy_fleets(draw):
    parts = []
    for name in draw(st.sampled_from(["a", "ab", "abc"])):
        count = draw(st.integers(1, 40))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        part = device(name, rng.normal(size=count), start=f"2024-01-01 {draw(st.integers(0, 5)):02}:30")
        part = part.assign(wind=rng.normal(size=count), hour=np.arange(float(count)))
        for column in ("y", "wind", "hour"):
            lost = draw(st.lists(st.integers(0, count - 1), max_size=2))
            part.loc[part.index.isin(lost), column] = draw(st.sampled_from([np.nan, np.inf]))
        parts.append(part[~part.index.isin(draw(st.lists(st.integers(0, count - 1), max_size=3)))])
    return fleet(*parts)


bounds = st.one_of(
    st.none(), st.integers(-2, 45).map(lambda hour: pd.Timestamp("2024-01-01 00:30") + pd.Timedelta(hours=hour))
)


@settings(max_examples=60)
@given(
    gappy_fleets(),
    st.integers(3, 8),
    st.integers(1, 3),
    st.integers(1, 4),
    bounds,
    bounds,
    st.sampled_from([(), ("hour",)]),
)
def test_windows_are_those_of_the_slow_reference(frame, lookback, horizon, stride, after, until, known):
    settings = {"freq": "1h", "stride": stride, "after": after, "until": until, "known": known}
    shuffled = frame.sample(frac=1, random_state=0).sort_values("unique_id", kind="stable")
    found = windows(shuffled, lookback, horizon, **settings)
    expected = reference(frame.replace(np.inf, np.nan), lookback, horizon, **settings)
    assert found.unique_id.tolist() == [one[0] for one in expected]
    assert found.cutoff.tolist() == [one[1].as_unit("ns").value for one in expected]
    for at, (_, _, x, y, ahead) in enumerate(expected):
        assert np.array_equal(found.x[at], x.astype(np.float32)) and np.array_equal(found.y[at], y.astype(np.float32))
        assert np.array_equal(found.ds[at], ahead.to_numpy("datetime64[ns]"))


@settings(max_examples=30)
@given(gappy_fleets(), st.integers(3, 8), st.integers(1, 3), bounds, bounds)
def test_nothing_of_the_future_is_seen_and_targets_lie_within_the_bounds(frame, lookback, horizon, after, until):
    """Values are their own stamps, so what a window holds says when it was measured."""
    hours = (frame["ds"] - pd.Timestamp("2024-01-01 00:30")) / pd.Timedelta(hours=1)
    stamped = frame.assign(y=hours.where(np.isfinite(frame["y"])), wind=hours, hour=hours)
    found = windows(stamped, lookback, horizon, freq="h", after=after, until=until, known=["hour"])
    cutoff = (found.cutoff - np.datetime64("2024-01-01T00:30")) / np.timedelta64(1, "h")
    assert found.channels == ("y", "wind", "hour") and found.known == 1
    steps = np.arange(lookback)
    assert np.array_equal(found.x[:, 0], cutoff[:, None] - lookback + 1 + steps)  # whole, consecutive, up to the cutoff
    assert np.array_equal(found.x[:, 1], found.x[:, 0])
    assert np.array_equal(found.x[:, 2], found.x[:, 0] + horizon)  # known covariates alone go on, by the horizon
    assert np.array_equal(found.y, cutoff[:, None] + 1 + np.arange(horizon))
    assert after is None or (found.ds > after.to_datetime64()).all()
    assert until is None or (found.ds <= until.to_datetime64()).all()


@settings(max_examples=20)
@given(gappy_fleets(), st.integers(3, 8), st.integers(1, 3))
def test_what_lies_behind_until_changes_nothing(frame, lookback, horizon):
    until = pd.Timestamp("2024-01-01 20:30")
    other = frame.assign(y=frame["y"].where(frame["ds"] <= until, -1e6), wind=frame["wind"].where(frame["ds"] <= until))
    one, two = (windows(f, lookback, horizon, freq="h", until=until) for f in (frame, other))
    assert np.array_equal(one.x, two.x) and np.array_equal(one.y, two.y) and np.array_equal(one.cutoff, two.cutoff)


def test_windows_lost_to_gaps_are_counted_by_device():
    whole, gappy, nan, short = (
        device("whole", 24),
        device("gappy", 24).drop(index=12),
        device("nan", 24),
        device("short", 5),
    )
    nan.loc[12, "y"] = np.nan
    found = windows(fleet(whole, gappy, nan, short), 4, 2, freq="h")
    assert found.counts.to_dict("list") == {
        "unique_id": ["whole", "gappy", "nan", "short"],
        "windows": [19, 13, 13, 0],
        "lost": [0, 6, 6, 0],
    }
    assert len(found) == 45 and found.x.dtype == found.y.dtype == np.float32


def test_one_window_a_device_at_an_origin():
    frame = fleet(device("a", 48), device("b", 40, start="2024-01-01 05:00"))
    origin = pd.Timestamp("2024-01-01 23:00")
    found = windows(frame, 6, 3, freq="h", after=origin, until=origin + pd.Timedelta("3h"))
    assert found.cutoff.astype("datetime64[h]").tolist() == [origin, origin]


def test_months_are_steps_too():
    frame = device("a", np.arange(12.0), freq="MS")
    found = windows(frame, 3, 2, freq="MS", after="2024-06-01", stride=2)
    assert found.y.tolist() == [[6, 7], [8, 9], [10, 11]]
    assert found.ds[0].astype("datetime64[D]").astype(str).tolist() == ["2024-07-01", "2024-08-01"]


@given(gappy_fleets(), st.integers(3, 8), st.integers(1, 3))
@settings(max_examples=20)
def test_the_latest_window_is_the_last_of_all_once_targets_are_known(frame, lookback, horizon):
    """Cut at a stamp, the latest window is the one whose targets then come, wherever those are whole."""
    at = pd.Timestamp("2024-01-01 15:30")
    seen = latest(frame, lookback, horizon, freq="h", at=at, known=["hour"])
    then = windows(frame, lookback, horizon, freq="h", after=at, known=["hour"], until=at + pd.Timedelta(hours=horizon))
    assert np.isnan(seen.y).all() and (seen.cutoff <= at.to_datetime64()).all()
    assert (seen.counts["windows"] + seen.counts["lost"] == 1).all()
    for name, x in zip(then.unique_id, then.x, strict=True):
        assert np.array_equal(seen.x[seen.unique_id == name][0], x)


def test_the_latest_window_takes_known_covariates_from_rows_without_y():
    frame = device("a", [1.0, 2.0, 3.0, np.nan, np.nan], hour=np.arange(5.0))
    assert latest(frame, 3, 2, freq="h", known=["hour"]).x.tolist() == [[[1, 2, 3], [2, 3, 4]]]
    assert latest(frame.head(4), 3, 2, freq="h", known=["hour"]).counts["lost"].tolist() == [1]


def test_splits_are_times_for_all_devices_and_windows_of_the_parts_share_no_target():
    frame = fleet(device("a", 240), device("b", 200, start="2024-01-02"))
    split = split_times(frame, val="1D", test=0.2)
    assert split.test_until == frame["ds"].max()
    assert split.val_until - split.train_until == pd.Timedelta("1D")
    parts = [
        windows(frame, 12, 4, freq="h", after=after, until=until)
        for after, until in [
            (None, split.train_until),
            (split.train_until, split.val_until),
            (split.val_until, split.test_until),
        ]
    ]
    targets = [{*zip(np.repeat(part.unique_id, 4), part.ds.ravel().tolist(), strict=True)} for part in parts]
    assert all(targets) and not (targets[0] & targets[1] or targets[1] & targets[2] or targets[0] & targets[2])


@pytest.mark.parametrize(
    ("val", "test", "said"),
    [
        ("1D", "30D", "leave nothing to train on"),
        (0.5, 0.5, "leave nothing"),
        (2, "1D", "val must be"),
        ("1D", "soon", "test must be"),
        ("-1D", "1D", "val must be"),
    ],
)
def test_splits_that_cannot_be(val, test, said):
    with pytest.raises(ValueError, match=said):
        split_times(device("a", 240), val=val, test=test)


BAD = {
    "twice": (lambda a: fleet(a, a.tail(2)), r"a: 2 stamps twice, the first 2024-01-01T22"),
    "off the grid": (
        lambda a: a.assign(ds=a["ds"].mask(a.index == 3, a["ds"] + pd.Timedelta("7min"))),
        r"a: 1 stamps off the grid",
    ),
    "no stamp": (lambda a: a.assign(ds=a["ds"].mask(a.index == 3)), r"a: 1 rows without a stamp"),
    "not long": (lambda a: a.drop(columns="ds").assign(ds="2024-01-01"), r"'ds' must be datetime64 in UTC"),
    "a zone": (lambda a: a.assign(ds=a["ds"].dt.tz_localize("UTC")), r"UTC without a zone"),
    "ids": (lambda a: a.assign(unique_id=7), r"'unique_id' must be text"),
    "text": (lambda a: a.assign(site="x"), r"'site' must hold numbers"),
}


@pytest.mark.parametrize(("spoil", "said"), BAD.values(), ids=BAD)
def test_frames_that_cannot_be_cut_name_every_device(spoil, said):
    with pytest.raises(SeriesError, match=said):
        windows(fleet(spoil(device("a", 24)), device("b", 24)), 4, 2, freq="h")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lookback": 0}, "lookback must be"),
        ({"horizon": 2.0}, "horizon must be"),
        ({"stride": 0}, "stride must be"),
        ({"known": ["rain"]}, r"\['rain'\] are no covariates"),
        ({"known": "hour"}, "must be a list"),
        ({"known": ["hour"], "horizon": 5}, "lookback >= horizon"),
        ({"after": pd.NaT}, "after must be a stamp"),
        ({"freq": "often"}, "'often' is none that pandas knows"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        windows(device("a", 24, hour=1.0), **{"lookback": 4, "horizon": 2, "freq": "h", **settings})


def test_ett_windows_are_slices_of_the_file(audiolora_data):
    frame = read(audiolora_data / "ett/ETTh1.csv", time_col="date")
    found = windows(frame[frame["unique_id"] == "OT"], 96, 24, freq="h", stride=24)
    raw = pd.read_csv(audiolora_data / "ett/ETTh1.csv")["OT"].to_numpy(np.float32)
    assert np.array_equal(found.x[:, 0], [raw[at : at + 96] for at in range(0, len(raw) - 119, 24)])
    assert np.array_equal(found.y, [raw[at + 96 : at + 120] for at in range(0, len(raw) - 119, 24)])
