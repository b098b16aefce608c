"""ARPA files against the smoothing's equation, counted by hand; probabilities that add up; KenLM reads them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.speech.ctc.beam import arpa_words
from audiolora.speech.ctc.ngrams import write_arpa

TEXTS = ["a b", "a b a", "b", "c a b"]
SENTENCES = st.lists(st.lists(st.sampled_from("abc"), max_size=5).map(" ".join), min_size=1, max_size=6)
Model = dict[tuple[str, ...], tuple[float, float]]


def read(path: Path) -> Model:
    """n-gram → (log10 probability, log10 back-off weight)."""
    found: Model = {}
    for line in path.read_text("utf-8").splitlines():
        if "\t" in line:
            probability, ngram, *weight = line.split("\t")
            found[tuple(ngram.split())] = (float(probability), float(weight[0]) if weight else 0.0)
    return found


def by_arpa(model: Model, history: tuple[str, ...], word: str) -> float:
    """Katz's rule (1987), as every reader of ARPA files has it."""
    if (*history, word) in model:
        return 10 ** model[(*history, word)][0]
    if not history:
        return 10 ** model[("<unk>",)][0]
    return 10 ** model.get(history, (0.0, 0.0))[1] * by_arpa(model, history[1:], word)


def by_equation(texts: list[str], history: tuple[str, ...], word: str, n_words: int) -> float:
    """P(w | h), by counting in the sentences themselves."""
    sentences = [("<s>", *text.split(), "</s>") for text in texts if text.split()]
    n = len(history)
    follows = [s[i] for s in sentences for i in range(max(n, 1), len(s)) if s[i - n : i] == history]
    lower = by_equation(texts, history[1:], word, n_words) if history else 1 / n_words
    if not follows:
        return lower
    return (follows.count(word) + len(set(follows)) * lower) / (len(follows) + len(set(follows)))


@settings(deadline=None, max_examples=40)
@given(texts=SENTENCES.filter(lambda texts: any(texts)), order=st.integers(1, 4))
def test_probabilities_are_the_equations_and_add_up(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], order: int
) -> None:
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    write_arpa(texts, path, order=order)
    model = read(path)
    words = sorted({word for text in texts for word in text.split()})
    known = [*words, "</s>", "<unk>"]
    for n in range(order):
        for history in [*itertools.product(words, repeat=n), *([("<s>",)] if n == 1 else [])]:
            found = [by_arpa(model, history, word) for word in known]
            assert found == pytest.approx([by_equation(texts, history, word, len(known)) for word in known], rel=1e-5)
            assert sum(found) == pytest.approx(1, abs=1e-5)


def test_counted_by_hand(tmp_path: Path) -> None:
    """Words: a 4, b 4, c 1, </s> 4 of 13, four kinds of five with <unk>."""
    write_arpa(TEXTS, tmp_path / "words.arpa", order=2)
    model = read(tmp_path / "words.arpa")
    assert 10 ** model[("a",)][0] == pytest.approx((4 + 4 / 5) / 17)
    assert 10 ** model[("<unk>",)][0] == pytest.approx(4 / 5 / 17)
    # After a: b three times, </s> once.
    assert 10 ** model[("a", "b")][0] == pytest.approx((3 + 2 * (4 + 4 / 5) / 17) / 6)
    assert 10 ** model[("a",)][1] == pytest.approx(2 / 6)
    assert model[("<s>",)][0] == -99
    assert arpa_words(tmp_path / "words.arpa") == ["a", "b", "c"]


def test_kenlm_reads_it(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm", reason="run with `make test-lm`")
    write_arpa(TEXTS, tmp_path / "words.arpa")
    model, theirs = read(tmp_path / "words.arpa"), kenlm.Model(str(tmp_path / "words.arpa"))
    for text in ("a b", "c c b a", "b x a"):
        words = [word if word in "abc" else "<unk>" for word in text.split()]
        sentence, total = ["<s>", *words, "</s>"], 1.0
        for i in range(1, len(sentence)):
            total *= by_arpa(model, tuple(sentence[max(0, i - 2) : i]), sentence[i])
        assert 10 ** theirs.score(text) == pytest.approx(total, rel=1e-4)


def test_a_model_of_single_words_has_an_empty_list_of_pairs(tmp_path: Path) -> None:
    """KenLM refuses a file without one, and what it reads of this one is the equation's."""
    write_arpa(TEXTS, tmp_path / "words.arpa", order=1)
    text = (tmp_path / "words.arpa").read_text("utf-8")
    assert "ngram 1=6\nngram 2=0\n" in text and "\\2-grams:" in text
    kenlm = pytest.importorskip("kenlm", reason="run with `make test-lm`")
    total = by_equation(TEXTS, (), "a", 5) * by_equation(TEXTS, (), "</s>", 5)
    assert 10 ** kenlm.Model(str(tmp_path / "words.arpa")).score("a") == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    ("texts", "name", "order", "message"),
    [
        (["", " "], "x.arpa", 3, "no words"),
        (["a <s> b"], "x.arpa", 3, "has the mark <s>"),
        (["a"], "x.txt", 3, "name it with .arpa"),
        (["a"], "x.arpa", 0, "order must be at least 1"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, texts: list[str], name: str, order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_arpa(texts, tmp_path / name, order=order)
    assert not list(tmp_path.iterdir())
