"""Whisper's tokenizer from tiktoken ranks: merges, ids, special tokens, and the real vocabularies."""

from __future__ import annotations

import base64
import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from audiolora.speech.whisper.whisper_tokenizer import (
    build_tokenizer,
    merges_from_ranks,
    read_tiktoken,
    special_tokens,
    suppressed_tokens,
)

ALPHABET = {bytes([byte]): byte for byte in range(256)}


def ranks_of(*tokens: bytes) -> dict[bytes, int]:
    return {**ALPHABET, **{token: 256 + index for index, token in enumerate(tokens)}}


def as_file(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def encode_by_rank(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding by its definition: join the adjacent pair of the lowest rank until no pair is a token."""
    parts = [bytes([byte]) for byte in text.encode()]
    while True:
        pairs = [(ranks[a + b], index) for index, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        _, index = min(pairs)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]


WORDS = ranks_of(
    b"th", b"he", b"the", b" t", b" the", b"in", b"ing", b"\xc3\xa8", b" \xc3\xa8", b"nin", b"thing", b" thing"
)


def test_merges_rebuild_their_tokens() -> None:
    merges = merges_from_ranks(WORDS)
    assert [left + right for left, right in merges] == [token for token in WORDS if len(token) > 1]
    assert merges[2] == (b"th", b"e")  # "th" has the lower rank, so "he" never forms inside "the"


def test_ids_are_those_of_byte_pair_encoding_by_rank() -> None:
    tokenizer = build_tokenizer(WORDS)
    source = random.Random(0)
    for _ in range(200):
        word = "".join(source.choice("theing èx") for _ in range(source.randint(1, 12))).replace(" ", "")
        if word:
            for text in (word, " " + word):
                ids = tokenizer(text, add_special_tokens=False).input_ids
                assert ids == encode_by_rank(text, WORDS), text
                assert tokenizer.decode(ids) == text


def test_special_tokens_follow_the_vocabulary_in_openai_s_order() -> None:
    tokenizer = build_tokenizer(WORDS)
    base = len(WORDS)
    assert len(tokenizer) == base + 2 + 99 + 6 + 1501
    expected = {
        "<|endoftext|>": 0,
        "<|startoftranscript|>": 1,
        "<|en|>": 2,
        "<|su|>": 100,
        "<|translate|>": 101,
        "<|transcribe|>": 102,
        "<|startoflm|>": 103,
        "<|startofprev|>": 104,
        "<|nocaptions|>": 105,
        "<|notimestamps|>": 106,
        "<|0.00|>": 107,
        "<|30.00|>": 1607,
    }
    assert {token: tokenizer.convert_tokens_to_ids(token) - base for token in expected} == expected
    assert tokenizer(" the").input_ids == [base + 1, base + 106, WORDS[b" the"], base]


def test_the_100_language_vocabulary_has_cantonese_and_nospeech() -> None:
    assert len(special_tokens(100)) == len(special_tokens(99)) + 1
    assert {"<|yue|>", "<|nospeech|>"} <= set(special_tokens(100))
    with pytest.raises(ValueError, match="1 to 100, got 101"):
        special_tokens(101)


def test_save_and_load_keep_ids_timestamps_and_normaliser(tmp_path: Path) -> None:
    from transformers import WhisperTokenizer

    tokenizer = build_tokenizer(WORDS, spelling={"colour": "color"})
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "normalizer.json").write_text(json.dumps(tokenizer.english_spelling_normalizer))
    again = WhisperTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again("the thing").input_ids == tokenizer("the thing").input_ids
    assert again.normalize("Colour, it's 3!") == tokenizer.normalize("Colour, it's 3!") == "color it is 3"
    stamped = [again.convert_tokens_to_ids("<|0.00|>"), WORDS[b"the"], again.convert_tokens_to_ids("<|1.04|>")]
    assert again.decode(stamped) == "the"
    assert again.decode(stamped, decode_with_timestamps=True) == "<|0.00|>the<|1.04|>"


def test_suppressed_tokens_by_hand() -> None:
    ranks = ranks_of(b" -", b" '", b" (", b"((", b" a", b"\xe2\x99", "\u266a".encode())
    tokenizer = build_tokenizer(ranks)
    found = set(suppressed_tokens(tokenizer))
    assert {ranks[b" -"], ranks[b" '"], ranks[b" ("], ranks[b"(("], ranks["\u266a".encode()], ord("#")} <= found
    assert not {ord("-"), ord("'"), ord("."), ord("!"), ranks[b" a"]} & found
    control = {"<|startoftranscript|>", "<|translate|>", "<|startofprev|>", "<|nocaptions|>"}
    assert set(tokenizer.convert_tokens_to_ids(sorted(control))) <= found
    assert tokenizer.convert_tokens_to_ids("<|notimestamps|>") not in found
    assert tokenizer.eos_token_id not in found


def test_read_tiktoken_sorts_and_takes_the_empty_token() -> None:
    ranks = {**WORDS, b"": len(WORDS)}
    data = as_file(dict(reversed(WORDS.items()))) + b"= %d\n" % len(WORDS)
    assert list(read_tiktoken(data).items()) == list(ranks.items())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (as_file(ALPHABET) + b"!!! 256", "line 257"),
        (as_file(ALPHABET) + b"YWI=", "line 257"),
        (as_file(ALPHABET) + b"YWI= 300", "ranks must be 0"),
        (as_file({k: v for k, v in ALPHABET.items() if v < 255}), "all 256 single bytes"),
    ],
)
def test_damaged_vocabulary_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_tiktoken(data)


def test_a_token_that_no_merge_makes_is_refused() -> None:
    with pytest.raises(ValueError, match="no merge of two lower ranks"):
        merges_from_ranks(ranks_of(b"abc"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "multilingual"])
def test_real_vocabulary_encodes_by_rank(name: str) -> None:
    from audiolora.packages import fetch_pypi, read_member

    archive = fetch_pypi("openai-whisper==20250625", sdist=True)
    ranks = read_tiktoken(read_member(archive, f"assets/{name}.tiktoken"))
    tokenizer = build_tokenizer(ranks)
    assert len(tokenizer) == {"gpt2": 51864, "multilingual": 51865}[name]
    source = random.Random(1)
    for _ in range(300):  # runs of letters are one pre-token: what is compared is the byte-pair encoding itself
        word = " " + "".join(source.choice("abcdefghijklmnoprstuvwyzàèéìòùñßяжщ") for _ in range(source.randint(1, 14)))
        assert tokenizer(word, add_special_tokens=False).input_ids == encode_by_rank(word, ranks), word
