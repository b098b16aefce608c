"""``export``: a trained network and its adapters as a bundle; ``add_adapter``: one more for a bundle that is there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from audiolora.export import executorch_bundle
from audiolora.export.accuracy import Accuracy, Evaluate, measured
from audiolora.export.bundle import SIGNATURE, read_base
from audiolora.export.checking import check_parity
from audiolora.export.ctc import check_texts, ctc_part, ctc_task, ctc_view, noise
from audiolora.export.ctc_settings import CtcSettings
from audiolora.export.fields import check_id
from audiolora.export.forecast_settings import ForecastSettings
from audiolora.export.graph_files import executorch_graphs, onnx_graphs
from audiolora.export.manifests import FORMS, TARGETS, BaseManifest
from audiolora.export.parts import Dynamic, Part, whole
from audiolora.export.prepared import Prepared, one_part
from audiolora.export.quantizing import Quantization
from audiolora.export.signing import Key
from audiolora.export.slots import adapter_names
from audiolora.export.spoken import Spoken
from audiolora.export.streaming_parts import check_scalers, plan_of, streaming_part
from audiolora.export.tasks import Task
from audiolora.export.writing import write_adapter, write_base
from audiolora.files import folder_beside, replace_folder

_SEED = 0

Check = Callable[[Path, Callable[[str | None], nn.Module]], None]
"""A bundle that was written, and the network in torch by PEFT's name of an adapter (None: without): raises ValueError
where the one does not do what the other does."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far each part is from torch (largest difference over the largest output, or 1)."""

    folder: Path
    manifest: BaseManifest
    bytes: Mapping[str, int]
    differences: Mapping[str, float]
    accuracy: Accuracy | None = None
    """What quantising cost, where it was asked for."""
    portable: tuple[str, ...] = ()
    """Operators that XNNPACK does not take: ExecuTorch's portable kernels run them, which are slower."""


def export(
    model: Any,
    folder: str | os.PathLike[str],
    example: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
    *,
    adapters: Sequence[str] | Mapping[str, str] | None = None,
    target: str = "onnx",
    form: str | None = None,
    id: str | None = None,
    dynamic: Dynamic | None = None,
    parts: Sequence[Part] | None = None,
    task: Task | None = None,
    tasks: Mapping[str, Task] | None = None,
    processor: Any = None,
    files: Mapping[str, bytes] | None = None,
    streaming: bool = False,
    check: Check | None = None,
    max_rank: int | None = None,
    largest: Mapping[str, int] | None = None,
    dora: bool = False,
    web: bool = False,
    quantize: str | None = None,
    calibration: Any = None,
    evaluate: Evaluate | Any = None,
    key: Key | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a base and its adapters as a bundle that `audiolora.edge.Session` runs.

    The bundle's files are run by its runtime and compared with torch before it is put in its place.

    Args:
        model: adapted by `audiolora.adapt` or PEFT, adapters unmerged; or a `series.forecaster.Forecaster` around such
            a network, whose scaling then goes into the bundle; or a network without adapters.
        folder: the bundle's.
        example: an input of the network, or inputs by the names of its forward's arguments; it is the self-test that is
            stored in the bundle, so not a secret. A forecaster has its own.
        adapters: PEFT's names, or a mapping from PEFT's name to the id in the bundle; None: all of them.
        target: ``"onnx"``, or ``"executorch"``, whose ranks and sizes but one are fixed; see docs/edge.md.
        form: ``"wsum"`` (the default), ``"fact"`` (inputs of a few steps; ExecuTorch's), or ``"merged"`` (one adapter,
            fixed).
        id: the base's name; default the folder's.
        dynamic: the sizes that are free, ``{"x": {0: "batch", 2: "time"}}``; default the first axis ("batch") of each
            input, and the last ("time") of one with three axes, as a forecaster's network without a fixed head has it;
            for ExecuTorch the batch alone.
        parts: the graphs, where the network is not one graph of one example.
        task: what the bundle is for, and its settings; a forecaster has its own.
        tasks: by PEFT's name, of adapters whose settings are their own.
        processor: transformers' processor of a CTC model (wav2vec2, HuBERT, …): graph and task follow from it, example
            is a clip (samples,), by default noise, and its texts are compared too.
        files: more files of the base that the task needs, by name.
        streaming: a causal network, for `audiolora.edge.Session.stream`: its left context becomes states of the graph.
            One with a method ``at_every_step`` is exported with that.
        check: of the task, besides that of every graph's outputs.
        max_rank: no adapter of a larger rank will be loaded; default 64, for ExecuTorch what the adapters have.
        largest: of the free sizes by name, for ExecuTorch; default 64 for the batch, 4096 for others.
        dora: give every weight a slot for DoRA, whether one of these adapters needs it or not.
        web: add ``base.web.onnx``, whose slots must be given in each run.
        quantize: ``"int8"``: weights in int8, per output channel, dequantised in the graph; those that
            `audiolora.quantize` left go in as they are. ``"qdq"``: activations too, calibrated with the adapters on.
        calibration: for ``"qdq"``: a list of inputs (of the only one, or by name) as the network will see them; for a
            forecaster long-form rows.
        evaluate: a function from a network (NumPy in, NumPy out) to its scores by name, which is called with the float
            network and the quantised one; for a forecaster also long-form rows (MAE, and MASE against the naive
            forecast of the last value); with a processor also utterances (WER and CER), as `export_whisper` has them.
        key: private key to sign with.
        overwrite: replace the bundle that is there.

    Returns:
        The manifest, the size of each file, the differences that were found, and what quantising cost.

    Raises:
        ValueError: an argument out of its range, a folder that is there, an adapter that has no form for export, a
            network that torch cannot export or that is to be streamed and looks ahead, or an output that is off
            torch's by more than 1e-5 (over the same rounded weights, with ``"int8"``; with ``"qdq"`` the difference
            that was measured is the tolerance). Nothing is left then.

    Example:
        >>> import audiolora, torch
        >>> from audiolora.export import export
        >>> net = audiolora.adapt(torch.nn.Sequential(torch.nn.Conv1d(1, 8, 3)), r=2)
        >>> export(net, "bundle", torch.randn(2, 1, 50)).manifest.form  # doctest: +SKIP
        'wsum'
    """
    place = Path(folder)
    form = _checked_form(target, form, web, largest)
    if quantize is not None and target != "onnx":
        raise ValueError(f"quantize is for target 'onnx', and target is {target!r}; leave it out")
    settings, network = _forecaster(model)
    ids = _ids(network, adapters, form)
    name = place.name if id is None else id
    check_id(name)
    if place.exists() and not overwrite:
        raise ValueError(f"{place}: there already; name another folder, or replace it with overwrite=True")
    if processor is not None:
        if target != "onnx":
            raise ValueError(f"a CTC model's bundle is for target 'onnx', got {target!r}")
        task, clip = _ctc(network, processor, task, parts, example)
        parts, example = [ctc_part(task, processor, clip)], None
        evaluate = evaluate if evaluate is None or callable(evaluate) else Spoken.for_ctc(evaluate, task)
    if parts is None:
        example = _windows(settings) if example is None and settings is not None else example
        parts = [
            streaming_part(network, example, dynamic, settings) if streaming else one_part(network, example, dynamic)
        ]
        check_scalers([settings, *(tasks or {}).values()] if streaming else [])
        if target == "executorch" and dynamic is None:
            parts = [executorch_bundle.batch_alone(part) for part in parts]
    elif example is not None or dynamic is not None or streaming:
        raise ValueError(
            "parts have examples, free sizes and states of their own; give no example, dynamic or streaming too"
        )
    forecaster = model if settings is not None else None
    how = Quantization.of(quantize, calibration, evaluate, form=form, parts=parts, forecaster=forecaster)
    merged = next(iter(ids)) if form == "merged" else None
    work = Prepared.of(network, parts, merged=merged, dora=dora, quantize=quantize)
    with folder_beside(place) as new:
        made = (
            onnx_graphs(work, form, max_rank, web, how)
            if target == "onnx"
            else executorch_graphs(work, max_rank, largest or {})
        )
        says = {"id": name, "target": target, "form": form, "task": task or settings}
        base = write_base(new, work, says, files or {}, made, key)
        shipped = {} if form == "merged" else {bundle_id: peft for peft, bundle_id in ids.items()}
        for bundle_id, peft in shipped.items():
            written = Path(new / "adapters" / bundle_id)
            write_adapter(written, work, peft, base, (tasks or {}).get(peft), key)
        found = check_parity(new, work, shipped)
        if check is not None:
            check(new, work.reference.switched)
        if processor is not None:
            check_texts(new, work, shipped, processor, [clip])
        cost = None
        if quantize is not None:
            cost = measured(new, work, shipped, evaluate=evaluate, forecaster=forecaster, tasks=tasks)
        sizes = {str(path.relative_to(new)): path.stat().st_size for path in sorted(new.rglob("*")) if path.is_file()}
        replace_folder(new, place)
    return Exported(place, base.manifest, sizes, found, cost, made.portable)


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
            outputs, or no key for a bundle that is signed. The bundle is then as it was.

    Example:
        >>> add_adapter(model, "pumps", "default", id="pump8", key="pumps.key.pem")  # doctest: +SKIP
    """
    bundle_id = adapter if id is None else id
    check_id(bundle_id)
    target = Path(bundle) / "adapters" / bundle_id
    if target.exists() and not overwrite:
        raise ValueError(f"{target}: there already; take another id, or replace it with overwrite=True")
    base = read_base(bundle, check_signature=False)
    if key is None and (Path(bundle) / "base" / SIGNATURE).exists():
        raise ValueError(
            f"{bundle} is signed, and a device that has its key refuses an adapter that is not; sign it: key=…"
        )
    settings, network = _forecaster(model)
    own = task or settings
    own = None if own == base.manifest.task else own
    if parts is None and isinstance(base.manifest.task, CtcSettings):
        parts = [Part({}, {}, view=ctc_view(base.manifest.task))]
    view = plan_of(base.manifest, network) if parts is None else None
    if view is not None:
        check_scalers([own])
    work = Prepared.over(network, base, adapter, parts, example, view or whole)
    with folder_beside(target) as new:
        written = new / bundle_id
        write_adapter(written, work, adapter, base, own, key)
        check_parity(Path(bundle), work, {bundle_id: adapter}, folders={bundle_id: written})
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(written, target)
    return target


def _checked_form(target: str, form: str | None, web: bool, largest: Mapping[str, int] | None) -> str:
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if target == "executorch":
        return executorch_bundle.checked_form(form, web)
    if largest is not None:
        raise ValueError("largest is for target 'executorch'; ONNX Runtime's free sizes have no bound")
    if form not in (None, *FORMS):
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    return form or "wsum"


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
            f"form 'merged' holds one adapter, got {', '.join(ids.values()) or 'none'}; name it: adapters=['default'], "
            "or on the command line the folder of one adapter"
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
