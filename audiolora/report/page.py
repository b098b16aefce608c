"""The page that every report shares: templates, formatting of numbers, and the rule that text is always escaped.

`templates/base.html.j2` holds the frame (head, header, navigation, settings, footer) with a block for each part;
`macros.html.j2` the figure, table and player; `style.html.j2` the typography and both colour schemes.
A report of another kind extends the base and fills its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"


@dataclass(frozen=True)
class Snippet:
    """A piece of code to show: what it does, and its lines.

    Example:
        >>> Snippet("Transcribe", "audiolora transcribe clip.wav --adapter runs/demo").title
        'Transcribe'
    """

    title: str
    code: str


def percent(value: float | None) -> str:
    """A percentage with one decimal (none from 1000 up), the sign after a narrow space; an en dash for None.

    Example:
        >>> percent(7.94) == "7.9" + NARROW_SPACE + "%"
        True
    """
    if value is None:
        return "–"
    digits = f"{value:.1f}" if abs(value) < 1000 else count(round(value))
    return f"{digits}{NARROW_SPACE}%"


def count(value: int) -> str:
    """A whole number, thousands apart.

    Example:
        >>> count(1234) == "1" + NARROW_SPACE + "234"
        True
    """
    return f"{value:,}".replace(",", NARROW_SPACE)


def duration(seconds: float) -> str:
    """A duration in seconds with one decimal."""
    return f"{seconds:.1f}{NARROW_SPACE}s"


def render_page(template: str, **context: Any) -> str:
    """Render a template of this package; every value is escaped unless it is a `markupsafe.Markup`.

    Args:
        template: file name under `templates/`.
        context: what the template names; a name it needs and does not get is an error, not an empty string.

    Returns:
        The whole page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("audiolora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, count=count, duration=duration)
    return environment.get_template(template).render(**context)
