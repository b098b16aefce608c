"""The charts of a fleet's report: what the adapters changed device by device, and their validation loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from audiolora.report.drawing import AFTER, BEFORE, MUTED, RULE, inline_svg, styled_figure

if TYPE_CHECKING:
    from markupsafe import Markup


def change_chart(devices: Sequence[Mapping[str, Any]]) -> Markup:
    """The relative change of MASE of every device with an adapter and a score, in order, best first."""
    change = sorted(100 * one["change"] for one in devices if one["outcome"] in ("gained", "lost"))
    with styled_figure(10.4, 2.9) as (figure, axes):
        colours = [AFTER if value < 0 else BEFORE for value in change]
        axes.bar(range(len(change)), change, width=0.82, color=colours, zorder=2)
        axes.axhline(0, color=RULE, linewidth=1)
        axes.grid(axis="y", color=RULE, linewidth=0.7, zorder=0)
        axes.set(xticks=[], xlabel="devices with an adapter, best first", ylabel="change of MASE, %")
        better = sum(value < 0 for value in change)
        said = f"{better} of {len(change)} devices have a lower MASE with their adapter"
        return inline_svg(figure, "change", f"Change of MASE by device. {said}.")


def scatter_chart(devices: Sequence[Mapping[str, Any]]) -> Markup:
    """MASE of the base and with the adapter, a dot a device; below the line the adapter is better."""
    scored = [one for one in devices if one["zero_shot"] is not None and one["adapted"] is not None]
    with styled_figure(5.4, 4.2) as (figure, axes):
        ends = [0.0, 1.05 * max([1.0, *(one[k] for one in scored for k in ("zero_shot", "adapted"))])]
        axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        for outcome, colour in (("fell back", MUTED), ("lost", BEFORE), ("gained", AFTER)):
            some = [(one["zero_shot"], one["adapted"]) for one in scored if one["outcome"] == outcome]
            if some:
                axes.scatter(*zip(*some, strict=True), s=16, color=colour, label=outcome, zorder=2)
        axes.set(xlim=ends, ylim=ends, xlabel="MASE, base", ylabel="MASE, adapted or base")
        axes.grid(color=RULE, linewidth=0.7, zorder=0)
        axes.legend(frameon=False, loc="upper left")
        return inline_svg(figure, "scatter", f"MASE before and after of {len(scored)} devices.")


def validation_chart(curves: Sequence[Sequence[float]]) -> Markup:
    """The best validation loss so far as a share of the base's: median and quartiles over devices, by validation.

    Args:
        curves: a device each, the losses of its validations, the base's first.
    """
    longest = max(len(curve) for curve in curves)
    table = np.full((len(curves), longest), np.nan)
    for row, curve in enumerate(curves):
        best = np.fmin.accumulate(np.asarray(curve, np.float64)) / curve[0]
        table[row, : len(best)], table[row, len(best) :] = 100 * best, 100 * best[-1]
    with styled_figure(5.4, 4.2) as (figure, axes):
        low, median, high = np.nanquantile(table, (0.25, 0.5, 0.75), axis=0)
        axes.fill_between(range(longest), low, high, color=AFTER, alpha=0.22, linewidth=0, label="half of the devices")
        axes.plot(range(longest), median, color=AFTER, linewidth=1.8, label="median device")
        axes.set(xlabel="epoch", ylabel="validation loss, % of the base's")
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.legend(frameon=False)
        said = f"the median device ends at {median[-1]:.1f} % of the base's loss"
        return inline_svg(figure, "validation", f"Validation loss over epochs; {said}.")
