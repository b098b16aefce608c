"""AdaLoRA under transformers' Trainer: allocated without being asked, refused where it cannot be, resumed exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.modeling_outputs import SequenceClassifierOutput

import audiolora
from audiolora import AdaLoraCallback, RankSchedule
from audiolora.adalora_callback import STATE

STEPS, SLOW = 12, pytest.mark.slow
SCHEDULE = RankSchedule(STEPS, init_r=4, tinit=2, tfinal=3, deltaT=1)


class Classifier(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self) -> None:
        super().__init__(PretrainedConfig())
        self.conv1, self.conv2 = nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(6, 5, 4, stride=2)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> SequenceClassifierOutput:
        logits = self.head(torch.tanh(self.conv2(torch.tanh(self.conv1(x)))).mean(2))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


def adapted(schedule: RankSchedule = SCHEDULE, **settings: Any) -> PeftModel:
    torch.manual_seed(0)
    net = Classifier()
    torch.manual_seed(1)
    targets = ["conv1", "conv2", "head"]
    return audiolora.adapt(net, "adalora", r=2, targets=targets, schedule=schedule, **settings)


def examples(n: int = 16) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(4, 9, generator=generator), "labels": torch.tensor(i % 3)} for i in range(n)]


def trainer(
    model: Any, folder: Path, *callbacks: Any, data: Any = None, kind: type[Trainer] = Trainer, **settings: Any
) -> Trainer:
    evaluated = settings.pop("eval_dataset", None)
    basic = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 3e-2, "save_strategy": "no"}
    args = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant", **(basic | settings)
    )
    return kind(model, args, train_dataset=data or examples(), eval_dataset=evaluated, callbacks=list(callbacks))


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" in name}


def same(model: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    found = tensors(model)
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)


def test_it_trains_to_its_budget_and_saves_what_is_kept(tmp_path: Path) -> None:
    model = adapted()
    run = trainer(model, tmp_path, AdaLoraCallback())
    run.train()
    ranks = {row.name: row.r for row in audiolora.inspect(model).rows}
    assert sum(ranks.values()) == 6 and len(set(ranks.values())) > 1
    run.save_model(tmp_path / "final")
    saved = json.loads((tmp_path / "final" / "adapter_config.json").read_text())["rank_pattern"]
    assert {name.removesuffix(".lora_E"): sum(kept) for name, kept in saved.items()} == ranks
    torch.manual_seed(0)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(Classifier(), tmp_path / "final")
    assert {row.name: row.r for row in audiolora.inspect(loaded).rows} == ranks
    batch = {name: torch.stack([example[name] for example in examples()]) for name in ("x", "labels")}
    torch.testing.assert_close(loaded.eval()(**batch).logits, model.eval()(**batch).logits)


@pytest.mark.slow
def test_it_is_the_plain_loop_with_gradients_accumulated(tmp_path: Path) -> None:
    model, twin, data = adapted(), adapted(), examples(48)
    run = trainer(model, tmp_path, AdaLoraCallback(), data=data, gradient_accumulation_steps=2, max_grad_norm=0.5)
    batches: list[Any] = []
    step = run.training_step
    run.training_step = lambda m, inputs, *a: (batches.append(dict(inputs)), step(m, inputs, *a))[1]  # type: ignore
    run.train()
    optimiser = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], 3e-2, weight_decay=0)
    assert len(batches) == 2 * STEPS
    for t in range(1, STEPS + 1):
        for batch in batches[2 * t - 2 : 2 * t]:
            (twin.train()(**batch).loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimiser.step()
        twin.base_model.update_and_allocate(t)
        optimiser.zero_grad()
    assert model.base_model.rank_pattern == twin.base_model.rank_pattern
    for name, tensor in tensors(twin).items():
        torch.testing.assert_close(tensors(model)[name], tensor)


@pytest.mark.parametrize("at", [5, *(pytest.param(at, marks=SLOW) for at in (1, 9, 11))])
def test_a_resumed_training_is_that_of_one_piece(at: int, tmp_path: Path) -> None:
    """Between two allocations, before the first, at the last, and after it."""
    whole, model = adapted(), adapted()
    trainer(whole, tmp_path, AdaLoraCallback(), save_strategy="steps", save_steps=at).train()
    checkpoint = tmp_path / f"checkpoint-{at}"
    assert json.loads((checkpoint / "adapter_config.json").read_text())["rank_pattern"] is None
    trainer(model, tmp_path, AdaLoraCallback()).train(resume_from_checkpoint=str(checkpoint))
    assert same(model, tensors(whole))
    assert model.peft_config["default"].rank_pattern == whole.peft_config["default"].rank_pattern


@pytest.mark.slow
def test_a_checkpoint_that_was_moved(tmp_path: Path) -> None:
    whole, model = adapted(), adapted()
    trainer(whole, tmp_path / "whole", AdaLoraCallback(), save_strategy="steps", save_steps=7).train()
    moved = shutil.move(tmp_path / "whole" / "checkpoint-7", tmp_path / "moved")
    with pytest.raises(ValueError, match=f"{STATE}: no such file.*AdaLoraCallback\\(resume_from=…\\)"):
        trainer(adapted(), tmp_path / "whole", AdaLoraCallback()).train(resume_from_checkpoint=moved)
    trainer(model, tmp_path / "other", AdaLoraCallback(resume_from=moved)).train(resume_from_checkpoint=moved)
    assert same(model, tensors(whole))


@pytest.mark.slow
def test_a_checkpoint_of_another_schedule_or_other_weights_is_refused(tmp_path: Path) -> None:
    run = trainer(adapted(), tmp_path, AdaLoraCallback(), save_strategy="steps", save_steps=5)
    run.train()
    checkpoint = str(tmp_path / "checkpoint-5")
    other = RankSchedule(STEPS, init_r=4, tinit=1, tfinal=3, deltaT=1)
    with pytest.raises(ValueError, match="'tinit': 2.*'tinit': 1"):
        trainer(adapted(other), tmp_path, AdaLoraCallback()).train(resume_from_checkpoint=checkpoint)
    shutil.copy(tmp_path / "checkpoint-10" / "adapter_model.safetensors", checkpoint)
    with pytest.raises(ValueError, match="its values.conv1 is not the model's"):
        trainer(adapted(), tmp_path, AdaLoraCallback()).train(resume_from_checkpoint=checkpoint)


@pytest.mark.slow
def test_the_best_model_is_saved_as_it_is(tmp_path: Path) -> None:
    """An earlier one, with more triplets than the budget: said, and exact."""
    model = adapted()
    args = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "first"}
    run = trainer(model, tmp_path, AdaLoraCallback(), eval_dataset=examples(), **args, **best)
    run.compute_metrics = lambda _: {"first": float(run.state.global_step < 5)}
    with pytest.warns(UserWarning, match="keeps .* triplets and its budget is 6"):
        run.train()
    assert run.state.best_global_step == 4
    batch = {name: torch.stack([example[name] for example in examples()]) for name in ("x", "labels")}
    expected = model.eval()(**batch).logits
    model.save_pretrained(tmp_path / "best")
    torch.manual_seed(0)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(Classifier(), tmp_path / "best").eval()
    torch.testing.assert_close(loaded(**batch).logits, expected)


def test_without_the_callback_training_stops(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"callbacks=\[audiolora.AdaLoraCallback\(\)\]"):
        trainer(adapted(), tmp_path).train()


@pytest.mark.parametrize("steps", [8, 20])
def test_a_schedule_that_is_not_the_training_s_is_refused_before_a_step(steps: int, tmp_path: Path) -> None:
    model = adapted()
    before = tensors(model)
    with pytest.raises(ValueError, match=rf"total_step=12, and this training takes {steps}.*total_step={steps}"):
        trainer(model, tmp_path, AdaLoraCallback(), max_steps=steps).train()
    assert same(model, before)


def test_another_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    model = audiolora.adapt(Classifier(), r=2, targets=["conv1"])
    with pytest.raises(ValueError, match="for a model with an AdaLoRA adapter.*leave the callback out"):
        trainer(model, tmp_path, AdaLoraCallback()).train()


def test_a_loss_without_the_penalty_is_refused_before_a_step(tmp_path: Path) -> None:
    class Own(Trainer):
        extra = False

        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = F.cross_entropy(model.get_base_model().head(inputs["x"].new_zeros(4, 5)), inputs["labels"])
            return loss + audiolora.orthogonality_penalty(model) if self.extra else loss

    model = adapted()
    before = tensors(model)
    with pytest.raises(ValueError, match=r"without AdaLoRA's orthogonality penalty.*audiolora.orthogonality_penalty"):
        trainer(model, tmp_path, AdaLoraCallback(), kind=Own).train()
    assert same(model, before)
    Own.extra = True
    trainer(adapted(), tmp_path, AdaLoraCallback(), kind=Own).train()


@pytest.mark.slow
def test_a_trained_adapter_is_not_allocated_again(tmp_path: Path) -> None:
    model = adapted()
    trainer(model, tmp_path, AdaLoraCallback()).train()
    model.save_pretrained(tmp_path / "a")
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(Classifier(), tmp_path / "a", is_trainable=True)
    with pytest.raises(ValueError, match="the ranks that an earlier training allocated.*leave the callback out"):
        trainer(loaded, tmp_path, AdaLoraCallback()).train()
    trainer(loaded, tmp_path, max_steps=3).train()


def whisper() -> tuple[PeftModel, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 40, "num_mel_bins": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    limits = {"max_source_positions": 20, "max_target_positions": 12, "suppress_tokens": None}
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **heads, **tokens, **limits))
    data = [{"input_features": torch.randn(8, 40), "labels": torch.randint(4, 40, (6,))} for _ in range(8)]
    return audiolora.adapt(model, "adalora", r=2, schedule=SCHEDULE), data


def wav2vec2() -> tuple[PeftModel, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    convs = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 16}
    rest = {"num_conv_pos_embedding_groups": 4, "vocab_size": 12, "mask_time_prob": 0.0, "layerdrop": 0.5}
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**sizes, **convs, **rest, ctc_loss_reduction="mean"))
    data = [{"input_values": torch.randn(400), "labels": torch.randint(1, 12, (5,))} for _ in range(8)]
    return audiolora.adapt(model, "adalora", r=2, schedule=SCHEDULE), data


@pytest.mark.parametrize(
    "family, convolutions", [(whisper, ["conv1", "conv2"]), pytest.param(wav2vec2, ["conv"], marks=SLOW)]
)
def test_speech_models_train_their_convolutions_with_their_attention(
    family: Any, convolutions: list[str], tmp_path: Path
) -> None:
    """wav2vec2 drops layers, whose modules then have no gradient."""
    model, data = family()
    before = tensors(model)
    trainer(model, tmp_path, AdaLoraCallback(), data=data).train()
    rows = audiolora.inspect(model).rows
    assert {"AdaLoRA", "AdaLoRA (PEFT)"} == {row.method for row in rows}
    assert {name for name in convolutions if not any(row.name.endswith(name) for row in rows)} == set()
    assert sum(row.r for row in rows) == model.base_model.rankallocator.target_bgt
    changed = [name for name, tensor in tensors(model).items() if not torch.equal(tensor, before[name])]
    assert len(changed) > 0.7 * len(before)
    batch = {name: torch.stack([example[name] for example in data]) for name in data[0]}
    expected = model.eval()(**batch).logits
    model.save_pretrained(tmp_path / "a")
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    plain, _ = family()
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(plain.unload(), tmp_path / "a").eval()
    torch.testing.assert_close(loaded(**batch).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"schedule": None}, r"schedule=audiolora.RankSchedule\(total_step=…\)"),
        ({"method": "lora"}, "method='lora' has no schedule"),
        ({"r": {"both": 2}}, "one budget for all modules"),
        ({"r": 5}, "init_r=4 is less than the target r=5"),
        ({"use_rslora": True}, "use_rslora is LoRA's; adalora is scaled"),
    ],
    ids=str,
)
def test_what_adapt_refuses(settings: dict[str, Any], message: str) -> None:
    net = Classifier()
    with pytest.raises(ValueError, match=message):
        audiolora.adapt(net, **{"method": "adalora", "r": 2, "schedule": SCHEDULE, **settings})
    assert type(net.conv1) is nn.Conv1d


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"total_step": 0}, "total_step must be a whole number of at least 1, got 0"),
        ({"total_step": None}, "total_step must be a whole number of at least 1, got None"),
        ({"total_step": 10, "tinit": -1}, "tinit must be .* at least 0, got -1"),
        ({"total_step": 10, "tinit": 6, "tfinal": 4}, "tinit=6 and tfinal=4 leave no step of total_step=10"),
        ({"total_step": 10, "deltaT": 0}, "deltaT must be"),
        ({"total_step": 10, "orth_reg_weight": -1.0}, "orth_reg_weight must be at least 0"),
    ],
    ids=str,
)
def test_schedules_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankSchedule(**settings)
