"""A pytest plug-in for PEFT's own tests: run them with PEFT's or with audiolora's convolutions, and say what happened.

    python -m pytest -p convolution_layers --convolutions audiolora --outcomes FILE …

FILE gets one entry a test: its outcome, and the classes that PEFT's LoRA put where an ``nn.Conv1d`` stood. So whoever
compares two runs knows that a test was about a convolution, and whose layer it saw.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft.tuners.lora.model as peft_lora
import pytest
from torch import nn

import audiolora

_outcomes: dict[str, dict[str, Any]] = {}
_layers_seen: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--convolutions", choices=("peft", "audiolora"), required=True)
    parser.addoption("--outcomes", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--convolutions") == "audiolora":
        audiolora.enable()
    dispatch = peft_lora.dispatch_default

    def recorded(target: nn.Module, *args: Any, **kwargs: Any) -> Any:
        layer = dispatch(target, *args, **kwargs)
        if isinstance(target, nn.Conv1d) and layer is not None:
            _layers_seen.add(f"{type(layer).__module__}.{type(layer).__qualname__}")
        return layer

    peft_lora.dispatch_default = recorded


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _layers_seen.clear()
    _outcomes[item.nodeid] = {"outcome": "passed", "message": ""}
    yield
    _outcomes[item.nodeid]["layers"] = sorted(_layers_seen)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not report.passed:  # of set-up, call and tear-down the first that did not pass
        entry = _outcomes[report.nodeid]
        if entry["outcome"] == "passed":
            entry |= {"outcome": report.outcome, "message": report.longreprtext[-2000:]}


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.getoption("--outcomes").write_text(json.dumps(_outcomes, indent=1), encoding="utf-8")
