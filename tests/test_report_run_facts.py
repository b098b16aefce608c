"""What `audiolora inspect` prints is what lies in the folder, and looking changes nothing there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from peft import IA3Config, LoraConfig, get_peft_model
from rich.console import Console
from torch import nn

import audiolora
from audiolora.report.adapter_table import read_adapter
from audiolora.report.run_facts import print_adapter, print_run
from audiolora.run import Run, open_run, read_run
from audiolora.speech.whisper.adapter import load_adapted
from tests.speech.tiny_run import tiny_run
from tests.speech.tiny_whisper import tiny_whisper


@pytest.fixture(scope="module", params=["lora", "dora"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("facts")
    tiny_whisper(folder / "base", layers=2)
    return tiny_run(folder / "runs" / "tiny", folder / "base", method=request.param)


def printed(show: object, *what: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(*what, console)  # type: ignore[operator]
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_file_says_what_the_model_in_memory_says(run: Run) -> None:
    inspection = audiolora.inspect(load_adapted(run.folder)[0])
    read = read_adapter(run.adapter)
    assert read.method == inspection.rows[0].method.split()[0]
    assert {weight.module: (weight.r, weight.parameters) for weight in read.weights} == {
        row.name: (row.r, row.parameters) for row in inspection.rows
    }
    shapes = {weight.module: weight.weight_shape for weight in read.weights}
    assert shapes["model.encoder.conv1"] == (16, 80, 3) and shapes["model.encoder.layers.0.self_attn.q_proj"] == (
        16,
        16,
    )
    table = printed(lambda console: console.print(read.table()))
    assert "16 × 80 × 3" in table and f"{read.parameters:,} parameters of {read.method}" in table
    assert "model.*.layers.*.*.q_proj ×6" in table, "modules that differ in their index share a line"


def test_a_finished_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(print_run, read_run(run.folder)).split())
    for part in (
        "tiny: finished",
        "data prompts-en",
        "r conv 3, attention 2",
        "audio context auto",
        "English-only",
        "sizes",
    ):
        assert part in text, part
    figures = capsys.readouterr().out
    assert "zero-shot" in figures and "83.3" in figures and "16.7" in figures, figures  # 5 of 6 words wrong, then 1


def checkpoint(run: Run, step: int, *, whole: bool) -> Path:
    folder = run.training / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 250, "epoch": step / 50}))
    if whole:
        (folder / "whole").touch()
    return folder


def test_an_unfinished_run_says_how_far_it_got_and_is_left_alone(run: Run, tmp_path: Path) -> None:
    half = open_run(tmp_path / "half", {"model": "m", "data": "d", "learning_rate": 3e-3, "language": None})
    assert "the beginning: no whole checkpoint yet" in printed(print_run, half)
    half.write("before.json", ["a"])
    assert "zero-shot texts are kept" in printed(print_run, half)
    for step, whole in ((90, True), (100, True), (150, False)):  # as text, 90 would come after 100
        folder = checkpoint(half, step, whole=whole)
        for file in run.adapter.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    entries = [{"loss": 2.5, "step": 95}, {"eval_loss": 1.25, "step": 100}, {"loss": 0.75, "step": 105}]
    (half.training / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    text = " ".join(printed(print_run, read_run(half.folder)).split())
    for part in (
        "half: not finished",
        "learning rate 0.003",
        "language not given",
        "continues from checkpoint-100: step 100 of 250, epoch 2",
        "last training loss 0.750 at step 105",
        "last development loss 1.250 at step 100",
        "16 × 80 × 3",
    ):
        assert part in text, part
    assert (half.training / "checkpoint-150").exists(), "it may be being written this moment"


def test_damage_is_named(run: Run, tmp_path: Path) -> None:
    half = open_run(tmp_path / "half", {"model": "m"})
    half.training.mkdir()
    (half.training / "metrics.jsonl").write_text('{"loss": 1, "step": 5}\n{"lo')
    with pytest.raises(ValueError, match=r"metrics.jsonl line 2: not JSON"):
        printed(print_run, half)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    with pytest.raises(ValueError, match=r"no adapter_config.json in it"):
        read_adapter(adapter)
    (adapter / "adapter_config.json").write_bytes((run.adapter / "adapter_config.json").read_bytes())
    (adapter / "adapter_model.safetensors").write_bytes((run.adapter / "adapter_model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"adapter: the adapter is damaged"):
        read_adapter(adapter)


def test_any_lora_adapter_of_peft_is_shown(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Conv1d(4, 8, 5), nn.Embedding(10, 3), nn.Conv2d(2, 4, (3, 5)))
    names = ["0", "1", "2", "3"]
    get_peft_model(net, LoraConfig(r=2, target_modules=names)).save_pretrained(tmp_path)
    read = read_adapter(tmp_path)
    assert {weight.module: (weight.weight_shape, weight.r) for weight in read.weights} == {
        "0": ((4, 6), 2), "1": ((8, 4, 5), 2), "2": ((3, 10), 2), "3": ((4, 2, 3, 5), 2)
    }  # fmt: skip
    assert read.parameters == 2 * (4 + 6) + 2 * (4 * 5 + 8) + 2 * (10 + 3) + 2 * (2 * 15 + 4)
    text = " ".join(printed(print_adapter, tmp_path).split())
    assert "audio context not known: no audiolora.json" in text and "base model not named" in text


SHAPES = {
    "loha": {"conv": (64, 180), "up": (64, 360), "fc": (64, 40)},
    "loha, Tucker": {"conv": (64, 20, 9), "up": (64, 40, 9), "fc": (64, 40)},
    "lokr": {"conv": (64, 180), "up": (64, 360), "fc": (64, 40)},
    "lokr, Tucker": {"conv": (64, 20, 9), "up": (64, 40, 9), "fc": (64, 40)},
    "lokr, whole": {"conv": (64, 20, 9), "up": (64, 40, 9), "fc": (64, 40)},
    "adalora": {"conv": (64, 180), "up": (64, 360), "fc": (64, 40)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_method_s_file_says_what_the_model_in_memory_says(name: str, tmp_path: Path) -> None:
    method, r = name.partition(",")[0], 40 if "whole" in name else 2
    net = nn.ModuleDict(
        {"conv": nn.Conv1d(40, 64, 9, groups=2), "up": nn.ConvTranspose1d(40, 64, 9), "fc": nn.Linear(40, 64)}
    )
    schedule = audiolora.RankSchedule(total_step=10) if method == "adalora" else None
    config = audiolora.adapter_config(net, method, r=r, targets=list(net), schedule=schedule)
    if "Tucker" in name:
        config.use_effective_conv2d = True
    with audiolora.enabled():
        model = get_peft_model(net, config)
        model.save_pretrained(tmp_path)
    read, rows = read_adapter(tmp_path), audiolora.inspect(model).rows
    assert read.method == rows[0].method.split()[0]
    assert {weight.module: weight.weight_shape for weight in read.weights} == SHAPES[name]
    found = {weight.module: (weight.r, weight.parameters) for weight in read.weights}
    assert found == {row.name: (None if "whole" in name else row.r, row.parameters) for row in rows}
    text = printed(print_adapter, tmp_path)
    assert f"parameters of {read.method}" in text and ("–" in text) == ("whole" in name)


def test_another_method_of_peft_is_refused_by_name(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    config = IA3Config(target_modules=["0", "1"], feedforward_modules=["1"])
    get_peft_model(net, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type IA3; audiolora knows LORA, LOHA, LOKR, ADALORA"):
        read_adapter(tmp_path)
