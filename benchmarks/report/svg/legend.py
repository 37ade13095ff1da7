"""What the styles of a plot stand for, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from mpcache.benchmarks.report.svg.style import Style, marker


@dataclass
class Legend:
    """Styles by name, in the order of their first use, the same in every plot of a page."""

    styles: dict[str, Style] = field(default_factory=dict)

    def style(self, name: str) -> Style:
        return self.styles.setdefault(name, Style.of(len(self.styles)))

    def html(self, names: Sequence[str]) -> str:
        items = []
        for name in names:
            style = self.style(name)
            dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
            line = f'<line x1="0" y1="6" x2="26" y2="6" stroke="{style.colour}" stroke-width="2"{dash}/>'
            icon = f'<svg width="26" height="12" aria-hidden="true">{line}{marker(13, 6, style)}</svg>'
            items.append(f"<span>{icon} {escape(name)}</span>")
        return f'<div class="legend">{"".join(items)}</div>'


def keys(names: Sequence[str], styles: Sequence[Style]) -> str:
    """Of stacked bars: a square of each colour with its name."""
    squares = (
        '<span><svg width="12" height="12" aria-hidden="true">'
        f'<rect width="12" height="12" fill="{style.colour}"/></svg> {name}</span>'
        for name, style in zip(names, styles, strict=True)
    )
    return f'<div class="legend">{"".join(squares)}</div>'
