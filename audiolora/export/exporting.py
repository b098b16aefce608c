"""``export``: a trained network and its adapters as a bundle; ``add_adapter``: one more for a bundle that is there."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from audiolora.export import onnx as graphs
from audiolora.export.bundle import entries, read_base, write_folder
from audiolora.export.checking import check_parity
from audiolora.export.manifests import (
    FORMS,
    AdapterManifest,
    BaseManifest,
    ForecastSettings,
    TensorSpec,
    check_id,
    forecast_settings,
)
from audiolora.export.prepared import Prepared
from audiolora.export.signing import Key
from audiolora.export.slots import adapter_names, filled, slots_of
from audiolora.export.tensors import write_tensors
from audiolora.files import replace_folder

# ONNX Runtime's multi-LoRA came with 1.20.
RUNTIME = "1.20.0"
_SEED = 0


@dataclass(frozen=True)
class Exported:
    """What was written, and how far each part is from torch (largest difference over the largest output, or 1)."""

    folder: Path
    manifest: BaseManifest
    bytes: Mapping[str, int]
    differences: Mapping[str, float]


def export(
    model: Any,
    folder: str | os.PathLike[str],
    example: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
    *,
    adapters: Sequence[str] | Mapping[str, str] | None = None,
    form: str = "wsum",
    id: str | None = None,
    dynamic: graphs.Dynamic | None = None,
    forecasts: Mapping[str, Mapping[str, Any]] | None = None,
    max_rank: int = 64,
    dora: bool = False,
    web: bool = False,
    key: Key | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a base and its adapters as a bundle that `audiolora.edge.Session` runs.

    The bundle's files are run by ONNX Runtime and compared with torch before it is put in its place.

    Args:
        model: adapted by `audiolora.adapt` or PEFT, adapters unmerged; or a `series.forecaster.Forecaster` around such
            a network, whose scaling then goes into the bundle; or a network without adapters.
        folder: the bundle's.
        example: an input of the network, or inputs by the names of its forward's arguments; it is the self-test that is
            stored in the bundle, so not a secret. A forecaster has its own.
        adapters: PEFT's names, or a mapping from PEFT's name to the id in the bundle; None: all of them.
        form: ``"wsum"`` (the default), ``"fact"`` (inputs of a few steps), or ``"merged"`` (one adapter, fixed).
        id: the base's name; default the folder's.
        dynamic: the sizes that are free, ``{"x": {0: "batch", 2: "time"}}``; default the first axis ("batch") of each
            input, and the last ("time") of one with three axes, as a forecaster's network without a fixed head has it.
        forecasts: by PEFT's name, the `Forecaster.settings` of adapters whose scaler is their own.
        max_rank: no adapter of a larger rank will be loaded.
        dora: give every weight a slot for DoRA, whether one of these adapters needs it or not.
        web: add ``base.web.onnx``, whose slots must be given in each run.
        key: private key to sign with.
        overwrite: replace the bundle that is there.

    Returns:
        The manifest, the size of each file, and the differences that were found.

    Raises:
        ValueError: an argument out of its range, a folder that is there, an adapter that has no form for export, a
            network that torch cannot export, or an output that is off torch's by more than 1e-5. Nothing is left then.

    Example:
        >>> import audiolora, torch
        >>> from audiolora.export import export
        >>> net = audiolora.adapt(torch.nn.Sequential(torch.nn.Conv1d(1, 8, 3)), r=2)
        >>> export(net, "bundle", torch.randn(2, 1, 50)).manifest.form  # doctest: +SKIP
        'wsum'
    """
    target = Path(folder)
    settings, network = _forecaster(model)
    if example is None and settings is not None:
        example = _windows(settings)
    ids = _ids(network, adapters, form)
    name = target.name if id is None else id
    check_id(name)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if target.exists() and not overwrite:
        raise ValueError(f"{target}: there already; name another folder, or replace it with overwrite=True")
    work = Prepared.of(network, example, dynamic, merged=next(iter(ids)) if form == "merged" else None, dora=dora)
    with _beside(target) as new:
        says = {"id": name, "form": form, "max_rank": max_rank, "forecast": settings}
        manifest, base_hash = _write_base(new, work, says, web=web, key=key)
        own = {peft: forecast_settings(says) for peft, says in (forecasts or {}).items()}
        shipped = {} if form == "merged" else {bundle_id: peft for peft, bundle_id in ids.items()}
        for bundle_id, peft in shipped.items():
            written = Path(new / "adapters" / bundle_id)
            _write_adapter(written, work, peft, base_hash, manifest, own.get(peft), key)
        found = check_parity(new, work.reference, shipped, work.trials(), base=work.merged)
        sizes = {str(path.relative_to(new)): path.stat().st_size for path in sorted(new.rglob("*")) if path.is_file()}
        replace_folder(new, target)
    return Exported(target, manifest, sizes, found)


def add_adapter(
    model: Any,
    bundle: str | os.PathLike[str],
    adapter: str = "default",
    *,
    id: str | None = None,
    example: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
    forecast: Mapping[str, Any] | None = None,
    key: Key | None = None,
    overwrite: bool = False,
) -> Path:
    """Put one more adapter into a bundle, bound to its base by hash.

    Args:
        model: the adapted network or forecaster, over the very base that was exported.
        bundle: from `export`; its hashes are checked, its signature is not.
        adapter: PEFT's name.
        id: its name in the bundle; default PEFT's name.
        example: an input to check parity on besides the bundle's own; None: that alone.
        forecast: `Forecaster.settings`, if its scaler is its own; a `Forecaster` has them.
        key: private key to sign with.
        overwrite: replace an adapter of this id.

    Returns:
        The adapter's folder.

    Raises:
        ValueError: an adapter that the base has no slots for, or of a larger rank, or over another base, by its
            outputs. The bundle is then as it was.

    Example:
        >>> add_adapter(model, "pumps", "default", id="pump8", key="pumps.key.pem")  # doctest: +SKIP
    """
    bundle_id = adapter if id is None else id
    check_id(bundle_id)
    target = Path(bundle) / "adapters" / bundle_id
    if target.exists() and not overwrite:
        raise ValueError(f"{target}: there already; take another id, or replace it with overwrite=True")
    base = read_base(bundle, check_signature=False)
    settings, network = _forecaster(model)
    own = settings if forecast is None else forecast_settings(forecast)
    own = None if own == base.manifest.forecast else own
    work = Prepared.over(network, base, adapter, example)
    with _beside(target) as new:
        written = new / bundle_id
        _write_adapter(written, work, adapter, base.sha256, base.manifest, own, key)
        check_parity(Path(bundle), work.reference, {bundle_id: adapter}, work.trials(), folders={bundle_id: written})
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(written, target)
    return target


def _write_base(
    folder: Path, work: Prepared, says: Mapping[str, Any], *, web: bool, key: Key | None
) -> tuple[BaseManifest, str]:
    slots = slots_of(work.targets)
    owner = graphs.WithSlots(work.plain, work.targets, says["form"]).eval()
    proto = graphs.graph(owner, work.inputs, work.dynamic)
    data, outputs = graphs.specs(proto, work.inputs)
    wanted = work.reference(work.inputs, work.merged)
    test = {f"input.{name}": tensor.numpy() for name, tensor in work.inputs.items()} | _outputs(outputs, wanted)
    files = {"base.onnx": graphs.optional(proto, slots), "selftest.safetensors": write_tensors(test)}
    if web:
        files["base.web.onnx"] = graphs.required(proto)
    manifest = BaseManifest(
        files=entries(files),
        opset=graphs.opset(proto),
        runtime=RUNTIME,
        inputs=tuple(data),
        outputs=tuple(outputs),
        slots=tuple(slots),
        **says,
    )
    return manifest, write_folder(folder / "base", manifest, files, key)


def _write_adapter(
    folder: Path,
    work: Prepared,
    adapter: str,
    base: str,
    manifest: BaseManifest,
    forecast: ForecastSettings | None,
    key: Key | None,
) -> None:
    from audiolora.edge.runtime import adapter_file

    tensors = filled(manifest.slots, work.folds[adapter])
    wanted = work.reference(work.inputs, adapter)
    files = {
        "adapter.safetensors": write_tensors(tensors),
        "adapter.onnx_adapter": adapter_file(tensors),
        "selftest.safetensors": write_tensors(_outputs(manifest.outputs, wanted)),
    }
    rank = max((len(value) for name, value in tensors.items() if name.endswith(".lora_A")), default=0)
    write_folder(folder, AdapterManifest(folder.name, base, rank, entries(files), forecast), files, key)


def _outputs(specs: Sequence[TensorSpec], wanted: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"output.{spec.name}": y for spec, y in zip(specs, wanted, strict=True)}


def _ids(network: nn.Module, adapters: Sequence[str] | Mapping[str, str] | None, form: str) -> dict[str, str]:
    """PEFT's name → id."""
    there = adapter_names(network)
    if isinstance(adapters, str):
        raise ValueError(f"adapters must be a list of names, got the string {adapters!r}; try [{adapters!r}]")
    asked = there if adapters is None else adapters
    ids = dict(asked) if isinstance(asked, Mapping) else {name: name for name in asked}
    if unknown := [name for name in ids if name not in there]:
        raise ValueError(
            f"no adapter {', '.join(map(repr, unknown))} in the network; it has {', '.join(there) or 'none'}"
        )
    for name in ids.values():
        check_id(name)
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"two adapters would have the same id: {', '.join(ids.values())}")
    if form == "merged" and len(ids) != 1:
        raise ValueError(
            f"form 'merged' holds one adapter, got {', '.join(ids) or 'none'}; name it: adapters=['default']"
        )
    return ids


def _forecaster(model: Any) -> tuple[ForecastSettings | None, nn.Module]:
    module = sys.modules.get("audiolora.series.forecaster")  # whoever has a forecaster has imported it
    if module is not None and isinstance(model, module.Forecaster):
        return forecast_settings(model.settings()), model.net
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or a Forecaster, got {type(model).__name__}")
    return None, model


def _windows(settings: ForecastSettings) -> torch.Tensor:
    """Two windows of noise, of order one like what a forecaster's network sees."""
    draw = torch.Generator().manual_seed(_SEED)
    return torch.randn(2, len(settings.channels), settings.lookback, generator=draw)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder beside ``target``, gone afterwards, whatever happens."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{secrets.token_hex(6)}.new")
    new.mkdir()
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
