"""What a stranger does wrong: an error that names it, never other numbers without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiolora.edge import BundleError, Session
from audiolora.edge.calendar import calendar
from audiolora.edge.forecasting import window
from audiolora.export import make_keys
from audiolora.export.forecast_settings import ForecastSettings
from audiolora.export.signing import sign
from tests.export.small_bundle import factors, sample, write_adapter, write_base

SETTINGS = ForecastSettings(
    lookback=4, horizon=2, freq="h", quantiles=(), past=(), known=(), name="forecast",
    scaler={"kind": "window", "floor": 1e-3, "unscaled": []},
)  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_base(tmp_path)
    write_adapter(tmp_path, "user1", factors(1, rank=2))
    return tmp_path


def test_values_in_another_byte_order_are_refused(small: Path) -> None:
    """ONNX Runtime would read their bytes as they lie."""
    with pytest.raises(ValueError, match="x must be float32"):
        Session(small, threads=1).run(sample().astype(">f4"))


def test_an_input_that_is_too_short_is_told_with_its_shape(small: Path) -> None:
    for length in (0, 2):
        with pytest.raises(ValueError, match=rf"base: the runtime cannot run it on x \(2, 3, {length}\)"):
            Session(small, threads=1).run(sample(length=length))


def test_a_provider_that_is_not_there_is_no_cpu(small: Path) -> None:
    with pytest.raises(ValueError, match="providers must be among .*, got NoSuchProvider"):
        Session(small, threads=1, providers=("NoSuchProvider",))


def test_a_folder_in_the_place_of_a_file_is_refused(small: Path) -> None:
    session = Session(small, threads=1)
    file = small / "adapters" / "user1" / "adapter.safetensors"
    file.unlink()
    file.mkdir()
    with pytest.raises(BundleError, match="no regular file"):
        session.load("user1")


def test_an_adapter_that_is_not_there(small: Path) -> None:
    with pytest.raises(BundleError, match="there is no such folder"):
        Session(small, threads=1).load("user2")


def test_a_key_may_be_its_text_and_is_in_no_message(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "site")
    assert sign(b"x", private.read_text()) == sign(b"x", private)
    secret = private.read_text()
    with pytest.raises(ValueError, match="the key given") as told:
        sign(b"x", secret.replace("PRIVATE", "PUBLIC"))
    assert secret.splitlines()[1] not in str(told.value)
    write_base(tmp_path, key=private)
    Session(tmp_path, key=public.read_text(), threads=1)


@pytest.mark.parametrize(
    "history",
    [np.array(list("abcde")), np.arange(5.0).astype(object), np.arange(5) * 1j, 3.0, np.zeros((1, 1, 5))],
    ids=["strings", "objects", "complex", "a number", "three axes"],
)
def test_a_history_that_is_no_series_of_real_numbers(history: Any) -> None:
    with pytest.raises(ValueError, match=r"y: shape .*, and real numbers \(T,\) or \(N, T\) are needed"):
        window(SETTINGS, history)


def test_a_history_that_is_too_short_says_how_long_it_must_be() -> None:
    with pytest.raises(ValueError, match="3 steps, and the network looks back on 4; give at least 4 steps"):
        window(SETTINGS, np.arange(3.0))


@pytest.mark.parametrize("ends", [3, np.datetime64("2024-05-01T06:00")])
def test_a_time_that_is_none(ends: Any) -> None:
    with pytest.raises(ValueError, match=r"a datetime or a string is needed.*write 2024-01-31T06:00"):
        calendar(ends, 2, 1, 3600.0, "UTC")
