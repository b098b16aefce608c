"""Rooms: impulse responses, simulated by pyroomacoustics or measured, and speech as it sounds in them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from audiolora.speech.data.audio import SAMPLE_RATE_HZ, AudioError, read_audio

ROOMS = 50
"""Simulated rooms that clips are put into: enough variety for training, and seconds to make."""

_SIDES_M = ((3.5, 9.0), (3.0, 7.0), (2.4, 3.6))
_FROM_WALLS_M = 0.4
_DISTANCE_M = (0.5, 3.0)


def simulated_response(index: int, low_s: float, high_s: float) -> np.ndarray:
    """The impulse response of a shoebox room, by the image source method (Allen and Berkley, 1979).

    Sides of 3.5 to 9, 3 to 7 and 2.4 to 3.6 m, a talker 0.5 to 3 m from the microphone, walls of one absorption.

    Args:
        index: of the room: the same index and range give the same room.
        low_s, high_s: range that its reverberation time RT60 is drawn from, s.

    Returns: (n,) float32, 16 kHz, cut where less than a millionth (-60 dB) of its energy is left.

    Raises:
        ImportError: pyroomacoustics is not installed.
    """
    import pyroomacoustics

    from audiolora.speech.sound.augmentation import keyed_generator

    draw = keyed_generator(f"room {index}")
    rt60_s = draw.uniform(low_s, high_s)
    while True:
        sides_m = [draw.uniform(*side) for side in _SIDES_M]
        talker, microphone = (draw.uniform(_FROM_WALLS_M, np.subtract(sides_m, _FROM_WALLS_M)) for _ in range(2))
        if not _DISTANCE_M[0] <= np.linalg.norm(talker - microphone) <= _DISTANCE_M[1]:
            continue
        try:
            absorption, order = pyroomacoustics.inverse_sabine(rt60_s, sides_m)
        except ValueError:  # so large a room does not die away so fast
            continue
        break
    room = pyroomacoustics.ShoeBox(
        sides_m, fs=SAMPLE_RATE_HZ, materials=pyroomacoustics.Material(absorption), max_order=order
    )
    room.add_source(talker)
    room.add_microphone(microphone)
    room.compute_rir()
    return _without_tail(np.asarray(room.rir[0][0], dtype=np.float32))


def simulate_rooms(low_s: float, high_s: float) -> list[np.ndarray]:
    """All `ROOMS` of a range: seconds, with a progress bar."""
    from rich.console import Console
    from rich.progress import track

    indices = track(range(ROOMS), "simulating rooms", console=Console(stderr=True), transient=True)
    return [simulated_response(index, low_s, high_s) for index in indices]


@cache
def measured_response(path: Path) -> np.ndarray:
    """An impulse response from a file, (n,) float32 at 16 kHz, its silent end cut off.

    Raises:
        AudioError: no audio, or digital silence.
    """
    response = read_audio(path)
    if not response.any():
        raise AudioError(f"{path}: an impulse response of digital silence; remove it")
    return _without_tail(response)


def reverberate(audio: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Speech in a room: as long and as loud as before, its direct sound in its place.

    Args:
        audio: samples (n,).
        response: impulse response (m,), same sample rate; its largest sample is taken for the direct sound.

    Returns: samples (n,).
    """
    from scipy.signal import oaconvolve

    direct = int(np.abs(response).argmax())
    heard = oaconvolve(audio, response)[direct : direct + len(audio)]
    power = np.mean(heard**2)
    return heard * np.sqrt(np.mean(audio**2) / power) if power > 0 else heard


def _without_tail(response: np.ndarray) -> np.ndarray:
    left = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]
    return response[: int(np.count_nonzero(left > 1e-6 * left[0]))]
