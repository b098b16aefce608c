"""The charts of a speech report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from audiolora.report.drawing import AFTER, BEFORE, INK, RULE, inline_svg, styled_figure
from audiolora.report.page import count
from audiolora.speech.texts.metrics import ErrorRates

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup
    from matplotlib.axes import Axes

# Whisper's own front end: 25 ms windows every 10 ms, 80 mel bands, dynamic range of 80 dB.
_N_FFT, _HOP, _N_MELS, _RANGE_DB = 400, 160, 80, 80.0
_LOG_SCALE_RATIO = 30.0  # a loss that falls further than this is unreadable on a linear axis


def error_rate_chart(rows: Sequence[tuple[str, ErrorRates]]) -> Markup:
    """Word and character error rate of each row (the first is the model before) with its confidence interval."""
    with styled_figure(5.4, 0.62 + 0.44 * 2 * len(rows)) as (figure, axes):
        ticks, labels = [], []
        for group, (name, attribute) in enumerate((("WER", "wer"), ("CER", "cer"))):
            for i, (label, rates) in enumerate(rows):
                rate, y = getattr(rates, attribute), group * (len(rows) + 0.5) + i
                axes.barh(y, rate.value, height=0.56, color=_role(i), zorder=2)
                # max(): a percentile interval of a skewed sample need not hold the estimate itself.
                spread = [[max(0.0, rate.value - rate.low)], [max(0.0, rate.high - rate.value)]]
                axes.errorbar(rate.value, y, xerr=spread, color=INK, capsize=2.5, elinewidth=1, capthick=1, zorder=3)
                end = max(rate.high, rate.value)
                axes.annotate(f"{rate.value:.1f}", (end, y), (6, 0), textcoords="offset points", va="center")
                ticks.append(y)
                labels.append(f"{name}  {label}")
        axes.set_yticks(ticks, labels)
        _bar_axes(axes, "percent")
        description = "; ".join(
            f"{label}: word error rate {rates.wer.value:.1f} %, character error rate {rates.cer.value:.1f} %"
            for label, rates in rows
        )
        return inline_svg(figure, "rates", f"Error rates. {description}.")


def edit_chart(rows: Sequence[tuple[str, ErrorRates]]) -> Markup:
    """Substituted, inserted and deleted words of each row."""
    kinds = ("substitutions", "insertions", "deletions")
    with styled_figure(5.4, 0.62 + 0.3 * 3 * len(rows)) as (figure, axes):
        ticks = []
        for group, kind in enumerate(kinds):
            top = group * (len(rows) + 0.6)
            for i, (_, rates) in enumerate(rows):
                words = getattr(rates, kind)
                axes.barh(top + i, words, height=0.72, color=_role(i), zorder=2)
                axes.annotate(count(words), (words, top + i), (5, 0), textcoords="offset points", va="center")
            ticks.append(top + (len(rows) - 1) / 2)
        axes.set_yticks(ticks, kinds)
        _bar_axes(axes, "words")
        description = "; ".join(
            f"{label}: {rates.substitutions} substitutions, {rates.insertions} insertions, {rates.deletions} deletions"
            for label, rates in rows
        )
        return inline_svg(figure, "edits", f"Word errors by kind. {description}.")


def loss_chart(
    train: Sequence[tuple[int, float]],
    dev: Sequence[tuple[int, float]],
    *,
    step: str = "optimiser step",
    loss: str = "loss, nats",
) -> Markup:
    """Loss over steps: training as a line, development with a marker at each evaluation.

    A value that is not finite breaks its line. `step` and `loss` name the axes.
    """
    with styled_figure(10.4, 2.7) as (figure, axes):
        if train:
            axes.plot(*zip(*train, strict=True), color=BEFORE, linewidth=1.3, label="training")
        if dev:
            axes.plot(
                *zip(*dev, strict=True), color=AFTER, linewidth=1.8, marker="o", markersize=4, label="development"
            )
        finite = [value for _, value in (*train, *dev) if math.isfinite(value)]
        if finite and min(finite) > 0 and max(finite) / min(finite) > _LOG_SCALE_RATIO:
            from matplotlib.ticker import LogFormatter, NullFormatter

            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(step)
        axes.set_ylabel(loss)
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.legend(frameon=False, labelcolor=INK, loc="upper right")
        last = f" The last development loss is {dev[-1][1]:.3g} at step {dev[-1][0]}." if dev else ""
        return inline_svg(
            figure, "loss", f"Loss curve over {max((s for s, _ in (*train, *dev)), default=0)} steps.{last}"
        )


def log_mel_chart(panels: Sequence[tuple[str, np.ndarray]], sample_rate_hz: int) -> Markup:
    """Log-mel spectrograms above one another on one time axis and one dB scale.

    Args:
        panels: (title, audio (L,) float) from the top down.
        sample_rate_hz: of every panel.
    """
    import librosa
    import numpy as np

    longest = max(len(audio) for _, audio in panels) / sample_rate_hz
    with styled_figure(10.4, 0.7 + 1.95 * len(panels), rows=len(panels)) as (figure, axes):
        for ax, (title, audio) in zip(axes, panels, strict=True):
            power = librosa.feature.melspectrogram(
                y=np.asarray(audio, dtype=np.float32), sr=sample_rate_hz, n_fft=_N_FFT, hop_length=_HOP, n_mels=_N_MELS
            )
            decibels = librosa.power_to_db(power, ref=np.max, top_db=_RANGE_DB)
            mesh: Any = librosa.display.specshow(
                decibels,
                sr=sample_rate_hz,
                hop_length=_HOP,
                x_axis="time",
                y_axis="mel",
                cmap="magma",
                vmin=-_RANGE_DB,
                vmax=0,
                ax=ax,
                rasterized=True,  # as vectors, 80 bands × 500 frames would be 40 000 paths
            )
            ax.set_title(title, loc="left", color=INK)
            ax.set(xlim=(0, longest), xlabel="", ylabel="Hz", yticks=[256, 1024, 2048, 4096])
            ax.label_outer()
        axes[-1].set_xlabel("seconds")
        bar = figure.colorbar(mesh, ax=list(axes), pad=0.015, aspect=12 * len(panels), format="%d dB")
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(True)
        titles = " and ".join(title for title, _ in panels)
        return inline_svg(figure, "mel", f"Log-mel spectrograms of one utterance: {titles}.")


def _role(row: int) -> str:
    return BEFORE if row == 0 else AFTER


def _bar_axes(axes: Axes, unit: str) -> None:
    """The first bar on top, no frame, labels in full ink, room for the figure at the end of the longest bar."""
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="x", color=RULE, linewidth=0.7, zorder=0)
    axes.set_xlim(0, max(1.0, axes.dataLim.xmax) * 1.14)
    axes.set_xlabel(unit)
