"""Built-in speech: real recorded telephone prompts in five languages, and spoken digits where they are at hand.

The prompts are the Asterisk project's core sounds, fetched from Debian's packages: one professional voice a language,
8 kHz, with transcripts. Tones, silence and stage directions ("[this is a beep]") are dropped.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from audiolora.packages import cache_dir, fetch_debian
from audiolora.speech.data.audio import duration_s
from audiolora.speech.data.rows import DataError
from audiolora.speech.data.utterance import Utterance

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGIT_FILE = re.compile(r"(\d)_([a-z]+)_(\d+)")
_GET_DIGITS = (
    "get the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset), put its folder recordings at "
    "FOLDER/spoken_digits/recordings, and set AUDIOLORA_DATA=FOLDER"
)
_DIRECTIONS = re.compile(r"[\[(<].*?[\])>]")  # "[ascending tones]", "(not a prompt)"
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Builtin:
    """A set of utterances known by name.

    Args:
        name: what `--data` and `audiolora data` call it.
        description: one line on what it is.
        licence: the recordings' licence.
        attribution: whom to name when the recordings are passed on.
        load: fetches where needed and returns the utterances.
        folder: where the recordings lie, once loaded.
    """

    name: str
    description: str
    licence: str
    attribution: str
    load: Callable[[], list[Utterance]]
    folder: Callable[[], Path]


@dataclass(frozen=True)
class _Voice:
    language: str
    licence: str
    attribution: str


# Licence and names as each package's usr/share/doc/*/copyright gives them.
_VOICES = {
    "en": _Voice("English", "CC BY-SA 3.0", "2003-2010 Allison Smith (theivrvoice.com); funded by Digium, Inc."),
    "es": _Voice("Spanish", "CC BY-SA 3.0", "2003-2010 Allison Smith (theivrvoice.com); funded by Digium, Inc."),
    "fr": _Voice(
        "French",
        "CC BY-SA 3.0",
        "2006-2008 June Wallack (junewallack.com); translated by Clod Patry, Kristopher Lalletti and June Wallack; "
        "funded by Digium, Inc., Unlimitel and BGM Informatique",
    ),
    "it": _Voice(
        "Italian",
        "CC BY 3.0",
        "2012 Carlo Flora (carloflora.com, segreterietelefoniche.it); translated by Silvia Petrin",
    ),
    "ru": _Voice("Russian", "CC BY 3.0", "2010 Maxim Topal (ivrvoice.ru)"),
}


def load_prompts(language: str) -> list[Utterance]:
    """The telephone prompts of one language, fetched on first use.

    Args:
        language: `en`, `es`, `fr`, `it` or `ru`.

    Returns: utterances sorted by id, `language/prompt`; audio is the path of an 8 kHz WAV file.

    Raises:
        DataError: another language, or a package that holds something else than expected.
        FetchError: the packages could not be fetched.

    >>> load_prompts("en")[0].text  # doctest: +SKIP
    'Activated.'
    """
    if language not in _VOICES:
        raise DataError(f"no prompts in {language!r}; there are {', '.join(_VOICES)}")
    package = f"asterisk-core-sounds-{language}"
    recordings = fetch_debian(f"{package}-wav") / "usr/share/asterisk/sounds"
    transcripts = fetch_debian(package) / f"usr/share/doc/{package}/core-sounds-{language}.txt.gz"
    voices = [folder for folder in sorted(recordings.iterdir()) if folder.is_dir()] if recordings.is_dir() else []
    if len(voices) != 1 or not transcripts.is_file():
        raise DataError(
            f"{package}: must hold one voice in {recordings} and its transcripts in {transcripts}, found "
            f"{len(voices)} voices; delete {cache_dir() / 'debian'} and fetch again"
        )
    said = parse_transcripts(gzip.decompress(transcripts.read_bytes()).decode("utf-8", errors="replace"))
    utterances = []
    for clip in sorted(voices[0].rglob("*.wav")):
        prompt = clip.relative_to(voices[0]).with_suffix("").as_posix()
        if prompt in said and not prompt.startswith("silence/"):
            where = f"{transcripts.name} prompt {prompt}"
            utterances.append(
                Utterance(f"{language}/{prompt}", clip, said[prompt], where, speaker=voices[0].name, language=language)
            )
    return sorted(utterances, key=lambda utterance: utterance.id)


def parse_transcripts(text: str) -> dict[str, str]:
    """What each prompt says, from a `prompt: transcript` list; prompts that say nothing are left out.

    >>> parse_transcripts("; a comment\\nbeep: [a tone]\\nhello: Hello... (cheerfully) world.")
    {'hello': 'Hello world.'}
    """
    said = {}
    for line in text.removeprefix("\ufeff").splitlines():
        prompt, colon, transcript = line.strip().partition(":")
        if not colon or prompt.startswith(";"):
            continue
        # A prompt listed twice means what is said last, so a later line without words removes an earlier one.
        said[prompt.strip()] = clean_transcript(transcript)
    return {prompt: transcript for prompt, transcript in said.items() if _WORD.search(transcript)}


def clean_transcript(text: str) -> str:
    """A transcript without stage directions, outer quotation marks and dots of hesitation.

    >>> clean_transcript('“Press 5 [pause] ... now”')
    'Press 5 now'
    """
    text = _DIRECTIONS.sub(" ", text).strip(' "“”«»').replace("…", "...")
    return " ".join(re.sub(r"\.{2,}", " ", text).split())


def load_spoken_digits() -> list[Utterance]:
    """The Free Spoken Digit Dataset, from the folder that the environment variable AUDIOLORA_DATA names.

    Returns: utterances sorted by id, `digit_speaker_index`; audio is the path of an 8 kHz WAV file. The parts are the
        data set's own, indices 0 to 4 for testing and the rest for training, of which 5 and 6 are dev.

    Raises:
        DataError: AUDIOLORA_DATA is not set, or the recordings do not lie below it.
    """
    folder = _digits_folder()
    utterances = []
    for clip in sorted(folder.glob("*.wav")):
        name = _DIGIT_FILE.fullmatch(clip.stem)
        if name is None:
            raise DataError(f"{clip}: not named as the data set's recordings are, digit_speaker_index.wav")
        digit, speaker, index = name.groups()
        text, where = _DIGITS[int(digit)], f"spoken_digits/{clip.name}"
        part = "test" if int(index) < 5 else "dev" if int(index) < 7 else "train"
        utterances.append(Utterance(clip.stem, clip, text, where, speaker=speaker, part=part))
    if not utterances:
        raise DataError(f"spoken-digits: {folder} holds no recordings")
    return utterances


def fetch_builtin(name: str) -> str:
    """Fetch a built-in set.

    Returns: a summary for people: clips, minutes, where they lie, licence and attribution.

    Raises:
        DataError: an unknown name, or a set that is not on this machine.
        FetchError: the packages could not be fetched.

    >>> print(fetch_builtin("prompts-it"))  # doctest: +SKIP
    """
    if name not in BUILTIN:
        raise DataError(f"no built-in set {name!r}; there are {', '.join(BUILTIN)}")
    builtin = BUILTIN[name]
    utterances = builtin.load()
    minutes = sum(duration_s(utterance.audio, name=utterance.where) for utterance in utterances) / 60
    return "\n".join(
        [
            f"{name}: {builtin.description}",
            f"  {len(utterances)} clips, {minutes:.1f} minutes, in {builtin.folder()}",
            f"  licence: {builtin.licence}",
            f"  attribution: {builtin.attribution}",
        ]
    )


def _digits_folder() -> Path:
    root = os.environ.get("AUDIOLORA_DATA")
    if not root:
        raise DataError(f"spoken-digits: AUDIOLORA_DATA is not set; {_GET_DIGITS}")
    folder = Path(root).expanduser() / "spoken_digits" / "recordings"
    if not folder.is_dir():
        raise DataError(f"spoken-digits: no folder {folder}; {_GET_DIGITS}")
    return folder


def _prompts(language: str, voice: _Voice) -> Builtin:
    return Builtin(
        name=f"prompts-{language}",
        description=f"real recorded {voice.language} telephone prompts, one voice, 8 kHz (Asterisk core sounds)",
        licence=voice.licence,
        attribution=voice.attribution,
        load=lambda: load_prompts(language),
        folder=lambda: fetch_debian(f"asterisk-core-sounds-{language}-wav"),
    )


BUILTIN: dict[str, Builtin] = {
    f"prompts-{language}": _prompts(language, voice) for language, voice in _VOICES.items()
} | {
    "spoken-digits": Builtin(
        name="spoken-digits",
        description="real recorded English digits, six speakers, 8 kHz (Free Spoken Digit Dataset)",
        licence="CC BY-SA 4.0",
        attribution="Zohar Jackson and contributors",
        load=load_spoken_digits,
        folder=_digits_folder,
    )
}
