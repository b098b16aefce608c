"""CTC models of the wav2vec2 family as one graph: a waveform in, logits of each frame out.

The graph is transformers' own forward. Where the model hears the padding behind a clip (group norm; data2vec, SEW and
Conformer in any case), a clip runs alone; where it does not and its feature extractor gives attention masks, the graph
takes the clips' lengths in samples and makes the mask itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from audiolora.edge.ctc import INPUT, text_of
from audiolora.edge.session import Session
from audiolora.export.ctc_settings import LENGTHS, CtcSettings
from audiolora.export.parts import Part
from audiolora.export.prepared import Prepared
from audiolora.export.slots import inner_network
from audiolora.speech.ctc.frames import hears_padding

FAMILIES = (
    "Wav2Vec2ForCTC",
    "HubertForCTC",
    "WavLMForCTC",
    "Data2VecAudioForCTC",
    "SEWForCTC",
    "SEWDForCTC",
    "UniSpeechForCTC",
    "UniSpeechSatForCTC",
    "Wav2Vec2ConformerForCTC",
)
_HEARS_FEATURES = ("Wav2Vec2BertForCTC", "ParakeetForCTC", "LasrForCTC", "GraniteSpeech5ForCTC")
_EXTRACTOR, _TOKENIZER = "Wav2Vec2FeatureExtractor", "Wav2Vec2CTCTokenizer"
_ATTENTION = ("eager", "sdpa")
_LONGER_FRAMES = 100  # two seconds, at a frame each 20 ms; even, for SEW, and more than WavLM's near positions


class CtcGraph(nn.Module):
    """A CTC model around its masks: waveform and, if masked, lengths → logits.

    Args:
        net: a model of `FAMILIES`, adapted or plain.
        masked: as in `CtcSettings`.
    """

    def __init__(self, net: nn.Module, masked: bool) -> None:
        super().__init__()
        self.net, self.masked = net, masked

    def forward(self, input_values: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (N, frames, vocabulary).

        Args:
            input_values: (N, samples), normalised if the model wants it, zeros after a clip's end.
            lengths: int64 (N,), samples of each clip.
        """
        mask = None
        if self.masked:
            assert lengths is not None  # an input of the graph
            mask = (torch.arange(input_values.shape[1], device=lengths.device) < lengths[:, None]).long()
        logits: torch.Tensor = self.net(input_values, attention_mask=mask).logits
        return logits


def ctc_view(settings: CtcSettings) -> partial[CtcGraph]:
    """The `Part.view` of a CTC model's one graph."""
    return partial(CtcGraph, masked=settings.masked)


def ctc_task(model: nn.Module, processor: Any, *, drop: Sequence[str] = ()) -> CtcSettings:
    """What a device has to know of a CTC model, for `export`'s task.

    Args:
        model: one of `FAMILIES`, adapted or not.
        processor: its ``Wav2Vec2Processor``, or whatever has its feature_extractor and tokenizer.
        drop: tokens to leave out of texts, such as ``["<s>", "</s>", "<unk>"]``; ``batch_decode`` writes all but the
            blank.

    Raises:
        ValueError: another kind of model, feature extractor or tokenizer, or a tokenizer of another model.

    Example:
        >>> ctc_task(model, processor).vocabulary[:3]  # doctest: +SKIP
        ('<pad>', '|', 'a')
    """
    net = _checked(model)
    extractor, tokenizer = _halves(processor)
    config = net.config
    vocabulary = _vocabulary(tokenizer, config)
    if unknown := [token for token in drop if token not in vocabulary]:
        raise ValueError(f"drop names {', '.join(unknown)}, which the tokenizer does not have")
    return CtcSettings(
        sample_rate_hz=int(extractor.sampling_rate),
        normalized=bool(extractor.do_normalize),
        masked=not hears_padding(net, extractor),  # a model that does takes one clip at a time
        convolutions=_convolutions(config),
        fewest_frames=int(getattr(config, "squeeze_factor", 1)),
        vocabulary=vocabulary,
        blank=tokenizer.pad_token,
        delimiter=tokenizer._word_delimiter_token,  # the property logs an error where there is none
        space=tokenizer.replace_word_delimiter_char,
        dropped=tuple(drop),
        lower=bool(tokenizer.do_lower_case),
        tidied=bool(tokenizer.clean_up_tokenization_spaces),
    )


def ctc_part(settings: CtcSettings, processor: Any, clip: Any) -> Part:
    """A CTC model's one graph, for `export`'s parts.

    Args:
        settings: from `ctc_task`.
        processor: as there.
        clip: (samples,) at the model's sample rate: the self-test that is stored in the bundle.

    Raises:
        ValueError: it is no clip, or too short.
    """
    clip = _clip(settings, clip)
    fewer = settings.samples(max(3 * settings.frames(len(clip)) // 4, settings.fewest_frames))
    clips = [clip, clip[:fewer]] if settings.masked else [clip]
    longest = settings.samples(_LONGER_FRAMES)
    cut = longest // 5 if settings.masked else 0
    longer = [noise(settings, _LONGER_FRAMES, seed)[: longest - seed * cut] for seed in range(3)]
    dynamic: dict[str, Mapping[int, str]] = {INPUT: {0: "batch", 1: "samples"}}
    if settings.masked:
        dynamic[LENGTHS] = {0: "batch"}
    inputs, more = (_inputs(settings, processor, each) for each in (clips, longer))
    return Part(inputs, dynamic, view=ctc_view(settings), outputs=("logits",), more=(more,))


def noise(settings: CtcSettings, n_frames: int = 25, seed: int = 0) -> np.ndarray:
    """A clip (samples,) float32 of noise, a tenth of full scale, for where there is no speech to show."""
    drawn = 0.1 * np.random.default_rng(seed).standard_normal(settings.samples(n_frames))
    return drawn.astype(np.float32)


def check_texts(bundle: Path, work: Prepared, ids: Mapping[str, str], processor: Any, clips: Sequence[Any]) -> None:
    """Nothing if the bundle writes what transformers does for clips, from raw audio to text.

    Args:
        bundle: just written; its signature is not looked at.
        work: what torch gives.
        ids: bundle's id → PEFT's name of an adapter.
        processor: of the base.
        clips: (samples,) each.

    Raises:
        ValueError: another text; both are told.
    """
    session = Session(bundle, check_signature=False, threads=1)
    base, part = session.manifest.task, work.parts[0]
    assert isinstance(base, CtcSettings)
    both: list[tuple[str | None, str | None]] = [(None, work.merged), *ids.items()]
    for name, adapter in both:
        if name is not None:
            session.load(name)
        own = session.network(name).task
        assert isinstance(own, CtcSettings)
        for clip in clips:
            samples = _clip(base, clip)
            (logits,) = work.reference(part, _inputs(base, processor, [samples]), adapter)
            path = logits[0].argmax(axis=1)
            wanted = text_of(path, own) if own != base else _decoded(path, base, processor)
            found = session.transcribe(samples, base.sample_rate_hz, name)
            if found != wanted:
                raise ValueError(
                    f"{name or 'base'}: the bundle's text of the self-test is {found!r}, transformers' is {wanted!r}; "
                    "where two outputs are as good as equal, as in noise, give a clip of speech: example=clip"
                )


def _decoded(path: np.ndarray, settings: CtcSettings, processor: Any) -> str:
    """By the tokenizer; what is dropped is a blank to it, which repetitions do not reach over either."""
    blank = settings.vocabulary.index(settings.blank)
    path = np.array([blank if settings.vocabulary[i] in settings.dropped else i for i in path], np.int64)
    (text,) = _halves(processor)[1].batch_decode(path[None])
    return str(text)


def _checked(model: nn.Module) -> Any:
    net: Any = inner_network(model)
    kinds = [kind.__name__ for kind in type(net).__mro__]
    if features := [kind for kind in kinds if kind in _HEARS_FEATURES]:
        raise ValueError(
            f"{features[0]} hears log-mel features, which audiolora.edge does not compute; export its network over "
            "features, with an example of them and no processor"
        )
    if not any(kind in FAMILIES for kind in kinds):
        raise ValueError(f"a processor goes with one of {', '.join(FAMILIES)}, got {kinds[0]}")
    if (attention := net.config._attn_implementation) not in _ATTENTION:
        raise ValueError(
            f"attention {attention!r} cannot be exported; call model.set_attn_implementation('sdpa') first"
        )
    return net


def _halves(processor: Any) -> tuple[Any, Any]:
    """Feature extractor and tokenizer."""
    found: list[Any] = []
    for name, kind in (("feature_extractor", _EXTRACTOR), ("tokenizer", _TOKENIZER)):
        half: Any = getattr(processor, name, None)
        if not any(each.__name__ == kind for each in type(half).__mro__):
            raise ValueError(
                f"processor.{name} must be a {kind}, got {type(half).__name__}; build it as "
                f"Wav2Vec2Processor(feature_extractor={_EXTRACTOR}(…), tokenizer={_TOKENIZER}(…))"
            )
        found.append(half)
    extractor, tokenizer = found
    if (extractor.feature_size, extractor.padding_side, extractor.padding_value) != (1, "right", 0):
        raise ValueError(
            "the feature extractor must pad one channel with zeros on the right, got "
            f"feature_size={extractor.feature_size}, padding_side={extractor.padding_side!r}, "
            f"padding_value={extractor.padding_value}; set them before the export"
        )
    return extractor, tokenizer


def _vocabulary(tokenizer: Any, config: Any) -> tuple[str, ...]:
    """The text of each of the model's outputs; as the tokenizer has it, "unknown" for one that it does not know."""
    size, blank = int(config.vocab_size), config.pad_token_id
    if too_large := [token for token, i in tokenizer.encoder.items() if i >= size]:
        raise ValueError(
            f"the tokenizer is another model's: {', '.join(too_large[:5])} … would be output {size} or above, and the "
            f"model has {size} outputs; give the processor that the model was trained with"
        )
    vocabulary = tuple(tokenizer.convert_ids_to_tokens(list(range(size))))
    written = None if blank is None else vocabulary[blank]
    if written != tokenizer.pad_token:
        raise ValueError(
            f"the model's blank is output {blank} (config.pad_token_id), which the tokenizer writes as {written!r}, "
            f"and its pad_token is {tokenizer.pad_token!r}; set one to the other"
        )
    return vocabulary


def _convolutions(config: Any) -> tuple[tuple[int, int], ...]:
    found = [(int(kernel), int(stride)) for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True)]
    if getattr(config, "add_adapter", False):
        if (kernel := config.adapter_kernel_size) < 3:
            raise ValueError(f"config.adapter_kernel_size must be at least 3 for an export, got {kernel}")
        found += [(kernel - 2, int(config.adapter_stride))] * config.num_adapter_layers  # padded by one on each side
    return tuple(found)


def _clip(settings: CtcSettings, example: Any) -> np.ndarray:
    """Samples, of a number of frames that is no multiple of `CtcSettings.fewest_frames`.

    SEW squeezes frames and pads what is left over with zeros; for a multiple torch's graph would leave the padding out.
    """
    clip = np.asarray(example, np.float32)
    if clip.ndim != 1 or settings.frames(len(clip)) <= settings.fewest_frames or not np.isfinite(clip).all():
        raise ValueError(
            f"example must be a clip, finite samples (L,) at {settings.sample_rate_hz} Hz, at least "
            f"{settings.samples(settings.fewest_frames + 1)} of them, got shape {clip.shape}"
        )
    n_frames = settings.frames(len(clip))
    left_over = settings.fewest_frames == 1 or n_frames % settings.fewest_frames
    return clip if left_over else clip[: settings.samples(n_frames) - 1]


def _inputs(settings: CtcSettings, processor: Any, clips: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """As transformers makes them."""
    how = {"sampling_rate": settings.sample_rate_hz, "padding": True, "return_attention_mask": True}
    made = _halves(processor)[0](list(clips), return_tensors="np", **how)
    inputs = {INPUT: torch.from_numpy(np.asarray(made[INPUT], np.float32))}
    if settings.masked:
        inputs[LENGTHS] = torch.from_numpy(np.asarray(made["attention_mask"]).sum(axis=1).astype(np.int64))
    return inputs
