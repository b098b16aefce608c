"""Beam search against all paths there are; the language model against an ARPA reader of our own."""

from __future__ import annotations

import gzip
import itertools
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.edge.ctc_search import log_softmax
from audiolora.speech.ctc.alphabet import alphabet_of
from audiolora.speech.ctc.beam import BeamDecoder, arpa_words, ctc_decoder
from audiolora.speech.ctc.decode import GreedyDecoder
from audiolora.speech.ctc.decoding import CtcDecoding
from tests.export.ctc_models import processor

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")
LABELS = ("", " ", "a", "b")
COLUMNS = (0, 4, 5, 6)
FAR = -30.0

ARPA = """\\data\\
ngram 1=6
ngram 2=5

\\1-grams:
-1.2\t<unk>
-99\t<s>\t-0.4
-0.7\t</s>
-0.9\ta\t-0.3
-1.1\tb\t-0.2
-1.5\tab

\\2-grams:
-0.3\t<s> a
-0.2\ta b
-0.6\tb a
-0.5\tb </s>
-0.8\ta </s>

\\end\\
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return processor(tmp_path_factory.mktemp("letters"), letters=(*SPECIAL, "a", "b")).tokenizer


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "tiny.arpa"
    path.write_text(ARPA, encoding="utf-8")
    return path


@pytest.fixture
def library() -> None:
    pytest.importorskip("ctc_beam_decoder", reason="the extra audiolora[lm]; run with `make test-lm`")


def grid(n_frames: int, seed: int) -> np.ndarray:
    """(frames, 7); special tokens are out of reach."""
    logits = np.full((n_frames, 7), FAR)
    logits[:, COLUMNS] = 2 * np.random.default_rng(seed).normal(size=(n_frames, 4))
    return log_softmax(logits)


grids = st.builds(grid, st.integers(1, 5), st.integers(0, 10_000))


def by_text(log_probs: np.ndarray) -> dict[str, float]:
    """The log-probability of each text, summed over every path there is."""
    found: dict[str, float] = {}
    for path in itertools.product(range(4), repeat=len(log_probs)):
        score = sum(frame[COLUMNS[i]] for frame, i in zip(log_probs, path, strict=True))
        text = " ".join("".join(LABELS[i] for i, _ in itertools.groupby(path)).split())
        found[text] = float(np.logaddexp(found.get(text, -np.inf), score))
    return found


def arpa_log10(words: list[str]) -> float:
    """Katz back-off (1987) by hand: log10 P(words and </s> | <s>)."""
    one, two, section = {}, {}, None
    for line in ARPA.splitlines():
        if line.startswith("\\"):
            section = {"\\1-grams:": one, "\\2-grams:": two}.get(line)
        elif section is not None and line:
            probability, words_of_it, *back_off = line.split("\t")
            section[words_of_it] = (float(probability), float(back_off[0]) if back_off else 0.0)
    total, before = 0.0, "<s>"
    for word in [*words, "</s>"]:
        known = word if word in one else "<unk>"
        total += two[f"{before} {known}"][0] if f"{before} {known}" in two else one[before][1] + one[known][0]
        before = known
    return total


def test_an_alphabet_is_the_tokenizers(tokenizer: Any) -> None:
    found = alphabet_of(tokenizer)
    assert (found.columns, found.labels, found.blank, found.lower) == (COLUMNS, LABELS, 0, False)
    assert (found.spelled("ab"), found.spelled("AB"), found.spelled("abc")) == ("ab", "ab", None)


def test_width_1_is_greedy(tokenizer: Any) -> None:
    assert isinstance(ctc_decoder(CtcDecoding(), tokenizer), GreedyDecoder)


@settings(max_examples=50, deadline=None)
@given(grids)
def test_the_widest_beam_finds_the_most_probable_text(tokenizer: Any, log_probs: np.ndarray) -> None:
    """One labelling a text: no space at either end, none twice."""
    log_probs = log_probs.copy()
    log_probs[:, 4] = FAR
    summed = by_text(log_probs)
    found = BeamDecoder(CtcDecoding(beam_width=5000), tokenizer).decode(log_probs)
    assert found.text == max(summed, key=lambda text: summed[text])
    assert found.score == pytest.approx(summed[found.text], abs=1e-6)


def test_words_and_their_frames(tokenizer: Any) -> None:
    path = [0, 5, 5, 0, 6, 4, 0, 6, 6, 0, 6]  # - a a - b | - b b - b
    log_probs = log_softmax(np.eye(7)[path] * 20)
    for width in (2, 50):
        found = BeamDecoder(CtcDecoding(beam_width=width), tokenizer).decode(log_probs)
        assert [(word.text, word.start, word.end) for word in found.words] == [("ab", 1, 5), ("bb", 7, 11)]
        assert found.text == "ab bb" == GreedyDecoder(tokenizer)(log_probs)


def test_of_no_frames_there_is_no_text(tokenizer: Any) -> None:
    assert BeamDecoder(CtcDecoding(beam_width=5), tokenizer)(np.zeros((0, 7))) == ""


@settings(max_examples=40, deadline=None)
@given(log_probs=grids)
@pytest.mark.usefixtures("library")
def test_a_model_of_no_weight_is_none(tokenizer: Any, arpa: Path, log_probs: np.ndarray) -> None:
    """And the library's search sums over paths as ours does."""
    nothing = CtcDecoding(beam_width=5000, lm=str(arpa), alpha=0.0, beta=0.0, unknown_word=0.0)
    found = BeamDecoder(nothing, tokenizer, prune=False).decode(log_probs)
    summed = by_text(log_probs)
    assert found.text == max(summed, key=lambda text: summed[text])
    assert found.score == pytest.approx(summed[found.text], abs=1e-3)  # the library's frames are float32


@settings(max_examples=40, deadline=None)
@given(log_probs=grids, alpha=st.floats(0.1, 2), beta=st.floats(-2, 2))
@pytest.mark.usefixtures("library")
def test_scores_are_the_equation_with_the_models_probabilities(
    tokenizer: Any, arpa: Path, log_probs: np.ndarray, alpha: float, beta: float
) -> None:
    """Hannun et al. (2014), equation 3, over every text there is; </s> counts. An unknown word is not penalised."""
    decoding = CtcDecoding(beam_width=5000, lm=str(arpa), alpha=alpha, beta=beta, unknown_word=0.0)
    found = BeamDecoder(decoding, tokenizer, prune=False).decode(log_probs)
    total = {
        text: acoustic + alpha * math.log(10) * arpa_log10(text.split()) + beta * len(text.split())
        for text, acoustic in by_text(log_probs).items()
    }
    best = max(total, key=lambda text: total[text])
    assert total[found.text] == pytest.approx(total[best], abs=1e-3)
    assert found.score == pytest.approx(total[best], abs=1e-3)


@pytest.mark.usefixtures("library")
def test_a_model_and_a_hotword_change_what_is_heard(tokenizer: Any, arpa: Path, tmp_path: Path) -> None:
    logits = np.full((5, 7), -8.0)
    logits[0, 5] = logits[1, 4] = logits[3, 0] = logits[4, 0] = 4  # a, a space, then b or a, and a rest
    logits[2, [5, 6]] = 1.5, 1.0
    log_probs = log_softmax(logits)
    assert BeamDecoder(CtcDecoding(beam_width=20), tokenizer)(log_probs) == "a a"
    for name in ("tiny.arpa", "tiny.arpa.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(ARPA.encode()) if name.endswith("gz") else ARPA.encode())
        assert BeamDecoder(CtcDecoding(lm=str(path)), tokenizer)(log_probs) == "a b"
    for words in (("b",), ("B",), ("b b",)):
        found = BeamDecoder(CtcDecoding(hotwords=words), tokenizer).decode(log_probs)
        assert found.text == "a b"
        assert [(word.start, word.end) for word in found.words] == [(0, 1), (2, 3)]
    assert BeamDecoder(CtcDecoding(hotwords=("b",), hotword_weight=0.1), tokenizer)(log_probs) == "a a"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n_frames=st.integers(1, 40))
@pytest.mark.usefixtures("library")
def test_as_pyctcdecode_and_kenlm(tokenizer: Any, arpa: Path, seed: int, n_frames: int) -> None:
    """A clip that ends in a letter, where its search is not led astray by a last space."""
    pyctcdecode = pytest.importorskip("pyctcdecode", reason="run with `make test-lm`")
    pytest.importorskip("kenlm", reason="run with `make test-lm`")
    log_probs = grid(n_frames, seed)
    log_probs[-1] = log_softmax(np.where(np.arange(7) == 5, 20.0, -20.0)[None])[0]
    unigrams = arpa_words(arpa)
    for hotwords in ((), ("ba",)):
        theirs = pyctcdecode.build_ctcdecoder(list(LABELS), str(arpa), unigrams)
        found = BeamDecoder(CtcDecoding(lm=str(arpa), hotwords=hotwords), tokenizer).decode(log_probs)
        beams = theirs.decode_beams(
            log_probs[:, COLUMNS].astype(np.float32), hotwords=list(hotwords), prune_history=True
        )
        assert found.text == beams[0][0]
        assert found.score == pytest.approx(beams[0][-1], abs=1e-2)


def test_words_of_an_arpa_file(arpa: Path, tmp_path: Path) -> None:
    """A word that nothing follows has no back-off weight, and is a word all the same."""
    assert arpa_words(arpa) == ["a", "b", "ab"]
    (tmp_path / "no.arpa").write_text("hello\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is it an ARPA file"):
        arpa_words(tmp_path / "no.arpa")
    whole = gzip.compress(arpa.read_bytes())
    for name, damaged in (("latin.arpa", b"\\1-grams:\n-1\tpr\xe9\n"), ("cut.arpa.gz", whole[: len(whole) // 2]),
                          ("short.arpa", b"\\1-grams:\n-1\n")):  # fmt: skip
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}: not an ARPA file in UTF-8"):
            arpa_words(tmp_path / name)


@pytest.mark.usefixtures("library")
def test_a_model_or_a_hotword_that_cannot_be_written_is_told(tokenizer: Any, arpa: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hotword 'cab' has letters that the model does not write: c"):
        ctc_decoder(CtcDecoding(hotwords=("cab",)), tokenizer)
    with pytest.raises(ValueError, match="no such file"):
        ctc_decoder(CtcDecoding(lm="nowhere.arpa"), tokenizer)
    upper = tmp_path / "upper.arpa"
    upper.write_text(ARPA.replace("a\t", "A\t").replace("b\t", "B\t").replace("\tab", "\tAB"), encoding="utf-8")
    with pytest.raises(ValueError, match="such as 'A'; it differs by case alone"):
        ctc_decoder(CtcDecoding(lm=str(upper)), tokenizer)
    broken = tmp_path / "broken.arpa"
    broken.write_text(ARPA.replace("ngram 1=", "ngram 1=9"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^lm .*broken.arpa: cannot be read; make it anew"):
        ctc_decoder(CtcDecoding(lm=str(broken)), tokenizer)
    binary = tmp_path / "lm.bin"
    binary.write_bytes(b"mmap lm")
    with pytest.raises(ValueError, match="a binary model does not tell its words"):
        ctc_decoder(CtcDecoding(lm=str(binary)), tokenizer)


def test_without_the_extra_it_is_named(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ctc_beam_decoder", None)
    with pytest.raises(ImportError, match=r"audiolora\[lm\]"):
        ctc_decoder(CtcDecoding(hotwords=("ab",)), tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "at least 1"),
        ({"beam_width": 1, "lm": "x.arpa"}, "greedy"),
        ({"alpha": 0.5}, "does nothing without lm"),
        ({"hotword_weight": 5.0}, "does nothing without hotwords"),
        ({"lm": "x.arpa", "alpha": -1.0}, "not be negative"),
        ({"lm": "x.arpa", "beta": math.nan}, "finite"),
        ({"hotwords": "ab"}, "tuple of texts"),
        ({"hotwords": (" ",)}, "not be empty"),
    ],
)
def test_options_that_do_nothing_or_are_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CtcDecoding(**options)


def test_settings_are_json() -> None:
    import json

    assert json.loads(json.dumps(asdict(CtcDecoding(lm="x.arpa", hotwords=("a",)))))["hotwords"] == ["a"]
