"""From a network to a bundle: outputs are torch's for every method, form and size; a failure leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import audiolora
from audiolora.edge import Session
from audiolora.export import BundleError, add_adapter, export, make_keys, verify
from audiolora.export.exporting import Exported
from audiolora.export.tensors import read_tensors
from tests.export.networks import METHODS, adapted, everything, randomise, sample

pytest.importorskip("onnxscript", reason="export needs onnxscript: pip install 'audiolora[export]'")

CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture(scope="module", params=["wsum", pytest.param("fact", marks=pytest.mark.slow)])
def bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]
) -> Exported:
    """A base and an adapter of every method."""
    folder = tmp_path_factory.mktemp("out") / "all"
    return export(adapted(), folder, sample(), form=request.param, web=True, key=keys[0])


@pytest.fixture
def session(bundle: Exported, keys: tuple[Path, Path]) -> Session:
    found = Session(bundle.folder, key=keys[1], threads=1)
    for name in found.available():
        found.load(name)
    return found


def by_torch(x: torch.Tensor, method: str | None) -> np.ndarray:
    """The output of a network that is adapted by this method alone, merged in float64 by PEFT's own call."""
    model = everything() if method is None else adapted_as_in_all(method)
    with torch.no_grad():
        return model.double().eval()(x.double()).numpy()


def adapted_as_in_all(method: str) -> nn.Module:
    model = adapted()
    model.set_adapter(method)
    with torch.no_grad():
        return model.double()


@pytest.mark.parametrize("method", [*METHODS, None])
def test_outputs_are_torchs_for_any_batch_and_length(session: Session, method: str | None) -> None:
    bound = session.bind(method)
    for n, length in ((2, 40), (1, 17), (5, 64)):
        x = sample(n, length)
        wanted = by_torch(x, method)
        np.testing.assert_allclose(session.run(x.numpy(), method), wanted, **CLOSE)
        np.testing.assert_allclose(bound.run(x.numpy()), wanted, **CLOSE)


def test_the_bundle_is_signed_whole_and_says_what_it_found(bundle: Exported, keys: tuple[Path, Path]) -> None:
    assert verify(bundle.folder, key=keys[1]) == {"base": None} | {f"adapters/{name}": None for name in sorted(METHODS)}
    assert set(bundle.differences) == {"base", *METHODS} and max(bundle.differences.values()) <= 1e-5
    assert [path.name for path in bundle.folder.parent.iterdir()] == ["all"]


def test_an_adapter_costs_what_its_parameters_do(bundle: Exported) -> None:
    model = adapted()
    for name in METHODS:
        own = [p for key, p in model.named_parameters() if f".{name}." in key]
        assert bundle.bytes[f"adapters/{name}/adapter.safetensors"] <= 4 * sum(p.numel() for p in own) * 1.5 + 4096


def test_exported_files_tell_nothing_of_this_machine(bundle: Exported) -> None:
    for path in bundle.folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            data = path.read_bytes()
            words = (b".py", b"stack_trace", str(Path.home()).encode(), str(Path.cwd()).encode(), b"site-packages")
            assert not [word for word in words if len(word) > 1 and word in data], path


def test_the_web_variant_wants_every_slot(bundle: Exported) -> None:
    import onnxruntime

    data = (bundle.folder / "base" / "base.web.onnx").read_bytes()
    web = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    zeros = {
        s.name: np.zeros([1 if isinstance(d, str) else d for d in s.shape], np.float32) for s in bundle.manifest.slots
    }
    x = sample()
    (y,) = web.run(None, {"x": x.numpy(), **zeros})
    np.testing.assert_allclose(y, by_torch(x, None), **CLOSE)
    with pytest.raises(ValueError, match="Required inputs"):
        web.run(None, {"x": x.numpy()})


def test_ranks_are_each_modules_own(bundle: Exported, session: Session) -> None:
    shapes = {name: value.shape for name, value in tensors_of(bundle, "rslora").items()}
    assert shapes["plain.weight.lora_A"] == (5, 9) and shapes["up.weight.lora_B"] == (6, 2)
    assert shapes["causal.weight.lora_A"][0] == 1  # left alone: zeros
    assert session._adapters["rslora"].manifest.rank == 5


def tensors_of(bundle: Exported, name: str) -> dict[str, np.ndarray]:
    path = bundle.folder / "adapters" / name / "adapter.safetensors"
    return read_tensors(path.read_bytes(), str(path))


def test_the_other_runtimes_file_holds_the_same_tensors(bundle: Exported) -> None:
    import onnxruntime

    for name in METHODS:
        path = bundle.folder / "adapters" / name / "base.onnx_adapter"
        found = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
        tensors = tensors_of(bundle, name)
        assert found.keys() == tensors.keys()
        for key, value in found.items():
            np.testing.assert_array_equal(value.numpy(), tensors[key])


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 2, 3)))
    model = audiolora.adapt(net, r=1).train()
    randomise(model)
    before, x = {key: value.clone() for key, value in model.state_dict().items()}, torch.randn(2, 1, 9)
    y = model(x)
    export(model, tmp_path / "b", x, form="merged")
    assert model.training and all(p.requires_grad for key, p in model.named_parameters() if "lora_" in key)
    assert before.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    torch.testing.assert_close(model(x), y, rtol=0, atol=0)
    session = Session(tmp_path / "b", threads=1)
    np.testing.assert_allclose(session.run(x.numpy()), y.detach().numpy(), **CLOSE)
    assert session.manifest.slots == () and session.available() == ()


class Random(nn.Module):
    """Another output at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + torch.rand(1)


def test_an_export_that_is_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises((ValueError, BundleError), match=r"is off torch's"):
        export(audiolora.adapt(Random(), r=1), tmp_path / "b", sample())
    assert list(tmp_path.iterdir()) == []


class FixedLength(nn.Module):
    """Its head takes 40 steps and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(3, 2, 3, padding=1), nn.Linear(80, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).flatten(1))


@pytest.mark.slow
def test_a_length_that_is_not_free_is_told(tmp_path: Path) -> None:
    model = audiolora.adapt(FixedLength(), r=1)
    with pytest.raises(ValueError, match=r"cannot export FixedLength with x \(batch, 3, time\).*dynamic="):
        export(model, tmp_path / "b", sample())
    assert list(tmp_path.iterdir()) == []
    made = export(model, tmp_path / "b", sample(), dynamic={"x": {0: "batch"}})
    assert made.manifest.graphs["base"].inputs[0].shape == ("batch", 3, 40)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"form": "sum"}, "form must be one of wsum, fact, merged, got 'sum'"),
        ({"adapters": ["other"]}, "no adapter 'other' in the network; it has first, dora, bias, rslora"),
        ({"adapters": "first"}, r"try \['first'\]"),
        ({"adapters": {"first": "a/b"}}, "no separators"),
        ({"adapters": {"first": "a", "dora": "a"}}, "the same id"),
        ({"form": "merged"}, "holds one adapter"),
        ({"id": "../x"}, "no separators"),
        ({"example": None}, "example must be an input"),
        ({"example": {"z": sample()}}, "first arguments in order"),
        ({"dynamic": {"y": {0: "batch"}}}, "dynamic names y"),
    ],
)
def test_arguments_out_of_their_range_are_refused(tmp_path: Path, how: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(adapted(), tmp_path / "b", **{"example": sample(), **how})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="there already"):
        export(adapted(), tmp_path / "b", sample())


def test_merged_adapters_are_refused(tmp_path: Path) -> None:
    model = adapted("dora")
    model.merge_adapter()
    with pytest.raises(ValueError, match="call unmerge_adapter"):
        export(model, tmp_path / "b", sample())


@pytest.fixture
def copied_bundle(bundle: Exported, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(bundle.folder, tmp_path / "all"))


@pytest.mark.parametrize("method", ["first", "dora"])
def test_an_adapter_is_added_later(copied_bundle: Path, method: str, keys: tuple[Path, Path]) -> None:
    model = adapted(method)
    randomise(model, seed=9)
    folder = add_adapter(model, copied_bundle, method, id="later", key=keys[0])
    session = Session(copied_bundle, key=keys[1], threads=1)
    session.load("later")
    x = sample(3, 50)
    np.testing.assert_allclose(session.run(x.numpy(), "later"), model.double()(x.double()).detach().numpy(), **CLOSE)
    with pytest.raises(ValueError, match="there already"):
        add_adapter(model, copied_bundle, method, id="later")
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([*METHODS, "later"])


def test_an_adapter_over_another_base_is_not_added(copied_bundle: Path, keys: tuple[Path, Path]) -> None:
    model = adapted("first")
    with torch.no_grad():
        model.get_base_model().head.original_module.bias.add_(0.01)
    with pytest.raises(ValueError, match="off torch's outputs: base by"):
        add_adapter(model, copied_bundle, "first", id="later", key=keys[0])
    assert not (copied_bundle / "adapters" / "later").exists()


def test_an_adapter_that_the_base_has_no_slots_for_is_not_added(copied_bundle: Path, keys: tuple[Path, Path]) -> None:
    model, signed = audiolora.adapt(everything(), targets=["head", "plain"], r=2), {"id": "later", "key": keys[0]}
    with pytest.raises(ValueError, match=r"no slots for head.weight.lora_A, head.weight.lora_B"):
        add_adapter(model, copied_bundle, **signed)
    with pytest.raises(ValueError, match="rank 65, and this base takes at most 64; .*max_rank=65"):
        add_adapter(audiolora.adapt(everything(), targets=["plain"], r=65), copied_bundle, **signed)
    with pytest.raises(ValueError, match="no adapter 'other' in the network; it has default"):
        add_adapter(model, copied_bundle, "other", **signed)
    assert not (copied_bundle / "adapters" / "later").exists()
