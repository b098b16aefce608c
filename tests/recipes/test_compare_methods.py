"""The comparison recipe from a file of histories to its table, plot and report."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from audiolora.comparison.settings import FleetSpan
from tests.series.tiny_fleet import fleet

RECIPE = Path(__file__).parents[2] / "recipes" / "compare_methods.py"
SPAN = FleetSpan(
    unseen=2, history_days=8, test_days=3, val_days=2, lookback=24, horizon=6, channels=4, base_epochs=1, stride=6
)
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPE.parents[1])}


def recipe(**settings):
    spec = importlib.util.spec_from_file_location("compare_methods", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(**settings)


@pytest.mark.slow
def test_a_fleet_to_its_table(tmp_path, capsys):
    fleet(devices=4, steps=24 * 30).to_csv(tmp_path / "pumps.csv", index=False)
    settings = {
        "data": str(tmp_path / "pumps.csv"), "shift": "none", "ways": ("frozen", "head", "lora"), "fleet": SPAN,
        "learning_rates": (1e-3,), "seeds": 2, "epochs": 1, "parameters": 60, "name": "tiny", "out": tmp_path,
    }  # fmt: skip
    recipe(**settings)
    said, run = capsys.readouterr().out, tmp_path / "tiny"
    summary = json.loads((run / "summary.json").read_text())
    assert [row["way"] for row in summary["rows"]] == ["frozen", "head", "lora"] and summary["unit"] == "MASE"
    assert "errs least" in said and "report.html" in said
    rows = list(csv.DictReader((run / "table.csv").open()))
    assert [float(row["error"]) for row in rows] == [row["error"] for row in summary["rows"]]
    table = (run / "table.md").read_text().splitlines()
    assert (
        table[0].startswith("| way | MASE |") and len(table) == 2 + 3 and len({line.count("|") for line in table}) == 1
    )
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 2 and "<script" not in page and "comparison of methods" in page
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*.json")}
    recipe(**settings)  # shown again
    assert times == {path: path.stat().st_mtime_ns for path in run.rglob("*.json")}
    with pytest.raises(ValueError, match="seeds was 2, now 3"):
        recipe(**{**settings, "seeds": 3})


@pytest.mark.slow
def test_a_ctc_model_to_its_table(tmp_path, capsys):
    """Three ways at equal parameters over two seeds, as `make demo-ctc` compares them."""
    from tests.speech.ctc.tiny_ctc import tiny_ctc, write_clips

    loaded = tiny_ctc(tmp_path / "made")
    loaded.model.save_pretrained(tmp_path / "base")
    loaded.processor.save_pretrained(tmp_path / "base")
    ways = ("frozen", "lora-attention", "lora-attention-ffn", "lora")
    recipe(
        task="ctc", model=str(tmp_path / "base"), data=str(write_clips(tmp_path / "clips", 24)), channel="noise20dB",
        test=6, dev=4, ways=ways, learning_rates=(1e-2,), seeds=2, epochs=1, parameters=2500, name="tiny", out=tmp_path,
    )  # fmt: skip
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    assert tuple(row["way"] for row in summary["rows"]) == ways and summary["unit"] == "WER %"
    sizes = [row["trained"] for row in summary["rows"][1:]]
    assert all(len(row["seeds"]) == 2 for row in summary["rows"][1:]) and max(sizes) < 1.3 * min(sizes)
    assert "errs least" in capsys.readouterr().out


def test_what_cannot_be_compared_is_told_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        recipe(data="nowhere.csv", out=tmp_path)
    with pytest.raises(ValueError, match="nonsense is none of them"):
        recipe(ways=("lora", "nonsense"), out=tmp_path)
    with pytest.raises(ValueError, match="lora-attention has nothing to adapt"):
        recipe(ways=("lora-attention",), out=tmp_path)
    assert not list(tmp_path.glob("*/base"))
    with pytest.raises(ValueError, match=r"learning_rates must lie in \(0, 1\)"):
        recipe(learning_rates=(3.0,), out=tmp_path)


def test_help_teaches():
    done = subprocess.run(
        [sys.executable, RECIPE, "--help"], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    for word in ("--ways", "--engine", "--seeds", "--parameters", "interrupted", "lora-int8"):
        assert word in done.stdout
