"""A CTC model's settings in a manifest."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from audiolora.export.ctc_settings import CtcSettings
from audiolora.export.tasks import check_adapter_task, task_from_json, task_to_json
from tests.edge.test_ctc import settings
from tests.edge.test_forecasting import settings as forecast_settings

Convolutions = list[tuple[int, int]]


def test_settings_survive_json() -> None:
    ours = settings(dropped=("<s>",), lower=True)
    assert task_from_json(json.loads(json.dumps(task_to_json(ours)))) == ours


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4), st.integers(1, 40))
def test_frames_are_what_convolutions_give(convolutions: Convolutions, n_frames: int) -> None:
    ours = settings(convolutions=tuple(convolutions))
    net = nn.Sequential(*(nn.Conv1d(1, 1, kernel, stride) for kernel, stride in convolutions))
    samples = ours.samples(n_frames)
    for n in (samples, samples + ours.stride - 1):
        assert net(torch.zeros(1, 1, n)).shape[2] == ours.frames(n) == n_frames
    assert ours.frames(samples - 1) == n_frames - 1 and ours.frames(samples + ours.stride) == n_frames + 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sample_rate_hz": 0}, "sample_rate_hz must be a positive whole number, got 0"),
        ({"normalized": 1}, "normalized must be true or false, got 1"),
        ({"convolutions": ()}, "convolutions must be pairs"),
        ({"convolutions": ((3, 0),)}, "convolutions must be pairs"),
        ({"vocabulary": ("<pad>", 3)}, "vocabulary must be texts"),
        ({"vocabulary": ("<pad>", "a", "<pad>")}, "blank must be one of the vocabulary, there once, got '<pad>'"),
        ({"blank": "<blank>"}, "blank must be one of the vocabulary"),
        ({"delimiter": "<pad>"}, "delimiter must be another than the blank"),
        ({"space": None}, "space must be a text"),
    ],
)
def test_settings_out_of_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_an_adapter_may_have_another_alphabet_of_the_same_size() -> None:
    base = settings()
    letters = tuple("xyzuvwXYZUVW")
    check_adapter_task(base, settings(vocabulary=("<pad>", *letters), delimiter=None, lower=True))
    with pytest.raises(ValueError, match="vocabulary must be of the base's size, 13.*got 12"):
        check_adapter_task(base, settings(vocabulary=("<pad>", *letters[1:])))
    with pytest.raises(ValueError, match="the base's, but for vocabulary and text, got 'sample_rate_hz, masked'"):
        check_adapter_task(base, settings(sample_rate_hz=8000, masked=False))
    for other in (None, forecast()):
        with pytest.raises(ValueError, match="must be of its base's kind"):
            check_adapter_task(other, base)


def forecast() -> Any:
    from tests.edge.test_forecasting import WindowScaler

    return forecast_settings(WindowScaler())


def test_the_example_of_the_docstring() -> None:
    letters = ("<pad>", "|", "a", "b")
    assert CtcSettings(16000, True, False, ((10, 5), (3, 2)), 1, letters, "<pad>", "|").frames(16000) == 1599
