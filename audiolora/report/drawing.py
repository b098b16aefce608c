"""What every chart is drawn with: inline SVG whose colours are CSS variables, so that one drawing fits both schemes.

matplotlib draws with a sentinel colour for each role; the sentinels are then replaced by `var(--role)`. No pyplot, no
global state: a Figure, its own canvas, and rcParams inside a context.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

# Sentinel → CSS variable of templates/style.html.j2. Any six digits do that no colour map of ours draws as a vector.
INK, MUTED, RULE, BEFORE, AFTER = "#010203", "#010204", "#010205", "#010206", "#010207"
_CSS_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", BEFORE: "--before", AFTER: "--after"}


@contextmanager
def styled_figure(width_in: float, height_in: float, *, rows: int | None = None) -> Iterator[tuple[Figure, Any]]:
    """A styled figure and its axes (an array of `rows` axes that share x where `rows` is given)."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9.5,
        "font.family": "sans-serif",
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": RULE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "svg.fonttype": "none",  # text stays text: the page's font, selectable, and its colour follows the scheme
        "svg.hashsalt": "audiolora",  # the same figures give the same bytes
        "savefig.dpi": 160,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes: Any = figure.subplots() if rows is None else figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        for ax in [axes] if rows is None else axes:
            ax.patch.set_alpha(0)
        yield figure, axes


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as inline SVG. `name` prefixes its ids, which must be unique in the page."""
    from markupsafe import Markup, escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    root, rest = drawing.split(">", 1)
    # The page sets the size, HTML the namespaces.
    drawing = re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", root) + ">" + rest
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r'href="#', f'href="#{name}-', drawing)
    drawing = drawing.replace("url(#", f"url(#{name}-")
    for sentinel, variable in _CSS_VARIABLES.items():
        drawing = drawing.replace(sentinel, f"var({variable})")
    label = escape(description)
    return Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip())
