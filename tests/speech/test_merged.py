"""What a merged model says that it was made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiolora.speech.merged import adapter_name


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/calls/adapter", "calls"),
        ("shared/calls", "calls"),
        ("hub/models--user--calls/snapshots/1f0c5e", "user/calls"),  # as the hub's cache has it
    ],
)
def test_an_adapter_is_called_what_people_call_it(tmp_path: Path, folder: str, name: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    assert adapter_name(tmp_path / folder) == name
