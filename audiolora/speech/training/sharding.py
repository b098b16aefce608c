"""Training with the model sharded over GPUs (FSDP, ``accelerate launch --use_fsdp --fsdp_version 2``).

PyTorch cuts every parameter of each layer into a piece a process and puts a layer together when it runs. An adapter in
a convolution is part of its layer, so that its map finds whole factors there. Version 1 is another matter: for a PEFT
model it wraps every factor by itself, and whoever reads a factor without calling its module finds it empty.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

from audiolora.layers.quantized import quantization_of


@contextmanager
def whole_afterwards(model: torch.nn.Module, trainer: Any) -> Iterator[None]:
    """Within the block the Trainer may shard the model; after it the model is whole, with the best adapter, everywhere.

    Nothing is done where the Trainer does not shard.

    Args:
        model: a ``PeftModel``; changed in place.
        trainer: transformers' Trainer of it, which ends with the best checkpoint.

    Raises:
        ValueError: FSDP version 1, a model without adapters, or one over a quantised base.
    """
    if not trainer.is_fsdp_enabled:
        yield
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"FSDP version {plugin.fsdp_version} takes an adapter's factors apart from the convolution that they "
            "map; start it with accelerate launch --use_fsdp --fsdp_version 2"
        )
    if not isinstance(model, PeftModel):
        raise ValueError("only adapters are trained over a sharded model; adapt it first, or leave --use_fsdp out")
    if any(quantization_of(module) is not None for module in model.modules()):
        raise ValueError("a base in 8 or 4 bits is not sharded; set base_bits to 32, or leave --use_fsdp out")
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # of the kind that accelerate launch chose
    plugin.set_state_dict_type("FULL_STATE_DICT")  # checkpoints hold the adapter whole: it is small
    whole = copy.deepcopy(model).to("cpu")
    yield
    best = trainer.state.best_model_checkpoint
    if best is not None:
        weights = load_file(Path(best) / "adapter_model.safetensors")
        loaded = set_peft_model_state_dict(whole, weights, adapter_name=model.active_adapter)
        assert not loaded.unexpected_keys
    # The sharded parameters stand in the very module that the caller holds: it becomes the whole one.
    model.__class__, model.__dict__ = type(whole), vars(whole)
    model.to(trainer.args.device)
