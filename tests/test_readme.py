"""The README is run: its Python as it stands, its shell lines checked against what exists.

Python blocks run in the order of the page, in one interpreter and an empty folder, so they must be quick and offline.
Shell lines are not executed. Their programs, make targets, subcommands and flags must exist. A shell block that would
only make sense with a download behind it may stand under `<!-- not run: the reason -->`; Python blocks may not.
"""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SHELLS = ("bash", "sh", "shell", "console")
SHELL_BUILTINS = ("cd", "export", "source", ".")
FENCE = re.compile(
    r"(?:^<!-- not run:(?P<reason>[^\n]*?)-->[ \t]*\n\s*)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its code, the README line its code begins on, and why it is not run."""

    language: str
    code: str
    line: int
    not_run: str | None

    @property
    def id(self) -> str:
        return f"README.md:{self.line}"


def blocks_of(page: str) -> list[Block]:
    return [
        Block(
            language=match["language"],
            code=match["code"],
            line=page.count("\n", 0, match.start("code")) + 1,
            not_run=match["reason"].strip() if match["reason"] is not None else None,
        )
        for match in FENCE.finditer(page)
    ]


BLOCKS = blocks_of(README.read_text(encoding="utf-8")) if README.exists() else []
SHELL_BLOCKS = [block for block in BLOCKS if block.language in SHELLS]
PYTHON_BLOCKS = [block for block in BLOCKS if block.language == "python"]


def commands_of(code: str) -> list[list[str]]:
    """The commands of a shell block as argument lists: prompts, comments and VARIABLE=value prefixes dropped."""
    commands = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip("&|;"):
                if command or not re.match(r"\w+=", word):
                    command.append(word)
            elif command:
                commands.append(command)
                command = []
    return commands


def find_program(name: str) -> str | None:
    """Path of a program: one of this environment first, then of the machine."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


@functools.cache
def help_text(command: tuple[str, ...]) -> str:
    done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} --help fails:\n{done.stderr}"
    return done.stdout


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def check_flags(words: list[str], described_by: tuple[str, ...]) -> None:
    """Every `--flag` among `words` stands in the help of the command that takes it."""
    known = set(re.findall(r"--[\w-]+", help_text(described_by)))
    used = {word.split("=")[0] for word in words if word.startswith("--") and word != "--"}
    assert used <= known, f"{' '.join(described_by)} has no {sorted(used - known)}; it has {sorted(known)}"


def check_command(words: list[str]) -> None:
    """A shell command of the README names things that exist."""
    program = words[0]
    if program in SHELL_BUILTINS:
        return
    path = find_program(program)
    assert path is not None, f"no program {program!r} here: {' '.join(words)}"
    recipe = next((i for i, word in enumerate(words) if re.fullmatch(r"(\./)?recipes/\w+\.py", word)), None)
    if recipe is not None:
        check_flags(words[recipe + 1 :], (sys.executable, words[recipe]))
    elif Path(program).name == "audiolora":
        subcommand = words[1:2] if len(words) > 1 and not words[1].startswith("-") else []
        check_flags(words[1 + len(subcommand) :], (path, *subcommand))
    elif program == "make":
        targets = {word for word in words[1:] if not word.startswith("-") and "=" not in word}
        assert targets <= make_targets(), f"the Makefile has no {sorted(targets - make_targets())}"


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    if not PYTHON_BLOCKS:
        pytest.skip("README.md has no python block yet")
    tagged = [block.id for block in PYTHON_BLOCKS if block.not_run is not None]
    assert tagged == [], f"python blocks are always run: {tagged}"
    # Blank lines in front of each block, so that a traceback names the line of the README.
    script = "".join(
        f"exec(compile({chr(10) * (block.line - 1) + block.code!r}, 'README.md', 'exec'))\n" for block in PYTHON_BLOCKS
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.id)
def test_the_shell_lines_of_the_readme_name_what_exists(block: Block) -> None:
    if block.not_run is not None:
        assert block.not_run, f"{block.id}: give the reason in <!-- not run: ... -->"
        pytest.skip(f"{block.id} is not run: {block.not_run}")
    for words in commands_of(block.code):
        check_command(words)


PAGE = """# title
```python
x = 1
```
<!-- not run: downloads a model -->
```bash
make demo
```
```console
$ AUDIOLORA_DATA=here make test && audiolora inspect runs/demo  # look
```
"""


def test_blocks_are_found_with_their_lines_and_tags() -> None:
    python, tagged, console = blocks_of(PAGE)
    assert (python.language, python.code, python.line, python.not_run) == ("python", "x = 1\n", 3, None)
    assert (tagged.language, tagged.line, tagged.not_run) == ("bash", 7, "downloads a model")
    assert commands_of(console.code) == [["make", "test"], ["audiolora", "inspect", "runs/demo"]]


def test_a_line_continued_or_quoted_is_one_command() -> None:
    code = "python recipes/asr_whisper.py \\\n  --channel 'invert, gsm' --name demo\n"
    assert commands_of(code) == [["python", "recipes/asr_whisper.py", "--channel", "invert, gsm", "--name", "demo"]]


@pytest.mark.parametrize("words", [["make", "no-such-target"], ["no-such-program-here"]], ids=" ".join)
def test_what_does_not_exist_is_found(words: list[str]) -> None:
    with pytest.raises(AssertionError, match=words[-1]):
        check_command(words)


def test_a_flag_that_the_help_does_not_have_is_found() -> None:
    with pytest.raises(AssertionError, match="--no-such-flag"):
        check_flags(["--no-such-flag=1"], (sys.executable, "-m", "pytest"))
