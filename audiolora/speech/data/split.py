"""Train, dev and test parts: those that the data bring, or drawn ones in which no sentence is shared.

To draw, utterances are grouped by normalised text and whole groups are dealt out. The order of dealing is the groups'
digests with the seed, so it depends on neither the order of the input nor on any random generator's version.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from audiolora.files import write_json
from audiolora.speech.data.rows import DataError
from audiolora.speech.data.sources import AudioSource
from audiolora.speech.data.utterance import Utterance

TEST, DEV = 100, 0.12
"""Sizes of the parts that are drawn, where nobody says others."""

_PARTS = ("train", "dev", "test")
_PAIRS = (("train", "test"), ("train", "dev"), ("dev", "test"))
_NOT_WORD = re.compile(r"[^\w]|_")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Utterances in three parts; an id stands in one of them, once.

    >>> Split(train=(), dev=(), test=()).test
    ()
    """

    train: tuple[Utterance, ...]
    dev: tuple[Utterance, ...]
    test: tuple[Utterance, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for utterance in (*self.train, *self.dev, *self.test):
            if utterance.id in seen:
                raise DataError(f"{utterance.where}: id {utterance.id!r} stands in the split twice")
            seen.add(utterance.id)


def fold_text(text: str) -> str:
    """Text with case, punctuation and white space folded: what counts as the same sentence.

    >>> fold_text("Press  1, please!") == fold_text("press 1 please")
    True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # The vowels of Hindi, Thai and others are marks, which \w leaves out.
    kept = _NOT_WORD.sub(lambda odd: odd[0] if unicodedata.category(odd[0])[0] == "M" else " ", folded)
    return " ".join(kept.split())


def split_by_text(
    utterances: Sequence[Utterance],
    *,
    test: int | float,
    dev: int | float,
    seed: int,
    normalize: Callable[[str], str] | None = None,
) -> Split:
    """Split so that no sentence is in two parts, as near to the sizes asked for as whole sentences allow.

    Args:
        test, dev: sizes: an int counts utterances, a float in [0, 1) is a share of all; 0 leaves the part empty.
        seed: another seed deals another split.
        normalize: text -> what it is compared by; `fold_text` by default.

    Returns: the split, each part in an order that depends on the seed but not on the order of the input.

    Raises:
        DataError: sizes that leave nothing to train on, or more non-empty parts than there are different sentences.

    >>> split_by_text(utterances, test=100, dev=0.1, seed=0)  # doctest: +SKIP
    """
    total = len(utterances)
    n_test, n_dev = _size("test", test, total), _size("dev", dev, total)
    if n_test + n_dev >= total:
        raise DataError(
            f"test={test} and dev={dev} take {n_test + n_dev} of {total} utterances and leave none to train on"
        )
    groups = _groups(utterances, seed, normalize or fold_text)
    parts = 1 + (n_test > 0) + (n_dev > 0)
    if len(groups) < parts:
        raise DataError(
            f"{len(groups)} different sentences cannot fill {parts} parts that share none; give more sentences"
        )
    test_groups, rest = _take(groups, n_test, keep=parts - 1)
    dev_groups, train_groups = _take(rest, n_dev, keep=1)
    return Split(train=_flat(train_groups), dev=_flat(dev_groups), test=_flat(test_groups))


def split_utterances(
    utterances: Sequence[Utterance],
    *,
    test: int | float | None = None,
    dev: int | float | None = None,
    seed: int,
    normalize: Callable[[str], str] | None = None,
) -> Split:
    """The parts that the data bring (`Utterance.part`); what they lack is drawn by `split_by_text`, out of train.

    What the given parts share (sentences, speakers, clips) is logged as warnings, see `shared`.

    Args:
        test, dev: sizes: an int counts utterances, a float in [0, 1) is a share. None takes all of a part that is
            given, else 100 and 0.12. Of a given part a size takes that much, by whole sentences, as the
            seed deals them.
        seed: another seed deals another split.
        normalize: text -> what it is compared by; `fold_text` by default.

    Raises:
        DataError: utterances with and without a part, no train part, or sizes that cannot be had.

    >>> split_utterances(read_utterances("common_voice/it"), seed=0)  # doctest: +SKIP
    """
    given = {part: [u for u in utterances if u.part == part] for part in _PARTS}
    if not any(given.values()):
        how = {"test": TEST if test is None else test, "dev": DEV if dev is None else dev}
        return split_by_text(utterances, **how, seed=seed, normalize=normalize)
    if odd := next((u for u in utterances if u.part is None), None):
        raise DataError(f"{odd.where}: belongs to no part, and others are train, dev or test; name all parts or none")
    if not given["train"]:
        raise DataError(
            f"{utterances[0].where}: the data have the parts {' and '.join(p for p in given if given[p])}, and none to "
            "train on; name the train part too"
        )
    drawn = {
        "test": 0 if given["test"] else TEST if test is None else test,
        "dev": 0 if given["dev"] else DEV if dev is None else dev,
    }
    rest = split_by_text(given["train"], **drawn, seed=seed, normalize=normalize)
    split = Split(
        train=rest.train,
        dev=_share(given["dev"], dev, seed, normalize) or rest.dev,
        test=_share(given["test"], test, seed, normalize) or rest.test,
    )
    brought = [part for part in _PARTS if given[part]]
    for line in shared(split, parts=brought, normalize=normalize):
        logger.warning("%s", line)
    return split


def shared(split: Split, *, parts: Sequence[str] = _PARTS, normalize: Callable[[str], str] | None = None) -> list[str]:
    """What two parts of a split have in common, a line each: sentences, speakers, clips.

    Args:
        split: of the data.
        parts: which are compared.
        normalize: text -> what it is compared by; `fold_text` by default.

    >>> shared(split_by_text(utterances, test=100, dev=0.1, seed=0))  # doctest: +SKIP
    []
    """
    same: dict[str, Callable[[Utterance], str | AudioSource | None]] = {
        "sentences": lambda utterance: (normalize or fold_text)(utterance.text),
        "speakers": lambda utterance: utterance.speaker,
        "clips": lambda utterance: utterance.audio,
    }
    lines = []
    for what, key in same.items():
        seen = {part: {key(one) for one in getattr(split, part)} - {None} for part in parts}
        for one, other in (pair for pair in _PAIRS if {*pair} <= {*parts}):
            if both := seen[one] & seen[other]:
                n, total = sum(key(each) in both for each in getattr(split, other)), len(getattr(split, other))
                several, others = what if len(both) > 1 else what[:-1], what if what == "clips" else f"other {what}"
                lines.append(
                    f"{one} and {other} share {len(both)} {several} ({n} of {total} utterances of {other}): figures of "
                    f"{other} tell less about {others}"
                )
    return lines


def save_split(split: Split, path: Path) -> None:
    """Write the ids of each part as JSON; the file is there whole or not at all.

    >>> save_split(split, Path("runs/radio/split.json"))  # doctest: +SKIP
    """
    write_json(path, {part: [utterance.id for utterance in getattr(split, part)] for part in _PARTS})


def keep_split(split: Split, path: Path) -> None:
    """Save the split of a run that begins; of one that continues, make sure that it is the one it began with.

    Raises:
        DataError: another split is saved there, so the data have changed.

    >>> keep_split(split, Path("runs/radio/split.json"))  # doctest: +SKIP
    """
    if not path.exists():
        save_split(split, path)
    elif load_split(path, [*split.train, *split.dev, *split.test]) != split:
        raise DataError(f"{path}: the data have changed since this run began; start it anew with --fresh")


def load_split(path: Path, utterances: Sequence[Utterance]) -> Split:
    """Read a saved split over the utterances it was made of; utterances it does not name belong to no part.

    Raises:
        DataError: no such file, not a split, or an id that the utterances lack or that stands in it twice.

    >>> load_split(Path("runs/radio/split.json"), read_utterances("prompts-en"))  # doctest: +SKIP
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such split file; write one with save_split") from error
    except ValueError as error:  # bad JSON or bad UTF-8
        raise DataError(f"{path}: not a split file ({error})") from error
    if not isinstance(saved, dict) or not all(isinstance(saved.get(part), list) for part in _PARTS):
        raise DataError(f"{path}: not a split file, it must hold lists of ids under {', '.join(_PARTS)}")
    known = {utterance.id: utterance for utterance in utterances}
    missing = [str(identity) for part in _PARTS for identity in saved[part] if identity not in known]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{path}: the data lacks {len(missing)} ids of the split: {', '.join(map(repr, missing[:5]))}{more}; "
            "is it the data the split was made of?"
        )
    train, dev, test = (tuple(known[identity] for identity in saved[part]) for part in _PARTS)
    return Split(train=train, dev=dev, test=test)


_Groups = list[list[Utterance]]


def _share(
    given: Sequence[Utterance], size: int | float | None, seed: int, normalize: Callable[[str], str] | None
) -> tuple[Utterance, ...]:
    """As much of a given part as is asked for, by whole sentences."""
    if not given or size is None:
        return tuple(given)
    part = str(given[0].part)
    if size == 0:
        raise DataError(
            f"{given[0].where}: the data bring a {part} part, and {part}=0 asks for none; leave the option away, or "
            "name the train part alone as the data, and parts are drawn from it"
        )
    groups = _groups(given, seed, normalize or fold_text)
    return _flat(_take(groups, min(_size(part, size, len(given)), len(given)), keep=0)[0])


def _size(part: str, asked: int | float, total: int) -> int:
    if isinstance(asked, bool) or asked < 0 or (isinstance(asked, float) and not asked < 1):
        raise DataError(f"{part}={asked!r} must be a count (int >= 0) or a share (float in [0, 1))")
    # A share that rounds to nothing still asks for a part.
    return max(1, round(asked * total)) if isinstance(asked, float) and asked > 0 else int(asked)


def _groups(utterances: Sequence[Utterance], seed: int, normalize: Callable[[str], str]) -> _Groups:
    by_text: dict[str, list[Utterance]] = {}
    for utterance in sorted(utterances, key=lambda utterance: utterance.id):
        by_text.setdefault(normalize(utterance.text), []).append(utterance)
    order = sorted(by_text, key=lambda text: hashlib.sha256(f"{seed}\0{text}".encode()).digest())
    return [by_text[text] for text in order]


def _take(groups: _Groups, target: int, keep: int) -> tuple[_Groups, _Groups]:
    """The groups whose sizes sum nearest to `target`, early ones first, and the rest, of at least `keep` groups.

    Subset sum: `reached_by[s]` is the first group with which some choice sums to s. The first group alone is always a
    choice, so one that leaves `keep` groups exists.
    """
    if target == 0:
        return [], groups
    limit = target + max(len(group) for group in groups)
    reached_by: dict[int, int] = {}
    sums = 1  # bit s is set when some choice of the groups so far sums to s
    for index, group in enumerate(groups):
        new = (sums << len(group)) & ~sums & ((1 << limit + 1) - 1)
        sums |= new
        while new:
            lowest = new & -new
            reached_by[lowest.bit_length() - 1] = index
            new ^= lowest
        if target in reached_by:
            break
    for size in sorted(reached_by, key=lambda size: (abs(size - target), size)):
        chosen = set()
        while size:
            chosen.add(reached_by[size])
            size -= len(groups[reached_by[size]])
        if len(groups) - len(chosen) >= keep:
            break
    taken = [group for index, group in enumerate(groups) if index in chosen]
    return taken, [group for index, group in enumerate(groups) if index not in chosen]


def _flat(groups: _Groups) -> tuple[Utterance, ...]:
    return tuple(utterance for group in groups for utterance in group)
