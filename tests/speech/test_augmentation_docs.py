"""docs/speech/augmentation.md: its Python runs, its flags exist, and its table is the library's."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

from audiolora.speech.sound.augment_spec import EFFECTS
from audiolora.speech.sound.augmentation import parse_augmentation
from audiolora.speech.training.settings import TrainingSettings

PAGE = (Path(__file__).parents[2] / "docs" / "speech" / "augmentation.md").read_text("utf-8")
BLOCKS = re.findall(r"(<!-- not run:[^\n]*\n)?^```(python|bash)\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_python_runs(capsys):
    ran = [
        exec(compile(text, "augmentation.md", "exec"), {})
        for skip, kind, text in BLOCKS
        if kind == "python" and not skip
    ]
    assert ran and "5 to 20 dB SNR" in capsys.readouterr().out


def test_the_commands_are_the_recipes():
    fields = {field.name for field in dataclasses.fields(TrainingSettings)} | {"data"}
    for line in "".join(text for _, kind, text in BLOCKS if kind == "bash").splitlines():
        words = shlex.split(line)
        assert {word[2:].replace("-", "_") for word in words if word.startswith("--")} <= fields
        parse_augmentation(words[words.index("--augment") + 1])


def test_the_table_has_every_effect_with_its_range():
    table = re.findall(r"^\| (`.*?) \|", PAGE, re.M)
    named = [name for cell in table for name in re.findall(r"`(.*?)`", cell)]
    assert sorted(named) == sorted(kind.written(name, *(kind.default or (0, 0))) for name, kind in EFFECTS.items())


def test_the_help_has_every_effect_with_its_range():
    told = " ".join(TrainingSettings.__doc__.split())
    for name, kind in EFFECTS.items():
        assert f"{kind.written(name, *(kind.default or (0, 0)))}" in told
