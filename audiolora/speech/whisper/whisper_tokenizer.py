"""Whisper's tokenizer from OpenAI's own vocabulary files, as a transformers ``WhisperTokenizer``.

OpenAI ships each vocabulary as *ranks* (`tiktoken`): one byte string a line, base64, and its rank, which is its token
id and the order in which byte-pair encoding made it. transformers wants the *merges* behind those ranks. They are
recovered token by token: encode the token's bytes with the lower ranks only; the last two parts left are its merge.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

END_OF_TEXT = "<|endoftext|>"
TIMESTAMP_STEP_S = 0.02
TIMESTAMPS_PER_WINDOW = 1501  # 0.00 s to 30.00 s


def read_tiktoken(data: bytes) -> dict[bytes, int]:
    """Parse a ``.tiktoken`` file.

    Args:
        data: the file's content, lines of ``<base64 token> <rank>``.

    Returns:
        Byte string to rank, in the order of the ranks.

    Raises:
        ValueError: a line is malformed, a byte is missing from the vocabulary, or the ranks are not 0 … n - 1.

    Example:
        >>> alphabet = b"".join(base64.b64encode(bytes([i])) + b" %d\\n" % i for i in range(256))
        >>> read_tiktoken(alphabet + base64.b64encode(b"ab") + b" 256")[b"ab"]
        256
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            # the multilingual vocabulary has one empty token, written as a lone "="
            ranks[b"" if token == b"=" else base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(
                f"tiktoken vocabulary, line {number}: expected '<base64 token> <rank>', got {line[:40]!r}; "
                "the file is damaged: fetch it again"
            ) from error
    ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
    if list(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(
            f"tiktoken vocabulary of {len(ranks)} tokens: the ranks must be 0 … n - 1 and hold all 256 single bytes; "
            "the file is damaged: fetch it again"
        )
    return ranks


def merges_from_ranks(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The byte-pair merges that made a vocabulary, in the order of its ranks.

    Example:
        >>> merges_from_ranks({b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"abc": 4})
        [(b'b', b'c'), (b'a', b'bc')]
    """
    return [_last_merge(token, rank, ranks) for token, rank in ranks.items() if len(token) > 1]


def _last_merge(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(left + right, rank), index) for index, (left, right) in enumerate(pairwise(parts))]
        best, index = min(pairs)
        if best >= rank:
            raise ValueError(f"tiktoken vocabulary: token {token!r} (rank {rank}) is no merge of two lower ranks")
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]


def special_tokens(n_languages: int = 99) -> list[str]:
    """Whisper's special tokens in the order of their ids, without the timestamps.

    The 99-language models call the no-speech token ``<|nocaptions|>`` on the hub, the 100-language ones
    ``<|nospeech|>``; openai-whisper uses the second name throughout. The id is the same.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    if not 1 <= n_languages <= len(LANGUAGES):
        raise ValueError(f"n_languages must be 1 to {len(LANGUAGES)}, got {n_languages}")
    no_speech = "<|nocaptions|>" if n_languages <= 99 else "<|nospeech|>"
    languages = [f"<|{code}|>" for code in list(LANGUAGES)[:n_languages]]
    tasks = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", no_speech, "<|notimestamps|>"]
    return [END_OF_TEXT, "<|startoftranscript|>", *languages, *tasks]


def build_tokenizer(
    ranks: Mapping[bytes, int], *, n_languages: int = 99, spelling: Mapping[str, str] | None = None
) -> WhisperTokenizer:
    """Make the transformers tokenizer of a Whisper vocabulary.

    Args:
        ranks: the vocabulary, from `read_tiktoken`: ``gpt2.tiktoken`` for English-only models,
            ``multilingual.tiktoken`` for the others.
        n_languages: how many language tokens the model knows: 99, or 100 from large-v3 on.
        spelling: British to American spelling, for ``tokenizer.normalize`` (openai-whisper's ``english.json``).

    Returns:
        The tokenizer; its length is the model's ``vocab_size``.

    Example:
        >>> alphabet = {bytes([i]): i for i in range(256)}
        >>> tokenizer = build_tokenizer({**alphabet, b" a": 256})
        >>> tokenizer(" a", add_special_tokens=False).input_ids
        [256]
    """
    from transformers import AddedToken, WhisperTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    as_text = {token: "".join(letters[byte] for byte in token) for token in ranks}
    special = special_tokens(n_languages)
    tokenizer = WhisperTokenizer(
        vocab={as_text[token]: rank for token, rank in ranks.items()} | {END_OF_TEXT: len(ranks)},
        merges=[(as_text[left], as_text[right]) for left, right in merges_from_ranks(ranks)],
        unk_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=1024,
        extra_special_tokens=special,  # in the order of the ids: transformers finds the timestamps after the last one
    )
    stamps = [f"<|{index * TIMESTAMP_STEP_S:.2f}|>" for index in range(TIMESTAMPS_PER_WINDOW)]
    tokenizer.add_tokens([AddedToken(stamp, normalized=False, special=False) for stamp in stamps])
    tokenizer.set_prefix_tokens()  # once more: the template holds ids, and now the special tokens have them
    tokenizer.english_spelling_normalizer = None if spelling is None else dict(spelling)
    expected = list(range(len(ranks), len(ranks) + len(special) + len(stamps)))
    assert tokenizer.convert_tokens_to_ids(special + stamps) == expected, "special tokens must follow the vocabulary"
    return tokenizer


def suppressed_tokens(tokenizer: WhisperTokenizer) -> list[int]:
    """Ids that Whisper never writes: music notes, brackets and other signs of non-speech, and the control tokens.

    The rule is openai-whisper's ``Tokenizer.non_speech_tokens`` and ``DecodingTask._get_suppress_tokens``: a symbol is
    suppressed where it is one token, alone or after a space; hyphen and quote only at the start of a word.
    """
    symbols = [*'"#()*+/:;<=>@[\\]^_`{|}~「」『』']
    symbols += "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split()
    # U+2640 … U+267F: several tokens, whose first two bytes no other sign of speech shares, so the first is safe
    notes = [*"♩♪♫♬♭♮♯"]

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    result = {encode(" -")[0], encode(" '")[0]}
    for symbol in symbols + notes:
        for ids in (encode(symbol), encode(" " + symbol)):
            if len(ids) == 1 or symbol in notes:
                result.add(ids[0])
    no_speech = tokenizer.convert_tokens_to_ids("<|notimestamps|>") - 1  # by place: its name differs between models
    control = ["<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    return sorted(result | {no_speech} | set(tokenizer.convert_tokens_to_ids(control)))
