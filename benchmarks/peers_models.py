"""One convolution of a real model of `peers.py`: LoRA on it alone, in the tests' tiny random transformers models.

The stages: injection, the start, the forward against the plain model run with W' in that convolution's place, merging
and unmerging. A convolution whose adapter changes no output is ``WRONG (bypassed)``; those that a model has and never
runs are left out. PEFT is given a rank that is a multiple of the groups, with the same scaling, and with groups is held
to B(A(x)) beside the base (`peers_cells`): the plain model then runs that convolution over all channels, ungrouped.
"""

import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks.peers_cells import Verdict, failure, library, verdict_of, wide_kernel, wrong
from tests.models.test_transformers_models import (
    ALPHA,
    R,
    Ran,
    dense_weight,
    plain_output,
    randomise,
    without_weight_norm,
)
from tests.models.transformers_models import RealModel, convolutions


def judge_model(row: RealModel, name: str) -> dict[str, Verdict]:
    """The verdict on each convolution, by its path, with one of `LIBRARIES`."""
    with library(name):
        return {path: judge(row, path, name) for path in convolutions(row.build()) if path not in row.unused}


def judge(row: RealModel, path: str, name: str) -> Verdict:
    stage, findings = "inject", []
    try:
        model = adapted(row, path, name)
        stage = "start"
        findings += different(row, stage, row.output(model), plain_output(row))
        randomise(model)
        stage = "forward"
        unmerged = row.output(model)
        if torch.equal(unmerged, plain_output(row)):
            return wrong("bypassed", "the adapter changes no output")
        findings += different(row, stage, unmerged, reference(row, path, model, name))
        stage = "merge"
        model.merge_adapter()
        findings += merged(row, path, model, unmerged)
        stage = "unmerge"
        model.unmerge_adapter()
        findings += different(row, stage, row.output(model), unmerged)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        findings.append(failure(stage, error))
    return verdict_of(findings)


def adapted(row: RealModel, path: str, name: str) -> PeftModel:
    base = row.build()
    base.requires_grad_(False)
    row.output(base)  # the old weight norm's hook has its weight in float32 until then
    groups = base.get_submodule(path).groups
    r = R if name == "audiolora" else -(-R // groups) * groups
    return get_peft_model(base, LoraConfig(r=r, lora_alpha=ALPHA * r / R, target_modules=re.escape(path))).eval()


def different(row: RealModel, stage: str, actual: torch.Tensor, expected: torch.Tensor) -> list[Verdict]:
    if actual.shape != expected.shape:
        return [wrong(stage, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")]
    off = (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
    return [] if off <= row.tolerance else [wrong(stage, f"off by {off:.2g} of the largest")]


def reference(row: RealModel, path: str, model: PeftModel, name: str) -> torch.Tensor:
    """The plain model's output with W' in the convolution's place."""
    plain = Ran(row, without_weight_norm(row.build()).requires_grad_(False))
    conv, layer = plain.model.get_submodule(path), model.get_base_model().get_submodule(path)
    A, B = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    if name == "PEFT" and conv.groups > 1:
        W = wide_kernel(conv.weight, A, B, ALPHA / R, conv.groups)
        conv.groups = 1
    else:
        W = dense_weight(conv, A, B, None)
    return torch.func.functional_call(plain, {f"model.{path}.weight": W}, ())


def merged(row: RealModel, path: str, model: PeftModel, unmerged: torch.Tensor) -> list[Verdict]:
    findings = different(row, "merge", row.output(model), unmerged)
    kernel = model.get_base_model().get_submodule(path).get_base_layer().weight
    if findings and torch.allclose(kernel, row.build().get_submodule(path).weight):
        return [Verdict("merge LOST", "", f"{findings[0].detail}; the merged weight is the base's")]
    return findings
