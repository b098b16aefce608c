"""Facts of the repository that no single module's test sees: its size, its words, its imports, its versions."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "audiolora").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))

# Spelled in parts, so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:" + "|".join(("work", "home", "root", "opt")) + ")/")
REGISTRY_HOST = re.compile(
    r"\b(?:" + "|".join(("pypi", "pythonhosted", r"registry\.npmjs", r"deb\.debian")) + r")\.org\b"
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_files_of_the_repository() -> list[Path]:
    """Tracked files and new ones that git does not ignore, binaries left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in files if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


@pytest.mark.parametrize("path", MODULES + RECIPES, ids=relative)
def test_a_file_has_one_subject(path: Path) -> None:
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = 150 if path in RECIPES else 350
    assert n_lines <= limit, f"{relative(path)} has {n_lines} lines, over {limit}: it is two subjects, split it"


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_a_recipe_defines_no_class(path: Path) -> None:
    classes = [node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
    assert classes == [], f"{relative(path)} defines {classes}; they belong in audiolora/"


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST], ids=["machine path", "registry host"])
def test_no_trace_of_one_machine(pattern: re.Pattern[str]) -> None:
    traces = [
        f"{relative(path)}:{number}: {line.strip()[:100]}"
        for path in text_files_of_the_repository()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert traces == [], "\n".join(traces)


def test_the_patterns_find_what_they_look_for() -> None:
    folder, host = "home", "pypi"
    assert MACHINE_PATH.search(f"open('/{folder}/someone/a.wav')")
    assert not MACHINE_PATH.search(f"https://example.com/{folder}/page")
    assert REGISTRY_HOST.search(f"https://{host}.org/simple")


def run_python(source: str) -> str:
    """Standard output of `source` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_nothing_heavy() -> None:
    heavy = ["librosa", "matplotlib", "datasets", "soundfile", "scipy", "torchaudio", "transformers.trainer"]
    heavy += ["transformers.models.whisper.modeling_whisper", "transformers.models.wav2vec2.modeling_wav2vec2"]
    assert run_python(f"import audiolora, sys; print([name for name in {heavy} if name in sys.modules])") == "[]"


# What a patch of PEFT could change: a module's names, a class's attributes, the entries of its tables.
PEFT_SNAPSHOT = """
import sys
import peft, peft.tuners.lora.layer, peft.tuners.lora.model, peft.mapping, peft.peft_model, peft.utils.save_and_load

def snapshot():
    seen = {}
    for name, module in list(sys.modules.items()):
        if name != "peft" and not name.startswith("peft."):
            continue
        for key, value in list(vars(module).items()):
            if key.startswith("__"):
                continue
            seen[name, key] = id(value)
            inside = value if isinstance(value, dict) else vars(value) if isinstance(value, type) else {}
            seen.update({(name, key, str(k)): id(v) for k, v in inside.items() if not str(k).startswith("__")})
    return seen

def patched():
    # A name that appears in a module is a submodule imported late; one that appears in a class or table is a patch.
    after = snapshot()
    gone_or_changed = [key for key in before if after.get(key) != before[key]]
    return gone_or_changed + [key for key in after if key not in before and key[:2] in before]

before = snapshot()
import audiolora
"""


def test_importing_patches_nothing_in_peft() -> None:
    assert run_python(PEFT_SNAPSHOT + "print(patched())") == "[]"


def test_the_patch_detector_detects() -> None:
    patches = """
peft.tuners.lora.layer.Conv1d.forward = print
peft.tuners.lora.layer.dispatch_default = print
peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING["NEW"] = print
print(*patched(), sep="\\n")
"""
    found = run_python(PEFT_SNAPSHOT + patches)
    assert all(name in found for name in ("forward", "dispatch_default", "NEW")), found


def test_public_names_are_documented_with_an_example() -> None:
    import audiolora

    assert audiolora.__all__, "audiolora.__all__ is empty"
    for name in audiolora.__all__:
        value = getattr(audiolora, name)
        if not callable(value):
            continue
        docstring = inspect.getdoc(value) or ""
        assert re.search(r">>> |\bExample", docstring), f"audiolora.{name}: its docstring has no example"


def declared_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in project["dependencies"] + extras]


def pinned_versions() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    pins = pinned_versions()
    requirements = declared_requirements()
    assert sorted(pins) == sorted({requirement.name for requirement in requirements})  # two extras may share one
    outside = [str(r) for r in requirements if not r.specifier.contains(pins[r.name])]
    assert outside == [], f"constraints.txt pins versions outside of: {outside}"


def test_the_installed_versions_lie_inside_the_declared_ranges() -> None:
    wrong = []
    for requirement in declared_requirements():
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        if not requirement.specifier.contains(version):
            wrong.append(f"{requirement} has {version}")
    assert wrong == [], f"run `make setup`: {wrong}"
