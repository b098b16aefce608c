"""The charts of a series report: models beside one another, devices, and forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from audiolora.report.drawing import AFTER, BEFORE, INK, MUTED, RULE, inline_svg, styled_figure

if TYPE_CHECKING:
    from markupsafe import Markup

    from audiolora.report.series import DeviceForecast, ModelRow


def model_chart(rows: Sequence[ModelRow], chosen: str) -> Markup:
    """MASE of each model with its interval; a method that trains has a second, hollow mark: with fallback."""
    with styled_figure(10.4, 0.7 + 0.33 * len(rows)) as (figure, axes):
        for y, row in enumerate(rows):
            colour = BEFORE if y == 0 else AFTER if row.model == chosen else MUTED
            spread = [[max(0.0, row.mase - row.low)], [max(0.0, row.high - row.mase)]]
            axes.errorbar(row.mase, y, xerr=spread, color=colour, fmt="o", markersize=6, capsize=2.5, elinewidth=1.2)
            axes.annotate(f"{row.mase:.3f}", (row.mase, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
            if row.fallback is not None:
                axes.plot(row.fallback, y, "o", markersize=10, markerfacecolor="none", color=colour)
        axes.axvline(rows[0].mase, color=BEFORE, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
        axes.set_yticks(range(len(rows)), [row.model for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.8)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
        axes.set_xlabel("MASE, lower is better")
        described = "; ".join(f"{row.model} {row.mase:.3f}" for row in rows)
        return inline_svg(figure, "models", f"MASE of each model. {described}.")


def device_chart(devices: Sequence[tuple[str, float, float, str]]) -> Markup:
    """Each device's MASE by the base and by its own adapter, joined by a line; the largest gain on top."""
    ordered = sorted(devices, key=lambda device: device[2] / device[1])
    shown = ordered if len(ordered) <= 40 else [*ordered[:20], *ordered[-20:]]
    with styled_figure(5.4, 0.8 + 0.3 * len(shown)) as (figure, axes):
        for y, (_, before, after, _) in enumerate(shown):
            axes.plot([before, after], [y, y], color=RULE, linewidth=2, zorder=1)
            axes.plot(before, y, "o", color=BEFORE, markersize=6, zorder=2)
            axes.plot(after, y, "o", color=AFTER, markersize=6, zorder=3)
        names = [name for name, *_ in shown]
        axes.set_yticks(range(len(shown)), [name if len(name) <= 28 else f"{name[:26]}…" for name in names])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
        axes.set_xlabel("MASE")
        better = sum(after < before for _, before, after, _ in devices)
        return inline_svg(figure, "devices", f"MASE by device: {better} of {len(devices)} devices are forecast better.")


def forecast_chart(panels: Sequence[DeviceForecast], method: str) -> Markup:
    """Measured values and both forecasts, a panel a device on one axis of hours around the cutoff."""
    with styled_figure(10.4, 0.6 + 1.9 * len(panels), rows=len(panels)) as (figure, axes):
        for ax, panel in zip(axes, panels, strict=True):
            ax.plot(panel.past_h, panel.past, color=MUTED, linewidth=1)
            ax.plot(panel.ahead_h, panel.y, color=INK, linewidth=1.4, label="measured")
            ax.plot(panel.ahead_h, panel.before, color=BEFORE, linewidth=1.4, linestyle=(0, (4, 2)), label="base")
            ax.plot(panel.ahead_h, panel.after, color=AFTER, linewidth=1.8, label=method)
            ax.axvline(0, color=RULE, linewidth=1)
            ax.set_title(f"{panel.unique_id}: {panel.caption}", loc="left", color=INK)
            ax.grid(axis="y", color=RULE, linewidth=0.7)
        axes[0].legend(frameon=False, labelcolor=INK, loc="upper left", ncols=3)
        axes[-1].set_xlabel("hours from the cutoff")
        named = ", ".join(panel.unique_id for panel in panels)
        return inline_svg(figure, "forecasts", f"Measured values and forecasts of {named}.")
