"""Pushing and fetching adapters, over HTTP with huggingface_hub's own client, against a hub in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from audiolora.files import write_json
from audiolora.speech.card import model_card
from audiolora.speech.hub import HubError, _name_the_base, local_adapter, push_adapter
from audiolora.speech.texts.metrics import error_rates
from audiolora.speech.whisper.adapter import AdapterInfo
from audiolora.speech.whisper.weights import transport_errors
from tests.speech.fake_hub import Hub, running_hub
from tests.speech.tiny_run import tiny_run
from tests.speech.tiny_whisper import tiny_whisper

BASE = "user/tiny-whisper"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tiny_whisper(folder / "base")
    return tiny_run(folder / "calls", folder / "base").folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    """The hub, and the environment of a process that uses it."""
    with running_hub() as running:
        seen = {
            **os.environ, "HF_ENDPOINT": running.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_writes",
            "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        yield running, seen


def audiolora(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own: huggingface_hub reads its environment once."""
    program = [sys.executable, "-c", "from audiolora.cli import main; main()", *words]
    return subprocess.run(program, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_adapter_goes_to_the_hub_and_comes_back(run: Path, hub: tuple[Hub, dict[str, str]], tmp_path: Path) -> None:
    running, env = hub
    done = audiolora("push", str(run), "user/calls", "--version", "v1", "--base", BASE, "--licence", "mit", env=env)
    assert done.returncode == 0, done.stderr
    assert "--adapter user/calls@v1" in done.stdout
    files = running.repos["user/calls"]["v1"]
    assert files["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert json.loads(files["audiolora.json"])["base_model"] == BASE
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert not [name for name, data in files.items() if str(run.parent).encode() in data]  # nothing of this machine
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and card.data.version == "v1"
    summary = json.loads((run / "summary.json").read_text())
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {kind: round(summary["after"][kind]["value"], 2) for kind in ("wer", "cer")}

    again = audiolora("push", str(run), "user/calls", "--version", "v1", "--base", BASE, env=env)
    assert again.returncode == 2 and "has a version v1 already" in again.stderr

    fetch = "from audiolora.speech.hub import local_adapter; print(local_adapter('user/calls@v1'))"
    where = subprocess.run([sys.executable, "-c", fetch], env=env, capture_output=True, text=True, check=True).stdout
    fetched = Path(where.strip().splitlines()[-1])
    assert (fetched / "adapter_model.safetensors").read_bytes() == files["adapter_model.safetensors"]
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert subprocess.run([sys.executable, "-c", fetch], env=offline, capture_output=True, text=True).stdout == where
    shown = audiolora("inspect", "user/calls@v1", env=env)
    assert shown.returncode == 0 and "LoRA" in shown.stdout, shown.stderr


@pytest.mark.slow
def test_what_the_hub_refuses_is_told_in_a_line(run: Path, hub: tuple[Hub, dict[str, str]]) -> None:
    _, env = hub
    stranger = {**env, "HF_TOKEN": "hf_reads"}
    done = audiolora("push", str(run), "user/calls", "--base", BASE, env=stranger)
    assert done.returncode == 2 and "401" in done.stderr and "hf auth login" in done.stderr
    missing = audiolora("inspect", "user/nothing", env=env)
    assert missing.returncode == 2 and "user/nothing is no folder here" in missing.stderr


def test_a_base_that_only_this_machine_has_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="base model is .*which nobody else has; give its name on the hub with --base"):
        push_adapter(run, "user/calls")


@pytest.mark.parametrize("old", ["whisper", "models/whisper", "/srv/models/whisper"])
def test_the_card_s_other_words_stay_when_the_base_is_named(tmp_path: Path, old: str) -> None:
    """By the card that a run over a local folder leaves; "whisper" is a tag of it too, and part of other words."""
    rates = error_rates(["one two"], ["one"], normalize=str.lower, resamples=10)
    said = {"tag": "whisper", "decoding": "As any whisper does.", "language": "en", "notes": [f"Not {old}-large."]}
    sources = [f"Base model: {old}; the local directory {old}"]
    info = AdapterInfo(old, "0", "auto", "en")
    text = model_card("whisper", "Trained.", info, rates, rates, **said, attribution=sources)
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    for file in ("audiolora.json", "adapter_config.json"):
        write_json(tmp_path / file, {"base_model": old})
    _name_the_base(tmp_path, BASE)
    named = replace(info, base_model=BASE)
    wanted = model_card("whisper", "Trained.", named, rates, rates, **said, attribution=[sources[0].replace(old, BASE)])
    assert (tmp_path / "README.md").read_text("utf-8") == wanted


@pytest.mark.parametrize(
    ("repo", "version", "message"),
    [
        ("calls", None, "no name of a repository"),
        ("user/calls", "v 1", "letters, digits"),
        ("a/b/c", None, "no name"),
        *((name, None, "no name of a repository") for name in ("user/my--calls", "user/a..b", "user/calls.git")),
    ],
)
def test_names_that_are_none(run: Path, repo: str, version: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        push_adapter(run, repo, version=version, base=BASE)


def test_offline_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"no folder here, and as a name on the hub: .*HF_HUB_OFFLINE"):
        local_adapter("user/calls@v1")


def test_a_hub_that_cannot_be_reached_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own errors of transport are no OSErrors; a time-out's text is empty."""
    transport: type[BaseException] = transport_errors()[-1]
    for said, told in (("[Errno 111] Connection refused", "Connection refused"), ("", transport.__name__)):

        def fails(*_: object, said: str = said, **__: object) -> None:
            raise transport(said)

        monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fails)
        with pytest.raises(HubError, match=rf"^(\[Errno 111\] )?{told}; log in with `hf auth login`.*connection"):
            push_adapter(run, "user/calls", base=BASE)


class Told(Exception):
    """Where a push would begin to upload."""


@pytest.fixture
def upload(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a push would upload: the card. The repository is there; "private" says whether the hub keeps it so."""
    seen: dict[str, Any] = {"private": False}

    def uploads(self: object, *, folder_path: Path, **_: object) -> None:
        seen["card"] = ModelCard((folder_path / "README.md").read_text("utf-8"))
        raise Told

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: "https://hub/user/calls")
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_refs", lambda *_, **__: SimpleNamespace(tags=[]))
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: SimpleNamespace(private=seen["private"]))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", uploads)
    return seen


@pytest.mark.parametrize("inside", ["", "adapter"])
def test_figures_are_told_of_a_run_and_of_its_adapter_s_folder(run: Path, upload: dict[str, Any], inside: str) -> None:
    with pytest.raises(Told):
        push_adapter(run / inside, "user/calls", base=BASE)
    assert upload["card"].data.model_name == "calls"
    assert [result.metric_type for result in upload["card"].data.eval_results] == ["wer", "cer"]


def test_nothing_private_goes_to_a_public_repository(run: Path, upload: dict[str, Any]) -> None:
    with pytest.raises(HubError, match="user/calls is there already, and public"):
        push_adapter(run, "user/calls", base=BASE, private=True)
    upload["private"] = True
    with pytest.raises(Told):
        push_adapter(run, "user/calls", base=BASE, private=True)


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json("runs/demo/settings.json", {})
    assert local_adapter("runs/demo") == Path("runs/demo")
    for name in ("no/such/folder", "runs/my--run", "runs/run."):  # no names on the hub either
        assert local_adapter(name) == Path(name)
