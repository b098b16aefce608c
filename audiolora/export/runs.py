"""From folders of trained adapters to a bundle: what ``audiolora export`` does."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from audiolora.export.ctc_runs import ctc_settings_of, export_ctc_runs, processors
from audiolora.export.exporting import Exported, export
from audiolora.export.forecast_runs import forecaster_task, is_forecast_run, read_forecast_run
from audiolora.export.prepared import forward_names
from audiolora.export.rows import Rows
from audiolora.integration import enabled
from audiolora.speech.whisper.adapter import INFO_FILE

_CONFIG, _FORECASTER = "adapter_config.json", "forecaster.json"
_NO_ROWS = (
    "--calibrate and --evaluate are rows of a forecaster, and these adapters are none's; from Python: "
    "export(…, calibration=inputs, evaluate=function)"
)
_NO_SPEECH = (
    "--calibrate is for a forecaster's rows, and these adapters are of speech; take --quantize int8, or for a CTC "
    "model from Python: export(…, quantize='qdq', calibration=inputs)"
)


def export_runs(
    runs: Sequence[Path],
    out: Path,
    network: str | None = None,
    *,
    base: Path | None = None,
    shape: str | None = None,
    fixed_length: bool = False,
    form: str | None = None,
    calibrate: Path | None = None,
    evaluate: Path | None = None,
    processor: Path | None = None,
    **settings: Any,
) -> Exported:
    """Load the network and each run's adapter, and export them.

    Args:
        runs: a finished run of a recipe, or several over one Whisper or CTC model; or folders with
            ``adapter_config.json`` in them or in ``adapter/``; with ``forecaster.json``, a forecaster's.
        out: the bundle's folder.
        network: ``MODULE:FUNCTION``, which makes the base; None for a recipe's run, which knows its own.
        base: `Forecaster.save`'s folder of the base, if the function gives untrained weights; of speech
            runs, another place for it.
        shape: of an example, ``"2,5,168"``; forecasters have their own.
        fixed_length: the last axis is not free.
        form: as in `export`; None takes the default, of `export_whisper` for speech runs.
        calibrate, evaluate: files of rows, for `export`'s arguments; for forecasters. For speech ``evaluate`` is what
            `spoken.evaluation_clips` takes.
        processor: of a CTC model, ``Wav2Vec2Processor.save_pretrained``'s folder; default ``processor/`` in a run.
        settings: of `export`.

    Raises:
        ValueError: a run that holds no adapter, one of another base, or what `export` refuses.
    """
    settings |= {} if form is None else {"form": form}
    if len(runs) == 1 and is_forecast_run(runs[0]):
        if network is not None or base is not None:
            raise ValueError(f"{runs[0]}: a run of forecasters has its base with it; leave --network and --base out")
        if shape is not None or processor is not None:
            raise ValueError(f"{runs[0]}: a run of forecasters knows what it takes; leave --shape and --processor out")
        with TemporaryDirectory(prefix="audiolora-adapters-") as scratch:
            run = read_forecast_run(runs[0], Path(scratch))
            rows = Rows(calibrate, evaluate, run.time_zone)
            return _exported(run.net, run.adapters, out, run.base, shape, fixed_length, rows, **settings)
    if several := [run for run in runs if is_forecast_run(run)]:
        raise ValueError(f"{several[0]}: a run of forecasters has an adapter for each device; export it by itself")
    folders = {_id(run): _adapter_folder(run) for run in runs}
    if len(folders) < len(runs):
        raise ValueError(f"two runs would have the same id: {', '.join(map(_id, runs))}; rename a folder")
    if network is None and any((folder / INFO_FILE).is_file() for folder in folders.values()):
        _check_speech(folders, shape is not None or fixed_length or processor is not None)
        return _speech_exporter(folders)(folders, out, base=base, **_words(evaluate, calibrate, folders), **settings)
    if network is None:
        raise ValueError("these adapters do not say over which network they were trained; name what makes it: "
                         "--network MODULE:FUNCTION, such as pumps:network")  # fmt: skip
    net = _made(network)
    if base is not None:
        from audiolora.series.forecaster import Forecaster

        net = Forecaster.load(net, base).net
    if (found := processors(folders, processor)) is not None:
        _check_plain(base, shape, fixed_length)
        settings |= _words(evaluate, calibrate, folders)
        ids = {f"run{i}": name for i, name in enumerate(folders)}
        model = _with_adapters(net, {peft: folders[name] for peft, name in ids.items()})
        return export(model, out, adapters=ids, **ctc_settings_of(model, ids, *found), **settings)
    rows = Rows(calibrate, evaluate, None)
    return _exported(net, folders, out, base, shape, fixed_length, rows, **settings)


def _exported(
    net: nn.Module,
    folders: dict[str, Path],
    out: Path,
    base: Path | None,
    shape: str | None,
    fixed_length: bool,
    rows: Rows,
    **settings: Any,
) -> Exported:
    described = {name: _described(folder) for name, folder in folders.items()}
    _check_base(net, folders, described)
    ids = {f"run{i}": name for i, name in enumerate(folders)}  # PEFT's names take no dots
    model = _with_adapters(net, {peft: folders[name] for peft, name in ids.items()})
    dynamic = {forward_names(net)[0]: {0: "batch"}} if fixed_length else None
    of_base = _described(base) if base is not None else next((d for d in described.values() if d), None)
    if of_base is not None:
        forecaster = _forecaster(model, of_base)
        own = {
            peft: forecaster_task(_settings(found), rows.time_zone)
            for peft, name in ids.items()
            if (found := described[name]) is not None
        }
        task = forecaster_task(_settings(of_base), rows.time_zone)
        settings |= rows.read(forecaster)
        return export(forecaster, out, adapters=ids, task=task, tasks=own, dynamic=dynamic, **settings)
    if rows.calibrate or rows.evaluate:
        raise ValueError(_NO_ROWS)
    if shape is None:
        raise ValueError(
            "no run says what the network takes; give the shape of an input: --shape 2,5,168, or for a CTC model its "
            "processor's folder: --processor DIR"
        )
    example = torch.randn([int(size) for size in shape.split(",")], generator=torch.Generator().manual_seed(0))
    return export(model, out, example, adapters=ids, dynamic=dynamic, **settings)


def _words(evaluate: Path | None, calibrate: Path | None, folders: dict[str, Path]) -> dict[str, Any]:
    """`export`'s argument of speech: utterances."""
    if calibrate is not None:
        raise ValueError(_NO_SPEECH)
    if evaluate is None:
        return {}
    from audiolora.export.spoken import evaluation_clips

    return {"evaluate": evaluation_clips(evaluate, [run for each in folders.values() for run in (each, each.parent)])}


def _check_speech(folders: dict[str, Path], shaped: bool) -> None:
    if others := [str(folder) for folder in folders.values() if not (folder / INFO_FILE).is_file()]:
        raise ValueError(f"{', '.join(others)}: not of a speech run, and the others are; export them apart")
    if shaped:
        raise ValueError("speech runs know what they take; leave --shape, --fixed-length and --processor out")


def _speech_exporter(folders: dict[str, Path]) -> Callable[..., Exported]:
    """What exports runs of this kind: Whisper's or CTC's."""
    from audiolora.export.speech import export_speech_runs
    from audiolora.speech.ctc.adapter import is_ctc_adapter

    kinds = {name: is_ctc_adapter(folder) for name, folder in folders.items()}
    if len(set(kinds.values())) > 1:
        ctc = [name for name, is_ctc in kinds.items() if is_ctc]
        raise ValueError(f"{', '.join(ctc)}: of a CTC model, and the others of a Whisper; export them apart")
    return export_ctc_runs if all(kinds.values()) else export_speech_runs


def _check_plain(base: Path | None, shape: str | None, fixed_length: bool) -> None:
    for name, given in (("--base", base), ("--shape", shape), ("--fixed-length", fixed_length)):
        if given:
            raise ValueError(f"a processor makes this a CTC model, which {name} is not for; leave it out")


def _id(run: Path) -> str:
    resolved = run.resolve()
    return resolved.parent.name if resolved.name == "adapter" else resolved.name


def _adapter_folder(run: Path) -> Path:
    for folder in (run, run / "adapter"):
        if (folder / _CONFIG).is_file():
            return folder
    raise ValueError(f"{run} holds no adapter: there is no {_CONFIG} in it; name a folder such as runs/pump7")


def _described(folder: Path) -> dict[str, Any] | None:
    path = folder / _FORECASTER
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _settings(described: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in described.items() if name not in ("format", "kind", "base")}


def _check_base(net: nn.Module, folders: dict[str, Path], described: dict[str, dict[str, Any] | None]) -> None:
    if not any(described.values()):
        return
    from audiolora.series.saving import base_fingerprint

    found = base_fingerprint(net)
    for name, says in described.items():
        if says is not None and says.get("base") != found:
            raise ValueError(
                f"{folders[name]}: trained over another base: weights {str(says.get('base'))[:12]} there, "
                f"{found[:12]} in this {type(net).__name__}; name the base that it was trained over (--base)"
            )


def _with_adapters(net: nn.Module, folders: dict[str, Path]) -> nn.Module:
    model: Any = net
    with enabled():
        for name, folder in folders.items():
            try:
                if isinstance(model, PeftModel):
                    model.load_adapter(str(folder), adapter_name=name)
                else:
                    model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
            except RuntimeError as error:  # load_state_dict
                raise ValueError(
                    f"{folder}: its tensors are not of the sizes of this {type(net).__name__}: "
                    f"{' '.join(str(error).split())[:300]}; make the base with the sizes that it was trained over "
                    "(vocab_size, of an alphabet)"
                ) from error
    return model


def _forecaster(model: nn.Module, described: dict[str, Any]) -> Any:
    from audiolora.series.forecaster import Forecaster
    from audiolora.series.scaling import scaler_from_dict

    settings = _settings(described)
    return Forecaster(model, **{**settings, "scaler": scaler_from_dict(settings["scaler"])})


def _made(network: str) -> nn.Module:
    """What ``MODULE:FUNCTION`` gives.

    Raises:
        ValueError: no such module or function, or it gives no network.
    """
    module, _, function = network.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--network {network}: {error}; write MODULE:FUNCTION, such as pumps:network") from error
    finally:
        sys.path.remove(os.getcwd())
    made = make()
    if not isinstance(made, nn.Module):
        raise ValueError(f"--network {network} gives a {type(made).__name__}; it must give a torch.nn.Module")
    return made
