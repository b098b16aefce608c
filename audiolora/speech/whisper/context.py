"""Short audio context: let Whisper's encoder see a clip's own length instead of 30 s of padding.

Whisper's encoder refuses anything but 3000 log-mel frames (30 s), which become 1500 positions. Cost grows with the
positions, so a 3 s clip pays for 30. Two integers make the rule: ``config.max_source_positions`` (the length check, and
`generate`'s idea of a window) and ``embed_positions.num_embeddings`` (how many positional rows are added). Setting
both to n gives the encoder of a Whisper built for n positions with the first n rows of the same embedding: forward,
backward and `generate` run as they are.

A Whisper that never saw a short context tends to loop on one: it has to be trained so (FUTO's whisper-acft reports the
same), and what was trained at a short context decodes best at a short one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

FRAMES_PER_S = 100
MAX_FRAMES = 3000  # 30 s
FRAMES_PER_POSITION = 2  # conv2's stride

ContextMode = Literal["auto", "full", "mix"]


@dataclass(frozen=True)
class ContextPolicy:
    """How many log-mel frames the encoder sees for a batch of clips.

    Attributes:
        mode: "full" always takes 30 s. "auto" takes the longest clip of the batch. "mix" draws one of the two for each
            training batch, so that the adapter holds at either; it decodes as "auto".
        multiple_frames: lengths are rounded up to a multiple of this (50 frames are 0.5 s): fewer distinct shapes.
        floor_frames: never fewer frames than these (100 frames are 1 s).
        margin_s: silence kept after the longest clip, s.
        full_share: in "mix", the probability of a full batch.

    Raises:
        ValueError: an unknown mode, or a number out of its range.

    Example:
        >>> ContextPolicy("auto").n_frames([2.31, 0.4])
        250
        >>> ContextPolicy("full").n_frames([2.31, 0.4])
        3000
    """

    mode: ContextMode = "auto"
    multiple_frames: int = 50
    floor_frames: int = 100
    margin_s: float = 0.0
    full_share: float = 0.25

    def __post_init__(self) -> None:
        if self.mode not in get_args(ContextMode):
            raise ValueError(f"context must be one of {', '.join(get_args(ContextMode))}, got {self.mode!r}")
        for name in ("multiple_frames", "floor_frames"):
            value = getattr(self, name)
            if not 0 < value <= MAX_FRAMES or value % FRAMES_PER_POSITION:
                raise ValueError(f"{name} must be even and between 2 and {MAX_FRAMES}, got {value}")
        if not 0 <= self.margin_s <= MAX_FRAMES / FRAMES_PER_S:
            raise ValueError(f"margin_s must be between 0 and 30 s, got {self.margin_s}")
        if not 0 <= self.full_share <= 1:
            raise ValueError(f"full_share must be between 0 and 1, got {self.full_share}")

    def n_frames(
        self, durations_s: Sequence[float], *, training: bool = False, generator: torch.Generator | None = None
    ) -> int:
        """The context of one batch.

        Args:
            durations_s: the clips' durations, s.
            training: whether the batch is trained on: only then does "mix" draw.
            generator: the source of that draw; None takes torch's global one, which a seeded run has seeded.

        Returns:
            An even number of frames, at least every clip's own and at most 3000.

        Raises:
            ValueError: no clip, a duration that is not positive, or one over 30 s.
        """
        if not durations_s:
            raise ValueError("durations_s is empty: a batch needs at least one clip")
        for index, duration_s in enumerate(durations_s):
            if not 0 < duration_s <= MAX_FRAMES / FRAMES_PER_S:
                raise ValueError(
                    f"clip {index} lasts {duration_s:.2f} s; Whisper hears more than 0 and at most 30 s: cut it"
                )
        if self.mode == "full" or (self.mode == "mix" and training and self._draw_full(generator)):
            return MAX_FRAMES
        # rounded first: 2.30 s x 100 is 229.99999999999997
        needed = math.ceil(round((max(durations_s) + self.margin_s) * FRAMES_PER_S, 6))
        rounded = math.ceil(max(needed, self.floor_frames) / self.multiple_frames) * self.multiple_frames
        return min(rounded, MAX_FRAMES)

    def _draw_full(self, generator: torch.Generator | None) -> bool:
        import torch

        return torch.rand((), generator=generator).item() < self.full_share


def whisper_encoder(model: torch.nn.Module) -> WhisperEncoder:
    """The Whisper encoder inside a model, whatever wraps it: PEFT, DistributedDataParallel, torch.compile.

    Raises:
        TypeError: there is no Whisper encoder inside, or more than one.
    """
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    found = [module for module in model.modules() if isinstance(module, WhisperEncoder)]
    if len(found) != 1:
        raise TypeError(f"{type(model).__name__} holds {len(found)} Whisper encoders; give a model with one")
    return found[0]


@contextmanager
def audio_context(model: torch.nn.Module, n_frames: int) -> Iterator[None]:
    """Within the block, the model's encoder takes exactly `n_frames` log-mel frames.

    Forward, backward and `generate` work as usual. The former context comes back at the end, also after an error;
    blocks may be nested. The model is changed in place while the block runs: use it from one thread, save it outside.

    Args:
        model: a Whisper (or its encoder), bare or wrapped by PEFT, DistributedDataParallel or torch.compile.
        n_frames: log-mel frames, 10 ms each; even, at most 3000 (or what the model was built for).

    Raises:
        ValueError: `n_frames` is odd, not positive, or more than the model has positions for.
        TypeError: `model` holds no Whisper encoder.

    Example:
        >>> with audio_context(model, 300):  # doctest: +SKIP
        ...     loss = model(input_features=features, labels=labels).loss  # features (N, 80, 300)
    """
    encoder = whisper_encoder(model)
    max_frames = encoder.embed_positions.weight.shape[0] * FRAMES_PER_POSITION
    if not 0 < n_frames <= max_frames or n_frames % FRAMES_PER_POSITION:
        raise ValueError(
            f"n_frames must be even and between 2 and {max_frames} (conv2 halves them; the model has "
            f"{max_frames // FRAMES_PER_POSITION} positions), got {n_frames}; round up to a multiple of 2"
        )
    n_positions = n_frames // FRAMES_PER_POSITION
    modules = [model, *model.modules()]
    configs = {id(c): c for c in (getattr(m, "config", None) for m in modules) if hasattr(c, "max_source_positions")}
    with ExitStack() as restored:
        for config in configs.values():  # mostly one object that every module shares
            restored.enter_context(_attribute(config, "max_source_positions", n_positions))
        restored.enter_context(_attribute(encoder.embed_positions, "num_embeddings", n_positions))
        yield


@contextmanager
def _attribute(target: object, name: str, value: int) -> Iterator[None]:
    """Set an attribute for a while. A PEFT wrapper only forwards `num_embeddings`: there it is removed, not reset."""
    is_own = name in vars(target)
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(target, name, before)
        else:
            delattr(target, name)
