"""The table of real models: every transformers family with 1-D convolutions that we serve, tiny, random, offline.

A row makes its model (the same one at each call) and runs it to one tensor that depends, differentiably, on every
convolution in it. Where the model's own forward leaves some out (a codec's encoder sits before the codes, through which
no gradient passes; VITS' posterior encoder is for training alone) the run calls the model's parts itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from audiolora.presets.preset import ADAPTABLE
from tests.models.tiny_settings import (
    ADAPTER,
    AUTOFORMER,
    DAC,
    ENCODEC,
    FASTSPEECH,
    HIFI_GAN,
    HORIZON,
    LAGS,
    LFM2,
    MIMI,
    MOONSHINE,
    MOONSHINE_STREAMING,
    PARAKEET_ENCODER,
    PAST,
    SERIES,
    UNIVNET,
    VITS,
    VOXTRAL_ENCODER,
    WAVE,
    WHISPER,
)

CONVOLUTIONS = tuple(kind for kind in ADAPTABLE if kind in (nn.Conv1d, nn.ConvTranspose1d))
"""What audiolora's own layers adapt; everything of these kinds in a model is a target."""

Run = Callable[[Any], torch.Tensor]


@dataclass(frozen=True, eq=False)
class RealModel:
    """One row.

    Args:
        name: the row's name.
        model: the class in transformers.
        n_convs: how many ``nn.Conv1d`` and how many ``nn.ConvTranspose1d`` it has.
        settings: of its configuration; a nested configuration is a (class, settings) pair.
        run: model → the output tensor.
        tolerance: relative; float32's for the families that compute a part in float32 whatever the weights are.
        dtype: float64, unless the model makes float32 tensors whatever its weights are.
        unused: convolutions that the model has and never uses.
        prepare: what to do to a fresh model.
    """

    name: str
    model: str
    n_convs: tuple[int, int]
    settings: dict[str, Any]
    run: Run
    tolerance: float = 1e-8
    dtype: torch.dtype = torch.float64
    unused: tuple[str, ...] = ()
    prepare: Callable[[Any], None] = lambda model: None

    def build(self) -> Any:
        torch.manual_seed(0)
        kind = getattr(transformers, self.model)
        model = kind(kind.config_class(**{name: _setting(value) for name, value in self.settings.items()}))
        self.prepare(model)
        return model.to(self.dtype).eval()

    def output(self, model: Any) -> torch.Tensor:
        """The same random draws at each call; ``model`` may be a PeftModel."""
        torch.manual_seed(2)
        torch.set_default_dtype(self.dtype)
        try:
            return self.run(model.get_base_model() if hasattr(model, "get_base_model") else model)
        finally:
            torch.set_default_dtype(torch.float32)


def _setting(value: Any) -> Any:
    if isinstance(value, tuple) and isinstance(value[0], str):
        return getattr(transformers, value[0])(**value[1])
    return value


def convolutions(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)]


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    """In the default type, which is the row's while its model runs."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(torch.get_default_dtype())


def tokens(length: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(3, vocabulary, (1, length), generator=torch.Generator().manual_seed(1))


def flat(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def first_output(**inputs: Callable[[], torch.Tensor]) -> Run:
    return lambda model: model(**{name: make() for name, make in inputs.items()})[0]


def weight_norm(model: Any) -> None:
    """As the vocoders' training scripts do; from_pretrained gives them without."""
    model.apply_weight_norm()


run_wave = first_output(input_values=lambda: noise(1, 320))


def run_encodec(model: Any) -> torch.Tensor:
    return flat(model.decoder(model.encoder(noise(1, 1, 32))), model(noise(1, 1, 32))[1])


def run_dac(model: Any) -> torch.Tensor:
    out = model(noise(1, 1, 64))
    return flat(out.audio_values, out.projected_latents, out.loss)


def run_mimi(model: Any) -> torch.Tensor:
    latents = model.encoder(noise(1, 1, 64)).latents
    quantizer = model.quantizer
    halves = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
    latents = sum(half.output_proj(half.input_proj(latents)) for half in halves)
    return flat(model.decoder(latents).audio_values, model(noise(1, 1, 64)).audio_values)


def run_vits(model: Any) -> torch.Tensor:
    """What training alone runs, the posterior encoder and the duration predictor's other direction; then synthesis."""
    ids, mask = tokens(6, 20), torch.ones(1, 1, 6, dtype=torch.float64)
    hidden = model.text_encoder(ids, mask.mT).last_hidden_state.mT
    posterior = model.posterior_encoder(noise(1, 9, 6), mask)
    log_durations = model.duration_predictor(hidden, mask, reverse=True)
    likelihood = model.duration_predictor(hidden, mask, durations=torch.full_like(mask, 2.0))
    return flat(*posterior, log_durations, likelihood, model(ids).waveform)


def run_fastspeech(model: Any) -> torch.Tensor:
    ids = tokens(6, 20)
    out = model(ids)
    hidden = out.encoder_last_hidden_state.mT
    for layer in model.duration_predictor.conv_layers:  # its output is rounded to whole frames
        hidden = layer(hidden)
    return flat(out.spectrogram, out.pitch_outputs, out.energy_outputs, hidden)


def run_univnet(model: Any) -> torch.Tensor:
    return model(noise(1, 4, 4), noise(1, 4, 4, seed=3)).waveforms


def run_series(model: Any) -> torch.Tensor:
    """With the future given, as in training."""
    lagged = PAST + max(LAGS)
    out = model(
        past_values=noise(2, lagged),
        past_time_features=noise(2, lagged, 1),
        past_observed_mask=torch.ones(2, lagged),
        future_values=noise(2, HORIZON, seed=3),
        future_time_features=noise(2, HORIZON, 1),
    )
    return flat(out.encoder_last_hidden_state, *(out[name] for name in ("last_hidden_state", "trend") if name in out))


FLOAT32: dict[str, Any] = {"dtype": torch.float32, "tolerance": 1e-4}

TABLE: tuple[RealModel, ...] = (
    RealModel(
        "Whisper",
        "WhisperModel",
        (2, 0),
        WHISPER,
        first_output(input_features=lambda: noise(1, 8, 40), decoder_input_ids=lambda: tokens(3, 20)),
    ),
    RealModel("wav2vec2", "Wav2Vec2Model", (4, 0), WAVE | ADAPTER, run_wave),
    RealModel("HuBERT", "HubertModel", (3, 0), WAVE, run_wave),
    RealModel("WavLM", "WavLMModel", (3, 0), WAVE, run_wave),
    RealModel("SEW", "SEWModel", (3, 0), WAVE | {"squeeze_factor": 2}, run_wave),
    RealModel("data2vec-audio", "Data2VecAudioModel", (4, 0), WAVE | {"num_conv_pos_embeddings": 2}, run_wave),
    RealModel("UniSpeech", "UniSpeechModel", (3, 0), WAVE, run_wave),
    RealModel(
        "wav2vec2-conformer",
        "Wav2Vec2ConformerModel",
        (7, 0),
        WAVE | ADAPTER | {"conv_depthwise_kernel_size": 5},
        run_wave,
        unused=("encoder.pos_conv_embed.conv",),
    ),
    RealModel(
        "Wav2Vec2-BERT",
        "Wav2Vec2BertModel",
        (5, 0),
        WAVE | ADAPTER | {"feature_projection_input_dim": 8, "conv_depthwise_kernel_size": 5, "output_hidden_size": 16},
        first_output(input_features=lambda: noise(1, 12, 8)),
    ),
    RealModel(
        "Moonshine",
        "MoonshineModel",
        (3, 0),
        MOONSHINE,
        first_output(input_values=lambda: noise(1, 1500), decoder_input_ids=lambda: tokens(3, 20)),
    ),
    RealModel(
        "Moonshine-streaming",
        "MoonshineStreamingModel",
        (2, 0),
        MOONSHINE_STREAMING,
        first_output(  # with a mask, its convolutions multiply their outputs in place
            input_values=lambda: noise(1, 1600),
            attention_mask=lambda: (torch.arange(1600) < 1200).long()[None],
            decoder_input_ids=lambda: tokens(3, 20),
        ),
        **FLOAT32,
    ),
    RealModel(
        "Voxtral-realtime",
        "VoxtralRealtimeEncoder",
        (2, 0),
        VOXTRAL_ENCODER,
        first_output(input_features=lambda: noise(1, 8, 12)),
        tolerance=1e-5,
    ),
    RealModel(
        "Parakeet-CTC",
        "ParakeetForCTC",
        (4, 0),
        {"vocab_size": 12, "pad_token_id": 11, "encoder_config": ("ParakeetEncoderConfig", PARAKEET_ENCODER)},
        first_output(input_features=lambda: noise(1, 40, 16)),
    ),
    RealModel("Encodec", "EncodecModel", (18, 2), ENCODEC, run_encodec),
    RealModel("DAC", "DacModel", (19, 1), DAC, run_dac),
    RealModel("DAC, weight norm", "DacModel", (19, 1), DAC, run_dac, prepare=weight_norm),
    RealModel("Mimi", "MimiModel", (19, 3), MIMI, run_mimi),
    RealModel("VITS", "VitsModel", (49, 2), VITS, run_vits, tolerance=1e-6),
    RealModel("HiFi-GAN", "SpeechT5HifiGan", (10, 2), HIFI_GAN, first_output(spectrogram=lambda: noise(1, 6, 8))),
    RealModel(
        "HiFi-GAN, weight norm",
        "SpeechT5HifiGan",
        (10, 2),
        HIFI_GAN,
        first_output(spectrogram=lambda: noise(1, 6, 8)),
        prepare=weight_norm,
    ),
    RealModel("UnivNet", "UnivNetModel", (9, 1), UNIVNET, run_univnet),
    RealModel("UnivNet, weight norm", "UnivNetModel", (9, 1), UNIVNET, run_univnet, prepare=weight_norm),
    RealModel("FastSpeech2-conformer", "FastSpeech2ConformerModel", (24, 0), FASTSPEECH, run_fastspeech, **FLOAT32),
    RealModel("Informer", "InformerModel", (1, 0), SERIES | {"encoder_layers": 2}, run_series),
    RealModel(
        "Autoformer",
        "AutoformerModel",
        (1, 0),
        AUTOFORMER,
        run_series,
        **FLOAT32,
    ),
    RealModel("LFM2", "Lfm2Model", (1, 0), LFM2, first_output(input_ids=lambda: tokens(6, 20)), tolerance=1e-5),
)
# PatchTSMixer has linear layers alone.
