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
from audiolora.export.ctc import check_texts, ctc_part, ctc_task, ctc_view, noise
from audiolora.export.ctc_settings import CtcSettings
from audiolora.export.fields import check_id
from audiolora.export.forecast_settings import ForecastSettings
from audiolora.export.manifests import ADAPTER, FORMS, SELFTEST, AdapterManifest, BaseManifest, GraphSpec
from audiolora.export.parts import Dynamic, Part, whole
from audiolora.export.prepared import Prepared, one_part
from audiolora.export.signing import Key
from audiolora.export.slots import adapter_names, filled, slots_of
from audiolora.export.streaming_parts import check_scalers, plan_of, streaming_part
from audiolora.export.tasks import Task, check_adapter_task
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
    dynamic: Dynamic | None = None,
    parts: Sequence[Part] | None = None,
    task: Task | None = None,
    tasks: Mapping[str, Task] | None = None,
    processor: Any = None,
    files: Mapping[str, bytes] | None = None,
    streaming: bool = False,
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
        parts: the graphs, where the network is not one graph of one example.
        task: what the bundle is for, and its settings; a forecaster has its own.
        tasks: by PEFT's name, of adapters whose settings are their own.
        processor: transformers' processor of a CTC model (wav2vec2, HuBERT, …): graph and task follow from it, example
            is a clip (samples,), by default noise, and its texts are compared too.
        files: more files of the base that the task needs, by name.
        streaming: a causal network, for `audiolora.edge.Session.stream`: its left context becomes states of the graph.
            One with a method ``at_every_step`` is exported with that.
        max_rank: no adapter of a larger rank will be loaded.
        dora: give every weight a slot for DoRA, whether one of these adapters needs it or not.
        web: add ``base.web.onnx``, whose slots must be given in each run.
        key: private key to sign with.
        overwrite: replace the bundle that is there.

    Returns:
        The manifest, the size of each file, and the differences that were found.

    Raises:
        ValueError: an argument out of its range, a folder that is there, an adapter that has no form for export, a
            network that torch cannot export or that is to be streamed and looks ahead, or an output that is off
            torch's by more than 1e-5. Nothing is left then.

    Example:
        >>> import audiolora, torch
        >>> from audiolora.export import export
        >>> net = audiolora.adapt(torch.nn.Sequential(torch.nn.Conv1d(1, 8, 3)), r=2)
        >>> export(net, "bundle", torch.randn(2, 1, 50)).manifest.form  # doctest: +SKIP
        'wsum'
    """
    target = Path(folder)
    settings, network = _forecaster(model)
    ids = _ids(network, adapters, form)
    name = target.name if id is None else id
    check_id(name)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if target.exists() and not overwrite:
        raise ValueError(f"{target}: there already; name another folder, or replace it with overwrite=True")
    if processor is not None:
        task, clip = _ctc(network, processor, task, parts, example)
        parts, example = [ctc_part(task, processor, clip)], None
    if parts is None:
        example = _windows(settings) if example is None and settings is not None else example
        parts = [
            streaming_part(network, example, dynamic, settings) if streaming else one_part(network, example, dynamic)
        ]
        check_scalers([settings, *(tasks or {}).values()] if streaming else [])
    elif example is not None or dynamic is not None or streaming:
        raise ValueError(
            "parts have examples, free sizes and states of their own; give no example, dynamic or streaming too"
        )
    work = Prepared.of(network, parts, merged=next(iter(ids)) if form == "merged" else None, dora=dora)
    with _beside(target) as new:
        says = {"id": name, "form": form, "max_rank": max_rank, "task": task or settings}
        manifest, base_hash = _write_base(new, work, says, files or {}, web=web, key=key)
        shipped = {} if form == "merged" else {bundle_id: peft for peft, bundle_id in ids.items()}
        for bundle_id, peft in shipped.items():
            written = Path(new / "adapters" / bundle_id)
            _write_adapter(written, work, peft, base_hash, manifest, (tasks or {}).get(peft), key)
        found = check_parity(new, work, shipped)
        if processor is not None:
            check_texts(new, work, shipped, processor, [clip])
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
    parts: Sequence[Part] | None = None,
    task: Task | None = None,
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
        parts: as in `export`, if the base has several graphs.
        task: its settings, if they are its own; a `Forecaster` has them.
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
    own = task or settings
    own = None if own == base.manifest.task else own
    if parts is None and isinstance(base.manifest.task, CtcSettings):
        parts = [Part({}, {}, view=ctc_view(base.manifest.task))]
    view = plan_of(base.manifest, network) if parts is None else None
    if view is not None:
        check_scalers([own])
    work = Prepared.over(network, base, adapter, parts, example, view or whole)
    with _beside(target) as new:
        written = new / bundle_id
        _write_adapter(written, work, adapter, base.sha256, base.manifest, own, key)
        check_parity(Path(bundle), work, {bundle_id: adapter}, folders={bundle_id: written})
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(written, target)
    return target


def _write_base(
    folder: Path,
    work: Prepared,
    says: Mapping[str, Any],
    more: Mapping[str, bytes],
    *,
    web: bool,
    key: Key | None,
) -> tuple[BaseManifest, str]:
    protos, specs = _graphs(work, says["form"])
    files = dict(more)
    test: dict[str, np.ndarray] = {}
    for part in work.parts:
        proto, spec = protos[part.name], specs[part.name]
        files[f"{part.name}.onnx"] = graphs.optional(proto, spec.slots)
        if web:
            files[f"{part.name}.web.onnx"] = graphs.required(proto)
        test |= {f"{part.name}.input.{name}": tensor.numpy() for name, tensor in part.inputs.items()}
        test |= _outputs(part, spec, work, work.merged)
    files[SELFTEST] = write_tensors(test)
    manifest = BaseManifest(
        files=entries(files),
        target="onnx",
        opset=max(map(graphs.opset, protos.values())),
        runtime=RUNTIME,
        graphs=specs,
        **says,
    )
    return manifest, write_folder(folder / "base", manifest, files, key)


def _graphs(work: Prepared, form: str) -> tuple[dict[str, Any], dict[str, GraphSpec]]:
    """Each part's graph, with the slots that it uses; one that no graph uses stays in the first that holds it."""
    protos, specs, idle = {}, {}, {}
    for part in work.parts:
        owner = graphs.WithSlots(part.made(work.plain), work.plain, work.targets, form).eval()
        protos[part.name] = proto = graphs.graph(owner, part)
        idle[part.name] = {slot.name for slot in owner.slots} - graphs.consumed(proto)
    needed = {slot for name, proto in protos.items() for slot in graphs.consumed(proto) - idle[name]}
    for part in work.parts:
        surplus = idle[part.name] & needed
        graphs.without_inputs(protos[part.name], surplus)
        needed |= idle[part.name]
        specs[part.name] = graphs.spec(protos[part.name], part, slots_of(work.targets))
    return protos, specs


def _write_adapter(
    folder: Path,
    work: Prepared,
    adapter: str,
    base: str,
    manifest: BaseManifest,
    task: Task | None,
    key: Key | None,
) -> None:
    from audiolora.edge.runtime import adapter_file

    if task is not None:
        check_adapter_task(manifest.task, task)
    tensors = filled(manifest.slots, work.folds[adapter])
    test: dict[str, np.ndarray] = {}
    for part in work.parts:
        test |= _outputs(part, manifest.graphs[part.name], work, adapter)
    files = {ADAPTER: write_tensors(tensors), SELFTEST: write_tensors(test)}
    for name, graph in manifest.graphs.items():
        files[manifest.adapter_file(name)] = adapter_file({slot.name: tensors[slot.name] for slot in graph.slots})
    rank = max((len(value) for name, value in tensors.items() if name.endswith(".lora_A")), default=0)
    write_folder(folder, AdapterManifest(folder.name, base, rank, entries(files), task), files, key)


def _outputs(part: Part, spec: GraphSpec, work: Prepared, adapter: str | None) -> dict[str, np.ndarray]:
    wanted = work.reference(part, part.inputs, adapter)
    names = [value.name for value in spec.outputs] + [state.output for state in spec.states]
    return {f"{part.name}.output.{name}": y for name, y in zip(names, wanted, strict=True)}


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
        from audiolora.export.forecast_runs import forecaster_task

        return forecaster_task(model.settings()), model.net
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or a Forecaster, got {type(model).__name__}")
    return None, model


def _ctc(
    network: nn.Module, processor: Any, task: Task | None, parts: Any, example: Any
) -> tuple[CtcSettings, np.ndarray]:
    """The settings of a CTC model, and the clip of its self-test."""
    if parts is not None or not (task is None or isinstance(task, CtcSettings)):
        raise ValueError("a processor has the parts and the task of a CTC model with it; give none beside it")
    settings = task or ctc_task(network, processor)
    return settings, noise(settings) if example is None else np.asarray(example, np.float32)


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
