import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.speech.data.manifests import DataError, Utterance
from audiolora.speech.data.split import Split, fold_text, load_split, save_split, split_by_text


def clips(sizes: list[int]) -> list[Utterance]:
    """`sizes[i]` clips of sentence i, spelt differently."""
    spell = [str.lower, str.upper, lambda text: f"  {text}! "]
    return [
        Utterance(f"{sentence}-{take}", b"sound", spell[take % 3](f"sentence number {sentence}"), "test")
        for sentence, size in enumerate(sizes)
        for take in range(size)
    ]


def ids(part):
    return {utterance.id for utterance in part}


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=12),
    seed=st.integers(0, 5),
    shuffle=st.randoms(),
    data=st.data(),
)
def test_parts_share_no_sentence_and_hold_everything(sizes, seed, shuffle, data):
    everything, total = clips(sizes), sum(sizes)
    test = data.draw(st.integers(0, total - 1))
    dev = data.draw(st.integers(0, total - 1 - test))
    split = split_by_text(everything, test=test, dev=dev, seed=seed)
    parts = (split.train, split.dev, split.test)
    assert sorted(utterance.id for part in parts for utterance in part) == sorted(
        utterance.id for utterance in everything
    )
    for one, other in itertools.combinations(parts, 2):
        assert not {fold_text(utterance.text) for utterance in one} & {fold_text(utterance.text) for utterance in other}
    assert split.train and bool(split.test) == bool(test) and bool(split.dev) == bool(dev)
    shuffled = shuffle.sample(everything, total)
    assert split_by_text(shuffled, test=test, dev=dev, seed=seed) == split


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=8), seed=st.integers(0, 5), data=st.data())
def test_the_size_asked_for_is_met_as_nearly_as_any_choice_of_sentences_can(sizes, seed, data):
    test = data.draw(st.integers(1, sum(sizes) - 1))
    proper = [c for n in range(1, len(sizes)) for c in itertools.combinations(sizes, n)]  # all subsets, by brute force
    nearest = min(abs(sum(choice) - test) for choice in proper)
    assert abs(len(split_by_text(clips(sizes), test=test, dev=0, seed=seed).test) - test) == nearest


def test_exact_counts_and_shares_of_single_sentences():
    everything = clips([1] * 200)
    split = split_by_text(everything, test=40, dev=0.1, seed=0)
    assert (len(split.train), len(split.dev), len(split.test)) == (140, 20, 40)
    assert ids(split.test) != ids(split_by_text(everything, test=40, dev=0.1, seed=1).test)
    # A fair deal: over seeds, a clip is in test one time in five.
    times = sum("7-0" in ids(split_by_text(everything, test=40, dev=0, seed=seed).test) for seed in range(300))
    assert 35 < times < 85  # 60 expected, standard deviation 6.9


@pytest.mark.parametrize("one, other", [("दिन", "दान"), ("กิน", "กัน"), ("কি", "কা"), ("שָׁלוֹם", "שִׁלוּם")])
def test_words_that_differ_in_a_vowel_sign_are_different_sentences(one, other):
    assert fold_text(one) != fold_text(other)
    assert (
        fold_text(f" {one}, {other}! ") == fold_text(f"{one} {other}") and len(fold_text(f"{one} {other}").split()) == 2
    )
    both = [Utterance("a", b"s", one, "x"), Utterance("b", b"s", other, "x")]
    assert len(split_by_text(both, test=1, dev=0, seed=0).test) == 1


def test_text_is_folded_unless_told_otherwise():
    assert fold_text(" Press  ONE, please! ") == fold_text("press one please") == "press one please"
    assert fold_text("ﬁne Straße") == fold_text("FINE STRASSE")
    both = [Utterance("a", b"s", "Hello", "x"), Utterance("b", b"s", "hello", "x")]
    with pytest.raises(DataError, match="1 different sentences cannot fill 2 parts"):
        split_by_text(both, test=1, dev=0, seed=0)
    assert len(split_by_text(both, test=1, dev=0, seed=0, normalize=str).test) == 1


@pytest.mark.parametrize(
    "test, dev, fault",
    [
        (5, 5, "take 10 of 10 utterances and leave none"),
        (0.5, 0.5, "leave none"),
        (11, 0, "leave none"),
        (-1, 0, "test=-1 must be a count"),
        (0, 1.0, "dev=1.0 must be a count"),
        (0, float("nan"), "dev=nan must be a count"),
    ],
)
def test_impossible_sizes(test, dev, fault):
    with pytest.raises(DataError, match=fault):
        split_by_text(clips([1] * 10), test=test, dev=dev, seed=0)


def test_saved_split_comes_back(tmp_path):
    everything = clips([1, 2, 3, 4])
    split = split_by_text(everything, test=2, dev=3, seed=3)
    path = tmp_path / "deep" / "split.json"
    save_split(split, path)
    assert load_split(path, random.sample(everything, len(everything))) == split
    assert json.loads(path.read_text())["test"] == [utterance.id for utterance in split.test]
    assert [file.name for file in path.parent.iterdir()] == ["split.json"]
    with pytest.raises(DataError, match=f"lacks 1 ids of the split: '{split.dev[0].id}'"):
        load_split(path, [utterance for utterance in everything if utterance != split.dev[0]])


def test_a_failed_save_leaves_the_old_file(tmp_path):
    split = split_by_text(clips([1, 1]), test=1, dev=0, seed=0)
    path = tmp_path / "split.json"
    save_split(split, path)
    before = path.read_bytes()
    unwritable = Split(train=(Utterance("x", b"s", "x", "x"),), dev=(), test=())
    object.__setattr__(unwritable.train[0], "id", "\ud800")  # no reader gives such a one
    with pytest.raises(UnicodeEncodeError):
        save_split(unwritable, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "content, fault",
    [
        (None, "no such split file"),
        ("{", "not a split file"),
        ("[]", "must hold lists"),
        ('{"train": [], "dev": []}', "must hold lists"),
        ('{"train": ["0-0"], "dev": ["0-0"], "test": []}', "'0-0' stands in the split twice"),
    ],
)
def test_damaged_split_files(tmp_path, content, fault):
    path = tmp_path / "split.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=fault):
        load_split(path, clips([1, 1]))
