"""Every family of CTC models, every form of the graph, and what transformers puts behind the encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from audiolora.edge import Session
from audiolora.edge.network import difference
from audiolora.export import export
from audiolora.export.ctc import ctc_task
from tests.export.ctc_models import LAYER, OF_FAMILY, adapted, clips, ctc_model, processor
from tests.export.networks import randomise
from tests.export.test_ctc import ADAPTERS, transformers_logits


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", OF_FAMILY)
def test_every_family(family: str, masked: bool, tmp_path: Path) -> None:
    """At frames of either parity, which SEW squeezes, and past WavLM's last position bucket."""
    model = adapted(ctc_model(family, **(LAYER if masked else {})))
    export(model, tmp_path / "b", processor=processor(tmp_path, masked=masked))
    session = Session(tmp_path / "b", threads=1)
    session.load("anna")
    session.load("bob")
    task = session.manifest.task
    assert task.masked == masked
    for adapter in ADAPTERS:
        for n_frames in (task.fewest_frames, 7, 30, 301):
            x = clips(task.samples(n_frames) + 17, seed=n_frames)[0][None]
            inputs = {"input_values": torch.from_numpy(x)}
            given = {"input_values": x} | ({"lengths": np.array([x.shape[1]])} if task.masked else {})
            wanted = transformers_logits(model, adapter, inputs)
            assert wanted.shape[1] == task.frames(x.shape[1]) == n_frames
            assert difference(session.run(given, adapter), wanted) < 2e-5  # 1e-5 is for what the export has tried


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fact", "merged"])
def test_every_form(form: str, tmp_path: Path) -> None:
    model = adapted(ctc_model(), "bob")
    export(model, tmp_path / "b", processor=processor(tmp_path), form=form, example=clips(9000)[0])
    session = Session(tmp_path / "b", threads=1)
    wanted = transformers_logits(model, "bob", {"input_values": torch.from_numpy(clips(5000)[0][None])})
    name = None if form == "merged" else "bob"
    if name:
        session.load(name)
    assert difference(session.run(clips(5000)[0][None], name), wanted) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Wav2Vec2ForCTC", "Wav2Vec2ConformerForCTC"])
def test_convolutions_after_the_encoder_are_counted(family: str, tmp_path: Path) -> None:
    """``add_adapter``: strided convolutions of transformers' own, an eighth of the frames."""
    model = ctc_model(family, **LAYER, add_adapter=True, num_adapter_layers=3)
    adapted_model = adapted(model, "anna", modules_to_save=None)
    export(adapted_model, tmp_path / "b", processor=processor(tmp_path, masked=True))
    session = Session(tmp_path / "b", threads=1)
    task = session.manifest.task
    assert task.stride == 8 * 320
    for n in (655, 20_000, 20_320, 40_001):
        given = {"input_values": clips(n)[0][None], "lengths": np.array([n])}
        assert session.run(given).shape[1] == task.frames(n)


@pytest.mark.slow
def test_dropped_tokens_and_other_alphabets_are_compared_too(tmp_path: Path) -> None:
    model = ctc_model()
    randomise(model)
    its_processor = processor(tmp_path, do_lower_case=True, unk_token="<unk>")
    task = ctc_task(model, its_processor, drop=["<s>", "</s>", "<unk>", "e"])
    export(model, tmp_path / "b", processor=its_processor, task=task, example=clips(40_000)[0])
    assert Session(tmp_path / "b", threads=1).manifest.task.dropped == ("<s>", "</s>", "<unk>", "e")
