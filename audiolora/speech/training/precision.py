"""Which numbers a training computes in, and whether the device has them."""

import os

import torch

from audiolora.speech.training.settings import Precision


def mixed_precision(precision: Precision, device: str) -> dict[str, bool]:
    """The ``bf16`` and ``fp16`` of transformers' arguments.

    Weights stay float32 in each of them: what is rounded is what the forward and the backward compute.

    Args:
        precision: see `TrainingSettings`.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``, …

    Raises:
        ValueError: the device does not have it, or ``accelerate launch --mixed_precision`` asks for another.

    Example:
        >>> mixed_precision("auto", "cpu")
        {'bf16': False, 'fp16': False}
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" is also accelerate launch's default
    if launched != "no":
        if precision not in ("auto", launched):
            raise ValueError(
                f"precision {precision} and accelerate's mixed_precision {launched} contradict each other; leave one "
                "of them out"
            )
        if launched not in ("bf16", "fp16"):
            raise ValueError(f"accelerate's mixed_precision {launched} is none of fp32, bf16 and fp16; choose of them")
        precision = launched  # type: ignore[assignment]
    cuda = device == "cuda"
    has_bf16 = device == "cpu" or (cuda and torch.cuda.is_bf16_supported(including_emulation=False))
    if precision == "auto" and cuda:
        precision = "bf16" if has_bf16 else "fp16"
    if precision == "bf16" and not has_bf16:
        raise ValueError(f"precision bf16: this {device} device computes no bfloat16; take fp32, or auto")
    if precision == "fp16" and not cuda:
        raise ValueError(
            f"precision fp16 needs a CUDA GPU, where the loss is scaled for it, and the device is {device}; take bf16, "
            "or fp32"
        )
    return {"bf16": precision == "bf16", "fp16": precision == "fp16"}
