"""Losses against torch and against scikit-learn's pinball loss."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import mean_pinball_loss
from torch import nn

from audiolora.series.losses import forecast_loss, pinball

REFERENCES = {"mae": nn.L1Loss(), "mse": nn.MSELoss(), "huber": nn.HuberLoss()}


@pytest.mark.parametrize("name", REFERENCES)
def test_point_losses_by_name(name):
    torch.manual_seed(0)
    forecast, target = 3 * torch.randn(2, 4, 6)
    assert torch.equal(forecast_loss(name)(forecast, target), REFERENCES[name](forecast, target))


def test_the_pinball_loss_is_that_of_scikit_learn():
    torch.manual_seed(0)
    levels = (0.1, 0.5, 0.8)
    forecast, target = torch.randn(5, 6, 3, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    wanted = [mean_pinball_loss(target.flatten(), forecast[..., i].flatten(), alpha=q) for i, q in enumerate(levels)]
    assert forecast_loss("mae", levels)(forecast, target).item() == pytest.approx(sum(wanted) / 3)
    assert torch.autograd.gradcheck(lambda f: pinball(f, target, levels), forecast.requires_grad_())


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss must be one of mae, mse, huber, got 'rmse'"):
        forecast_loss("rmse")
