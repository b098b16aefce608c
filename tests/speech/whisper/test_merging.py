"""A merged model is a plain Whisper and the same function as the adapted one, or it is not written."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from audiolora.run import Run
from audiolora.speech.merged import MergeError
from audiolora.speech.whisper.adapter import load_adapted
from audiolora.speech.whisper.merging import MergedInfo, merge_adapter, read_merged
from tests.speech.tiny_run import tiny_run
from tests.speech.tiny_whisper import tiny_whisper


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merging") / "base"
    tiny_whisper(folder)
    return folder


@pytest.fixture(scope="module")
def run(base: Path) -> Run:
    return tiny_run(base.parent / "runs" / "tiny", base)


def logits(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    features = torch.rand(2, 80, 3000, generator=generator)
    tokens = torch.randint(0, 300, (2, 5), generator=generator)
    with torch.no_grad():
        return model.eval()(input_features=features, decoder_input_ids=tokens).logits


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_transformers_alone_loads_the_same_function(method: str, base: Path, tmp_path: Path) -> None:
    folder = tiny_run(tmp_path / "runs" / method, base, method=method).folder
    merged = merge_adapter(folder, tmp_path / "merged")
    adapted = logits(load_adapted(folder)[0])
    plain = logits(WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged"))
    unadapted = logits(WhisperForConditionalGeneration.from_pretrained(base))
    assert (plain - adapted).abs().max() < 1e-4
    assert (plain - unadapted).abs().max() > 0.1
    assert merged.difference < 1e-4 * max(1.0, float(adapted.abs().max()))


def test_what_a_merged_folder_holds(run: Run, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "merged"
    merged = merge_adapter(run.folder, out)
    assert [path.name for path in out.parent.iterdir()] == ["merged"], "scratch is left"
    assert merged.size_bytes == sum(path.stat().st_size for path in out.iterdir())
    assert not (out / "adapter_config.json").exists()
    assert read_merged(out) == MergedInfo(str(base), "tiny", "auto", None)
    for name in ("generation_config.json", "tokenizer.json", "normalizer.json", "processor_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((base / name).read_text()), name
    assert WhisperProcessor.from_pretrained(out).tokenizer.normalize("Colour") == "color"
    card = (out / "README.md").read_text()
    for part in (f"base_model: {base}", "`tiny`", "short audio context (`auto`)", "| zero-shot | 75.0 |", "nobody's"):
        assert part in card, part
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1, "whoever may read one file may read all"


def test_a_run_at_full_context_says_so(base: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "full", base, context="full", language="en")
    merge_adapter(run.adapter, tmp_path / "merged")
    assert read_merged(tmp_path / "merged") == MergedInfo(str(base), "full", "full", "en")
    assert "short audio context" not in (tmp_path / "merged" / "README.md").read_text()


def test_the_card_of_several_languages_names_no_single_one(tmp_path: Path) -> None:
    tiny_whisper(tmp_path / "base", multilingual=True)
    for language, told in (("it", "it"), (None, "mul")):
        run = tiny_run(tmp_path / told, tmp_path / "base", language=language)
        merge_adapter(run.adapter, tmp_path / f"merged-{told}", log=lambda _: None)
        assert f"\nlanguage: {told}\n" in (tmp_path / f"merged-{told}" / "README.md").read_text()


def test_a_merge_that_is_not_the_same_function_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful = lambda self, **options: self.unload()  # noqa: E731 - the adapter is dropped, not merged
    monkeypatch.setattr(peft.tuners.lora.LoraModel, "merge_and_unload", forgetful)
    with pytest.raises(MergeError, match="not the adapted one.*nothing was written"):
        merge_adapter(run.folder, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_leaves_the_old_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "merged"
    merge_adapter(run.folder, out)
    before = (out / "model.safetensors").read_bytes()

    def full_disk(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WhisperProcessor, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        merge_adapter(run.folder, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_what_is_never_replaced(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    merge_adapter(run.folder, out)  # an empty folder is taken
    with pytest.raises(ValueError, match=r"merged is not empty.*--overwrite"):
        merge_adapter(run.folder, out)
    (out / "stale.bin").write_bytes(b"old")
    merge_adapter(run.folder, out, overwrite=True)
    assert not (out / "stale.bin").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis holds something else than a model"):
        merge_adapter(run.folder, tmp_path / "thesis", overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        merge_adapter(run.folder, tmp_path / "thesis" / "chapter.tex", overwrite=True)
    for holder in (run.folder, run.adapter, Path(run.settings["model"])):
        with pytest.raises(ValueError, match="holds the adapter or its base model"):
            merge_adapter(run.folder, holder, overwrite=True)
    assert run.finished and (tmp_path / "thesis" / "chapter.tex").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a merged model's description"),
        ('{"colour": 1}', "colour"),
        ("[]", "not a merged model's"),
        ('{"base_model": "b", "adapter": "a", "context": "mix", "language": null}', "'auto' or 'full', got 'mix'"),
    ],
)
def test_a_damaged_description_is_named(text: str, message: str, tmp_path: Path) -> None:
    assert read_merged(tmp_path) is None
    (tmp_path / "audiolora.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_merged(tmp_path)


def test_a_newer_description_is_not_guessed_at(tmp_path: Path) -> None:
    newer = {"base_model": "b", "adapter": "a", "context": "auto", "language": None, "format": 2, "since": 2}
    (tmp_path / "audiolora.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match="format 2.*reads 1"):
        read_merged(tmp_path)
