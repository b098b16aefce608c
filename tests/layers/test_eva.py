"""EVA's start against principal components by NumPy, of windows cut by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from torch import nn

import audiolora
from audiolora.layers.eva import windows
from tests.layers.convolutions import CONVOLUTIONS, OF_THEIR_OWN, Convolution, base_weight
from tests.layers.test_lora import row_named

NAMES = ("plain", "dilation 2, padding same", "even kernel, padding same", "circular", "groups 2", "depthwise",
         "old weight_norm", "causal subclass, dilation 2", "stride 2", "derived weight",
         "a class of its own, groups 2")  # fmt: skip
ROWS = [row for row in (*CONVOLUTIONS, *OF_THEIR_OWN) if row.name in NAMES]

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def initialised(net: nn.Module, x: torch.Tensor, **settings: Any) -> PeftModel:
    config = LoraConfig(**{"r": 2, "target_modules": ["conv"], "init_lora_weights": "eva", **settings})
    with audiolora.enabled():
        model = get_peft_model(net, config)
        initialize_lora_eva_weights(
            model,
            [x],
            forward_fn=lambda model, batch: model(batch),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=None,
            show_progress_bar=False,
        )
    return model


def seen_by(row: Convolution, x: torch.Tensor) -> np.ndarray:
    """Windows by the reference: each tap of each input channel is read by a kernel that is 1 there alone."""
    W = base_weight(row.build())
    out, per_group, k = W.shape
    groups = row.build().groups
    columns = []
    for c in range(per_group):
        for j in range(k):
            kernel = torch.zeros(out, per_group, k, dtype=torch.float64)
            kernel[:, c, j] = 1
            y = row.reference(x, kernel, None)
            columns.append(y.unflatten(1, (groups, -1))[:, :, 0])  # every output of a group sees the same
    return torch.stack(columns, -1).flatten(0, 2).numpy()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_starts_as_the_components_of_what_the_kernel_sees(row: Convolution) -> None:
    x = torch.randn(8, row.shape[1], 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x * torch.logspace(0, 2, row.shape[1], 2, dtype=torch.float64)[:, None]  # directions that differ
    x[..., 1:] += x[..., :-1].clone()
    if row.name == "derived weight":  # the kernel that sees is another function of W; the windows are the same
        reference = Convolution(row.name, row.build, lambda x, W, b: F.conv1d(x, W, b, padding=1), row.shape)
        seen = seen_by(reference, x)
    else:
        seen = seen_by(row, x)
    model = initialised(row.model(), x, eva_config=EvaConfig(rho=1.0, tau=0.999))
    layer = model.base_model.model.conv
    A = layer.lora_A["default"].weight.detach().flatten(1).numpy()
    Vh = np.linalg.svd(seen - seen.mean(0))[2]
    np.testing.assert_allclose(np.abs(A @ Vh.T)[:, :2], np.eye(2), atol=0.05)
    assert not layer.lora_B["default"].weight.any()
    torch.testing.assert_close(model.eval()(x), row.model()(x))


def test_windows_are_what_unfold_cuts() -> None:
    x = torch.randn(2, 6, 15, generator=torch.Generator().manual_seed(0))
    for k, stride, padding, dilation in ((3, 1, 1, 1), (4, 3, 2, 2), (1, 2, 0, 1)):
        expected = F.unfold(x[:, :, None], (1, k), (1, dilation), (0, padding), (1, stride)).mT.flatten(0, 1)
        torch.testing.assert_close(windows(x, k, stride, padding, dilation, 1), expected)


class Two(nn.Module):
    """A convolution whose input varies along many directions, and one that sees a single one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.flat = nn.Conv1d(6, 4, 3), nn.Conv1d(6, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(x) + self.flat(x[:, :1].mean(2, keepdim=True).expand_as(x))


def test_ranks_are_shared_out_and_saved(tmp_path: Path) -> None:
    x = torch.randn(16, 6, 12, generator=torch.Generator().manual_seed(2))
    model = initialised(Two(), x, r=2, target_modules=["wide", "flat"], eva_config=EvaConfig(rho=2.0))
    ranks = {row.name: row.r for row in audiolora.inspect(model).rows}
    assert sum(ranks.values()) <= 4 and ranks["flat"] == 1 < ranks["wide"]
    torch.testing.assert_close(model.eval()(x), Two()(x))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(Two(), tmp_path).eval()
    torch.testing.assert_close(loaded(x), model(x))


def test_a_transposed_convolution_is_refused() -> None:
    row = row_named("transposed")
    with pytest.raises(ValueError, match="conv: init_lora_weights='eva' needs the window under a kernel"):
        initialised(row.model(), row.input())
