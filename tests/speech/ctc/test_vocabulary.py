"""Alphabets built from texts, texts spelled in them, and what lies outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from audiolora.speech.ctc.vocabulary import Vocabulary, build_vocabulary, encoder, make_tokenizer, spelling

# The alphabet of facebook/wav2vec2-base-960h, in its order.
OF_960H = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")


def processor(tokenizer: Any) -> Wav2Vec2Processor:
    return Wav2Vec2Processor(feature_extractor=Wav2Vec2FeatureExtractor(), tokenizer=tokenizer)


@pytest.fixture
def upper(tmp_path: Path) -> Wav2Vec2Processor:
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(OF_960H)}))
    return processor(Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")))


@pytest.mark.parametrize(
    "texts, how, letters",
    [
        (["Don’t STOP!", "stop"], {}, "'dnopst"),
        (["Don’t STOP!"], {"case": "upper"}, "'DNOPST"),
        (["Ab"], {"case": "kept"}, "Ab"),
        (["‘Quoted’ dogs' rock"], {}, "cdegkoqrstu"),  # apostrophes inside words alone
        (["¿Qué, niño? «Sí» — bien…"], {}, "bequiénoñsíb"),
        (["IĞDIR"], {"language": "tr"}, "dğır"),
        (["IĞDIR"], {"language": "tr-TR"}, "dğır"),
        (["IĞDIR"], {}, "dğir"),
        (["istanbul"], {"language": "tr", "case": "upper"}, "ABLNSTUİ"),
        (["cafe\u0301 ﬁn"], {}, "acfiné"),  # NFKC: one letter é, and fi out of the ligature
        (["don´t don`t", "a ¨ b ˜c"], {}, "'abcdnot"),  # accents that stand alone are apostrophes, or nothing
        (["ọ̀'n", "'n"], {}, "'nọ\u0300"),  # inside the word, though a mark stands before it
        (["7 up 20% & c/o"], {}, "027copu"),  # symbols that are read out are no letters
        (["мир", "мирʼя"], {}, "'имря"),
        (["हिन्दी"], {}, "हिन्दी"),  # combining vowels and virama are letters of their own
        (["aab", "ac"], {"min_count": 2}, "a"),
        (["naïve\u00adly"], {}, "aïelnvy"),  # a soft hyphen is nothing
    ],
)
def test_the_alphabet_of_texts(texts: list[str], how: dict[str, Any], letters: str) -> None:
    assert build_vocabulary(texts, **how).letters == tuple(sorted(set(letters)))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: build_vocabulary(["a"], case="title"), "case must be 'lower', 'upper' or 'kept', got 'title'"),
        (lambda: build_vocabulary(["a"], min_count=0), "min_count must be at least 1, got 0"),
        (lambda: build_vocabulary(["...", " "]), "no letter stands in these texts at least 1 times"),
        (lambda: build_vocabulary(["abc"], min_count=2), "no letter stands in these texts at least 2 times"),
        (lambda: Vocabulary(()), "an alphabet needs letters"),
        (lambda: Vocabulary(("a", "b", "a")), "letter 'a' stands in the alphabet 2 times"),
        (lambda: Vocabulary(("a", "|")), r"'\|' cannot be a letter"),
        (lambda: Vocabulary((" ",)), "' ' cannot be a letter"),
    ],
)
def test_what_is_no_alphabet(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize(
    "text, spelled",
    [
        ("Don’t stop!", "DON'T STOP"),
        ("well-known  “facts”, e.g. this", "WELL KNOWN FACTS E G THIS"),
        ("'tis the dogs'", "TIS THE DOGS"),
        ("don´t ¨stop¨", "DON'T STOP"),
        ("50% of x|y", "50% OF X Y"),
        ("Straße", "STRASSE"),
    ],
)
def test_an_upper_case_alphabet_gets_upper_case(upper: Wav2Vec2Processor, text: str, spelled: str) -> None:
    assert spelling(upper)(text) == spelled


def test_what_an_encoder_gives_is_transformers_own(upper: Wav2Vec2Processor) -> None:
    ids = encoder(upper)("Hello, world")
    assert ids == [OF_960H.index(letter) for letter in "HELLO|WORLD"]
    assert upper.tokenizer.decode(ids, group_tokens=False) == "HELLO WORLD"


@pytest.mark.parametrize(
    "text, outside",
    [
        ("naïve", "'Ï'"),
        ("5 % of 5", "'5', '%'"),
        ("日本 go", "'日', '本'"),
        ("<unk> it", "'<', '>'"),
        ("a <s> b", "'<', '>'"),
        ("€", "'€'"),
    ],
)
def test_letters_outside_the_alphabet_are_named(upper: Wav2Vec2Processor, text: str, outside: str) -> None:
    with pytest.raises(ValueError, match=f"^{outside} not in the model's vocabulary; write digits"):
        encoder(upper)(text)


def test_a_tokenizer_that_folds_by_itself(tmp_path: Path) -> None:
    """``do_lower_case`` of transformers' tokenizer: it writes lower case and holds upper case."""
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(OF_960H)}))
    folding = processor(Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=True))
    ids = encoder(folding)("Hello, world")
    assert folding.tokenizer.decode(ids, group_tokens=False) == "hello world"


def test_a_new_tokenizer_survives_the_disk_and_has_no_more_tokens_than_the_model(tmp_path: Path) -> None:
    vocabulary = build_vocabulary(["El niño"])
    made = processor(make_tokenizer(vocabulary))
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for tokenizer in (made.tokenizer, loaded):
        assert len(tokenizer) == len(vocabulary.tokens) == 9
        assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.word_delimiter_token_id) == (0, 1, 2)
        assert tokenizer.convert_ids_to_tokens(list(range(9))) == list(vocabulary.tokens)
        assert tokenizer.bos_token is None and tokenizer.eos_token is None
        ids = encoder(processor(tokenizer))("El Niño!")
        assert ids == [vocabulary.tokens.index(token) for token in "el|niño"]


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30)))
def test_an_alphabet_holds_the_texts_it_was_built_from(texts: list[str]) -> None:
    """Or says which symbol it has not; the round trip gives the spelled text, and spelling twice changes nothing."""
    try:
        whole = processor(make_tokenizer(build_vocabulary(texts)))
    except ValueError:
        return
    spell, encode = spelling(whole), encoder(whole)
    for text in texts:
        spelled = spell(text)
        try:
            ids = encode(text)
        except ValueError as error:
            assert any(repr(letter) in str(error) for letter in spelled)
            continue
        assert all(i >= 2 for i in ids)
        assert whole.tokenizer.decode(ids, group_tokens=False) == spelled
