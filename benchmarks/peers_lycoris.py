"""LyCORIS' LoCon and LoHa in `peers.py`, on the same convolutions and by the same stages as `peers_cells`.

LyCORIS is held to its own update: the reference is the row's plain function of (x, W + ΔW, b) with the ΔW that its
module reports (``get_diff_weight``), and gradients flow through that. It wraps a module's ``forward`` instead of
replacing the module, so that disabling and unmerging are ``restore()`` here.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lycoris import create_lycoris_from_weights
from lycoris.wrapper import LycorisNetwork

from benchmarks.peers_cells import Verdict, difference, failure, fresh, library, verdict_of, wrong
from tests.layers.convolutions import Convolution, Net, base_weight

ALGORITHMS = ("locon", "loha")


@dataclass
class Wrapped:
    """A model and LyCORIS' modules around its convolution."""

    row: Convolution
    model: Net
    network: Any

    def output(self) -> torch.Tensor:
        return self.model(self.row.input())

    def update(self) -> torch.Tensor:
        return self.network.loras[0].get_diff_weight(1.0, base_weight(self.row.model().conv).shape)[0]


def judge_lycoris(row: Convolution, algorithm: str) -> Verdict:
    """The cell of one row and one of `ALGORITHMS`."""
    findings: list[Verdict] = []
    stage = "inject"
    with library("LyCORIS"):
        try:
            cell = wrapped(row, algorithm)
            if not cell.network.loras:
                return Verdict("error", "inject, a logged warning", "inject: no module was adapted, which is logged")
            for stage, check in STAGES.items():  # noqa: B007 - the stage that an exception comes from
                findings += check(cell)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            findings.append(failure(stage, error))
    return verdict_of(findings)


def wrapped(row: Convolution, algorithm: str) -> Wrapped:
    model = fresh(row)
    targets = {"target_module": [], "target_name": ["conv"], "enable_conv": True, "lora_prefix": "lycoris"}
    LycorisNetwork.apply_preset(targets)
    ranks = {"lora_dim": row.r, "conv_lora_dim": row.r, "alpha": row.r, "conv_alpha": row.r}
    network = LycorisNetwork(model, network_module=algorithm, use_tucker=False, **ranks)
    network.apply_to()
    return Wrapped(row, model, network.double().eval())


def start(cell: Wrapped) -> list[Verdict]:
    off = difference(cell.output(), cell.row.model()(cell.row.input()))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in cell.network.parameters():
            p.copy_((p + 0.3 * torch.randn(p.shape, generator=generator)).float())  # it loads files in float32
    return [wrong("start", off)] if off else []


def forward_and_gradients(cell: Wrapped) -> list[Verdict]:
    row, factors = cell.row, list(cell.network.parameters())
    x = row.input().requires_grad_()
    conv, y = row.model().conv, cell.model(x)
    y_dense = F.leaky_relu(row.reference(x, base_weight(conv) + cell.update(), conv.bias), 0.1)
    if off := difference(y, y_dense):
        return [wrong("forward", off)]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pairs = zip(torch.autograd.grad(y, [x, *factors], dy), torch.autograd.grad(y_dense, [x, *factors], dy), strict=True)
    offs = [off for mine, theirs in pairs if (off := difference(mine, theirs))]
    return [wrong("gradients", ", ".join(offs))] if offs else []


def save_load(cell: Wrapped) -> list[Verdict]:
    model = fresh(cell.row)
    tensors = {name: tensor.detach().clone() for name, tensor in cell.network.state_dict().items()}
    network, _ = create_lycoris_from_weights(1.0, "", model, weights_sd=tensors)
    network.apply_to()
    network.double().eval()
    off = difference(model(cell.row.input()), cell.output())
    return [wrong("save/load", off)] if off else []


def merge_and_restore(cell: Wrapped) -> list[Verdict]:
    """``restore()`` first, for ``merge_to`` writes ΔW into the plain module."""
    unmerged, base = cell.output(), cell.row.model()
    cell.network.restore()
    same = torch.equal(cell.output(), base(cell.row.input()))
    findings = [] if same else [wrong("restore", "not the base's outputs")]
    cell.network.merge_to(1.0)
    off = difference(cell.output(), unmerged)
    if off and not difference(cell.model.conv.weight, base_weight(base.conv)):
        findings.append(Verdict("merge LOST", "", f"merge: the merged weight is the base's, {off}"))
    elif off:
        findings.append(wrong("merge", off))
    return findings


STAGES = {
    "start": start,
    "forward": forward_and_gradients,
    "save/load": save_load,
    "merge": merge_and_restore,
}
