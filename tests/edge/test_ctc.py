"""Audio to text without a graph: normalisation and decoding against transformers' own, batches against each clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from audiolora.edge.ctc import normalized, paths_of, text_of, transcribe_ctc, word_frames, words_ctc
from audiolora.export.ctc_settings import CtcSettings

LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", "a", "B", "'", "s", "n't", ".")


def settings(**changes: Any) -> CtcSettings:
    says: dict[str, Any] = {
        "sample_rate_hz": 1000,
        "normalized": True,
        "masked": True,
        "convolutions": ((3, 2),),
        "fewest_frames": 1,
        "vocabulary": (*LETTERS, "<unk>", "<unk>"),
        "blank": "<pad>",
        "delimiter": "|",
    }
    return CtcSettings(**says | changes)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.json"
    path.write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}), encoding="utf-8")
    return path


HOW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "lower case": ({"do_lower_case": True}, {"lower": True}),
    "tidy": ({"clean_up_tokenization_spaces": True}, {"tidied": True}),
    "another delimiter": (
        {"word_delimiter_token": "a", "replace_word_delimiter_char": "_"},
        {"delimiter": "a", "space": "_"},
    ),
    "another blank": ({"pad_token": "B"}, {"blank": "B"}),
}


@pytest.mark.parametrize("of_tokenizer, changes", HOW.values(), ids=HOW)
@given(path=st.lists(st.integers(0, len(LETTERS) + 1), max_size=30))
def test_texts_and_words_are_the_tokenizers(
    vocabulary: Path, of_tokenizer: dict[str, Any], changes: dict[str, Any], path: list[int]
) -> None:
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(vocabulary), **of_tokenizer)
    ours = settings(**changes)
    (wanted,) = tokenizer.batch_decode([path])
    assert text_of(np.array(path, np.int64), ours) == wanted
    offsets = tokenizer.decode(path, output_word_offsets=True).word_offsets if path else []
    found = word_frames(np.array(path, np.int64), ours)
    lower = str.lower if ours.lower else str  # the tokenizer's words keep their case
    assert found == [(lower(word["word"]), word["start_offset"], word["end_offset"]) for word in offsets]


def test_what_is_dropped_goes_after_repetitions_are_one() -> None:
    a, unknown, delimiter, blank = 5, 3, 4, 0
    path = np.array([a, unknown, a, a, delimiter, unknown, blank, delimiter, a])
    assert text_of(path, settings()) == "a<unk>a <unk> a"
    dropped = settings(dropped=("<unk>",))
    assert text_of(path, dropped) == "aa  a"
    assert word_frames(path, dropped) == [("aa", 0, 4), ("a", 8, 9)]


@given(n=st.integers(1, 5000), seed=st.integers(0, 1000), offset=st.floats(-3, 3))
def test_normalisation_is_the_feature_extractors_to_the_bit(n: int, seed: int, offset: float) -> None:
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=1000, return_attention_mask=True)
    draw = np.random.default_rng(seed)
    clips = [(offset + draw.normal(size=size)).astype(np.float32) for size in (n, n // 2 + 1)]
    wanted = extractor(clips, sampling_rate=1000, padding=True, return_tensors="np").input_values
    for clip, row in zip(clips, wanted, strict=True):
        np.testing.assert_array_equal(normalized(clip, settings()), row[: len(clip)])
        assert not row[len(clip) :].any()
    assert normalized(clips[0], settings(normalized=False)) is clips[0]


class Graph:
    """Logits that tell each frame's first sample; keeps the shapes that it saw. Frames are 3 samples wide, 2 apart."""

    def __init__(self, n_tokens: int = 13) -> None:
        self.n_tokens, self.seen = n_tokens, []

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        x = inputs["input_values"]
        self.seen.append((x.shape, inputs.get("lengths")))
        firsts = x[:, : x.shape[1] - 2 : 2].round().astype(int)
        return np.eye(self.n_tokens, dtype=np.float32)[firsts]


CLIPS = [np.array([5.0, 0, 6, 0, 6, 0]), np.array([5.0, 0, 4, 0, 6, 0, 6, 0, 0, 0, 6, 0, 6]), np.array([7.0, 0, 0])]


@pytest.mark.parametrize("masked", [True, False])
def test_clips_of_any_lengths_run_together_or_alone(masked: bool) -> None:
    graph, ours = Graph(), settings(normalized=False, masked=masked)
    assert transcribe_ctc(graph, ours, CLIPS, 1000, batch_size=2) == ["aB", "a BB", "'"]
    shapes = [shape for shape, _ in graph.seen]
    assert shapes == ([(2, 13), (1, 3)] if masked else [(1, 13), (1, 6), (1, 3)])
    lengths = [None if found is None else found.tolist() for _, found in graph.seen]
    assert lengths == ([[13, 6], [3]] if masked else [None] * 3)


def test_one_clip_gives_one_text() -> None:
    ours = settings(normalized=False)
    assert transcribe_ctc(Graph(), ours, CLIPS[0], 1000) == "aB"
    assert transcribe_ctc(Graph(), ours, [CLIPS[0], CLIPS[0]], 1000, beam_width=4) == ["aB", "aB"]
    assert transcribe_ctc(Graph(), ours, [], 1000) == []
    words = words_ctc(Graph(), ours, CLIPS[1], 1000)
    assert [(word.text, word.start_s, word.end_s) for word in words] == [("a", 0.0, 0.002), ("BB", 0.004, 0.012)]


def test_frames_of_the_padding_are_not_decoded() -> None:
    """In a batch the padding's frames say something, and are another clip's time."""

    def graph(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return Graph()({**inputs, "input_values": np.where(inputs["input_values"] == 0, 5, inputs["input_values"])})

    alone, _ = paths_of(graph, settings(normalized=False), [CLIPS[0], CLIPS[1]], 1000)
    assert alone.tolist() == [5, 6]


@pytest.mark.parametrize(
    "audio, rate_hz, how, message",
    [
        (CLIPS[0], 8000, {}, "sample_rate_hz must be 1000.*got 8000; resample first.*soxr.resample"),
        (CLIPS[0][:2], 1000, {}, "clip 0 has 2 samples, and the model needs 3"),
        (np.zeros(9, np.int16), 1000, {}, "clip 0 must be float.*int16.*divide int16 by 32768"),
        ([CLIPS[0], np.zeros((9, 2))], 1000, {}, r"clip 1 must be mono.*\(9, 2\)"),
        (np.full(9, np.nan), 1000, {}, "clip 0 holds NaN"),
        (CLIPS[0], 1000, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (CLIPS[0], 1000, {"beam_width": 0}, "beam_width must be at least 1, got 0"),
    ],
)
def test_what_is_no_clip_is_refused(audio: Any, rate_hz: int, how: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transcribe_ctc(Graph(), settings(), audio, rate_hz, **how)


def test_a_graph_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits of shape \(1, 2, 14\), and the vocabulary has 13"):
        transcribe_ctc(Graph(n_tokens=14), settings(normalized=False), CLIPS[0], 1000)
