"""Clips in which the language changes: an Italian and a Spanish telephone prompt laid end to end, in turns first.

    python benchmarks/code_switching.py switched
    python recipes/asr_whisper.py --data switched/clips.csv --model openai/whisper-base --name switched \
        --test 30 --dev 10 --epochs 3 --learning-rate 1e-3

The voices are real recordings, each prompt is used once, and that they follow one another is made up here. A clip's
column `language`, which Whisper is told, is that of its first half.
"""

import csv
import random
from pathlib import Path

import numpy as np
import soundfile
from cyclopts import run

from audiolora.speech.data.audio import SAMPLE_RATE_HZ, duration_s, read_audio
from audiolora.speech.data.manifests import read_utterances

PAUSE_S, SHORTEST_S, LONGEST_S = 0.3, 1.0, 8.0


def main(folder: Path, /, *, clips: int = 100, seed: int = 0) -> None:
    """Write clips.csv and the clips.

    Args:
        folder: to write to.
        clips: how many.
        seed: of which prompts meet.
    """
    draw, spoken = random.Random(seed), []
    for language in ("it", "es"):
        found = [u for u in read_utterances(f"prompts-{language}") if SHORTEST_S <= duration_s(u.audio) <= LONGEST_S]
        spoken.append(draw.sample(found, clips))
    pause = np.zeros(round(PAUSE_S * SAMPLE_RATE_HZ), np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("audio", "text", "language"))
        for n, (italian, spanish) in enumerate(zip(*spoken, strict=True)):
            first, second = (italian, spanish) if n % 2 == 0 else (spanish, italian)
            sound = np.concatenate([read_audio(first.audio), pause, read_audio(second.audio)])
            soundfile.write(folder / f"{n}.wav", sound, SAMPLE_RATE_HZ)
            table.writerow((f"{n}.wav", f"{first.text} {second.text}", "it" if n % 2 == 0 else "es"))


if __name__ == "__main__":
    run(main)
