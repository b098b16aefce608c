"""What a forecaster is trained on: MAE, MSE or Huber of a point forecast, the pinball loss of quantiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

POINT_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mae": F.l1_loss,
    "mse": F.mse_loss,
    "huber": F.huber_loss,
}


def forecast_loss(name: str, quantiles: Sequence[float] = ()) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss of a forecast and its target.

    Args:
        name: ``"mae"``, ``"mse"``, ``"huber"`` (δ = 1); with quantiles it is the pinball loss, whatever the name.
        quantiles: in (0, 1), ascending.

    Returns:
        A function of a forecast (N, horizon) or (N, horizon, Q) and a target (N, horizon), to their mean loss.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> forecast_loss("mae")(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])).item()
        2.0
    """
    if name not in POINT_LOSSES:
        raise ValueError(f"loss must be one of {', '.join(POINT_LOSSES)}, got {name!r}")
    if not quantiles:
        return POINT_LOSSES[name]
    levels = tuple(quantiles)
    return lambda forecast, target: pinball(forecast, target, levels)


def pinball(forecast: torch.Tensor, target: torch.Tensor, quantiles: Sequence[float]) -> torch.Tensor:
    """Mean of max(q·e, (q - 1)·e), e = target - forecast (Koenker and Bassett, 1978).

    Args:
        forecast: (N, horizon, Q).
        target: (N, horizon).
        quantiles: Q levels.

    Example:
        >>> pinball(torch.zeros(1, 1, 2), torch.ones(1, 1), (0.1, 0.9)).item()
        0.5
    """
    q = forecast.new_tensor(quantiles)
    error = target.unsqueeze(-1) - forecast
    return torch.maximum(q * error, (q - 1) * error).mean()
