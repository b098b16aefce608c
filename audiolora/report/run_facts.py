"""A run as text in the terminal: what it trains on, how far it got, what it adapts, what it reached."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolora.report.adapter_table import CONFIG_FILE, read_adapter
from audiolora.speech.ctc.adapter import is_ctc_adapter, read_ctc_info
from audiolora.speech.whisper.adapter import INFO_FILE, read_info

if TYPE_CHECKING:
    from rich.console import Console

    from audiolora.run import Run

Facts = list[tuple[str, str]]


def print_run(run: Run, console: Console) -> None:
    """Settings, adapted modules, sizes; then the error rates of a finished run, or how far an unfinished one got.

    Raises:
        ValueError: one of the run's files is damaged.
    """
    state = "finished" if run.finished else "not finished"
    settings = [(name.replace("_", " "), _setting(value)) for name, value in run.settings.items()]
    _print_facts(console, f"{run.folder}: {state}", settings)
    checkpoints = run.whole_checkpoints()
    if (run.adapter / CONFIG_FILE).is_file():
        print_adapter(run.adapter, console)
    elif checkpoints and "horizon" not in run.settings:  # those of a base are no adapter
        console.print(read_adapter(checkpoints[-1]).table())
    sizes = [("adapter", run.adapter), ("checkpoints", run.training), ("whole run", run.folder)]
    _print_facts(console, "sizes", [(name, _size(folder)) for name, folder in sizes if folder.exists()])
    if not run.finished:
        return _print_facts(console, "how far it got", _progress(run, checkpoints))
    from audiolora.report import comparison_run, fleet_run, series_run, speech_run

    if "ways" in run.settings:
        return comparison_run.show(run)
    if "chunk" in run.settings:
        return fleet_run.show(run)
    return series_run.show(run) if "horizon" in run.settings else speech_run.show(run)


def print_adapter(folder: Path, console: Console) -> None:
    """An adapter's base, language and context, as far as its files know them, and its modules."""
    adapter = read_adapter(folder)
    if not (folder / INFO_FILE).is_file():
        base = adapter.config.get("base_model_name_or_path") or "not named"
        facts = [("base model", str(base)), ("audio context", f"not known: no {INFO_FILE}, so not trained by a recipe")]
    else:
        facts = _ctc_facts(folder) if is_ctc_adapter(folder) else _whisper_facts(folder)
    _print_facts(console, f"adapter {folder}", facts)
    console.print(adapter.table())


def _whisper_facts(folder: Path) -> Facts:
    info = read_info(folder)
    return [
        ("base model", f"{info.base_model} (fingerprint {info.base_fingerprint[:12]})"),
        ("audio context", info.context),
        ("language", info.language or "English-only model"),
    ]


def _ctc_facts(folder: Path) -> Facts:
    info = read_ctc_info(folder)
    head = "a new one, trained with the adapter" if info.new_head else "the base's"
    return [
        ("base model", f"{info.base_model} (fingerprint {info.base_fingerprint[:12]})"),
        ("kind", "CTC"),
        ("language", info.language or "not said"),
        ("vocabulary", f"{len(info.vocabulary)} outputs: {' '.join(info.vocabulary[:40])}"),
        ("output layer", head),
    ]


def _progress(run: Run, checkpoints: list[Path]) -> Facts:
    """The last whole checkpoint, and the last losses logged."""
    facts = []
    if checkpoints:
        state = _json(checkpoints[-1] / "trainer_state.json")
        step, steps, epoch = state["global_step"], state["max_steps"], state["epoch"]
        facts.append(("continues from", f"{checkpoints[-1].name}: step {step} of {steps}, epoch {epoch:.3g}"))
    else:
        before = " (the zero-shot texts are kept)" if run.read("before.json") is not None else ""
        facts.append(("continues from", f"the beginning: no whole checkpoint yet{before}"))
    log = run.training / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    entries = [_parsed(line, f"{log} line {number}") for number, line in enumerate(lines, start=1)]
    for key, name in (("loss", "last training loss"), ("eval_loss", "last development loss")):
        last = next((entry for entry in reversed(entries) if key in entry), None)
        if last is not None:
            facts.append((name, f"{last[key]:.3f} at step {last['step']}"))
    return [*facts, ("continue it", "run the same command again")]


def _json(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: must be a JSON object, got {text[:40]!r}")
    return value


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return "not given" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _size(folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{size / 1e6:,.1f} MB"


def _print_facts(console: Console, title: str, facts: Iterable[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(Text(title, style="bold"), soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(value))  # Text, not str: "[red]" must be shown, not obeyed
    console.print(table)
    console.print()
