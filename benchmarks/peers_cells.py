"""One cell of `peers.py`: a method on one convolution of the tests' table, judged stage by stage in float64.

The stages, the same for audiolora and for stock PEFT: injection, the start (the base's outputs), the forward and every
gradient against the dense formula, save and load, disabling, merging, unmerging. The dense formula is the papers':
W' = W + s·B·A, with DoRA m·W'/‖W'‖, with LoHa and LoKr theirs (`tests/layers/test_lycoris.py`), in a plain function of
(x, W', b) that knows neither library.

Where the two libraries mean different functions, each is held to its own. With groups, PEFT's A is (r, C_in, k), over
all groups, and its B is grouped, so that no kernel of the base's shape is their product: the reference is then what
PEFT documents, B(A(x)) beside the base, with the base's geometry; DoRA's norm is of the whole kernel that this sum is.
PEFT takes multiples of g as ranks: a cell that it refuses for its rank is judged at the next multiple, and says so.

A cell's word is that of the first stage that fails:

- ``error``: an exception; ``WRONG``: another function, without one;
- ``merge refused``: all is well but merging, which says that it cannot be done;
- ``merge LOST``: merging reports success, and the merged weight is the base's.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel, get_peft_model

import audiolora
from tests.layers import test_lycoris as lycoris
from tests.layers.convolutions import METHODS as LORA_METHODS
from tests.layers.convolutions import Convolution, Net, base_weight
from tests.layers.test_lora import ALPHA, config, randomise, reference

METHODS = (*LORA_METHODS, "loha", "lokr")
LIBRARIES = ("PEFT", "audiolora")
RTOL, ATOL = 1e-9, 1e-10
KEYS = {"lora_A": "A", "lora_magnitude_vector": "m"}


@dataclass(frozen=True)
class Verdict:
    """What became of a cell.

    Args:
        word: ``ok``, ``error``, ``WRONG``, ``merge refused`` or ``merge LOST``.
        stage: the first that failed, and for an error its type.
        detail: everything that was found.
    """

    word: str
    stage: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return self.word + (f" ({self.stage})" if self.stage else "")


@dataclass
class Cell:
    """A convolution with its adapter, the factors drawn as after training (but for the start)."""

    row: Convolution
    method: str
    library: str
    model: PeftModel

    @property
    def base_output(self) -> torch.Tensor:
        return self.row.model()(self.row.input())

    def output(self) -> torch.Tensor:
        return self.model(self.row.input())


@contextmanager
def library(name: str) -> Iterator[None]:
    """PEFT with audiolora's layers in it, or as its authors left it; its warnings are no verdict."""
    with audiolora.enabled() if name == "audiolora" else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def judge(row: Convolution, method: str, name: str) -> Verdict:
    """The cell of one row, one of the tests' ``METHODS`` and one of `LIBRARIES`."""
    with library(name):
        verdict = _judge(row, method, name)
        groups = row.model().conv.groups
        if name == "PEFT" and verdict.word == "error" and "rank is divisible by groups" in verdict.detail:
            r = -(-row.r // groups) * groups
            other = _judge(replace(row, r=r), method, name)
            stage = f"{other.stage}; r={r}, as r={row.r} is refused".removeprefix("; ")
            return Verdict(other.word, stage, f"with r={r}: {other.detail}; with r={row.r}: {verdict.detail}")
    return verdict


def _judge(row: Convolution, method: str, name: str) -> Verdict:
    try:
        cell = Cell(row, method, name, get_peft_model(fresh(row), config_of(row, method)).eval())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return verdict_of([failure("inject", error)])
    findings, notes = [], []
    for stage, check in STAGES.items():
        try:
            found = check(cell)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            findings.append(failure(stage, error))
            if stage in ("start", "forward", "merge"):  # what comes after would only say it again
                break
            continue
        if found is not None:
            (notes if found.word == "ok" else findings).append(found)
    return verdict_of(findings, notes)


def config_of(row: Convolution, method: str) -> PeftConfig:
    return lycoris.config(row, method) if method in lycoris.METHODS else config(row, method)


def fresh(row: Convolution) -> Net:
    """The row's model, run once: the old weight norm's hook has its weight in float32 until then."""
    model = row.model()
    model(row.input())
    return model


def failure(stage: str, error: Exception) -> Verdict:
    """An exception as a finding; at the merge, one that says that it cannot be done is a refusal."""
    text = f"{stage}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    refused = stage == "merge" and ("not supported" in str(error) or "mpossible" in str(error))
    return Verdict("merge refused", "", text) if refused else Verdict("error", f"{stage}, {type(error).__name__}", text)


def wrong(stage: str, what: str) -> Verdict:
    return Verdict("WRONG", stage, f"{stage}: {what}")


def verdict_of(findings: list[Verdict], notes: list[Verdict] | None = None) -> Verdict:
    """The first finding's word, with all of them in the detail."""
    detail = "; ".join(each.detail for each in [*findings, *(notes or [])])
    return replace(findings[0], detail=detail) if findings else Verdict("ok", detail=detail)


def difference(actual: torch.Tensor, expected: torch.Tensor) -> str:
    """Empty where they agree; else by how much they differ, against the largest number expected."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if torch.allclose(actual, expected, rtol=RTOL, atol=ATOL):
        return ""
    off = (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
    return f"off by {off:.2g} of the largest" if off.isfinite() else "not finite"


def start(cell: Cell) -> Verdict | None:
    off = difference(cell.output(), cell.base_output)
    (lycoris.randomise if cell.method in lycoris.METHODS else randomise)(cell.model)
    return wrong("start", off) if off else None


def forward(cell: Cell) -> Verdict | None:
    off = difference(cell.output(), expected_output(cell, cell.row.input(), leaves(cell)))
    return wrong("forward", off) if off else None


def gradients(cell: Cell) -> Verdict | None:
    """To the input, and to each factor."""
    factors, x, x_dense = leaves(cell), *(cell.row.input().requires_grad_() for _ in range(2))
    y, y_dense = cell.model.train()(x), expected_output(cell, x_dense, factors)
    cell.model.eval()
    if y.shape != y_dense.shape:
        return wrong("gradients", difference(y, y_dense))
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    actual = torch.autograd.grad(y, [x, *parameters(cell).values()], dy)
    expected = torch.autograd.grad(y_dense, [x_dense, *factors.values()], dy)
    pairs = zip(["x", *factors], actual, expected, strict=True)
    offs = [f"∂{name} {off}" for name, mine, theirs in pairs if (off := difference(mine, theirs))]
    return wrong("gradients", ", ".join(offs)) if offs else None


def save_load(cell: Cell) -> Verdict | None:
    with tempfile.TemporaryDirectory() as folder:
        cell.model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(fresh(cell.row), folder).eval()
    off = difference(loaded(cell.row.input()), cell.output())
    return wrong("save/load", off) if off else None


def disable(cell: Cell) -> Verdict | None:
    with cell.model.disable_adapter():
        same = torch.equal(cell.output(), cell.base_output)
    return None if same else wrong("disable", "not the base's outputs")


def merge(cell: Cell) -> Verdict | None:
    unmerged = cell.output()
    cell.model.merge_adapter()
    merged = cell.output()
    if not (off := difference(merged, unmerged)):
        return None
    kernel = cell.model.base_model.model.conv.get_base_layer().weight
    lost = not difference(kernel, base_weight(cell.row.model().conv))
    return Verdict("merge LOST", "", f"merge: the merged weight is the base's, {off}") if lost else wrong("merge", off)


def unmerge(cell: Cell) -> Verdict | None:
    """The base's own tensors bit for bit, or to how much."""
    cell.model.unmerge_adapter()
    now, before = cell.model.base_model.model.conv.state_dict(), cell.row.model().conv.state_dict()
    now = {name.removeprefix("base_layer."): tensor for name, tensor in now.items()}
    offs = [(now[at] - tensor).abs().max() for name, tensor in before.items() if (at := stored_at(name, now))]
    off = float(torch.stack(offs).max())
    if off == 0:
        return None
    what = f"unmerge: to {off:.1g}, not bit for bit"
    return Verdict("ok", detail=what) if off < 1e-12 else wrong("unmerge", what)


def stored_at(name: str, tensors: dict[str, torch.Tensor]) -> str:
    """Where the adapted layer keeps a tensor of the base: under its own name, or under a parametrization's."""
    old = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    names = (name, f"parametrizations.{name}.original", old.get(name, ""))
    return next(at for at in names if at in tensors)


STAGES: dict[str, Callable[[Cell], Verdict | None]] = {
    "start": start,
    "forward": forward,
    "gradients": gradients,
    "save/load": save_load,
    "disable": disable,
    "merge": merge,
    "unmerge": unmerge,
}


def parameters(cell: Cell) -> dict[str, torch.nn.Parameter]:
    """A, B, b (of B) and m (DoRA's magnitude) of the layer, or w1_a and so on, whichever library's it is."""
    named = cell.model.base_model.model.conv.named_parameters()
    if cell.method in lycoris.METHODS:
        return {n.partition(".")[0].partition("_")[2]: p for n, p in named if n.endswith(".default")}
    return {
        KEYS.get(name.split(".")[0], "b" if name.endswith("bias") else "B"): parameter
        for name, parameter in named
        if ".default." in name
    }


def leaves(cell: Cell) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in parameters(cell).items()}


def expected_output(cell: Cell, x: torch.Tensor, factors: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the cell's own function is; see the module's text."""
    if cell.method in lycoris.METHODS:
        return lycoris.reference(cell.row, cell.method, x, factors)
    conv = cell.row.model().conv
    only_beside = conv.groups > 1 or (conv.bias is None and "b" in factors)  # PEFT has a bias where the base has none
    if cell.library == "PEFT" and only_beside:
        return beside_the_base(cell.row, x, factors, cell.method)
    return reference(cell.row, x, factors, cell.method)


def beside_the_base(row: Convolution, x: torch.Tensor, factors: dict[str, torch.Tensor], method: str) -> torch.Tensor:
    """y = conv(x; W, b) + s·B(A(x)), A over all channels and B by groups; with DoRA scaled by m over the norm."""
    conv = row.model().conv
    g, A, B, W = conv.groups, factors["A"], factors["B"], base_weight(conv)
    r, C_in, k = A.shape
    s = ALPHA / (r**0.5 if method == "rslora" else r)
    # A as g groups of r kernels, so that the row's own reference, which knows g, gives the parts of A(x).
    parts = row.reference(x, A.view(r, g, C_in // g, k).transpose(0, 1).reshape(g * r, C_in // g, k), None)
    low_rank = s * F.conv1d(parts.unflatten(-2, (g, r)).sum(-3), B, groups=g)
    y = row.reference(x, W, None) + low_rank
    if "m" in factors:
        norm = wide_kernel(W, A, B, s, g).detach().square().sum((1, 2)).sqrt()
        y = y * (factors["m"].flatten() / norm)[:, None]
    biases = [bias for bias in (conv.bias, s * factors["b"] if "b" in factors else None) if bias is not None]
    return F.leaky_relu(y + sum(biases)[:, None] if biases else y, 0.1)


def wide_kernel(W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, s: float, g: int) -> torch.Tensor:
    """W (C_out, C_in/g, k) + s·B·A over all channels: (C_out, C_in, k), for A (r, C_in, k) and B (C_out, r/g, 1)."""
    parts = W.chunk(g)
    width = W.shape[1]
    rows = [F.pad(part.mT, (i * width, (g - 1 - i) * width)).mT for i, part in enumerate(parts)]
    return torch.cat(rows) + s * torch.einsum("or,rik->oik", torch.block_diag(*B.squeeze(-1).chunk(g)), A)
