"""Systems compared on one test set: each with the first, utterance by utterance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from audiolora.speech.texts.metrics import ErrorRates, UtteranceErrors, character_errors, error_rates, utterance_errors
from audiolora.speech.texts.normalizing import Normalizer
from audiolora.speech.texts.results import Hypotheses
from audiolora.speech.texts.significance import Difference, difference

Unit = Literal["word", "character"]
_NAMED = 3


@dataclass(frozen=True)
class Utterances:
    """One system's texts as they were compared, in the order of `Compared.ids`, with the errors of each."""

    name: str
    texts: tuple[str, ...]
    errors: tuple[UtteranceErrors, ...]
    rates: ErrorRates


@dataclass(frozen=True)
class Compared:
    """What `compare` found.

    Attributes:
        ids, references: of the utterances; references as they were compared.
        systems: in the order given.
        differences: of each but the first system, against the first.
        by_speaker: error rates in percent of each system, by speaker; empty unless each utterance has one.
        unit: what errors are counted in.
        rules: the record of the rules for texts.
        notes: what a reader must know.
    """

    ids: tuple[str, ...]
    references: tuple[str, ...]
    systems: tuple[Utterances, ...]
    differences: tuple[Difference, ...]
    by_speaker: dict[str, tuple[float, ...]]
    unit: Unit
    rules: dict[str, Any]
    notes: tuple[str, ...]

    def most_changed(self, system: int, count: int) -> list[int]:
        """Utterances that differ most from the first system's, by errors: places in `ids`, the largest change first."""
        first, other = self.systems[0].errors, self.systems[system].errors
        changes = {i: other[i].errors - first[i].errors for i in range(len(self.ids))}
        return sorted((i for i in changes if changes[i]), key=lambda i: (-abs(changes[i]), i))[:count]


@dataclass(frozen=True)
class _AsCompared:
    """Texts that are normalised already."""

    unspaced: bool

    def __call__(self, text: str) -> str:
        return text


def compare(
    systems: Sequence[Hypotheses],
    *,
    normalize: Normalizer | None = None,
    unit: Unit = "word",
    common: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
) -> Compared:
    """Compare systems with the first one, on the utterances they share.

    Args:
        systems: two or more.
        normalize: rules for all texts; None takes them as their runs compared them.
        unit: words, or characters: the measure of languages without spaces.
        common: compare what utterances are shared; otherwise other test sets are refused.
        confidence: level of the intervals, between 0 and 1.
        seed: of the bootstrap.

    Raises:
        ValueError: fewer than two systems, other test sets, other rules for texts, or a reference with nothing in it.

    Example:
        >>> compare([*read_texts(Path("runs/demo"))]).differences[0].told_apart  # doctest: +SKIP
        True
    """
    if len(systems) < 2:
        raise ValueError(f"a comparison needs two systems or more, got {len(systems)}")
    ids, notes = _shared(systems, common)
    rules = normalize.record() if normalize is not None else _same_rules(systems, ids)
    read: Callable[[str], str] = normalize or _AsCompared(_unspaced(rules))
    written = [systems[0].texts[name] for name in ids]
    references = [one.compared[0] if normalize is None and one.compared else read(one.reference) for one in written]
    _check_references(ids, references, rules)
    scored = [_score(system, ids, read, normalize is None, unit, confidence) for system in systems]
    first = [one.errors for one in scored[0].errors]
    units = [one.words for one in scored[0].errors]
    found = tuple(
        difference(first, [one.errors for one in other.errors], units, confidence=confidence, seed=seed)
        for other in scored[1:]
    )
    speakers = [one.speaker for one in written]
    notes += _notes_of_facts(systems) + (
        ["Words are characters: the language is written without spaces."] if getattr(read, "unspaced", False) else []
    )
    return Compared(
        tuple(ids), tuple(references), tuple(scored), found, _by_speaker(scored, speakers), unit, rules, tuple(notes)
    )


def _score(
    system: Hypotheses, ids: Sequence[str], read: Callable[[str], str], kept: bool, unit: Unit, confidence: float
) -> Utterances:
    rows = [system.texts[name] for name in ids]
    pairs = [row.compared if kept and row.compared else (row.reference, row.text) for row in rows]
    references, texts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    errors = (utterance_errors if unit == "word" else character_errors)(references, texts, normalize=read)
    rates = error_rates(references, texts, normalize=read, confidence=confidence)
    return Utterances(system.name, tuple(read(text) for text in texts), tuple(errors), rates)


def _shared(systems: Sequence[Hypotheses], common: bool) -> tuple[list[str], list[str]]:
    """The utterances that all systems have with the same reference, and a note of those left out."""
    first, faults = systems[0], []
    shared = list(first.texts)
    for other in systems[1:]:
        for mine, theirs in ((first, other), (other, first)):
            missing = [name for name in mine.texts if name not in theirs.texts]
            if missing:
                faults.append(f"{len(missing)} utterances of {mine.name} are not in {theirs.name} ({_some(missing)})")
        both = [name for name in first.texts if name in other.texts]
        changed = [name for name in both if first.texts[name].reference != other.texts[name].reference]
        if changed:
            one = changed[0]
            faults.append(
                f"{len(changed)} utterances have other references in {first.name} and {other.name} ({one}: "
                f"{first.texts[one].reference!r}, {other.texts[one].reference!r})"
            )
        shared = [name for name in shared if name in other.texts and name not in set(changed)]
    if faults and not common:
        raise ValueError(f"other test sets: {'; '.join(faults)}. --common compares the {len(shared)} that are shared")
    if not shared:
        raise ValueError(f"no utterance is shared: {'; '.join(faults)}")
    return shared, [f"Only the {len(shared)} shared utterances are compared: {fault}." for fault in faults]


def _check_references(ids: Sequence[str], references: Sequence[str], rules: Mapping[str, Any]) -> None:
    if empty := [name for name, text in zip(ids, references, strict=True) if not text.strip()]:
        raise ValueError(
            f"nothing is left of {len(empty)} references by the rules {rules['rules']} ({_some(empty)}): errors are "
            "counted over what was said; mend them or leave them out, in the texts of each system too"
        )


def _unspaced(rules: Mapping[str, Any]) -> bool:
    """Of texts that are normalised already; those in a CTC model's alphabet are as they are written."""
    return rules["rules"] != "alphabet" and Normalizer(rules["rules"], rules["language"]).unspaced


def _same_rules(systems: Sequence[Hypotheses], ids: Sequence[str]) -> dict[str, Any]:
    for system in systems:
        if system.normalize is None:
            raise ValueError(f"{system.name}: no rules for its texts are known; name them: --normalize basic")
        if system.normalize != systems[0].normalize:
            raise ValueError(
                f"{systems[0].name} and {system.name} were scored by other rules for texts: "
                f"{dict(systems[0].normalize or {})} and {dict(system.normalize)}; name one for all: --normalize basic"
            )
        for name in ids:  # equal rules, and yet other texts: a CTC model's alphabet has other letters
            said = [(one.texts[name].compared or ("",))[0] for one in (systems[0], system)]
            if said[0] != said[1]:
                raise ValueError(
                    f"{systems[0].name} and {system.name} compare {name} by other texts, {said[0]!r} and {said[1]!r}; "
                    "name rules for all: --normalize basic"
                )
    return dict(systems[0].normalize or {})


def _notes_of_facts(systems: Sequence[Hypotheses]) -> list[str]:
    notes = []
    for fact in sorted({fact for system in systems for fact in system.facts}):
        said = list(dict.fromkeys(str(system.facts.get(fact)) for system in systems))
        if len(said) > 1:
            notes.append(f"The runs differ in {fact}: {', '.join(said)}. What is compared is not the models alone.")
    return notes


def _by_speaker(systems: Sequence[Utterances], speakers: Sequence[str | None]) -> dict[str, tuple[float, ...]]:
    names = sorted({speaker for speaker in speakers if speaker is not None})
    if len(names) < 2 or None in speakers:
        return {}
    places = {name: [i for i, speaker in enumerate(speakers) if speaker == name] for name in names}
    return {
        name: tuple(
            100 * sum(one.errors[i].errors for i in mine) / sum(one.errors[i].words for i in mine) for one in systems
        )
        for name, mine in places.items()
    }


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
