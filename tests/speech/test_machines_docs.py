"""docs/speech/machines.md: its Python runs, its commands are the recipe's, and so are the options that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "speech" / "machines.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def test_its_python_runs(capsys):
    for text in blocks("python"):
        exec(compile(text, "machines.md", "exec"), {})
    assert capsys.readouterr().out == "8 clips an update\n"


def test_its_commands_are_those_that_there_are():
    """What stands before the recipe is the launcher's, what stands after it the recipe's."""
    from accelerate.commands.launch import launch_command_parser

    from recipes.asr_whisper import app

    for text in blocks("bash"):
        words = [word for word in shlex.split(text) if "=true" not in word]
        recipe = words.index("recipes/asr_whisper.py")
        app.parse_args(words[recipe + 1 :], exit_on_error=False)
        if words[:2] == ["accelerate", "launch"]:
            launch_command_parser().parse_args(words[2 : recipe + 1])


def test_the_options_that_it_names_exist():
    from recipes.asr_whisper import app

    options = {name for argument in app.assemble_argument_collection() for name in argument.names}
    named = set(re.findall(r"(?<=[`\s])--[a-z][a-z-]+(?=[`\s])", PAGE))
    assert len(named) > 8 and named - options <= {"--standalone", "--cpu"}


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / "speech" / link).exists()
