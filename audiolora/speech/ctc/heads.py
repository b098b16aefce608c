"""The output layer of a CTC model, and a new one for a new alphabet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from audiolora.speech.ctc.vocabulary import UNKNOWN, Vocabulary, make_tokenizer

if TYPE_CHECKING:
    from torch import nn

_NAMES = ("lm_head", "ctc_head")


def head_of(model: Any) -> tuple[str, nn.Module]:
    """Name and module of a CTC model's output layer: a Linear, or Parakeet's 1×1 convolution.

    Raises:
        ValueError: it has none.
    """
    for name in _NAMES:
        if hasattr(model, name):
            return name, getattr(model, name)
    raise ValueError(f"{type(model).__name__} has no CTC head, which would be called {' or '.join(_NAMES)}")


def put_new_head(model: Any, processor: Any, vocabulary: Vocabulary, *, keep_shared: bool = True) -> tuple[str, ...]:
    """Give a CTC model, in place, a head for another alphabet, and its processor the alphabet's tokenizer.

    Rows of letters that both alphabets have can stay: they are looked up as they are, else in the other case, since
    an upper-case alphabet's A and a lower-case one's a are the same sound. Blank, delimiter and unknown are each
    other's, whatever they are called. All other rows are drawn as the model's own ``initializer_range`` says, biases 0.

    Args:
        model: a CTC model with a Linear head.
        processor: its processor.
        vocabulary: the new alphabet.
        keep_shared: keep the rows that both alphabets have; else all are new.

    Returns:
        The tokens whose rows are the old head's.

    Raises:
        ValueError: a model whose frames are too far apart to write letters (Parakeet).

    Example:
        >>> put_new_head(model, processor, Vocabulary(("a", "ñ")))  # doctest: +SKIP
        ('<pad>', '<unk>', '|', 'a')
    """
    import torch
    from torch import nn

    name, old = head_of(model)
    if not isinstance(old, nn.Linear):
        raise ValueError(
            f"{type(model).__name__} writes pieces of words, a frame each 80 ms, too slow for letters; keep its "
            "vocabulary, or take a model of the wav2vec2 family for a new alphabet"
        )
    rows = _shared_rows(processor.tokenizer, vocabulary) if keep_shared else {}
    new = nn.Linear(old.in_features, len(vocabulary.tokens), bias=old.bias is not None)
    with torch.no_grad():
        new.weight.normal_(std=model.config.initializer_range)
        if new.bias is not None:
            new.bias.zero_()
        for row, old_row in rows.items():
            new.weight[row] = old.weight[old_row]
            if new.bias is not None:
                new.bias[row] = old.bias[old_row]
    setattr(model, name, new.to(old.weight))
    model.config.update({"vocab_size": len(vocabulary.tokens), "pad_token_id": 0})
    processor.tokenizer = make_tokenizer(vocabulary)
    return tuple(vocabulary.tokens[row] for row in rows)


def _shared_rows(tokenizer: Any, vocabulary: Vocabulary) -> dict[int, int]:
    """New row → old row."""
    old: dict[str, int] = dict(tokenizer.encoder)
    by_case = {letter.casefold(): row for letter, row in old.items() if len(letter) == 1}
    special = (tokenizer.pad_token, tokenizer.unk_token, tokenizer._word_delimiter_token)
    assert vocabulary.tokens[1] == UNKNOWN
    rows = {new: old[token] for new, token in enumerate(special) if token in old}
    for new, letter in enumerate(vocabulary.letters, start=len(special)):
        row = old.get(letter, by_case.get(letter.casefold()))
        if row is not None and row not in (old.get(token) for token in special):
            rows[new] = row
    return rows
