"""``add_weighted_adapter`` on our layers: adapters are combined as updates of the weight.

With M_i = s_i·B_i·A_i (C_out, C_in/g · k), each combination is a function of the M_i and of their weights w_i, and the
new adapter holds the result:

    cat, and any combination of one adapter     Σ w_i·M_i at rank Σ r_i: exact, the factors side by side
    svd, linear                                 Σ w_i·M_i                        the best approximation at the new rank:
    ties(_svd)            arXiv 2306.01708      trimmed, signs elected           the leading singular triplets
    dare_…(_svd)          arXiv 2311.03099      dropped at random, rescaled      (Eckart and Young)
    magnitude_prune(_svd)                       trimmed

PEFT takes the same functions for its ``…_svd`` names, which it has for Linear and Conv2d alone. Without ``_svd`` it
applies them to the A and to the B by themselves, so that each A_i also meets every other B_j: "a very rough
approximation" in its own words, 0.65 to 0.83 of the norm off for ``linear`` on two convolutions. Here both names mean
the former; at the rank that PEFT gives the new adapter no factors are closer to the combination. What the rank leaves
out is said in a warning. DoRA is refused: m rescales W too, and no low-rank update does that.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune, task_arithmetic, ties

from audiolora.layers.lora import LoraConv1d

NEEDS_DENSITY = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
TOLERATED = 1e-4
"""Share of the combination's norm that may go missing without a word: what float32 rounds, and a rank to spare."""


def check_combination(
    layers: Mapping[str, LoraConv1d],
    adapters: Sequence[str],
    weights: Sequence[float],
    combination_type: str,
    density: float | None,
) -> None:
    """Raise before anything is changed.

    Args:
        layers: module path → layer.
        adapters, weights, combination_type, density: as PEFT's ``add_weighted_adapter`` takes them.

    Raises:
        ValueError: not one weight an adapter, no density where one is needed, DoRA, or a ``lora_bias`` that the new
            adapter, whose settings are the first one's, would not have.
    """
    _check_numbers(adapters, weights, combination_type, density)
    for path, layer in layers.items():
        present = [name for name in adapters if name in layer.lora_A]
        tucker = [name for name in present if name in layer.lora_core]
        if tucker:
            raise ValueError(
                f"{path}: adapters {tucker} have Tucker factors, and their combination has none; activate all "
                f"with model.base_model.set_adapter({present}), or merge them one after the other"
            )
        dora = [name for name in present if layer.use_dora[name]]
        if dora:
            raise ValueError(
                f"{path}: DoRA adapters {dora} cannot be combined into one low-rank adapter, for their magnitudes "
                f"rescale the base weight too; activate them together with model.base_model.set_adapter({present})"
            )
        with_bias = [name for name in present if layer.lora_bias[name]]
        if with_bias and present[0] not in with_bias:
            raise ValueError(
                f"{path}: lora_bias of {with_bias} would be lost, for the new adapter takes the settings of "
                f"{adapters[0]!r}; name one with lora_bias first"
            )


def _check_numbers(
    adapters: Sequence[str], weights: Sequence[float], combination_type: str, density: float | None
) -> None:
    if len(adapters) != len(weights):
        raise ValueError(f"add_weighted_adapter needs a weight an adapter: {len(adapters)} adapters, weights={weights}")
    if combination_type.removesuffix("_svd") in NEEDS_DENSITY and len(adapters) > 1:
        if density is None or not 0 <= density <= 1:
            raise ValueError(
                f"combination_type={combination_type!r} needs density, the share of values to keep in [0, 1], "
                f"got {density!r}; try density=0.5"
            )


def combine_adapters(
    layers: Mapping[str, LoraConv1d],
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str,
    **options: Any,
) -> None:
    """Fill the factors of ``adapter_name``, which is on these layers already, with the combination of the others.

    Warns where the new adapter's rank is too small for it, naming the module that loses most.

    Args:
        layers: module path → layer.
        adapters, weights, combination_type: as PEFT's ``add_weighted_adapter`` takes them.
        adapter_name: the new adapter.
        options: PEFT's ``density``, ``majority_sign_method``, ``svd_clamp``, ``svd_driver``.
    """
    lost = {
        path: _fill(layer, dict(zip(adapters, weights, strict=True)), adapter_name, combination_type, **options)
        for path, layer in layers.items()
        if adapter_name in layer.lora_A
    }
    worst = max(lost, key=lost.__getitem__, default=None)
    if worst is not None and lost[worst] > TOLERATED:
        warnings.warn(
            f"{worst}: combination_type={combination_type!r} at r={layers[worst].r[adapter_name]} leaves out "
            f"{lost[worst]:.0%} of the combined update's norm; 'cat' is exact, 'svd' and the other *_svd types with a "
            "larger svd_rank are nearer",
            stacklevel=3,
        )


@torch.no_grad()
def _fill(layer: LoraConv1d, weights: dict[str, float], new: str, kind: str, **options: Any) -> float:
    """Returns ‖combination - B·A‖ / ‖combination‖."""
    weights = {name: weight for name, weight in weights.items() if name in layer.lora_A}
    A_new, B_new = layer.lora_A[new].weight, layer.lora_B[new].weight
    work = torch.promote_types(A_new.dtype, torch.float32)
    terms = {name: layer.term(name) for name in weights}
    A = {name: (term.A.to(work) * term.scaling).flatten(1) for name, term in terms.items()}
    B = {name: term.B.to(work).flatten(1) for name, term in terms.items()}
    if kind == "cat" or len(weights) == 1:
        A_all, B_all = torch.cat([A[name] * weights[name] for name in weights]), torch.cat(list(B.values()), dim=1)
        lost = 0.0
    else:
        combined = _combined([B[name] @ A[name] for name in weights], list(weights.values()), kind, **options)
        A_all, B_all = _low_rank(combined, layer.r[new], **options)
        lost = float((combined - B_all @ A_all).norm() / combined.norm().clamp_min(torch.finfo(work).tiny))
    scaling = layer.scaling[new]
    layer.lora_A[new].weight.data = _with_rows(A_all / scaling, layer.r[new]).view(-1, *A_new.shape[1:]).to(A_new)
    layer.lora_B[new].weight.data = _with_rows(B_all.T, layer.r[new]).T.reshape(B_new.shape[0], -1, 1).to(B_new)
    if layer.lora_bias[new]:
        zero = torch.zeros_like(layer.lora_B[new].bias, dtype=work)
        biases = [
            layer.lora_B[name].bias.to(work) * layer.scaling[name] if layer.lora_bias[name] else zero
            for name in weights
        ]
        layer.lora_B[new].bias.copy_(task_arithmetic(biases, zero.new_tensor(list(weights.values()))) / scaling)
    return lost


def _combined(
    updates: list[torch.Tensor],
    weights: list[float],
    kind: str,
    density: float | None = None,
    majority_sign_method: str = "total",
    **_: Any,
) -> torch.Tensor:
    """One update from several, by PEFT's own functions."""
    w = updates[0].new_tensor(weights)
    match kind.removesuffix("_svd"):
        case "svd" | "linear":
            return task_arithmetic(updates, w)
        case "ties":
            return ties(updates, w, density, majority_sign_method)
        case "dare_linear":
            return dare_linear(updates, w, density)
        case "dare_ties":
            return dare_ties(updates, w, density, majority_sign_method)
        case "magnitude_prune":
            return magnitude_prune(updates, w, density)
    raise ValueError(f"combination_type={kind!r} is none of PEFT's")


def _low_rank(
    update: torch.Tensor, r: int, svd_clamp: float | None = None, svd_driver: str | None = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (≤ r, columns) and B (rows, ≤ r) with B·A nearest to the update; clamped as PEFT does it."""
    U, S, Vh = torch.linalg.svd(update, full_matrices=False, driver=svd_driver)
    A, B = Vh[:r], U[:, :r] * S[:r]
    if svd_clamp is not None:
        high = torch.quantile(torch.cat([B.flatten(), A.flatten()]), svd_clamp)
        A, B = A.clamp(-high, high), B.clamp(-high, high)
    return A, B


def _with_rows(matrix: torch.Tensor, rows: int) -> torch.Tensor:
    """Zero rows below: a rank that is not used."""
    return torch.nn.functional.pad(matrix, (0, 0, 0, rows - matrix.shape[0]))
