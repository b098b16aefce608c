"""What turning clips into texts takes, whatever the model: eval mode for a while, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

Advance = Callable[[int], object]
"""Takes the number of clips that are done since it was called last."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def progress_bar(total: int, show: bool) -> Iterator[Advance]:
    """A bar on stderr; what it yields moves it on by so many clips."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("transcribing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # on stderr: on stdout it would stand among the texts
    with Progress(*columns, console=Console(stderr=True), disable=not show or total == 0) as bar:
        row = bar.add_task("transcribing", total=total)
        yield lambda n: bar.advance(row, n)
