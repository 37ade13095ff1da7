"""Line plots."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mpcache.benchmarks.report.svg.axis import Axis
from mpcache.benchmarks.report.svg.frame import Frame, Series
from mpcache.benchmarks.report.svg.style import marker

ASIDE = 1.2
"""Between neighbouring series: sixteen stay well within the space from one length to the next."""


def line_plot(series: Sequence[Series], x: Axis, y: Axis, height: int = 280) -> str:
    """Lines through each series' points. Where points have error bars, series stand side by side, so that bars of the
    same x do not cover each other."""
    frame = Frame(series, x, y, height)
    barred = any(p.low is not None for one in series for p in one.points)
    aside = {one.name: (i - (len(series) - 1) / 2) * ASIDE if barred else 0.0 for i, one in enumerate(series)}
    for one in sorted(series, key=lambda one: one.strong):
        places = [(frame.x(p.x) + aside[one.name], frame.y(p.y)) for p in one.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        dash = f' stroke-dasharray="{one.style.dash}"' if one.style.dash else ""
        stroke = f'stroke="{one.style.colour}" stroke-width="{3 if one.strong else 1.3}"{dash}'
        frame.add(f'<polyline points="{path}" fill="none" {stroke}/>')
        for point, (a, b) in zip(one.points, places, strict=True):
            frame.error_bar(point, a, one.style)
            title = f"{escape(one.name)}: {x.show(point.x)}, {y.show(point.y)}"
            frame.add(f"<g>{marker(a, b, one.style)}<title>{title}</title></g>")
    return frame.text()
