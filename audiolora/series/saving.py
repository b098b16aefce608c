"""A forecaster on disk: an adapter in PEFT's format or a whole network, and ``forecaster.json``.

The file says over which base the adapter was trained, by the hash of its weights, so that no adapter is ever put on
another network in silence.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from audiolora.files import replace_folder, write_json
from audiolora.integration import enabled
from audiolora.series.nets import TCNForecaster
from audiolora.series.training import fingerprint

if TYPE_CHECKING:
    from audiolora.series.forecaster import Forecaster

FORMAT = 1
INFO_FILE = "forecaster.json"
NETWORK_FILE = "network.safetensors"
NETWORK_INFO = "network.json"
"""Beside a whole `TCNForecaster`: what to build it with again."""


def base_fingerprint(net: nn.Module) -> str:
    """The hash of a network's weights without adapters in it; the same before and after adapting.

    Example:
        >>> import audiolora
        >>> net = nn.Sequential(nn.Conv1d(1, 2, 3))
        >>> before = base_fingerprint(net)
        >>> base_fingerprint(audiolora.adapt(net, r=1)) == before
        True
    """
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    if isinstance(net, PeftModel):
        tensors = {k: t for k, t in tensors.items() if "lora_" not in k and ".modules_to_save." not in k}
    return fingerprint(tensors)


def save_forecaster(forecaster: Forecaster, folder: Path) -> None:
    """Write the folder, whole or not at all; one that is there is replaced.

    Raises:
        ValueError: the adapter is merged, so that the base is not itself.
    """
    net = forecaster.net
    if any(getattr(module, "merged_adapters", None) for module in net.modules()):
        raise ValueError(f"{folder}: the adapter is merged into the base; call net.unmerge_adapter() before saving it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    if isinstance(net, PeftModel):
        # A state dict that is given is not searched for shapes of a sharded training, which lora_bias has.
        net.save_pretrained(str(new), state_dict=net.state_dict(), save_embedding_layers=False)
        shutil.copymode(new / "adapter_config.json", new / "adapter_model.safetensors")  # safetensors makes it private
    else:
        save_file(
            {name: t.detach().cpu().clone().contiguous() for name, t in net.state_dict().items()}, new / NETWORK_FILE
        )
    if isinstance(net, TCNForecaster):
        write_json(new / NETWORK_INFO, {"network": "TCNForecaster", "settings": net.settings})
    kind = {"kind": "adapter", "base": base_fingerprint(net)} if isinstance(net, PeftModel) else {"kind": "network"}
    write_json(new / INFO_FILE, {"format": FORMAT, **kind, **forecaster.settings()})
    replace_folder(new, folder)


def load_forecaster(net: nn.Module, folder: Path, expected: Mapping[str, Any]) -> Forecaster:
    """What `save_forecaster` wrote, over ``net``; see `Forecaster.load`."""
    from audiolora.series.forecaster import Forecaster
    from audiolora.series.scaling import scaler_from_dict

    info = _read_info(folder)
    settings = {name: value for name, value in info.items() if name not in ("format", "kind", "base")}
    if unknown := sorted(set(expected) - set(settings)):
        raise ValueError(f"{', '.join(unknown)}: no setting of a forecaster; it has {', '.join(settings)}")
    wrong = [
        f"{name}: {settings[name]!r} in the file, {value!r} expected"
        for name, value in expected.items()
        if settings[name] != (list(value) if isinstance(value, tuple) else value)
    ]
    if wrong:
        raise ValueError(f"{folder} is another forecaster: {'; '.join(wrong)}")
    if isinstance(net, PeftModel):
        raise ValueError(f"{folder}: load onto the plain network, this one is adapted already; pass net.unload()")
    if info["kind"] == "adapter":
        net = _with_adapter(net, folder, info["base"])
    else:
        _load_network(net, folder)
    settings["scaler"] = scaler_from_dict(settings["scaler"])
    return Forecaster(net, **settings)


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO_FILE
    if not path.exists():
        raise ValueError(
            f"{folder} holds no forecaster: there is no {INFO_FILE} in it; name a folder from Forecaster.save"
        )
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}; save the forecaster again") from None
    if info.get("format") != FORMAT:
        raise ValueError(f"{path}: format {info.get('format')}, and this audiolora reads {FORMAT}; upgrade it")
    return info


def _with_adapter(net: nn.Module, folder: Path, wanted: str) -> PeftModel:
    found = base_fingerprint(net)
    if found != wanted:
        raise ValueError(
            f"{folder}: its adapter was trained over another base: weights {wanted[:12]} there, {found[:12]} in this "
            f"{type(net).__name__}; load the base that it was trained over, before anything else is trained in it"
        )
    with enabled():
        return PeftModel.from_pretrained(net, str(folder))


def _load_network(net: nn.Module, folder: Path) -> None:
    file, here = load_file(folder / NETWORK_FILE), net.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in file.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in here.items()}
    wrong = [
        f"{name}: {shapes.get(name, 'nothing')} in the file, {wanted.get(name, 'nothing')} in the network"
        for name in sorted(shapes.keys() | here.keys())
        if shapes.get(name) != wanted.get(name)
    ]
    if wrong:
        raise ValueError(
            f"{folder} holds another network than this {type(net).__name__}: {'; '.join(wrong[:8])}"
            + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        )
    with torch.no_grad():
        net.load_state_dict(file)
