"""Short audio context against a Whisper that was built for it."""

from __future__ import annotations

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from audiolora.speech.whisper.context import ContextPolicy, audio_context, whisper_encoder


def random_whisper(n_positions: int = 1500) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=n_positions,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config).eval()


def built_for(n_positions: int, full: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """A Whisper whose config has n positions, with the same weights and the embedding's first n rows."""
    short = random_whisper(n_positions)
    state = dict(full.state_dict())
    key = "model.encoder.embed_positions.weight"
    state[key] = state[key][:n_positions].clone()
    short.load_state_dict(state)
    return short


@pytest.mark.parametrize("n_frames", [2, 50, 730, 3000])
def test_outputs_and_gradients_are_those_of_a_whisper_built_for_the_context(n_frames: int) -> None:
    full = random_whisper()
    short = built_for(n_frames // 2, full)
    features, labels = torch.randn(2, 80, n_frames), torch.tensor([[3, 4, 5], [6, 7, -100]])
    with audio_context(full, n_frames):
        found = full(input_features=features, labels=labels)
        found.loss.backward()
    expected = short(input_features=features, labels=labels)
    expected.loss.backward()
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.encoder_last_hidden_state, expected.encoder_last_hidden_state)
    theirs = dict(short.named_parameters())
    for name, parameter in full.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


def test_generate_is_that_of_a_whisper_built_for_the_context() -> None:
    full = random_whisper()
    short = built_for(60, full)
    features = torch.randn(3, 80, 120)
    with audio_context(full, 120):
        found = full.generate(features, max_new_tokens=8)
    assert found.tolist() == short.generate(features, max_new_tokens=8).tolist()


def positions(model: torch.nn.Module) -> tuple[int, int]:
    encoder = whisper_encoder(model)
    return encoder.config.max_source_positions, encoder.embed_positions.num_embeddings


def test_the_context_comes_back_after_the_block_an_error_and_a_nested_block() -> None:
    model = random_whisper()
    with audio_context(model, 200):
        assert positions(model) == (100, 100) and model.config.max_source_positions == 100
        with audio_context(model, 400):  # longer than the one around it
            assert positions(model) == (200, 200)
        assert positions(model) == (100, 100)
        with pytest.raises(RuntimeError, match="stop"), audio_context(model, 20):
            raise RuntimeError("stop")
        assert positions(model) == (100, 100)
    assert positions(model) == (1500, 1500) and model.config.max_source_positions == 1500
    with pytest.raises(ValueError, match="Whisper expects"):
        model.model.encoder(torch.randn(1, 80, 200))


def test_whisper_is_found_inside_its_wrappers() -> None:
    from peft import LoraConfig, get_peft_model

    features = torch.randn(1, 80, 120)
    model = random_whisper()
    with audio_context(model, 120), torch.no_grad():
        expected = model.model.encoder(features).last_hidden_state
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_positions"]))
    data_parallel = torch.nn.Module()
    data_parallel.module = wrapped  # what DistributedDataParallel does, without a process group
    for outer in (wrapped, data_parallel, model.model.encoder):
        with audio_context(outer, 120), torch.no_grad():
            torch.testing.assert_close(model.model.encoder(features).last_hidden_state, expected)
        assert positions(outer) == (1500, 1500)
    assert "num_embeddings" not in vars(whisper_encoder(wrapped).embed_positions)  # the wrapper has none of its own


@pytest.mark.parametrize("n_frames", [0, -2, 3, 3002])
def test_impossible_lengths_are_refused(n_frames: int) -> None:
    with pytest.raises(ValueError, match=f"even and between 2 and 3000.*got {n_frames}"):
        with audio_context(random_whisper(), n_frames):
            pytest.fail("the block ran")


def test_a_model_without_whisper_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear holds 0 Whisper encoders"):
        whisper_encoder(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("durations_s", "expected"),
    [
        ([0.01], 100),  # the floor
        ([1.0], 100),
        ([1.001], 150),
        ([2.3], 250),
        ([2.5, 0.3], 250),
        ([1.1, 4.0], 400),
        ([29.99], 3000),
        ([30.0], 3000),
    ],
)
def test_auto_takes_the_longest_clip_rounded_up(durations_s: list[float], expected: int) -> None:
    assert ContextPolicy("auto").n_frames(durations_s) == expected
    assert ContextPolicy("mix").n_frames(durations_s) == expected  # decoding
    assert ContextPolicy("full").n_frames(durations_s) == 3000


def test_auto_covers_every_clip_and_stays_even() -> None:
    policy = ContextPolicy("auto", multiple_frames=6, floor_frames=2)
    for samples in range(1, 480_000, 997):
        n_frames = policy.n_frames([samples / 16_000])
        assert n_frames % 2 == 0 and samples <= n_frames * 160 <= 480_000


def test_margin_is_added_before_rounding_and_ends_at_30_s() -> None:
    policy = ContextPolicy("auto", margin_s=0.5)
    assert policy.n_frames([2.0]) == 250
    assert policy.n_frames([29.8]) == 3000


def test_mix_draws_full_batches_by_its_generator() -> None:
    policy = ContextPolicy("mix", full_share=0.25)
    draws = [
        [policy.n_frames([2.0], training=True, generator=g) for _ in range(400)]
        for g in (torch.Generator().manual_seed(7), torch.Generator().manual_seed(7))
    ]
    assert draws[0] == draws[1]
    assert set(draws[0]) == {200, 3000}
    assert 60 <= draws[0].count(3000) <= 140  # 100 expected, standard deviation 8.7
    assert ContextPolicy("mix", full_share=0.0).n_frames([2.0], training=True) == 200
    assert ContextPolicy("mix", full_share=1.0).n_frames([2.0], training=True) == 3000


@pytest.mark.parametrize(
    ("durations_s", "message"),
    [
        ([], "at least one clip"),
        ([1.0, 0.0], "clip 1 lasts 0.00 s"),
        ([30.01], "at most 30 s"),
        ([float("nan")], "nan"),
    ],
)
def test_impossible_durations_are_refused(durations_s: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContextPolicy("auto").n_frames(durations_s)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "short"},
        {"multiple_frames": 0},
        {"multiple_frames": 25},
        {"floor_frames": 3002},
        {"margin_s": -1.0},
        {"full_share": 1.5},
    ],
)
def test_a_policy_is_checked_on_construction(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        ContextPolicy(**wrong)  # type: ignore[arg-type]
