"""Parts that the data bring: used as they are, cut to a size by whole sentences, and what they share is told."""

import logging

import pytest

from audiolora.speech.data.rows import DataError
from audiolora.speech.data.split import Split, fold_text, shared, split_by_text, split_utterances
from audiolora.speech.data.utterance import Utterance


def utterances(part: str | None, n: int, first: int = 0, speaker: str | None = None) -> list[Utterance]:
    """Sentences number `first` to `first + n`."""
    return [
        Utterance(f"{part}-{i}", f"{part} {i}".encode(), f"Sentence {i}.", f"row {i}", speaker=speaker, part=part)
        for i in range(first, first + n)
    ]


def ids(part: tuple[Utterance, ...]) -> set[str]:
    return {utterance.id for utterance in part}


def test_given_parts_are_used_as_they_are(caplog):
    train, dev, test = utterances("train", 20), utterances("dev", 5, 20), utterances("test", 6, 25)
    split = split_utterances([*test, *train, *dev], seed=0)
    assert split == Split(train=split.train, dev=tuple(dev), test=tuple(test)) and ids(split.train) == ids(train)
    assert not caplog.messages


@pytest.mark.parametrize("size, n", [(4, 4), (0.5, 3), (6, 6), (100, 6)])
def test_a_size_takes_that_much_of_a_given_part(size, n):
    data = [*utterances("train", 20), *utterances("dev", 5, 20), *utterances("test", 6, 25)]
    first, again = (split_utterances(given, test=size, seed=3) for given in (data, data[::-1]))
    assert len(first.test) == n and first.test == again.test and len(first.dev) == 5


def test_whole_sentences_are_taken():
    twice = [*utterances("test", 6, 25), *(u for u in utterances("test", 6, 25))]
    twice = [
        Utterance(f"{i}", u.audio, u.text.upper() if i % 2 else u.text, u.where, part="test")
        for i, u in enumerate(twice)
    ]
    taken = split_utterances([*utterances("train", 20), *twice], test=4, dev=3, seed=0).test
    assert len(taken) == 4 and len({fold_text(utterance.text) for utterance in taken}) == 2


def test_missing_parts_are_drawn_out_of_train():
    train, test = utterances("train", 20), utterances("test", 6, 25)
    split = split_utterances([*train, *test], dev=5, seed=0)
    assert ids(split.test) == ids(test) and len(split.dev) == 5 and ids(split.dev) < ids(train)
    assert ids(split.train) == ids(train) - ids(split.dev)
    assert len(split_utterances([*train, *test], seed=0).dev) == round(0.12 * 20)


def test_without_parts_they_are_drawn_as_ever():
    data = utterances(None, 200)
    assert split_utterances(data, seed=1) == split_by_text(data, test=100, dev=0.12, seed=1)
    assert split_utterances(data, test=7, dev=9, seed=1) == split_by_text(data, test=7, dev=9, seed=1)


def test_what_parts_share_is_told(caplog):
    train = utterances("train", 20, speaker="anna")
    test = [*utterances("test", 3, 18, speaker="anna"), *utterances("test", 3, 40, speaker="ben")]
    again = Utterance("again", train[0].audio, "other words", "row 9", part="dev")
    with caplog.at_level(logging.WARNING):
        split = split_utterances([*train, *test, again], seed=0)
    assert shared(split) == caplog.messages
    said = [message.split(":")[0] for message in caplog.messages]
    assert said == [
        "train and test share 2 sentences (2 of 6 utterances of test)",
        "train and test share 1 speaker (3 of 6 utterances of test)",
        "train and dev share 1 clip (1 of 1 utterances of dev)",
    ]


@pytest.mark.parametrize(
    "data, sizes, fault",
    [
        ([*utterances("train", 9), *utterances(None, 1)], {}, "row 0: belongs to no part"),
        (utterances("test", 9), {}, "row 0: the data have the parts test, and none to train on"),
        ([*utterances("train", 9), *utterances("test", 3, 9)], {"test": 0}, "row 9: .* test=0 asks for none"),
        ([*utterances("train", 9), *utterances("test", 3, 9)], {"test": -1}, "test=-1 must be a count"),
    ],
)
def test_parts_that_cannot_be_used(data, sizes, fault):
    with pytest.raises(DataError, match=fault):
        split_utterances(data, **sizes, seed=0)


def test_a_part_is_train_dev_or_test():
    with pytest.raises(DataError, match="row 0: part must be train, dev or test, got 'holdout'"):
        utterances("holdout", 1)
