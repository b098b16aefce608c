"""bf16 and fp16, as the model's own dtype and by autocast: every row, near float64 and in the base's dtype."""

from __future__ import annotations

import pytest
import torch

from tests.layers import test_lora as contract
from tests.layers.convolutions import CELLS, Convolution

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

# A unit roundoff is 2⁻⁸ in bf16 and 2⁻¹¹ in fp16; a dozen roundings one after the other, in the norm of the whole.
TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row, method", CELLS)
def test_under_autocast(row: Convolution, method: str, dtype: torch.dtype) -> None:
    model, x = contract.trained(row, method).float().train(), row.input().float()
    factors = contract.factors_of(contract.trained(row, method))
    expected = contract.reference(row, row.input(), factors, method)
    with torch.autocast("cpu", dtype=dtype):
        y, of_base = model(x), row.model().float()(x)
    assert y.dtype == of_base.dtype
    assert relative_error(y, expected) < TOLERANCE[dtype]
    y.float().square().mean().backward()
    expected.square().mean().backward()
    layer = contract.layer_of(model)
    for name, holder in (("A", layer.lora_A), ("B", layer.lora_B)):
        gradient = holder["default"].weight.grad
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, factors[name].grad) < 3 * TOLERANCE[dtype], name
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        assert relative_error(model(x), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row, method", CELLS)
def test_a_model_in_low_precision(row: Convolution, method: str, dtype: torch.dtype) -> None:
    model, x = contract.trained(row, method).to(dtype).train(), row.input().to(dtype)
    expected = contract.reference(row, row.input(), contract.factors_of(contract.trained(row, method)), method)
    y = model(x)
    assert y.dtype == dtype
    assert relative_error(y, expected) < TOLERANCE[dtype]
    y.float().square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == dtype and g.isfinite().all() for g in gradients)
    with torch.no_grad():
        model.eval().merge_adapter()
        assert relative_error(model(x), expected) < TOLERANCE[dtype]
        model.unmerge_adapter()
    assert contract.layer_of(model).base_tensor().dtype == dtype


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()
