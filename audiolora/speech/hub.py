"""Adapters on the Hugging Face hub: a run's adapter pushed as a version that stays, and one fetched by its name.

A name is ``user/calls`` (the newest) or ``user/calls@v2`` (that version, for good: a version is a tag, and is never
moved).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolora.files import write_json
from audiolora.speech.whisper.adapter import INFO_FILE, adapter_folder

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_VERSION = re.compile(r"[A-Za-z0-9][\w.-]*")
_CONFIG, _CARD = "adapter_config.json", "README.md"


class HubError(ValueError):
    """What the hub refused, or an adapter that others could not use."""


@dataclass(frozen=True)
class Pushed:
    """Where an adapter was pushed to.

    Args:
        url: of the repository, at its version if there is one.
        name: what ``--adapter`` takes.
        size_bytes: of what was pushed.
    """

    url: str
    name: str
    size_bytes: int


def push_adapter(
    path: Path,
    repo: str,
    *,
    version: str | None = None,
    base: str | None = None,
    licence: str | None = None,
    private: bool = False,
    log: Callable[[str], object] = print,
) -> Pushed:
    """Push a run's adapter with its model card, to whose header the run's held-out error rates are added.

    Args:
        path: a run's folder or an adapter's.
        repo: ``user/name``; made if it does not exist.
        version: a tag such as ``v1``, put on what is pushed.
        base: the hub's name of the base model, where the adapter was trained over a local folder.
        licence: the hub's id of the adapter's licence, such as ``mit``.
        private: make the repository private; one that is there and public is refused.
        log: called with a sentence for each thing worth knowing.

    Raises:
        ValueError: no adapter in ``path``, a name that is none, or a base that only this machine has.
        HubError: the version exists already, the repository is public, or the hub refused (not logged in, no right to
            write, offline).

    Example:
        >>> push_adapter(Path("runs/calls"), "user/calls", version="v1").name  # doctest: +SKIP
        'user/calls@v1'
    """
    from huggingface_hub import HfApi

    folder = adapter_folder(path)
    if not _is_repo(repo):
        raise ValueError(f"{repo!r} is no name of a repository on the hub; give user/name")
    if version is not None and not _VERSION.fullmatch(version):
        raise ValueError(f"version {version!r}: letters, digits, dots, dashes and underscores, such as v1 or 2026.11")
    with tempfile.TemporaryDirectory(prefix="audiolora-push-") as scratch:
        stage = Path(scratch) / "adapter"
        shutil.copytree(folder, stage)
        _name_the_base(stage, base)
        _complete_the_card(stage, folder.parent if folder.name == "adapter" else folder, version, licence)
        size = sum(file.stat().st_size for file in stage.rglob("*") if file.is_file())
        api = HfApi()
        with _told():
            made = api.create_repo(repo, private=private, exist_ok=True)
            if private and not api.repo_info(repo).private:  # it was there: the hub leaves it as it is
                raise HubError(f"{repo} is there already, and public; make it private on the hub, or choose another")
            if version in [tag.name for tag in api.list_repo_refs(repo).tags]:
                raise HubError(f"{repo} has a version {version} already, which others may use; choose another")
            called = f"adapter {version}" if version else "adapter"
            commit = api.upload_folder(repo_id=repo, folder_path=stage, commit_message=f"{called} (audiolora)")
            if version is not None:
                api.create_tag(repo, tag=version, revision=commit.oid)
    log(f"pushed {size / 1000:,.0f} KB to {made}")
    suffix = "" if version is None else f"/tree/{version}"
    return Pushed(f"{made}{suffix}", repo if version is None else f"{repo}@{version}", size)


def local_adapter(name: str | Path) -> Path:
    """The folder of an adapter: as named if it is there, else fetched from the hub, once, into its cache.

    Args:
        name: a run's or an adapter's folder, or ``user/name`` or ``user/name@version`` on the hub.

    Raises:
        HubError: there is no such adapter on the hub, or the hub cannot be reached and the cache does not have it.

    Example:
        >>> local_adapter("runs/demo")
        PosixPath('runs/demo')
    """
    path = Path(name).expanduser()
    repo, _, version = str(name).partition("@")
    if path.exists() or not _is_repo(repo):
        return path  # what is wrong with it is told by whoever reads it
    from huggingface_hub import snapshot_download

    with _told(f"{path} is no folder here, and as a name on the hub: "):
        return Path(snapshot_download(repo, revision=version or None))


def _is_repo(name: str) -> bool:
    """Whether the hub could have a repository of this name; ``user/my--calls`` it could not."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return _REPO.fullmatch(name) is not None


def _name_the_base(stage: Path, base: str | None) -> None:
    """In the copy that is pushed; a folder of this machine means nothing elsewhere."""
    info = json.loads((stage / INFO_FILE).read_text(encoding="utf-8"))
    name = base or info["base_model"]
    if not re.fullmatch(rf"[\w.-]+|{_REPO.pattern}", name) or Path(name).expanduser().exists():
        raise ValueError(
            f"the adapter's base model is {name}, which nobody else has; give its name on the hub with --base, or push "
            "the base there first"
        )
    config = json.loads((stage / _CONFIG).read_text(encoding="utf-8"))
    write_json(stage / INFO_FILE, info | {"base_model": name})
    write_json(stage / _CONFIG, config | {"base_model_name_or_path": name})
    card = stage / _CARD
    if card.is_file() and name != info["base_model"]:
        card.write_text(_renamed(card.read_text(encoding="utf-8"), info["base_model"], name), encoding="utf-8")


def _renamed(text: str, old: str, new: str) -> str:
    """The card with its base under another name: a path wherever it stands, a bare word where it names the base.

    A folder called ``whisper`` must not take the card's other words "whisper" with it.
    """
    before = (
        "" if "/" in old or "\\" in old else r"(?<=base_model: )|(?<=adapter for )|(?<=Base model: )|(?<=directory )"
    )
    return re.sub(rf"(?:{before}){re.escape(old)}(?![\w/-])", lambda _: new, text)


def _complete_the_card(stage: Path, run: Path, version: str | None, licence: str | None) -> None:
    """The header's licence, version and evaluation results (the hub draws its table from them)."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(stage / _CARD)
    if licence is not None:
        card.data.license = licence
    if version is not None:
        card.data.version = version
    summary = run / "summary.json"
    if summary.is_file():
        card.data.model_name = run.resolve().name
        card.data.eval_results = _results(json.loads(summary.read_text(encoding="utf-8")))
    card.save(stage / _CARD)


def _results(summary: dict[str, Any]) -> Sequence[EvalResult]:
    from huggingface_hub import EvalResult

    settings = summary["settings"]
    data = Path(str(settings["data"])).name  # of a local manifest its name alone
    sound = "" if settings.get("channel", "clean") == "clean" else f", channel {settings['channel']}"
    return [
        EvalResult(
            task_type="automatic-speech-recognition", dataset_type=data, dataset_name=f"{data}{sound}, held out",
            metric_type=kind, metric_name=kind.upper(), metric_value=round(summary["after"][kind]["value"], 2),
        )
        for kind in ("wer", "cer")
    ]  # fmt: skip


@contextmanager
def _told(prefix: str = "") -> Iterator[None]:
    """What the hub's client raises, as an error in a line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    from audiolora.speech.whisper.weights import transport_errors

    hubs: tuple[type[BaseException], ...] = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    try:
        yield
    except hubs + transport_errors() as error:
        said = str(error).strip() or type(error).__name__  # a time-out says nothing
        remedy = "log in with `hf auth login`, and check the name and your connection (HF_HUB_OFFLINE, HF_ENDPOINT)"
        raise HubError(f"{prefix}{said.splitlines()[0]}; {remedy}") from error
