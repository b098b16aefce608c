"""A small network to begin with: pytorch-tcn's causal, dilated convolutions and a linear head on their last step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


class TCNForecaster(nn.Module):
    """A temporal convolutional network (Bai et al., 2018, arXiv 1803.01271): (N, channels_in, L) → (N, horizon).

    Weight-normed residual blocks of two causal convolutions each, from pytorch-tcn. With the defaults an output sees
    341 steps back; about 90,000 parameters at 5 channels and 24 steps.

    Args:
        channels_in: of the input: y, past and known covariates.
        horizon: steps to forecast.
        quantiles: how many quantiles a step; 0 for a point forecast.
        channels: width of every block.
        dilations: one a block.
        kernel_size: of every convolution.
        dropout: in the blocks, in [0, 1).

    Raises:
        ImportError: pytorch-tcn is not installed.

    Example:
        >>> net = TCNForecaster(channels_in=5, horizon=24)
        >>> net(torch.zeros(2, 5, 168)).shape, sum(p.numel() for p in net.parameters())
        (torch.Size([2, 24]), 89944)
    """

    def __init__(
        self,
        channels_in: int,
        horizon: int,
        *,
        quantiles: int = 0,
        channels: int = 64,
        dilations: Sequence[int] = (1, 4, 16, 64),
        kernel_size: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        try:
            from pytorch_tcn import TCN
        except ImportError as error:
            raise ImportError('TCNForecaster needs pytorch-tcn; pip install "audiolora[series]"') from error
        self.horizon, self.quantiles = horizon, quantiles
        self.settings = {"channels_in": channels_in, "horizon": horizon, "quantiles": quantiles, "channels": channels,
                         "dilations": list(dilations), "kernel_size": kernel_size, "dropout": dropout}  # fmt: skip
        self.tcn = TCN(
            channels_in,
            [channels] * len(dilations),
            kernel_size=kernel_size,
            dilations=list(dilations),
            dropout=dropout,
        )
        self.head = nn.Linear(channels, horizon * max(1, quantiles))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, channels_in, L) → (N, horizon), or (N, horizon, quantiles)."""
        y = self.head(self.tcn(x)[..., -1])
        return y.view(len(x), self.horizon, self.quantiles) if self.quantiles else y

    def at_every_step(self, x: torch.Tensor) -> torch.Tensor:
        """What `forward` would forecast at each step: (N, horizon · max(1, quantiles), L); see `series.streaming`.

        Example:
            >>> from audiolora.series.streaming import Stream
            >>> net = TCNForecaster(1, 24, channels=8).eval()
            >>> stream = Stream(net, channels=1, forward=net.at_every_step)
        """
        return self.head(self.tcn(x).mT).mT


def base_network(settings: Mapping[str, Any]) -> TCNForecaster:
    """The base of a recipe's run, with weights drawn from its seed: y and the calendar in, ``horizon`` steps out.

    Args:
        settings: of the run: ``horizon``, ``channels``, ``seed``.

    Example:
        >>> base_network({"horizon": 24, "channels": 8, "seed": 0}).horizon
        24
    """
    from audiolora.series.calendar import CALENDAR

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return TCNForecaster(1 + len(CALENDAR), settings["horizon"], channels=settings["channels"])
