"""``audiolora convert | push``: models for other programs, adapters for other people, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from audiolora.terminal import prepare_transformers, say

Flag = Annotated[bool, Parameter(negative="")]


def convert(
    source: str,
    /,
    *,
    to: Literal["openai", "ctranslate2"],
    out: Path,
    base: str | None = None,
    overwrite: Flag = False,
) -> None:
    """Write a Whisper for another program: openai-whisper's .pt, or a CTranslate2 folder, which faster-whisper reads.

    A run's adapter is merged into its base first. What was written is read again and compared; where it differs,
    nothing is left.

    Args:
        source: a run's folder such as runs/demo, the folder of a merged or other Whisper, or a hub name.
        to: openai, or ctranslate2 (pip install "audiolora[ctranslate2]").
        out: for openai a file that ends in .pt; for ctranslate2 a folder.
        base: for a run, another place for the weights that the adapter was trained over.
        overwrite: replace what is there.
    """
    prepare_transformers()
    from audiolora.speech.whisper.conversion import convert_whisper

    done = convert_whisper(source, out, to, base=base, overwrite=overwrite, log=say)
    use = f"whisper.load_model({str(out)!r})" if to == "openai" else f"faster_whisper.WhisperModel({str(out)!r})"
    print(
        f"{out} ({done.size_bytes / 1e6:,.0f} MB, float32)\n"
        f"checked: read again, its logits differ by at most {done.difference:.1e}\n"
        f"load it: {use}\n"
        "These programs pad to 30 s: an adapter trained at short audio context makes more errors there; train with "
        "--context full or mix for them."
    )


def push(
    run: Path,
    repo: str,
    /,
    *,
    version: str | None = None,
    base: str | None = None,
    licence: str | None = None,
    private: Flag = False,
) -> None:
    """Push a run's adapter and its model card to the Hugging Face hub.

    Others then use it by its name: audiolora transcribe clip.wav --adapter USER/NAME@VERSION. Log in once with
    `hf auth login`.

    Args:
        run: a run's folder such as runs/demo, or its adapter's.
        repo: USER/NAME on the hub; made if it does not exist.
        version: a tag such as v1, which stays what it is.
        base: the base model's name on the hub, where the run was trained over a local folder.
        licence: the hub's id of the adapter's licence, such as mit or cc-by-4.0.
        private: make the repository private; one that is there and public is refused.
    """
    prepare_transformers()
    from audiolora.speech.hub import push_adapter

    pushed = push_adapter(run, repo, version=version, base=base, licence=licence, private=private, log=say)
    print(f"{pushed.url}\ntry it: audiolora transcribe AUDIO --adapter {pushed.name}")
