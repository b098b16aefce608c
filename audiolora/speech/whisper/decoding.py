"""How a Whisper decodes; light to import, so that ``--help`` is quick.

The fall-back is that of Radford et al. (arXiv 2212.04356, section 4.5): a text that compresses too well (it loops) or
that the model finds too improbable is decoded again, drawn at a higher temperature, until one passes or the last
temperature is reached; audio that the model takes for no speech, with an improbable text, has no text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Timestamps = Literal["keep", "drop"]

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class WhisperDecoding:
    """How a Whisper decodes; as it stands, greedily and once.

    Args:
        beams: texts that the search follows at once; 1 is greedy.
        fallback: decode again at a higher temperature what loops or is improbable, and leave out what is no speech.
        prompt: text put before the transcript as if it had been said before: names, spelling and style to expect.
        temperatures: of the fall-back, rising; 0 is greedy or the beam search, others draw.
        compression_ratio: a text whose UTF-8 bytes zlib shrinks more than this many times loops.
        log_probability: a text whose tokens have a lower mean log-probability (natural) is improbable.
        no_speech: a probability of no speech above this, with an improbable text, makes it silence.
        no_repeat_ngram: never write the same run of so many tokens twice; 0 allows it.
        repetition_penalty: divides the odds of tokens already written (Keskar et al., arXiv 1909.05858); 1 is none.
        seed: of what is drawn above temperature 0; a clip draws the same beside whatever other clips.

    Raises:
        ValueError: a number outside its range, or an option that does nothing without another.

    Example:
        >>> WhisperDecoding(beams=5, fallback=True).temperatures[-1]
        1.0
    """

    beams: int = 1
    fallback: bool = False
    prompt: str | None = None
    temperatures: tuple[float, ...] = TEMPERATURES
    compression_ratio: float = 2.4
    log_probability: float = -1.0
    no_speech: float = 0.6
    no_repeat_ngram: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"beams must be at least 1, got {self.beams}; 1 is greedy")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is empty; leave it out, or give the words to expect")
        if self.no_repeat_ngram < 0:
            raise ValueError(f"no_repeat_ngram must not be negative, got {self.no_repeat_ngram}; 0 allows repetition")
        if not 1 <= self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty must be at least 1, got {self.repetition_penalty}; 1 is none, try 1.1"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2**32), got {self.seed}")
        self._check_fallback()

    def _check_fallback(self) -> None:
        rising = all(low < high for low, high in zip(self.temperatures, self.temperatures[1:], strict=False))
        if not self.temperatures or not rising or not 0 <= self.temperatures[0] <= self.temperatures[-1] < math.inf:
            raise ValueError(f"temperatures must rise from 0 or above, got {self.temperatures}; try {TEMPERATURES}")
        if not self.compression_ratio > 0:
            raise ValueError(f"compression_ratio must be positive, got {self.compression_ratio}; Whisper's is 2.4")
        if not self.log_probability <= 0:
            raise ValueError(f"log_probability must not be positive, got {self.log_probability}; Whisper's is -1")
        if not 0 <= self.no_speech <= 1:
            raise ValueError(f"no_speech is a probability in [0, 1], got {self.no_speech}; Whisper's is 0.6")
        names = ("temperatures", "compression_ratio", "log_probability", "no_speech", "seed")
        changed = [name for name in names if getattr(self, name) != getattr(type(self), name)]
        if changed and not self.fallback:
            raise ValueError(f"{', '.join(changed)} without fallback does nothing; set fallback too")
        if self.beams > 1 and self.attempts[0] > 0:
            raise ValueError(
                f"beams={self.beams} does nothing: what is drawn has no beams, and temperatures begin at "
                f"{self.attempts[0]}; begin them with 0"
            )

    @property
    def attempts(self) -> tuple[float, ...]:
        """The temperatures that are tried in turn."""
        return self.temperatures if self.fallback else (0.0,)


@dataclass(frozen=True)
class WhisperTexts:
    """What a Whisper's texts begin with: the language's token, and whether timestamps stand among their words.

    Args:
        language: Whisper's code or an English name of what is spoken in rows that have no column "language"; taken from
            the name of a built-in set.
        language_token: the language whose token stands for those that Whisper has no token for.
        timestamps: keep those in the texts (<|0.00|> Hello.<|1.20|>) and learn to write them, or drop them.

    Example:
        >>> WhisperTexts("lij", language_token="it").timestamps
        'drop'
    """

    language: str | None = None
    language_token: str | None = None
    timestamps: Timestamps = "drop"
