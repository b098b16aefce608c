"""Streams on the device: any split of the input, base and adapters, swapped and bound, against the network in torch."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel

from audiolora.edge import BundleError, Session, Stream
from audiolora.export import add_adapter, export
from audiolora.export.tensors import read_tensors
from tests.edge.streaming_bundle import ADAPTERS, CHANNELS, adapted, model, numbers, offline, split, write_bundle
from tests.edge.test_without_torch import run_without_torch
from tests.export.small_bundle import write_base
from tests.series.causal_networks import CAUSAL, CONTEXT, CausalConv1d, StepsFirst

WHO = (None, *ADAPTERS)


@pytest.fixture(scope="module")
def net() -> PeftModel:
    return model()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("stream") / "b", max_rank=8)


@pytest.fixture(scope="module")
def session(bundle: Path) -> Session:
    return opened(bundle)


@pytest.fixture(scope="module")
def streams(session: Session) -> Iterator[dict[tuple[str, str | None], Stream]]:
    made = {("swapped", who): session.stream(who) for who in WHO}
    yield made | {("bound", who): session.bind(who).stream() for who in WHO}


def opened(bundle: Path) -> Session:
    made = Session(bundle, threads=1)
    for name in made.available():
        made.load(name)
    return made


def pushed(stream: Stream, x: np.ndarray, sizes: list[int]) -> np.ndarray:
    stream.reset()
    return np.concatenate([stream.push(chunk) for chunk in split(x, sizes)], axis=-1)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("way", ["swapped", "bound"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 14), min_size=1, max_size=12), n=st.integers(1, 3))
def test_any_split_equals_the_whole(net, streams, way, who, sizes, n) -> None:  # type: ignore[no-untyped-def]
    x = numbers(n, CHANNELS, sum(sizes))
    found = pushed(streams[way, who], x, sizes)
    if not sum(sizes):
        assert found.shape == (n, 2, 0) and found.dtype == np.float32
        return
    np.testing.assert_allclose(found, offline(net, x, who), atol=1e-5)


def test_a_whole_input_is_a_streams_first_chunk(net: PeftModel, session: Session) -> None:
    x = numbers(2, CHANNELS, 30)
    for who in WHO:
        np.testing.assert_allclose(session.run(x, who), offline(net, x, who), atol=1e-5)
        assert session.selftest(who) < 1e-5


def test_the_self_test_has_a_past(bundle: Path) -> None:
    stored = read_tensors((bundle / "base" / "selftest.safetensors").read_bytes(), "selftest")
    states = [value for name, value in stored.items() if ".input.padding" in name]
    assert len(states) == 3 and all((np.abs(value) > 0).any(axis=(0, 2)).any() for value in states)


def test_a_state_can_be_saved_and_set_elsewhere(net: PeftModel, session: Session) -> None:
    x, stream = numbers(2, CHANNELS, 30), session.stream("dora")
    assert stream.state == {}
    first, file = stream.push(x[..., :11]), io.BytesIO()
    np.savez(file, **stream.state)
    file.seek(0)
    then = stream.push(x[..., 11:])
    other = session.bind("dora").stream()
    other.state = dict(np.load(file))
    np.testing.assert_allclose(other.push(x[..., 11:]), then, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([first, then], -1), offline(net, x, "dora"), atol=1e-5)
    kept = other.state
    before = {name: value.copy() for name, value in kept.items()}
    other.push(x[..., :7])
    other.state = kept
    other.push(x[..., :7])
    assert all((kept[name] == value).all() for name, value in before.items())  # no buffers of the stream's
    other.state = {}
    np.testing.assert_allclose(other.push(x[..., :11]), first, atol=1e-6)


def test_a_result_is_the_callers_own(session: Session) -> None:
    stream, x = session.stream(), numbers(1, CHANNELS, 4)
    first = stream.push(x)
    before = first.copy()
    stream.push(x)
    np.testing.assert_array_equal(first, before)


def test_chunks_in_any_memory_layout(net: PeftModel, session: Session) -> None:
    x = np.asfortranarray(numbers(2, CHANNELS, 24))[:, :, ::2]
    found = pushed(session.stream("plain"), x, [5, 7])
    np.testing.assert_allclose(found, offline(net, x.copy(), "plain"), atol=1e-5)


@pytest.mark.parametrize(
    "x, message",
    [
        (numbers(1, 4, 5), r"must be float32 \(batch, 3, time\), got float32 \(1, 4, 5\)"),
        (numbers(1, CHANNELS, 5).astype(float), "got float64"),
        (numbers(CHANNELS, 5), r"got float32 \(3, 5\)"),
        (numbers(0, CHANNELS, 5), r"\(0, 3, 5\)"),
        ([[[1.0], [2.0], [3.0]]], "got list"),
        (numbers(2, CHANNELS, 5), "1 streams so far, and a chunk of 2.*reset"),
    ],
)
def test_a_chunk_that_does_not_fit_is_told_and_changes_nothing(session: Session, x: object, message: str) -> None:
    stream, fits = session.stream(), numbers(1, CHANNELS, 9)
    stream.push(fits)
    before = stream.state
    with pytest.raises(ValueError, match=message):
        stream.push(x)  # type: ignore[arg-type]
    assert all((value == before[name]).all() for name, value in stream.state.items())


def test_a_state_that_does_not_fit_is_told_and_changes_nothing(session: Session) -> None:
    stream = session.stream()
    stream.push(numbers(2, CHANNELS, 9))
    before = stream.state
    for change, message in (
        ({"padding9": before["padding0"]}, "the states are padding0, padding1, padding2, got"),
        ({"padding0": before["padding0"][:1]}, "sizes of one name must be equal"),
        ({"padding0": before["padding0"][..., :1]}, "padding0 must be float32"),
        ({"padding0": before["padding0"].astype(float)}, "got float64"),
        ({"padding0": before["padding0"].tolist()}, "got list"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.state = before | change
    assert all((value == before[name]).all() for name, value in stream.state.items())


def test_a_stream_keeps_the_adapter_that_it_began_with(net: PeftModel, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    session, x = opened(copy), numbers(1, CHANNELS, 20)
    stream = session.stream("plain")
    first = stream.push(x[..., :9])
    session.unload("plain")
    shutil.rmtree(copy)
    found = np.concatenate([first, stream.push(x[..., 9:])], -1)
    np.testing.assert_allclose(found, offline(net, x, "plain"), atol=1e-5)


def test_an_adapter_that_changed_on_disk_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    session = opened(copy)
    path = copy / "adapters" / "plain" / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="sha256"):
        session.stream("plain")


def test_what_no_stream_can_be_made_of_is_told(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'user1' is not loaded"):
        session.stream("user1")
    with pytest.raises(ValueError, match=r"take session.stream\(adapter\)"):
        session.network("plain").stream()
    with pytest.raises(ValueError, match="not a forecaster's"):
        session.stream().forecast(np.zeros(3))
    write_base(tmp_path)
    with pytest.raises(ValueError, match="not for streams; export a causal network with streaming=True"):
        Session(tmp_path).stream()


STREAMS = """
import numpy as np
from audiolora.edge import Session
session, x = Session({bundle!r}, threads=1), np.load({x!r})
found = []
for name in ("plain", "dora"):
    session.load(name)
    for stream in (session.stream(name), session.bind(name).stream()):
        found.append(np.concatenate([stream.push(chunk) for chunk in np.split(x, [1, 2, 9], axis=-1)], -1))
np.save({y!r}, np.stack(found))
"""


def test_streams_without_torch(net: PeftModel, bundle: Path, tmp_path: Path) -> None:
    x = numbers(2, CHANNELS, 25)
    np.save(tmp_path / "x.npy", x)
    run_without_torch(STREAMS.format(bundle=str(bundle), x=str(tmp_path / "x.npy"), y=str(tmp_path / "y.npy")))
    wanted = [offline(net, x, name) for name in ("plain", "plain", "dora", "dora")]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, atol=1e-5)


def test_an_adapter_that_is_trained_later(net: PeftModel, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    add_adapter(net, tmp_path / "b", "dora", id="later", example=torch.randn(1, CHANNELS, 7))
    session, x = opened(tmp_path / "b"), numbers(1, CHANNELS, 20)
    found = pushed(session.stream("later"), x, [1, 4, 15])
    np.testing.assert_allclose(found, offline(net, x, "dora"), atol=1e-5)
    with pytest.raises(ValueError, match="it is over another base"):
        add_adapter(adapted(torch.nn.Sequential(CausalConv1d(CHANNELS, 2, 9))), tmp_path / "b", "plain", id="wrong")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["wsum", "fact"])
@pytest.mark.parametrize("name", [name for name in CAUSAL | CONTEXT if name != "pointwise"])
def test_causal_networks_of_every_kind(tmp_path: Path, name: str, form: str) -> None:
    torch.manual_seed(0)
    net = adapted((CAUSAL | CONTEXT)[name]())
    export(net, tmp_path / "b", torch.randn(2, CHANNELS, 12), streaming=True, form=form)
    session, draw = opened(tmp_path / "b"), np.random.default_rng(0)
    for who in WHO:
        for stream in (session.stream(who), session.bind(who).stream()):
            for _ in range(3):
                sizes = draw.integers(0, 9, size=8).tolist()
                x = numbers(2, CHANNELS, sum(sizes))
                np.testing.assert_allclose(pushed(stream, x, sizes), offline(net, x, who), atol=1e-5)


@pytest.mark.slow
def test_the_context_can_be_saved_at_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = adapted(CONTEXT["transposed"]())
    export(net, tmp_path / "b", torch.randn(2, CHANNELS, 12), streaming=True)
    session, x = opened(tmp_path / "b"), numbers(1, CHANNELS, 9)
    for cut in range(6):
        stream, other = session.stream("plain"), session.stream("plain")
        first = stream.push(x[..., :cut])
        other.state = stream.state
        assert stream.state["context"].shape == (1, CHANNELS, min(cut, 3))
        np.testing.assert_allclose(
            np.concatenate([first, other.push(x[..., cut:])], -1), offline(net, x, "plain"), atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fact", "merged"])
def test_the_other_forms(net: PeftModel, tmp_path: Path, form: str) -> None:
    write_bundle(tmp_path / "b", form=form, **({"adapters": ["dora"]} if form == "merged" else {}))
    session, x = opened(tmp_path / "b"), numbers(2, CHANNELS, 40)
    who = None if form == "merged" else "dora"
    for stream in (session.stream(who), session.bind(who).stream()):
        np.testing.assert_allclose(pushed(stream, x, [1, 2, 7, 30]), offline(net, x, "dora"), atol=1e-5)


@pytest.mark.slow
def test_steps_before_channels(tmp_path: Path) -> None:
    net, x = adapted(StepsFirst()), numbers(2, 20, CHANNELS)
    free = {"x": {0: "batch", 1: "time"}}
    export(net, tmp_path / "b", torch.randn(2, 12, CHANNELS), streaming=True, dynamic=free)
    stream = opened(tmp_path / "b").stream("plain")
    found = np.concatenate([stream.push(chunk) for chunk in np.split(x, [1, 5], axis=1)], axis=1)
    np.testing.assert_allclose(found, offline(net, x, "plain"), atol=1e-5)
    assert stream.push(x[:, :0]).shape == (2, 0, 5)
