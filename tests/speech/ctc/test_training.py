"""Training CTC models: the loss against torch's own, exact resume, masks, what is frozen, corner cases by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiolora.speech.ctc.adapter import adapt_ctc
from audiolora.speech.ctc.checking import check_for_ctc
from audiolora.speech.ctc.collate import CtcCollator, ctc_features
from audiolora.speech.ctc.frames import FrameCount
from audiolora.speech.ctc.settings import CtcTrainingSettings
from audiolora.speech.ctc.targets import check_targets, frames_needed
from audiolora.speech.ctc.training import CtcTrainer, _config, _mask_settings, freeze, long_enough_for_masks, train_ctc
from audiolora.speech.data.manifests import DataError, Utterance, read_utterances
from tests.export.ctc_models import clips
from tests.speech.ctc.tiny_ctc import FAMILIES, Job, clips_of, tiny_ctc, write_clips

SETTINGS = CtcTrainingSettings(epochs=2, batch_size=3, learning_rate=1e-2)
UNSTILL = ("ParakeetForCTC", "Wav2Vec2BertForCTC", "Wav2Vec2ConformerForCTC")
"""Whose layers draw, or have batch norm, in training."""
TARGETS = {"WavLMForCTC": ["conv"], "Wav2Vec2ConformerForCTC": ["conv"]}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    root = tmp_path_factory.mktemp("ctc")
    return Job(root / "tiny", write_clips(root / "clips"), root / "run", SETTINGS)


def fit(job: Job, **how: Any) -> tuple[Any, list[dict[str, float]]]:
    """The adapted model after training, and the history."""
    torch.manual_seed(0)
    loaded = job.loaded()
    model = adapt_ctc(loaded, r=2, targets=TARGETS.get(job.family, ["conv", "attention"]))
    return model, train_ctc(model, loaded.processor, *job.parts(), job.settings, job.folder, **how)


def learnt(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_torch_s_in_float64(tmp_path: Path, family: str, layer_norm: bool) -> None:
    """The mean over clips of loss / tokens, each over its own frames where there is a mask, on the same logits."""
    loaded = tiny_ctc(tmp_path, family, layer_norm=layer_norm)
    frames = FrameCount.of(loaded.model, loaded.processor.feature_extractor)
    lengths, texts = (16_000, 9000, 12_345), ("amber", "fern", "iris")
    items = [{"audio": a, "text": t, "id": t} for a, t in zip(clips(*lengths), texts, strict=True)]
    batch = CtcCollator(frames, loaded.processor, None)(items)
    with torch.no_grad(), _config(loaded.model, {}):
        found = loaded.model(**batch)
    masked = "attention_mask" in batch
    input_lengths = torch.tensor([frames(n if masked else max(lengths)) for n in lengths])
    ids = [loaded.processor.tokenizer(text).input_ids for text in texts]
    log_probs = found.logits.double().log_softmax(-1).transpose(0, 1)
    each = [
        torch.nn.functional.ctc_loss(
            log_probs[:, row : row + 1], torch.tensor([ids[row]]), input_lengths[row : row + 1],
            torch.tensor([len(ids[row])]), blank=0, reduction="sum",
        ) / len(ids[row])
        for row in range(3)
    ]  # fmt: skip
    assert float(found.loss) == pytest.approx(float(sum(each)) / 3, rel=1e-5)
    assert loaded.model.config.ctc_loss_reduction == type(loaded.model.config)().ctc_loss_reduction  # the user's again


@pytest.mark.parametrize(
    ("family", "layer_norm"),
    [
        ("Wav2Vec2ForCTC", False),
        *(pytest.param(f, f != "HubertForCTC", marks=pytest.mark.slow) for f in FAMILIES if f != "Wav2Vec2ForCTC"),
        pytest.param("Wav2Vec2ForCTC", True, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_training_resumes_to_the_same_weights(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, layer_norm: bool
) -> None:
    """Dropout, masks and layers that the model's config would drop: what draws at random while training."""
    changes = {"layerdrop": 0.5} if "Parakeet" not in family else {}
    masks = {} if "Parakeet" in family else {"spec_augment": True, "mask_time_prob": 0.3, "mask_time_length": 2}
    settings = replace(SETTINGS, **masks)
    new_head = "Parakeet" not in family
    job = replace(job, family=family, layer_norm=layer_norm, new_head=new_head, changes=changes, settings=settings)
    whole, history = fit(replace(job, folder=tmp_path / "whole"))
    step = CtcTrainer.training_step

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:  # of three a pass
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    job = replace(job, folder=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(CtcTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(job)
    assert [path.name for path in job.folder.glob("checkpoint-*")] == ["checkpoint-3"]
    resumed, again = fit(job)
    ours, theirs = learnt(resumed), learnt(whole)
    assert ours.keys() == theirs.keys() and any("lora_B" in name and t.abs().max() > 0 for name, t in ours.items())
    assert any("head" in name for name in ours) == new_head
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    losses = [[entry["eval_loss"] for entry in h if "eval_loss" in entry] for h in (history, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 2


@pytest.mark.slow
def test_masks_change_the_training_and_not_the_model(job: Job, tmp_path: Path) -> None:
    plain, _ = fit(replace(job, folder=tmp_path / "plain"))
    settings = replace(SETTINGS, spec_augment=True, mask_time_prob=0.5, mask_time_length=3)
    masked, _ = fit(replace(job, folder=tmp_path / "masked", settings=settings))
    assert any(not torch.equal(one, learnt(masked)[name]) for name, one in learnt(plain).items())
    config, fresh = masked.get_base_model().config, job.loaded().model.config
    names = ("apply_spec_augment", "mask_time_prob", "mask_time_length", "layerdrop", "ctc_zero_infinity")
    assert all(getattr(config, name) == getattr(fresh, name) for name in names)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in UNSTILL])
def test_nothing_is_masked_unasked(tmp_path: Path, family: str) -> None:
    """Most configs have masks on; in training without spec_augment the logits are still those of evaluation."""
    names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
    changes: dict[str, Any] = dict.fromkeys(names, 0.0) | {"mask_time_prob": 0.5, "mask_time_length": 2}
    loaded = tiny_ctc(tmp_path, family, layer_norm=True, **changes)
    model, before = loaded.model, loaded.model.config.to_dict()
    features = ctc_features(loaded.processor, clips(16_000))
    with torch.no_grad(), _config(model, _mask_settings(model, SETTINGS)):
        torch.testing.assert_close(model.train()(**features).logits, model.eval()(**features).logits)
    assert model.config.to_dict() == before


def test_masks_that_do_nothing_are_errors(job: Job, tmp_path: Path) -> None:
    wrong = [
        (job, {"mask_time_prob": 0.0}, "masks nothing"),
        (replace(job, family="ParakeetForCTC"), {}, "no SpecAugment of its own"),
        (job, {"mask_time_length": 200}, "a mask of 200 frames is longer than the .* frames of the clip"),
        (job, {"mask_time_prob": 0.0, "mask_feature_prob": 0.1, "mask_feature_length": 99}, "more than the 32 hidden"),
        (replace(job, changes={"mask_time_prob": 0.0}), {"mask_time_prob": 0.1, "mask_time_length": 2}, "no vector"),
    ]
    for index, (of, masks, message) in enumerate(wrong):
        settings = replace(SETTINGS, spec_augment=True, **masks)
        with pytest.raises(ValueError, match=message):
            fit(replace(of, folder=tmp_path / str(index), settings=settings))
    for given in ({"mask_time_prob": 0.1}, {"context": "full"}, {"spec_augment": True, "mask_time_prob": 2}):
        with pytest.raises(ValueError, match="mask_time_prob|context"):
            CtcTrainingSettings(**given)


def test_what_ctc_cannot_be_trained_on_is_told_by_row(job: Job, tmp_path: Path) -> None:
    loaded = job.loaded()
    frames = FrameCount.of(loaded.model, loaded.processor.feature_extractor)
    n = next(n for n in range(400, 9000) if frames(n) == 5)

    def row(text: str, n_samples: int, index: int) -> Utterance:
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, np.full(n_samples, 0.01), 16_000)
        return Utterance(str(index), path, text, f"calls.csv row {index}")

    rows = [("hello", n), ("helo", n), ("abcde", n), ("abcdef", n), ("3 o'clock", 16_000), ("...", 16_000),
            ("a", 100), ("<pad>", 16_000), ("aa", 16_000)]  # fmt: skip
    faulty = clips_of([row(text, n_samples, index) for index, (text, n_samples) in enumerate(rows, 1)])
    with pytest.raises(DataError) as caught:
        train_ctc(loaded.model, loaded.processor, faulty, job.parts()[1], SETTINGS, tmp_path / "run")
    told = str(caught.value)
    assert told.startswith("6 of 9 utterances cannot be trained on with CTC")
    for index, message in {
        1: "'hello' takes 6 frames (5 tokens and 1 blanks between equal neighbours), but the model makes 5",
        4: "'abcdef' takes 6 frames (6 tokens), but the model makes 5",
        5: "'3' not in the model's vocabulary",
        6: "no letter is left of the text '...'",
        7: "the clip is 0.006 s long, shorter than what the model makes one frame of",
        8: "'<', '>' not in the model's vocabulary",  # never the blank of that name
    }.items():
        assert any(f"row {index}: " in line and message in line for line in told.splitlines()), (message, told)
    assert not (tmp_path / "run").exists()
    good = clips_of([u for i, u in enumerate(faulty.utterances, 1) if i in (2, 3, 9)])
    with pytest.raises(DataError, match="6 of 9"):
        train_ctc(loaded.model, loaded.processor, good, faulty, SETTINGS, tmp_path / "run")


def test_clips_shorter_than_a_mask_are_told_or_left_out(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """The clips grow from one to the next; a mask as long as the third leaves the first two out."""
    loaded, clips = job.loaded(), clips_of(read_utterances(job.manifest))
    frames = FrameCount.of(loaded.model, loaded.processor.feature_extractor)
    length = frames(len(clips[2]["audio"]))
    settings = replace(SETTINGS, spec_augment=True, mask_time_prob=0.1, mask_time_length=length)
    with pytest.raises(DataError, match=rf"^2 of 10 .*\n.*row 1: a mask of {length} frames is longer(.*\n)+.*row 2: "):
        long_enough_for_masks(clips, loaded, settings)
    kept = long_enough_for_masks(clips, loaded, settings, skip_bad=True)
    assert [one.id for one in kept.utterances] == [f"clip{i}" for i in range(2, 10)]
    assert [record.getMessage()[:8] for record in caplog.records] == ["skipped "] * 2
    assert long_enough_for_masks(clips, loaded, SETTINGS) is clips


def test_a_target_may_take_each_frame_of_a_clip_of_any_length(job: Job, tmp_path: Path) -> None:
    """n / 16 000 s times 16 000 is a little less than n of some: the clip has all its samples, and its last frame."""
    loaded = job.loaded()
    frames = FrameCount.of(loaded.model, loaded.processor.feature_extractor)
    lost = (n for n in range(1000, 160_000) if int(n / 16_000 * 16_000) < n)
    n = next(n for n in lost if frames(n - 1) < frames(n))
    soundfile.write(tmp_path / "a.wav", np.full(n, 0.01), 16_000)
    text = ("ab" * frames(n))[: frames(n)]
    utterance = Utterance("a", tmp_path / "a.wav", text, "calls.csv row 1")
    assert check_for_ctc([utterance], loaded, progress=False) == [utterance]
    check_targets(loaded.model, loaded.processor, clips_of([utterance]))


@pytest.mark.parametrize("ids", [[3], [3, 3], [3, 4, 4, 4], [5, 6, 5, 5, 6, 6]])
def test_frames_needed_is_where_torch_s_loss_becomes_finite(ids: list[int]) -> None:
    for n_frames in range(1, 12):
        log_probs = torch.zeros(n_frames, 1, 8, dtype=torch.float64).log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(log_probs, torch.tensor([ids]), (n_frames,), (len(ids),))
        assert bool(loss.isfinite()) == (n_frames >= frames_needed(ids))


@pytest.mark.parametrize("family", ["Wav2Vec2ForCTC", "WavLMForCTC", "Wav2Vec2BertForCTC", "ParakeetForCTC"])
def test_what_is_frozen(tmp_path: Path, family: str) -> None:
    def trained(what: Any) -> set[str]:
        model = tiny_ctc(tmp_path, family).model
        freeze(model, what)
        return {name for name, p in model.named_parameters() if p.requires_grad}

    everything = trained("none")
    assert {name.partition(".")[0] for name in trained("base")} <= {"lm_head", "ctc_head"} and trained("base")
    if family in ("Wav2Vec2ForCTC", "WavLMForCTC"):
        assert everything - trained("features") == {name for name in everything if "feature_extractor" in name}
    else:
        with pytest.raises(ValueError, match="log-mel features"):
            trained("features")
    with pytest.raises(ValueError, match="got 'all'"):
        trained("all")


def test_no_gradient_goes_through_a_feature_encoder_in_which_nothing_learns(job: Job, tmp_path: Path) -> None:
    """transformers would send one through it; the weights that come out are the same."""
    seen = []

    def run(targets: list[str], folder: str) -> Any:
        torch.manual_seed(0)
        loaded = job.loaded()
        encoder = loaded.model.wav2vec2.feature_extractor
        encoder.register_forward_hook(lambda module, inputs, out: seen.append((module.training, out.requires_grad)))
        model = adapt_ctc(loaded, r=2, targets=targets)
        train_ctc(model, loaded.processor, *job.parts(), SETTINGS, tmp_path / folder)
        assert encoder._requires_grad
        return model

    run(["attention"], "attention")
    assert all(not requires_grad for _, requires_grad in seen)
    seen.clear()
    run(["conv", "attention"], "both")
    assert any(requires_grad for _, requires_grad in seen)


def test_a_loss_that_is_never_finite_is_an_error(job: Job, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1, learning_rate=1e38)
    with pytest.raises(ValueError, match=r"development loss was not finite.*learning_rate 1e\+38"):
        fit(replace(job, folder=tmp_path / "run", settings=settings))


@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 2, "gradient_accumulation": 2},
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_the_steps_are_those_of_the_whole_batch(job: Job, tmp_path: Path, how: dict[str, Any]) -> None:
    """Seven clips, four a step, and the same in two halves, where a clip does not hear its neighbours."""
    still = dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout"), 0.0
    )
    settings = replace(SETTINGS, epochs=1, batch_size=4, learning_rate=1e-3)
    job = replace(job, layer_norm=True, changes=still)
    one, history = fit(replace(job, folder=tmp_path / "one", settings=settings))
    other, again = fit(replace(job, folder=tmp_path / "other", settings=replace(settings, **how)))
    assert again[-1]["train_loss"] == pytest.approx(history[-1]["train_loss"], rel=1e-5)
    for name, tensor in learnt(one).items():
        torch.testing.assert_close(learnt(other)[name], tensor, atol=1e-5, rtol=1e-3)
