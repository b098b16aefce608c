"""CTC models loaded: every family, from a directory and the hub's cache; what goes wrong; new heads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from audiolora.speech.ctc.heads import head_of, put_new_head
from audiolora.speech.ctc.models import FAMILIES as TAKEN
from audiolora.speech.ctc.models import load_ctc
from audiolora.speech.ctc.vocabulary import Vocabulary, encoder
from audiolora.speech.whisper.openai_format import WeightsError
from tests.export.ctc_models import LETTERS
from tests.speech.ctc.saved_models import FAMILIES, save_base, sound

UPPER = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAON'")


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wav2vec2 with an upper-case alphabet; not to be changed."""
    folder = tmp_path_factory.mktemp("ctc") / "base"
    save_base(folder, letters=UPPER)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copied"))


def edit(file: Path, **changes: Any) -> None:
    says = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(says | changes), encoding="utf-8")


def test_families_are_transformers_own() -> None:
    names = transformers.models.auto.modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES
    assert {model_type: names[model_type] for model_type in TAKEN} == TAKEN
    assert set(FAMILIES) == set(TAKEN.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_as_it_was_saved(family: str, tmp_path: Path) -> None:
    model = save_base(tmp_path, family)
    loaded = load_ctc(tmp_path, log=quiet)
    assert type(loaded.model) is type(model) and not loaded.model.training and not loaded.new_head
    assert next(loaded.model.parameters()).dtype == torch.float32
    kinds = {"Wav2Vec2BertForCTC": "Wav2Vec2BertProcessor", "ParakeetForCTC": "ParakeetProcessor"}
    assert type(loaded.processor).__name__ == kinds.get(family, "Wav2Vec2Processor")
    assert str(tmp_path) in loaded.origin and loaded.name == str(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.model(**sound(model)).logits, model(**sound(model)).logits)


def test_offline_the_hub_cache_is_read(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hub" / "models--some--wav2vec2"
    shutil.copytree(saved, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load_ctc("some/wav2vec2", log=quiet)
    assert "local Hugging Face cache (HF_HUB_OFFLINE is set)" in loaded.origin
    assert loaded.model.config.vocab_size == len(UPPER)


def test_what_is_only_pretrained_gets_a_head(copied: Path) -> None:
    """As facebook/wav2vec2-base is: the network alone, with or without a tokenizer beside it."""
    network = transformers.Wav2Vec2ForCTC.from_pretrained(copied).wav2vec2
    network.save_pretrained(copied)
    with pytest.raises(WeightsError, match=r"no CTC head \(it is only pretrained\), so it writes no letters yet"):
        load_ctc(copied, log=quiet)
    for file in ("vocab.json", "tokenizer_config.json"):
        (copied / file).unlink()
    with pytest.raises(WeightsError, match=r"no CTC head \(it is only pretrained\) and no tokenizer"):
        load_ctc(copied, log=quiet)
    vocabulary = Vocabulary(tuple("abñ"))
    loaded = load_ctc(copied, vocabulary=vocabulary, log=quiet)
    assert loaded.new_head and loaded.model.config.vocab_size == len(vocabulary.tokens)
    assert loaded.model.config.pad_token_id == loaded.processor.tokenizer.pad_token_id == 0
    assert encoder(loaded.processor)("Ñ a") == [5, 2, 3]
    theirs = network.state_dict()
    assert all(torch.equal(ours, theirs[name]) for name, ours in loaded.model.wav2vec2.state_dict().items())


def test_a_new_head_keeps_the_rows_of_shared_letters(saved: Path) -> None:
    """The logits of a kept letter are the old model's; e of a new alphabet is E of the old one."""
    said: list[str] = []
    old = load_ctc(saved, log=quiet)
    new = load_ctc(saved, vocabulary=Vocabulary(tuple("aeñ't")), replace=True, log=said.append)
    assert new.new_head and "8 letters" not in said[-1] and "5 letters; 7 of its rows" in said[-1]
    with torch.no_grad():
        before, after = (one.model(**sound(old.model)).logits for one in (old, new))
    kept = {"<pad>": "<pad>", "<unk>": "<unk>", "|": "|", "a": "A", "e": "E", "'": "'", "t": "T"}
    tokens = ("<pad>", "<unk>", "|", *"aeñ't")
    for letter, its_old in kept.items():
        torch.testing.assert_close(after[..., tokens.index(letter)], before[..., UPPER.index(its_old)])
    assert not new.model.lm_head.bias[tokens.index("ñ")].any()


def test_or_none(saved: Path) -> None:
    old = load_ctc(saved, log=quiet).model.lm_head
    torch.manual_seed(0)
    new = load_ctc(saved, vocabulary=Vocabulary(tuple("aet")), replace=True, keep_shared=False, log=quiet).model.lm_head
    assert not new.bias.any() and new.weight.std() < 0.5
    distances = torch.cdist(new.weight, old.weight)
    assert distances.min() > 0.1


def test_a_vocabulary_alone_replaces_none(saved: Path) -> None:
    loaded = load_ctc(saved, vocabulary=Vocabulary(("a",)), log=quiet)
    assert not loaded.new_head and loaded.model.config.vocab_size == len(UPPER)


def test_the_loss_s_blank_is_the_new_one(saved: Path) -> None:
    """transformers' own loss equals torch's ctc_loss with blank 0, on a model whose old blank was elsewhere."""
    model = load_ctc(saved, log=quiet).model
    model.config.pad_token_id = 4
    processor = load_ctc(saved, log=quiet).processor
    put_new_head(model, processor, Vocabulary(tuple("ab")))
    given, labels = sound(model, n=1), torch.tensor([[3, 4, 3]])
    out = model(**given, labels=labels)
    log_probs = out.logits.log_softmax(-1).transpose(0, 1)
    lengths = (torch.tensor([log_probs.shape[0]]), torch.tensor([3]))
    expected = torch.nn.functional.ctc_loss(
        log_probs, labels, *lengths, blank=0, reduction=model.config.ctc_loss_reduction
    )
    torch.testing.assert_close(out.loss, expected)


def test_parakeet_gets_no_letters(tmp_path: Path) -> None:
    save_base(tmp_path, "ParakeetForCTC")
    with pytest.raises(WeightsError, match="ParakeetForCTC writes pieces of words, a frame each 80 ms"):
        load_ctc(tmp_path, vocabulary=Vocabulary(("a",)), replace=True, log=quiet)


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _whisper(folder: Path) -> None:
    transformers.WhisperConfig().save_pretrained(folder)


def _no_extractor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def _no_tokenizer(folder: Path) -> None:
    (folder / "vocab.json").unlink()


def _another_s_tokenizer(folder: Path) -> None:
    edit(folder / "vocab.json", Q=len(UPPER))


def _another_blank(folder: Path) -> None:
    edit(folder / "config.json", pad_token_id=1)


def _lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["wav2vec2.encoder.layers.0.attention.k_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (_adapter, "this is an adapter, not a model; give the model it was trained on"),
        (_no_config, r"no config\.json in this directory"),
        (_whisper, r"a model of type 'whisper', which has no CTC head; recipes/asr_whisper\.py adapts it"),
        (_no_extractor, "(?s)could not be loaded.*preprocessor_config"),
        (_no_tokenizer, "no tokenizer, so it writes no letters yet; give it an alphabet"),
        (_another_s_tokenizer, "the tokenizer is another model's: 'Q' would be output 11 or above"),
        (_another_blank, r"the model's blank is output 1 \(config.pad_token_id\), and the tokenizer's .* is 0"),
        (_lacking, r"the weights lack 1 tensors, such as wav2vec2\.encoder\.layers\.0\.attention\.k_proj\.weight"),
        (_cut, "could not be loaded from the local directory"),
        (_no_weights, "could not be loaded from the local directory"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(copied: Path, spoil: Any, said: str) -> None:
    spoil(copied)
    with pytest.raises(WeightsError, match=said):
        load_ctc(copied, log=quiet)


@pytest.mark.parametrize(
    "name, said",
    [
        ("some/ghost", r"some/ghost: HF_HUB_OFFLINE is set, and the model is not in the local.*scratch:spoken-digits"),
        ("a/b/c", "no directory, and no hub name either"),
        ("scratch:other", "no directory, and no hub name either"),
        (Path("ghost"), "no directory, and no hub name either"),
    ],
)
def test_what_is_nowhere_is_told(name: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=said):
        load_ctc(name, log=quiet)


def test_replace_needs_a_vocabulary(saved: Path) -> None:
    with pytest.raises(ValueError, match="give the vocabulary that it is for"):
        load_ctc(saved, replace=True)


def test_a_model_without_a_head_has_none() -> None:
    with pytest.raises(ValueError, match="Linear has no CTC head, which would be called lm_head or ctc_head"):
        head_of(torch.nn.Linear(1, 1))


def test_the_old_alphabet_is_told_by_letter(saved: Path) -> None:
    loaded = load_ctc(saved, log=quiet)
    assert encoder(loaded.processor)("Note") == [UPPER.index(letter) for letter in "NOTE"]
    with pytest.raises(ValueError, match="'X' not in the model's vocabulary"):
        encoder(loaded.processor)("x")
    assert LETTERS[0] == UPPER[0]
